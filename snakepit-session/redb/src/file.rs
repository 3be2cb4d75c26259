//! Checks before a commit that the path still leads to the open file, and that the disk has space.

use std::{fs, io, path::Path};

/// The free disk space that a commit needs in addition to twice its size, in bytes.
#[cfg(unix)]
const MIN_FREE_BYTES: u64 = 1024 * 1024;

/// The identity of a file: device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileIdentity {
    #[cfg(unix)]
    inode: (u64, u64),
}

impl FileIdentity {
    pub(super) fn of(metadata: &fs::Metadata) -> Self {
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            Self { inode: (metadata.dev(), metadata.ino()) }
        }
        #[cfg(not(unix))]
        {
            let _ = metadata;
            Self {}
        }
    }

    /// Checks whether the path leads to the open file. Writes to a deleted file would be lost.
    pub(super) fn check(self, path: &Path) -> Result<fs::Metadata, String> {
        match fs::metadata(path) {
            Ok(metadata) if Self::of(&metadata) == self => Ok(metadata),
            Ok(_) => Err("it was replaced while it was in use".to_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err("it was deleted while it was in use".to_owned())
            }
            Err(error) => Err(format!("it can no longer be accessed: {error}")),
        }
        .map_err(|problem| {
            format!("{problem}, so nothing can be written; restore the file, or restart the host to create a new one")
        })
    }
}

/// Checks whether the disk has space for a commit that adds about `added_bytes` to a file with `stored_bytes` of data. The commit
/// proceeds if the free space is unknown. Deletions always proceed, because they need no more space than the file has.
pub(super) fn check_free_space(
    path: &Path,
    file: &fs::Metadata,
    stored_bytes: usize,
    added_bytes: usize,
) -> Result<(), String> {
    #[cfg(unix)]
    if added_bytes > 0 {
        use std::os::unix::fs::MetadataExt;

        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let Ok(disk) = nix::sys::statvfs::statvfs(directory.unwrap_or(Path::new("."))) else { return Ok(()) };
        #[allow(clippy::useless_conversion, reason = "the types differ between platforms")]
        let free = u64::from(disk.blocks_available()).saturating_mul(disk.fragment_size().into());
        let needed = MIN_FREE_BYTES.saturating_add(2 * added_bytes as u64);
        // A file that once contained more data has free space inside.
        let reusable = (file.blocks() * 512).saturating_sub(2 * stored_bytes as u64);
        if free < needed && reusable < 2 * needed {
            return Err(format!(
                "the disk is almost full: {free} bytes are free, and the write needs {needed}; nothing was written; \
                 writes succeed again once enough space is free"
            ));
        }
    }
    #[cfg(not(unix))]
    let _ = (path, file, stored_bytes, added_bytes);
    Ok(())
}
