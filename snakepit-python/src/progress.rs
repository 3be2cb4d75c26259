//! Tells which multiplexed calls have begun, in a file that outlives this process: see `ENV_PROGRESS`.

use std::{
    fs::OpenOptions,
    io,
    num::NonZeroUsize,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use snakepit_registry::CallId;

/// Ids of multiplexed calls stand in a range of their own, apart from those that the host gives to calls by plain RPCs.
const MULTIPLEXED: u64 = 1 << 62;

/// Where the id of the last call that began is stored.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Progress(&'static AtomicU64);

impl Progress {
    /// Maps the file, for the rest of this process's life.
    ///
    /// # Errors
    /// When there is no such file, or it is too short.
    #[allow(unsafe_code)]
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        const LENGTH: NonZeroUsize = NonZeroUsize::new(size_of::<u64>()).expect("eight is not zero");
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        if file.metadata()?.len() < LENGTH.get() as u64 {
            return Err(io::Error::other("the file is too short"));
        }
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing. It is never unmapped, it begins at
        // a page, so it is aligned, and its first eight bytes, which the file has, are accessed as an atomic only.
        let number = unsafe {
            let start = mmap(None, LENGTH, protection, MapFlags::MAP_SHARED, &file, 0)?;
            AtomicU64::from_ptr(start.as_ptr().cast())
        };
        Ok(Self(number))
    }

    /// A call is about to begin.
    pub(crate) fn begin(self, call: CallId) {
        if call.as_u64() & MULTIPLEXED != 0 {
            self.0.fetch_max(call.as_u64() & !MULTIPLEXED, Ordering::Release);
        }
    }
}

/// The name of a multiplexed call in this worker.
pub(crate) const fn multiplexed(id: u64) -> CallId {
    CallId::from_u64(MULTIPLEXED | id)
}
