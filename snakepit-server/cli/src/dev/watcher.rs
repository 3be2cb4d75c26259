//! Watches Python files by polling their modification times and sizes. Polling needs no dependency, and works in containers and on
//! network file systems, which do not deliver inotify events.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, SystemTime},
};

use tokio::sync::mpsc;

/// The polling interval.
const INTERVAL: Duration = Duration::from_millis(200);
/// The maximum debounce delay: further changes delay the report of the first one, for example while git writes files.
const MAX_DELAY: Duration = Duration::from_secs(2);
/// The maximum number of watched files.
const MAX_FILES: usize = 10_000;
/// The maximum depth of directories.
const MAX_DEPTH: usize = 16;
/// The directories that the watcher skips in addition to hidden ones, because tools create them, or because adapters do not
/// import from them.
const SKIPPED: [&str; 8] =
    ["__pycache__", "node_modules", "venv", "site-packages", "target", "build", "tests", "test"];

/// The time and the size of each file.
type Files = BTreeMap<PathBuf, (SystemTime, u64)>;

/// Finds changes to Python files in some directory trees, on a separate thread.
#[derive(Debug)]
pub(super) struct Watcher {
    changes: mpsc::Receiver<Vec<PathBuf>>,
}

impl Watcher {
    /// Records the current files, and begins to watch. Skips tests, except the file of the adapter.
    pub(super) fn start(directories: Vec<PathBuf>, adapter: Option<PathBuf>) -> io::Result<Self> {
        let (sender, changes) = mpsc::channel(1);
        let mut scanner = Scanner { directories, adapter, files: Files::new() };
        // The first scan precedes the load of any code, so that no change is missed.
        scanner.files = scanner.scan();
        let watch = move || {
            while !sender.is_closed() {
                thread::sleep(INTERVAL);
                let changes = scanner.changes();
                if !changes.is_empty() && sender.blocking_send(changes).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name("snakepit-watch".to_owned()).spawn(watch)?;
        Ok(Self { changes })
    }

    /// Waits until files were created, changed or removed, and returns their paths. Cancel safe.
    pub(super) async fn changed(&mut self) -> Vec<PathBuf> {
        match self.changes.recv().await {
            Some(changes) => changes,
            // The thread ends only with this object.
            None => std::future::pending().await,
        }
    }
}

/// Compares the files with those of the last scan.
#[derive(Debug)]
struct Scanner {
    directories: Vec<PathBuf>,
    adapter: Option<PathBuf>,
    files: Files,
}

impl Scanner {
    /// The files that were created, changed or removed since the last call. After a change, waits for more.
    fn changes(&mut self) -> Vec<PathBuf> {
        let mut files = self.scan();
        if files == self.files {
            return Vec::new();
        }
        let scans = MAX_DELAY.as_millis() / INTERVAL.as_millis();
        for _ in 0..scans {
            thread::sleep(INTERVAL);
            let again = self.scan();
            if std::mem::replace(&mut files, again) == files {
                break;
            }
        }
        let changed = differences(&self.files, &files);
        self.files = files;
        changed
    }

    fn scan(&self) -> Files {
        let mut files = Files::new();
        for dir in &self.directories {
            self.add_files(dir, 0, &mut files);
        }
        files
    }

    /// Adds the Python files in a directory. Ignores errors, because files may disappear during the scan.
    fn add_files(&self, dir: &Path, depth: usize, files: &mut Files) {
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
                if depth < MAX_DEPTH && !is_skipped(name) && !path.join("pyvenv.cfg").exists() {
                    self.add_files(&path, depth + 1, files);
                }
            } else if name.ends_with(".py")
                && (!is_test(name) || self.adapter.as_ref() == Some(&path))
                && let Ok(metadata) = fs::metadata(&path)
            {
                files.insert(path, (metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH), metadata.len()));
            }
        }
    }
}

/// Whether the watcher skips the directories with this name.
pub(super) fn is_skipped(name: &str) -> bool {
    SKIPPED.contains(&name)
}

/// Whether a file contains tests or their settings, which no adapter imports.
fn is_test(name: &str) -> bool {
    name.starts_with("test_") || name.ends_with("_test.py") || name == "conftest.py"
}

fn differences(before: &Files, after: &Files) -> Vec<PathBuf> {
    let removed = before.keys().filter(|path| !after.contains_key(*path));
    let changed =
        after.iter().filter(|(path, state)| before.get(*path) != Some(*state)).map(|(path, _)| path);
    changed.chain(removed).cloned().collect()
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
        let unwatched =
            [".venv/c.py", "env/d.py", "notes.txt", "tests/helper.py", "conftest.py", "test_a.py"];
        for name in ["a.py", "deep/b.py", "env/pyvenv.cfg", "test_adapter.py"].iter().chain(&unwatched) {
            fs::write(path(name), "1").unwrap();
        }
        let directories = vec![dir.path().to_owned()];
        let mut watcher = Watcher::start(directories, Some(path("test_adapter.py"))).unwrap();
        fs::write(path("a.py"), "longer").unwrap();
        fs::remove_file(path("deep/b.py")).unwrap();
        fs::write(path("deep/new.py"), "").unwrap();
        fs::write(path("test_adapter.py"), "longer").unwrap();
        for name in unwatched {
            fs::write(path(name), "longer").unwrap();
        }
        let changed = watcher.changed().await;
        assert_eq!(changed, [path("a.py"), path("deep/new.py"), path("test_adapter.py"), path("deep/b.py")]);
        let none = tokio::time::timeout(INTERVAL * 3, watcher.changed()).await;
        assert!(none.is_err(), "{none:?}");
    }
}
