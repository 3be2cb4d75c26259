//! [`Progress`]: records which multiplexed calls have begun, and the answers of ended ones, in a file that outlives
//! this process. See [`snakepit_proto::launch::progress`].

mod answers;

use std::{
    fs::OpenOptions,
    io,
    num::NonZeroUsize,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use snakepit_proto::launch::progress::{BEGUN, RESERVED_BYTES};
use snakepit_registry::CallId;

pub(crate) use self::answers::Answers;

/// The bit that separates ids of multiplexed calls from those that the host assigns to per-call RPCs. The lower bits are the
/// number of the stream and the id on that stream.
const MULTIPLEXED: u64 = 1 << 62;
const STREAM_SHIFT: u32 = 48;
/// The first stream. Hosts open only one, and the file records its calls.
const FIRST_STREAM: u64 = MULTIPLEXED >> STREAM_SHIFT;

/// The largest id of a call on a stream.
pub(crate) const MAX_ID: u64 = (1 << STREAM_SHIFT) - 1;
/// The value for "any call may have begun".
const ANY_CALL: u64 = u64::MAX;

/// The location of the last begun call's id.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Progress(&'static AtomicU64);

impl Progress {
    /// Maps the file until the process ends. Must be called once, because the answers have one writer.
    ///
    /// # Errors
    /// If the file does not exist or is too short.
    #[allow(unsafe_code)]
    pub(crate) fn open(path: &Path) -> io::Result<(Self, Answers)> {
        const LENGTH: NonZeroUsize = NonZeroUsize::new(RESERVED_BYTES).expect("it is not empty");
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        if file.metadata()?.len() < LENGTH.get() as u64 {
            return Err(io::Error::other("the file is too short"));
        }
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address chosen by the kernel overlaps nothing. It is never unmapped and is
        // page-aligned. Its first eight bytes, which the file contains, are only accessed as an atomic. The answers are
        // created once for this file, and no other code accesses them.
        unsafe {
            let start = mmap(None, LENGTH, protection, MapFlags::MAP_SHARED, &file, 0)?.cast::<u8>();
            let begun = AtomicU64::from_ptr(start.as_ptr().add(BEGUN).cast());
            Ok((Self(begun), Answers::new(start)))
        }
    }

    /// Records that a call begins.
    pub(crate) fn begin(self, call: CallId) {
        let (stream, id) = (call.as_u64() >> STREAM_SHIFT, call.as_u64() & MAX_ID);
        let begun = match stream {
            FIRST_STREAM => id,
            // Ids of another stream denote other calls. Once one of those begins, the file no longer shows which calls
            // have begun.
            _ if call.as_u64() & MULTIPLEXED != 0 && stream > FIRST_STREAM => ANY_CALL,
            // Calls through per-call RPCs are not recorded. Their ids are outside the range of multiplexed calls.
            _ => return,
        };
        self.0.fetch_max(begun, Ordering::Release);
    }
}

/// Returns whether the file records the calls of this stream.
pub(crate) const fn is_recorded(stream: u64) -> bool {
    FIRST_STREAM | stream == FIRST_STREAM
}

/// Returns whether a call belongs to this stream.
pub(crate) const fn is_of_stream(call: CallId, stream: u64) -> bool {
    call.as_u64() >> STREAM_SHIFT == FIRST_STREAM | stream
}

/// Returns the id of a multiplexed call within this worker.
pub(crate) const fn multiplexed_id(stream: u64, id: u64) -> CallId {
    CallId::from_u64(MULTIPLEXED | (stream << STREAM_SHIFT) | id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_call_of_another_stream_any_call_may_have_begun() {
        let stored = |calls: &[CallId]| {
            let progress = Progress(Box::leak(Box::default()));
            calls.iter().for_each(|call| progress.begin(*call));
            progress.0.load(Ordering::Acquire)
        };
        assert_eq!(stored(&[multiplexed_id(0, 1), multiplexed_id(0, 3)]), 3);
        assert_eq!(stored(&[multiplexed_id(0, 1), multiplexed_id(1, 1), multiplexed_id(0, 2)]), ANY_CALL);
        assert_eq!(stored(&[multiplexed_id(0, 1), CallId::from_u64(9), CallId::from_u64((1 << 63) + 7)]), 1);
    }
}
