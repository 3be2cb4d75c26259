//! [`CheckedStorage`]: redb's storage, with a check that no other process overwrote or truncated the file.
//!
//! It records the length of the file and the header that redb wrote last. Each commit changes the header, so a file with the
//! same header is in the same state.

use std::{
    io,
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use redb::{BackendError, StorageBackend};

/// The maximum size of redb's header in bytes.
const HEADER_BYTES: usize = 512;

const OVERWRITTEN: &str = "another process overwrote or truncated it while it was in use, so the host no longer uses it; \
                           stop the host, restore the file from a copy, and start the host again";

/// An open file. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct CheckedStorage(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    storage: Box<dyn StorageBackend>,
    expected: Mutex<ExpectedFile>,
}

/// The expected state of the file: as this process wrote it last.
#[derive(Debug, Clone)]
struct ExpectedFile {
    len: u64,
    header: [u8; HEADER_BYTES],
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The file is as this process wrote it last.
    Known,
    /// A write failed, so the content is unknown.
    Unknown,
    /// Another process changed the file.
    Foreign,
}

impl CheckedStorage {
    pub(super) fn new(storage: impl StorageBackend) -> io::Result<Self> {
        let (len, header) = read(&storage)?;
        let expected = Mutex::new(ExpectedFile { len, header, state: State::Known });
        Ok(Self(Arc::new(Inner { storage: Box::new(storage), expected })))
    }

    fn expected(&self) -> MutexGuard<'_, ExpectedFile> {
        self.0.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks that the file is as this process wrote it last. After a mismatch, all writes fail.
    ///
    /// # Errors
    /// A message for the caller, after a mismatch.
    pub(super) fn check(&self) -> Result<(), String> {
        let mut expected = self.expected();
        // The commit reports a file that cannot be read.
        if expected.state == State::Known
            && let Ok((len, header)) = read(&*self.0.storage)
            && (len, header) != (expected.len, expected.header)
        {
            expected.state = State::Foreign;
        }
        if expected.state == State::Foreign { Err(OVERWRITTEN.to_owned()) } else { Ok(()) }
    }

    pub(super) fn is_foreign(&self) -> bool {
        self.expected().state == State::Foreign
    }

    /// Checks that a reopened file is as this process wrote it last through `before`.
    ///
    /// # Errors
    /// A message for the caller, after a mismatch.
    pub(super) fn check_unchanged_since(&self, before: &Self) -> Result<(), String> {
        let (reopened, before) = (self.expected().clone(), before.expected().clone());
        let is_same = match before.state {
            State::Unknown => reopened.len >= HEADER_BYTES as u64,
            State::Known | State::Foreign => (reopened.len, reopened.header) == (before.len, before.header),
        };
        if is_same { Ok(()) } else { Err(OVERWRITTEN.to_owned()) }
    }

    /// Changes the file and records the change.
    fn change(
        &self,
        change: impl FnOnce(&dyn StorageBackend) -> io::Result<()>,
        record: impl FnOnce(&mut ExpectedFile),
    ) -> io::Result<()> {
        let mut expected = self.expected();
        if expected.state == State::Foreign {
            return Err(io::Error::other(OVERWRITTEN));
        }
        match change(&*self.0.storage) {
            Ok(()) => record(&mut expected),
            Err(error) => {
                expected.state = State::Unknown;
                return Err(error);
            }
        }
        Ok(())
    }
}

/// Reads the length of a file, and its header, padded with zeros.
fn read(storage: &(impl StorageBackend + ?Sized)) -> io::Result<(u64, [u8; HEADER_BYTES])> {
    let len = storage.len()?;
    let mut header = [0; HEADER_BYTES];
    let header_len = usize::try_from(len).map_or(HEADER_BYTES, |len| len.min(HEADER_BYTES));
    storage.read(0, &mut header[..header_len])?;
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
        let record = |expected: &mut ExpectedFile| {
            expected.len = len;
            let header_len = usize::try_from(len).map_or(HEADER_BYTES, |len| len.min(HEADER_BYTES));
            expected.header[header_len..].fill(0);
        };
        self.change(|storage| storage.set_len(len), record)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.change(|storage| storage.sync_data(), |_| ())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let record = |expected: &mut ExpectedFile| {
            expected.len = expected.len.max(offset + data.len() as u64);
            let start = usize::try_from(offset).map_or(HEADER_BYTES, |offset| offset.min(HEADER_BYTES));
            let count = data.len().min(HEADER_BYTES - start);
            expected.header[start..start + count].copy_from_slice(&data[..count]);
        };
        self.change(|storage| storage.write(offset, data), record)
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
