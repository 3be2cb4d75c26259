//! Locks between commands in one checkout, as files in cargo's target directory. The kernel releases them when a process ends.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::shell::root;

/// Held while maturin runs, because it stages the native module of each target in the same file. The build backend of the
/// Python package takes this lock, too.
pub(crate) const MATURIN: &str = "maturin.lock";

/// Held while `.venv` is created or updated.
pub(crate) const SETUP: &str = "setup.lock";

/// Held while wheels are built, because the builds share directories.
pub(crate) const WHEEL: &str = "wheel.lock";

/// A lock, until it is dropped.
#[derive(Debug)]
#[must_use = "the lock is released when it is dropped"]
pub(crate) struct Lock {
    _file: File,
}

/// Acquires a lock in the target directory. Waits while another process has it.
pub(crate) fn acquire(name: &str) -> Result<Lock> {
    acquire_in(&target_directory(), name)
}

/// Cargo's target directory.
pub(crate) fn target_directory() -> PathBuf {
    root().join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

fn acquire_in(directory: &Path, name: &str) -> Result<Lock> {
    let path = directory.join(name);
    let explain = || format!("cannot lock {}", path.display());
    fs::create_dir_all(directory).with_context(explain)?;
    let file = File::options().write(true).create(true).truncate(false).open(&path).with_context(explain)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            println!("    waiting for another command, which has locked {}", path.display());
            file.lock().with_context(explain)?;
        }
        Err(TryLockError::Error(error)) => return Err(error).with_context(explain),
    }
    Ok(Lock { _file: file })
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, Ordering},
        thread,
    };

    use super::*;

    #[test]
    fn a_lock_has_one_owner_at_a_time() {
        let directory = std::env::temp_dir().join(format!("xtask-lock-{}", std::process::id()));
        let lock = acquire_in(&directory, MATURIN).unwrap();
        let _other = acquire_in(&directory, WHEEL).unwrap();
        let probe = File::open(directory.join(MATURIN)).unwrap();
        assert!(matches!(probe.try_lock(), Err(TryLockError::WouldBlock)));
        drop(lock);
        probe.try_lock().unwrap();
        probe.unlock().unwrap();

        let is_taken = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let _lock = acquire_in(&directory, MATURIN).unwrap();
                        assert!(!is_taken.swap(true, Ordering::Relaxed), "two owners");
                        thread::yield_now();
                        is_taken.store(false, Ordering::Relaxed);
                    }
                });
            }
        });
        fs::remove_dir_all(&directory).unwrap();
    }
}
