//! [`CheckedStorage`]: redb's storage, with a check that no other process overwrote or truncated the file.
//!
//! It remembers the length of the file and the header that redb wrote last. Each commit changes the header, so a file with the
//! same header is in the same state.

use std::{
    io,
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use redb::{BackendError, StorageBackend};

/// The maximum size of redb's header in bytes.
pub(super) const HEADER_BYTES: usize = 512;

const OVERWRITTEN: &str = "another process overwrote or truncated it while it was in use, and nothing is read or written; \
                           stop the host, restore the file from a copy, and start the host again";

/// An open file. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct CheckedStorage(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    storage: Box<dyn StorageBackend>,
    written: Mutex<Written>,
}

/// The file as it was written last.
#[derive(Debug, Clone)]
struct Written {
    len: u64,
    header: [u8; HEADER_BYTES],
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The file is as it was last written.
    Known,
    /// A write failed, so the content is unknown.
    Unknown,
    /// Another process changed the file.
    Foreign,
}

impl CheckedStorage {
    pub(super) fn new(storage: impl StorageBackend) -> io::Result<Self> {
        let (len, header) = read(&storage)?;
        let written = Mutex::new(Written { len, header, state: State::Known });
        Ok(Self(Arc::new(Inner { storage: Box::new(storage), written })))
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        self.0.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks that the file is as it was last written. After a mismatch, all writes fail.
    ///
    /// # Errors
    /// A message for the caller, after a mismatch.
    pub(super) fn check(&self) -> Result<(), String> {
        let mut written = self.written();
        // The commit reports a file that cannot be read.
        if written.state == State::Known
            && let Ok((len, header)) = read(&*self.0.storage)
            && (len, header) != (written.len, written.header)
        {
            written.state = State::Foreign;
        }
        if written.state == State::Foreign { Err(OVERWRITTEN.to_owned()) } else { Ok(()) }
    }

    pub(super) fn is_foreign(&self) -> bool {
        self.written().state == State::Foreign
    }

    /// Checks that a reopened file is as it was last written through `before`.
    ///
    /// # Errors
    /// A message for the caller, after a mismatch.
    pub(super) fn check_is(&self, before: &Self) -> Result<(), String> {
        let (now, before) = (self.written().clone(), before.written().clone());
        let is_same = match before.state {
            State::Unknown => now.len >= HEADER_BYTES as u64,
            State::Known | State::Foreign => (now.len, now.header) == (before.len, before.header),
        };
        if is_same { Ok(()) } else { Err(OVERWRITTEN.to_owned()) }
    }

    /// Changes the file and records the change.
    fn change(
        &self,
        change: impl FnOnce(&dyn StorageBackend) -> io::Result<()>,
        note: impl FnOnce(&mut Written),
    ) -> io::Result<()> {
        let mut written = self.written();
        if written.state == State::Foreign {
            return Err(io::Error::other(OVERWRITTEN));
        }
        match change(&*self.0.storage) {
            Ok(()) => note(&mut written),
            Err(error) => {
                written.state = State::Unknown;
                return Err(error);
            }
        }
        Ok(())
    }
}

/// The length of a file, and its header, padded with zeros.
fn read(storage: &(impl StorageBackend + ?Sized)) -> io::Result<(u64, [u8; HEADER_BYTES])> {
    let len = storage.len()?;
    let mut header = [0; HEADER_BYTES];
    let known = usize::try_from(len).map_or(HEADER_BYTES, |len| len.min(HEADER_BYTES));
    storage.read(0, &mut header[..known])?;
    Ok((len, header))
}

impl StorageBackend for CheckedStorage {
    fn len(&self) -> io::Result<u64> {
        self.0.storage.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.storage.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let note = |written: &mut Written| {
            written.len = len;
            let known = usize::try_from(len).map_or(HEADER_BYTES, |len| len.min(HEADER_BYTES));
            written.header[known..].fill(0);
        };
        self.change(|storage| storage.set_len(len), note)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.change(|storage| storage.sync_data(), |_| ())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let note = |written: &mut Written| {
            written.len = written.len.max(offset + data.len() as u64);
            let from = usize::try_from(offset).map_or(HEADER_BYTES, |offset| offset.min(HEADER_BYTES));
            let some = data.len().min(HEADER_BYTES - from);
            written.header[from..from + some].copy_from_slice(&data[..some]);
        };
        self.change(|storage| storage.write(offset, data), note)
    }

    fn close(&self) -> io::Result<()> {
        self.0.storage.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.storage.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.storage.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.storage.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.storage.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.storage.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.storage.query_lock_range(start, end)
    }
}
