//! [`UseCount`]: decides between the eviction of a connection and a use that begins at the same time.

use std::sync::atomic::Ordering;

use crate::sync::AtomicUsize;

/// The bit that marks a connection as evicted.
const EVICTED: usize = 1 << (usize::BITS - 1);

/// The number of uses of a connection, and whether the connection is evicted. One atomic holds both, so that exactly one succeeds when an eviction
/// and a use race.
#[derive(Debug)]
pub(super) struct UseCount(AtomicUsize);

impl UseCount {
    pub(super) fn new() -> Self {
        Self(AtomicUsize::new(0))
    }

    /// Counts a use. Returns `false` if the connection is evicted. The caller must [end](Self::end) the use in both cases.
    pub(super) fn begin(&self) -> bool {
        self.0.fetch_add(1, Ordering::AcqRel) & EVICTED == 0
    }

    /// Ends a use. Calls `record_last` before the end of the last one becomes visible, perhaps several times.
    pub(super) fn end(&self, record_last: impl Fn()) {
        let mut count = self.0.load(Ordering::Relaxed);
        loop {
            if count & !EVICTED == 1 {
                record_last();
            }
            match self.0.compare_exchange_weak(count, count - 1, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return,
                Err(changed) => count = changed,
            }
        }
    }

    /// Whether a use runs. If not, the record of the last one is visible.
    pub(super) fn is_in_use(&self) -> bool {
        self.0.load(Ordering::Acquire) & !EVICTED != 0
    }

    /// Whether [`evict`](Self::evict) would succeed.
    pub(super) fn is_evictable(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }

    /// Evicts the connection. Returns `false` if it is in use or was evicted before.
    pub(super) fn evict(&self) -> bool {
        self.0.compare_exchange(0, EVICTED, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

#[cfg(all(test, loom))]
mod models {
    use std::sync::Arc;

    use loom::{cell::UnsafeCell, thread};

    use super::*;

    #[test]
    fn loom_no_connection_is_evicted_during_a_use() {
        loom::model(|| {
            // loom reports a data race if the cell is written while a use reads it.
            let connection = Arc::new((UseCount::new(), UnsafeCell::new("open")));
            let other = Arc::clone(&connection);
            let uses = thread::spawn(move || {
                let (count, state) = &*other;
                if count.begin() {
                    state.with(|_| ());
                }
                count.end(|| ());
            });
            let (count, state) = &*connection;
            if count.evict() {
                state.with_mut(|_| ());
                assert!(!count.begin(), "a use begins after the eviction");
                count.end(|| ());
            }
            uses.join().unwrap();
            assert!(!count.is_in_use());
        });
    }

    #[test]
    fn loom_the_end_of_the_last_use_is_recorded() {
        loom::model(|| {
            let connection = Arc::new((UseCount::new(), AtomicUsize::new(0)));
            let end_use = |(count, record): &(UseCount, AtomicUsize)| {
                count.end(|| record.store(1, Ordering::Relaxed));
            };
            connection.0.begin();
            connection.0.begin();
            let other = Arc::clone(&connection);
            let uses = thread::spawn(move || end_use(&other));
            end_use(&connection);
            if !connection.0.is_in_use() {
                assert_eq!(connection.1.load(Ordering::Relaxed), 1);
            }
            uses.join().unwrap();
            assert!(!connection.0.is_in_use());
            assert_eq!(connection.1.load(Ordering::Relaxed), 1);
        });
    }

    #[test]
    fn loom_a_connection_is_evicted_once() {
        loom::model(|| {
            let count = Arc::new(UseCount::new());
            let other = Arc::clone(&count);
            let evicts = thread::spawn(move || other.evict());
            let evicted = [count.evict(), evicts.join().unwrap()];
            assert_ne!(evicted[0], evicted[1]);
        });
    }
}
