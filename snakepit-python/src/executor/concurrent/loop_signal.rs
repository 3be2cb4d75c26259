//! [`LoopSignal`]: wakes the event loop of a worker that runs calls concurrently.

use std::{
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, RawFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
    task::Wake,
};

use snakepit_registry::CallId;

use crate::fork;

/// A descriptor that is readable while the event loop has calls to begin or to cancel.
#[derive(Debug)]
pub(crate) struct LoopSignal {
    readable: UnixStream,
    writer: UnixStream,
    /// Whether the descriptor is readable, so that writes never block.
    is_set: AtomicBool,
    /// The number of times that the event loop has looked, modulo its range.
    noticed: AtomicU32,
    /// The running calls that were cancelled since the event loop last looked.
    cancelled: Mutex<Vec<CallId>>,
}

impl LoopSignal {
    /// # Errors
    /// If the system provides no descriptor.
    pub(crate) fn new() -> io::Result<Arc<Self>> {
        let (readable, writer) = UnixStream::pair()?;
        readable.set_nonblocking(true)?;
        writer.set_nonblocking(true)?;
        fork::close_in_child(&readable);
        fork::close_in_child(&writer);
        let (is_set, noticed) = (AtomicBool::new(false), AtomicU32::new(0));
        Ok(Arc::new(Self { readable, writer, is_set, noticed, cancelled: Mutex::default() }))
    }

    pub(super) fn fileno(&self) -> RawFd {
        self.readable.as_raw_fd()
    }

    /// Makes the descriptor readable.
    pub(crate) fn set(&self) {
        if !self.is_set.swap(true, SeqCst) {
            // Cannot fail while both ends exist.
            let _ = (&self.writer).write(&[0]);
        }
    }

    /// Resets the descriptor. The event loop looks for work afterwards, so that it does not miss a signal in between.
    pub(super) fn clear(&self) {
        let _ = (&self.readable).read(&mut [0]);
        self.is_set.store(false, SeqCst);
        self.noticed.fetch_add(1, SeqCst);
    }

    /// Whether the event loop has work that it has not noticed.
    pub(super) fn is_set(&self) -> bool {
        self.is_set.load(SeqCst)
    }

    /// A number that changes when the event loop looks for work.
    pub(super) fn noticed(&self) -> u32 {
        self.noticed.load(SeqCst)
    }

    /// Asks the event loop to cancel a running call.
    pub(crate) fn cancel(&self, call: CallId) {
        self.cancelled().push(call);
        self.set();
    }

    /// Takes the calls to cancel.
    pub(super) fn take_cancelled(&self) -> Vec<CallId> {
        std::mem::take(&mut *self.cancelled())
    }

    /// Code under this lock does not panic.
    fn cancelled(&self) -> MutexGuard<'_, Vec<CallId>> {
        self.cancelled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for LoopSignal {
    fn wake(self: Arc<Self>) {
        self.set();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.set();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_descriptor_is_readable_until_it_is_cleared() {
        let signal = LoopSignal::new().unwrap();
        let is_readable = || {
            let mut byte = [0];
            match (&signal.readable).read(&mut byte) {
                Ok(1) => (&signal.writer).write(&byte).is_ok(),
                _ => false,
            }
        };
        assert!(!is_readable());
        for call in 0..100_000 {
            signal.cancel(CallId::from_u64(call));
        }
        assert!(is_readable());
        signal.clear();
        assert!(!is_readable());
        assert_eq!(signal.take_cancelled().len(), 100_000);
        signal.set();
        assert!(is_readable());
    }
}
