//! Backpressure for responses that clients have not read: limits per connection and for all connections, and the wait until a
//! limit allows more.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{sync::Notify, time::timeout};

use crate::limits::BudgetExhausted;

/// The time that a client may stop reading before the host rejects its waiting responses. If more than half of the budget of all
/// connections is in use, the host then closes the connection.
pub(super) const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// The bytes that a client must read within [`STALL_TIMEOUT`] while more than half of the budget of all connections is in use.
/// The average is the minimum rate of requests, 128 KiB per second.
const MIN_READ_BYTES: usize = 128 * 1024 * 30;
/// The smallest piece of a response that counts, in bytes. A stream buffers at most one smaller piece.
pub(super) const MIN_COUNTED_BYTES: usize = 16 * 1024;

/// A budget for unread responses, in bytes.
#[derive(Debug)]
pub(crate) struct ResponseBudget {
    used: AtomicUsize,
    limit: usize,
    freed: Notify,
}

impl ResponseBudget {
    pub(crate) fn new(limit: usize) -> Self {
        Self { used: AtomicUsize::new(0), limit, freed: Notify::new() }
    }

    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::SeqCst)
    }

    const fn exhausted(&self, used: usize) -> BudgetExhausted {
        BudgetExhausted { used, limit: self.limit }
    }
}

/// The unread responses of one connection. They count towards its own budget and the budget of all connections.
#[derive(Debug)]
pub(super) struct UnreadResponses {
    own: ResponseBudget,
    all: Arc<ResponseBudget>,
    /// The bytes that the transport has taken. The counter wraps around.
    sent_bytes: AtomicUsize,
}

impl UnreadResponses {
    pub(super) fn new(limit: usize, all: Arc<ResponseBudget>) -> Self {
        Self { own: ResponseBudget::new(limit), all, sent_bytes: AtomicUsize::new(0) }
    }

    /// The budget that further responses must wait for. A connection may use no more bytes than the shared budget has left, so
    /// that a few clients that do not read leave memory for the others.
    fn exhausted_budget(&self) -> Option<ExhaustedBudget> {
        let (own, all) = (self.own.used(), self.all.used());
        if own >= self.own.limit {
            Some(ExhaustedBudget::Own(self.own.exhausted(own)))
        } else if own >= self.all.limit.saturating_sub(all) {
            Some(ExhaustedBudget::All(self.all.exhausted(all)))
        } else {
            None
        }
    }

    /// The bytes that are unread, and their limit.
    pub(super) fn usage(&self) -> BudgetExhausted {
        self.own.exhausted(self.own.used())
    }

    /// Whether all connections together use more than half of their budget.
    pub(super) fn is_memory_short(&self) -> bool {
        self.all.used() > self.all.limit / 2
    }

    pub(super) fn is_exhausted(&self) -> bool {
        self.exhausted_budget().is_some()
    }

    /// Waits until the budgets allow another response. Cancel safe.
    ///
    /// # Errors
    /// The client read nothing for [`STALL_TIMEOUT`].
    pub(super) async fn capacity(&self) -> Result<(), BudgetExhausted> {
        loop {
            let (own, all) = (self.own.freed.notified(), self.all.freed.notified());
            tokio::pin!(own, all);
            own.as_mut().enable();
            all.as_mut().enable();
            let sent = self.sent_bytes();
            let (exhausted, freed) = match self.exhausted_budget() {
                None => {
                    // The budgets may have capacity for another waiter.
                    self.own.freed.notify_one();
                    return Ok(());
                }
                Some(ExhaustedBudget::Own(full)) => (full, timeout(STALL_TIMEOUT, own).await.is_ok()),
                Some(ExhaustedBudget::All(full)) => (full, timeout(STALL_TIMEOUT, all).await.is_ok()),
            };
            if !freed && self.sent_bytes() == sent {
                return Err(exhausted);
            }
        }
    }

    /// Counts a piece of a response until its last part is dropped.
    pub(super) fn count(self: &Arc<Self>, bytes: Bytes) -> Bytes {
        self.own.used.fetch_add(bytes.len(), Ordering::SeqCst);
        self.all.used.fetch_add(bytes.len(), Ordering::SeqCst);
        Bytes::from_owner(Piece { bytes, unread: Arc::clone(self) })
    }

    /// Checks whether a response that cannot wait is still acceptable. Such responses may use up to twice the limits. A
    /// connection may always have one.
    pub(super) fn check(&self, bytes: usize) -> Result<(), BudgetExhausted> {
        let (own, all) = (self.own.used(), self.all.used());
        if own > 0 && own + bytes > 2 * self.own.limit {
            return Err(self.own.exhausted(own));
        }
        if all > 0 && all + bytes > 2 * self.all.limit {
            return Err(self.all.exhausted(all));
        }
        Ok(())
    }

    /// Records that the transport took bytes, which shows that the client reads.
    pub(super) fn record_sent(&self, bytes: usize) {
        self.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(super) fn used(&self) -> usize {
        self.own.used()
    }

    fn sent_bytes(&self) -> usize {
        self.sent_bytes.load(Ordering::Relaxed)
    }

    /// Ready once the client has unread responses and hardly reads them, while all connections use more than half of their
    /// budget.
    pub(super) async fn stalled(&self) {
        loop {
            let sent = self.sent_bytes();
            tokio::time::sleep(STALL_TIMEOUT).await;
            let is_slow = self.sent_bytes().wrapping_sub(sent) < MIN_READ_BYTES;
            if is_slow && self.own.used() > 0 && self.is_memory_short() {
                return;
            }
        }
    }

    fn release(&self, bytes: usize) {
        self.own.used.fetch_sub(bytes, Ordering::SeqCst);
        self.all.used.fetch_sub(bytes, Ordering::SeqCst);
        self.own.freed.notify_one();
        self.all.freed.notify_waiters();
    }
}

/// The budget that is exhausted.
enum ExhaustedBudget {
    Own(BudgetExhausted),
    All(BudgetExhausted),
}

/// A piece of a response. Dropping it releases its bytes.
struct Piece {
    bytes: Bytes,
    unread: Arc<UnreadResponses>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.unread.release(self.bytes.len());
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn piece(unread: &Arc<UnreadResponses>, bytes: usize) -> Bytes {
        unread.count(vec![0; bytes].into())
    }

    #[tokio::test(start_paused = true)]
    async fn responses_wait_until_earlier_ones_are_read() {
        let unread = Arc::new(UnreadResponses::new(100, Arc::new(ResponseBudget::new(1000))));
        let (first, second) = (piece(&unread, 90), piece(&unread, 90));
        let (mut one, mut other) = (Box::pin(unread.capacity()), Box::pin(unread.capacity()));
        assert!(futures_util::poll!(&mut one).is_pending() && futures_util::poll!(&mut other).is_pending());
        let part = first.slice(..10);
        drop(first);
        assert!(futures_util::poll!(&mut one).is_pending(), "a part still exists");
        drop(part);
        one.await.unwrap();
        other.await.unwrap();
        drop(second);
        assert_eq!((unread.own.used(), unread.all.used()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn responses_are_rejected_only_when_the_client_reads_nothing() {
        let unread = Arc::new(UnreadResponses::new(100, Arc::new(ResponseBudget::new(1000))));
        let _unread = piece(&unread, 100);
        let reading = async {
            for _ in 0..10 {
                tokio::time::sleep(STALL_TIMEOUT / 2).await;
                unread.record_sent(1);
            }
        };
        let mut capacity = Box::pin(unread.capacity());
        tokio::select! {
            () = reading => {}
            _ = &mut capacity => panic!("the client reads"),
        }
        assert_eq!(capacity.await, Err(BudgetExhausted { used: 100, limit: 100 }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_connections_leave_memory_for_others_and_are_closed_if_they_do_not_read() {
        let all = Arc::new(ResponseBudget::new(1000));
        let connection = || Arc::new(UnreadResponses::new(700, Arc::clone(&all)));
        let (one, other, third) = (connection(), connection(), connection());
        let _unread = (piece(&one, 500), piece(&other, 250));
        assert!(one.is_exhausted() && other.is_exhausted() && !third.is_exhausted());
        let waits = one.capacity();
        drop(piece(&third, 10));
        assert!(waits.now_or_never().is_none());
        let start = tokio::time::Instant::now();
        one.stalled().await;
        assert_eq!(start.elapsed(), STALL_TIMEOUT);
        assert!(tokio::time::timeout(STALL_TIMEOUT * 3, third.stalled()).await.is_err());
    }

    #[test]
    fn responses_that_cannot_wait_may_use_twice_the_limit() {
        let unread = Arc::new(UnreadResponses::new(100, Arc::new(ResponseBudget::new(1000))));
        unread.check(1000).unwrap();
        let _unread = piece(&unread, 150);
        unread.check(50).unwrap();
        assert_eq!(unread.check(51), Err(BudgetExhausted { used: 150, limit: 100 }));
    }
}
