//! [`Credit`], the flow control of one chunk stream.

use std::{
    sync::atomic::Ordering,
    task::{Context, Poll},
};

use crate::sync::{AtomicI64, AtomicWaker};

/// The remaining credit of a stream, in bytes as counted by [`chunk_cost`](snakepit_proto::mux::chunk_cost). A chunk may
/// make it negative. Grants must then make it positive before the next chunk.
#[derive(Debug)]
pub(super) struct Credit {
    remaining: AtomicI64,
    /// The task of the stream, while it waits for credit.
    task: AtomicWaker,
}

impl Credit {
    pub(super) fn new(bytes: u64) -> Self {
        Self { remaining: AtomicI64::new(signed(bytes)), task: AtomicWaker::new() }
    }

    pub(super) fn grant(&self, bytes: u64) {
        self.change(|remaining| remaining.saturating_add(signed(bytes)));
        self.task.wake();
    }

    /// Ready while the credit is positive.
    pub(super) fn poll_positive(&self, cx: &Context<'_>) -> Poll<()> {
        if self.remaining.load(Ordering::Acquire) > 0 {
            return Poll::Ready(());
        }
        self.task.register(cx.waker());
        // A grant may have arrived before the registration.
        if self.remaining.load(Ordering::Acquire) > 0 { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Charges the whole cost of a chunk, even beyond the credit, because the reader later grants its whole cost.
    pub(super) fn spend(&self, bytes: u64) {
        self.change(|remaining| remaining.saturating_sub(signed(bytes)));
    }

    fn change(&self, change: impl Fn(i64) -> i64) {
        // The closure always returns a new value, so this cannot fail.
        let _ = self
            .remaining
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |remaining| Some(change(remaining)));
    }
}

/// Saturates. No stream can spend the largest number.
fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(all(test, loom))]
mod models {
    use std::{future::poll_fn, sync::Arc};

    use loom::{future::block_on, thread};

    use super::*;

    #[test]
    fn loom_a_grant_wakes_a_stream_that_waits() {
        loom::model(|| {
            let credit = Arc::new(Credit::new(0));
            let reader = Arc::clone(&credit);
            let granting = thread::spawn(move || reader.grant(1));
            block_on(poll_fn(|cx| credit.poll_positive(cx)));
            granting.join().unwrap();
        });
    }

    #[test]
    fn loom_no_grant_is_lost_while_the_stream_sends() {
        loom::model(|| {
            let credit = Arc::new(Credit::new(10));
            let reader = Arc::clone(&credit);
            let granting = thread::spawn(move || reader.grant(5));
            credit.spend(12);
            granting.join().unwrap();
            assert_eq!(credit.remaining.load(Ordering::Relaxed), 3);
        });
    }
}
