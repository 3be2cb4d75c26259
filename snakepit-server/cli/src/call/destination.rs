//! The destination of `--output`. A file is replaced when its whole content is written, so no failure destroys the old one.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, fchown},
    path::{Path, PathBuf},
    time::SystemTime,
};

use snakepit_server::Reason;

use crate::{Failure, output};

/// The destination of `--output`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Destination {
    Stdout,
    File(PathBuf),
}

impl Destination {
    /// Parses the value of `--output`. A missing directory is reported before the tool runs.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text == "-" {
            return Ok(Self::Stdout);
        }
        let path = PathBuf::from(text);
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        if path.is_dir() {
            return Err("it is a directory; name a file".to_owned());
        }
        match parent {
            Some(parent) if !parent.is_dir() => {
                Err(format!("the directory {} does not exist", parent.display()))
            }
            _ => Ok(Self::File(path)),
        }
    }

    /// Opens the destination. An existing file stays unchanged until [`Writer::finish`].
    pub(super) fn open(&self) -> Result<Writer, Failure> {
        match self {
            Self::Stdout => Ok(Writer::Stdout),
            Self::File(path) => {
                let name = path.display().to_string();
                match Target::open(path) {
                    Ok(target) => Ok(Writer::File { target, name }),
                    Err(error) => Err(not_written(&name, &error)),
                }
            }
        }
    }

    /// Whether the destination is a file that a new one replaces, and not a device or a pipe, whose writes may block.
    pub(super) fn is_replaced(&self) -> bool {
        match self {
            Self::Stdout => false,
            Self::File(path) => fs::metadata(path).map_or(true, |metadata| metadata.is_file()),
        }
    }

    /// Whether the destination is a file for a numpy array.
    pub(super) fn is_npy(&self) -> bool {
        matches!(self, Self::File(path) if path.extension().is_some_and(|end| end == "npy"))
    }
}

fn not_written(name: &str, error: &io::Error) -> Failure {
    Failure::new(Reason::OutputFailed, format!("cannot write the result to {name}: {error}"))
}

/// An open destination.
pub(super) enum Writer {
    Stdout,
    File { target: Target, name: String },
}

impl Writer {
    pub(super) fn write(&mut self, content: &[u8]) -> Result<(), Failure> {
        match self {
            Self::Stdout => output::write(|stdout| stdout.write_all(content)),
            Self::File { target, name } => {
                target.file.write_all(content).map_err(|error| not_written(name, &error))
            }
        }
    }

    /// Replaces the file by its new content. Without this call, the file keeps its content.
    pub(super) fn finish(self) -> Result<(), Failure> {
        match self {
            Self::Stdout => Ok(()),
            Self::File { target, name } => target.replace().map_err(|error| not_written(&name, &error)),
        }
    }
}

/// A file that is being written.
pub(super) struct Target {
    file: File,
    /// The temporary file, and the file that it replaces. `None` for devices, pipes, files with several names, and files whose owner
    /// a new file cannot have. They are written directly.
    replacement: Option<Replacement>,
}

/// A temporary file, which is removed unless it replaces its target.
struct Replacement {
    temporary: PathBuf,
    target: PathBuf,
    is_done: bool,
}

impl Target {
    fn open(path: &Path) -> io::Result<Self> {
        // A symbolic link stays one, even if its target does not exist yet.
        let path = match fs::canonicalize(path) {
            Ok(path) => path,
            Err(_) if path.is_symlink() => {
                let file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
                return Ok(Self { file, replacement: None });
            }
            Err(_) => path.to_owned(),
        };
        // Fails for files that the user has write-protected.
        let existing = match OpenOptions::new().write(true).open(&path) {
            Ok(file) => {
                let metadata = file.metadata()?;
                if !metadata.is_file() || metadata.nlink() > 1 {
                    return Self::truncate(file, &metadata);
                }
                Some((file, metadata))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
        let temporary = path.with_file_name(format!(".snakepit-{}-{nanos:x}.tmp", std::process::id()));
        // Other users must not read the new content if they could not read the old one.
        let mode = if existing.is_some() { 0o600 } else { 0o666 };
        let created = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary);
        let file = match (created, existing) {
            (Ok(file), None) => file,
            (Ok(file), Some((old, metadata))) => {
                if let Err(error) = take_over(&file, &metadata) {
                    fs::remove_file(&temporary)?;
                    // The file belongs to another user or group.
                    return match error.kind() {
                        ErrorKind::PermissionDenied => Self::truncate(old, &metadata),
                        _ => Err(error),
                    };
                }
                file
            }
            // The directory takes no new files.
            (Err(error), Some((file, metadata))) if error.kind() == ErrorKind::PermissionDenied => {
                return Self::truncate(file, &metadata);
            }
            (Err(error), _) => return Err(error),
        };
        Ok(Self { file, replacement: Some(Replacement { temporary, target: path, is_done: false }) })
    }

    fn truncate(file: File, metadata: &fs::Metadata) -> io::Result<Self> {
        if metadata.is_file() {
            file.set_len(0)?;
        }
        Ok(Self { file, replacement: None })
    }

    fn replace(self) -> io::Result<()> {
        let Some(mut replacement) = self.replacement else { return Ok(()) };
        // File systems may report a full disk only now.
        self.file.sync_all()?;
        fs::rename(&replacement.temporary, &replacement.target)?;
        replacement.is_done = true;
        Ok(())
    }
}

/// Gives a new file the owner, the group and the permissions of the file that it replaces.
fn take_over(file: &File, old: &fs::Metadata) -> io::Result<()> {
    let new = file.metadata()?;
    if (new.uid(), new.gid()) != (old.uid(), old.gid()) {
        fchown(file, Some(old.uid()), Some(old.gid()))?;
    }
    file.set_permissions(old.permissions())
}

impl Drop for Replacement {
    fn drop(&mut self) {
        if !self.is_done {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn write(path: &Path, content: &[u8]) -> Writer {
        let mut writer = Destination::File(path.to_owned()).open().unwrap();
        writer.write(content).unwrap();
        writer
    }

    #[test]
    fn a_file_is_replaced_only_by_its_whole_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("result");
        write(&path, b"new").finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        drop(write(&path, b"half"));
        assert_eq!(fs::read(&path).unwrap(), b"new");
        write(&path, b"newer").finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"newer");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn links_stay_and_devices_are_written_directly() {
        let dir = tempfile::tempdir().unwrap();
        let [path, symbolic, hard] = ["result", "symbolic", "hard"].map(|name| dir.path().join(name));
        fs::write(&path, b"old content").unwrap();
        std::os::unix::fs::symlink(&path, &symbolic).unwrap();
        write(&symbolic, b"1").finish().unwrap();
        assert!(fs::symlink_metadata(&symbolic).unwrap().is_symlink());
        assert_eq!(fs::read(&path).unwrap(), b"1");
        let dangling = dir.path().join("dangling");
        std::os::unix::fs::symlink(dir.path().join("absent"), &dangling).unwrap();
        write(&dangling, b"5").finish().unwrap();
        assert_eq!(fs::read(dir.path().join("absent")).unwrap(), b"5");
        fs::hard_link(&path, &hard).unwrap();
        write(&hard, b"2").finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"2");
        write(Path::new("/dev/null"), b"3").finish().unwrap();
        let full = Destination::File("/dev/full".into()).open().unwrap().write(b"4").unwrap_err();
        assert!(full.message.starts_with("cannot write the result to /dev/full: No space left"), "{full}");
    }
}
