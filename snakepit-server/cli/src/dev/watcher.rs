//! Watches Python files by polling their modification times and sizes. Polling needs no dependency, and works in containers and on
//! network file systems, which do not deliver inotify events.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use tokio::time::sleep;

/// The polling interval.
const INTERVAL: Duration = Duration::from_millis(200);
/// The maximum debounce delay: further changes delay the report of the first one, for example while git writes files.
const MAX_DELAY: Duration = Duration::from_secs(2);
/// The maximum number of watched files.
const MAX_FILES: usize = 10_000;
/// The maximum depth of directories.
const MAX_DEPTH: usize = 16;
/// The directories that the watcher skips in addition to hidden ones, because tools create them.
const SKIPPED: [&str; 6] = ["__pycache__", "node_modules", "venv", "site-packages", "target", "build"];

/// The time and the size of each file.
type Files = BTreeMap<PathBuf, (SystemTime, u64)>;

/// Finds changes of Python files below some directories.
#[derive(Debug)]
pub(super) struct Watcher {
    directories: Vec<PathBuf>,
    files: Files,
}

impl Watcher {
    pub(super) fn new(directories: Vec<PathBuf>) -> Self {
        let files = scan(&directories);
        Self { directories, files }
    }

    /// Waits until files were created, changed or removed, and returns their paths. Cancel safe.
    pub(super) async fn changed(&mut self) -> Vec<PathBuf> {
        loop {
            sleep(INTERVAL).await;
            let mut files = scan(&self.directories);
            if files == self.files {
                continue;
            }
            let scans = MAX_DELAY.as_millis() / INTERVAL.as_millis();
            for _ in 0..scans {
                sleep(INTERVAL).await;
                let again = scan(&self.directories);
                if std::mem::replace(&mut files, again) == files {
                    break;
                }
            }
            let changed = differences(&self.files, &files);
            self.files = files;
            if !changed.is_empty() {
                return changed;
            }
        }
    }
}

fn differences(before: &Files, after: &Files) -> Vec<PathBuf> {
    let removed = before.keys().filter(|path| !after.contains_key(*path));
    let changed =
        after.iter().filter(|(path, state)| before.get(*path) != Some(*state)).map(|(path, _)| path);
    changed.chain(removed).cloned().collect()
}

fn scan(directories: &[PathBuf]) -> Files {
    let mut files = Files::new();
    for dir in directories {
        add_files(dir, 0, &mut files);
    }
    files
}

/// Adds the Python files in a directory. Ignores errors, because files may disappear during the scan.
fn add_files(dir: &Path, depth: usize, files: &mut Files) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        if files.len() >= MAX_FILES {
            return;
        }
        let (path, name) = (entry.path(), entry.file_name());
        let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else { continue };
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            // `pyvenv.cfg` marks a virtual environment.
            if depth < MAX_DEPTH && !SKIPPED.contains(&name) && !path.join("pyvenv.cfg").exists() {
                add_files(&path, depth + 1, files);
            }
        } else if name.ends_with(".py")
            && let Ok(metadata) = fs::metadata(&path)
        {
            files.insert(path, (metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH), metadata.len()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn changes_of_python_files_are_reported_together() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            path
        };
        for name in ["a.py", "deep/b.py", ".venv/c.py", "env/pyvenv.cfg", "env/d.py", "notes.txt"] {
            fs::write(path(name), "1").unwrap();
        }
        let mut watcher = Watcher::new(vec![dir.path().to_owned()]);
        assert_eq!(watcher.files.len(), 2, "{:?}", watcher.files);
        fs::write(path("a.py"), "longer").unwrap();
        fs::remove_file(path("deep/b.py")).unwrap();
        fs::write(path("deep/new.py"), "").unwrap();
        for name in [".venv/c.py", "env/d.py", "notes.txt"] {
            fs::write(path(name), "longer").unwrap();
        }
        let changed = watcher.changed().await;
        assert_eq!(changed, [path("a.py"), path("deep/new.py"), path("deep/b.py")]);
        let none = tokio::time::timeout(INTERVAL * 3, watcher.changed()).await;
        assert!(none.is_err(), "{none:?}");
    }
}
