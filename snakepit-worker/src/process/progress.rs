//! Which of the calls that were handed to a worker have begun: told by a number in a shared file, because a worker that
//! dies cannot tell it any more.
//!
//! A worker runs multiplexed calls in the order of their ids, and stores the id of a call in the file, which it has mapped
//! into its memory, right before the call begins. That costs it a store, and what was stored outlives it.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    sync::Arc,
};

/// The host's end of the file. Clones share it. The file may be removed meanwhile.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress(Option<Arc<File>>);

impl Progress {
    /// Makes the file, with no call begun.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(super) fn create(path: &Path) -> std::io::Result<Self> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
        file.write_all_at(&0_u64.to_ne_bytes(), 0)?;
        Ok(Self(Some(Arc::new(file))))
    }

    /// Whether a call may have begun. Without a file, and when in doubt, it may.
    pub(super) fn has_begun(&self, id: u64) -> bool {
        let Some(file) = &self.0 else { return true };
        let mut last = [0; size_of::<u64>()];
        match file.read_exact_at(&mut last, 0) {
            Ok(()) => id <= u64::from_ne_bytes(last),
            Err(_) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_worker_stored_is_read_also_when_the_file_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("progress");
        let progress = Progress::create(&path).unwrap();
        assert!(!progress.has_begun(1));
        OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&3_u64.to_ne_bytes(), 0).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(progress.has_begun(3));
        assert!(!progress.has_begun(4));
        assert!(Progress::default().has_begun(1), "nothing is known");
    }
}
