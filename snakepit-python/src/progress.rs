//! Stores which multiplexed calls have begun, and the answers of those that have ended, in a file that outlives this process:
//! see [`snakepit_proto::launch::progress`].

mod answers;

use std::{
    fs::OpenOptions,
    io,
    num::NonZeroUsize,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use snakepit_proto::launch::progress::{BEGUN, STACK};
use snakepit_registry::CallId;

pub(crate) use self::answers::Answers;

/// Ids of multiplexed calls stand in a range of their own, apart from those that the host gives to calls by plain RPCs: this
/// bit, then the number of the stream, then the id on that stream.
const MULTIPLEXED: u64 = 1 << 62;
const STREAM_SHIFT: u32 = 48;
/// A host opens one stream, the first: its calls are told one by one.
const FIRST_STREAM: u64 = MULTIPLEXED >> STREAM_SHIFT;

/// The largest id that a call on a stream can have.
pub(crate) const MAX_ID: u64 = (1 << STREAM_SHIFT) - 1;
/// Says that every call may have begun.
const ANY: u64 = u64::MAX;

/// Where the id of the last call that began is stored.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Progress(&'static AtomicU64);

impl Progress {
    /// Maps the file, for the rest of this process's life. To be done once: the answers have one writer.
    ///
    /// # Errors
    /// When there is no such file, or it is too short.
    #[allow(unsafe_code)]
    pub(crate) fn open(path: &Path) -> io::Result<(Self, Answers)> {
        const LENGTH: NonZeroUsize = NonZeroUsize::new(STACK).expect("it is not empty");
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        if file.metadata()?.len() < LENGTH.get() as u64 {
            return Err(io::Error::other("the file is too short"));
        }
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing. It is never unmapped, it begins at
        // a page, so it is aligned, and its first eight bytes, which the file has, are accessed as an atomic only.
        // The answers, which nobody else accesses, are made once for this file.
        unsafe {
            let start = mmap(None, LENGTH, protection, MapFlags::MAP_SHARED, &file, 0)?.cast::<u8>();
            let begun = AtomicU64::from_ptr(start.as_ptr().add(BEGUN).cast());
            Ok((Self(begun), Answers::new(start)))
        }
    }

    /// A call is about to begin.
    pub(crate) fn begin(self, call: CallId) {
        let (stream, id) = (call.as_u64() >> STREAM_SHIFT, call.as_u64() & MAX_ID);
        let begun = match stream {
            FIRST_STREAM => id,
            // Ids of another stream mean other calls: when one of those begins, the file says nothing any more.
            _ if call.as_u64() & MULTIPLEXED != 0 && stream > FIRST_STREAM => ANY,
            // Calls by plain RPCs are not told here, and their ids lie below and above.
            _ => return,
        };
        self.0.fetch_max(begun, Ordering::Release);
    }
}

/// Whether a call came on the stream whose calls are told one by one.
pub(crate) const fn is_told(stream: u64) -> bool {
    FIRST_STREAM | stream == FIRST_STREAM
}

/// Whether a call came on this stream.
pub(crate) const fn is_of_stream(call: CallId, stream: u64) -> bool {
    call.as_u64() >> STREAM_SHIFT == FIRST_STREAM | stream
}

/// The name of a multiplexed call in this worker.
pub(crate) const fn multiplexed(stream: u64, id: u64) -> CallId {
    CallId::from_u64(MULTIPLEXED | (stream << STREAM_SHIFT) | id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_another_stream_say_that_any_call_may_have_begun() {
        let stored = |calls: &[CallId]| {
            let progress = Progress(Box::leak(Box::default()));
            calls.iter().for_each(|call| progress.begin(*call));
            progress.0.load(Ordering::Acquire)
        };
        assert_eq!(stored(&[multiplexed(0, 1), multiplexed(0, 3)]), 3);
        assert_eq!(stored(&[multiplexed(0, 1), multiplexed(1, 1), multiplexed(0, 2)]), ANY);
        assert_eq!(stored(&[multiplexed(0, 1), CallId::from_u64(9), CallId::from_u64((1 << 63) + 7)]), 1);
    }
}
