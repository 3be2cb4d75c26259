//! Answers that the host holds because their peers have not read them: how many bytes there may be, for one connection and
//! for all, and the wait for room.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{sync::Notify, time::timeout};

use super::budget::Exhausted;

/// How long a peer may read nothing before answers that wait for room are refused, and, if the host is short of room, before
/// its connection is cut.
const STALL: Duration = Duration::from_secs(30);
/// How much a peer must read in that time when the host is short of room, in bytes.
const LEAST_READ: usize = 128 * 1024 * 30;
/// The smallest piece of an answer that counts, in bytes. One stream holds at most one smaller piece.
pub(super) const COUNTED_BYTES: usize = 16 * 1024;

/// What answers hold, in bytes.
#[derive(Debug)]
pub(crate) struct Outgoing {
    held: AtomicUsize,
    limit: usize,
    room: Notify,
}

impl Outgoing {
    pub(crate) fn new(limit: usize) -> Self {
        Self { held: AtomicUsize::new(0), limit, room: Notify::new() }
    }

    fn held(&self) -> usize {
        self.held.load(Ordering::SeqCst)
    }

    const fn exhausted(&self, used: usize) -> Exhausted {
        Exhausted { used, limit: self.limit }
    }
}

/// What the answers of one connection hold, as a part of what all hold.
#[derive(Debug)]
pub(super) struct Unread {
    own: Outgoing,
    all: Arc<Outgoing>,
    /// How many bytes were handed to the transport; wraps.
    sent: AtomicUsize,
}

impl Unread {
    pub(super) fn new(limit: usize, all: Arc<Outgoing>) -> Self {
        Self { own: Outgoing::new(limit), all, sent: AtomicUsize::new(0) }
    }

    /// Whether further answers must wait. A connection may hold no more than what is left for all, so that a few that do not
    /// read leave room for the others.
    fn shortage(&self) -> Option<Shortage> {
        let (own, all) = (self.own.held(), self.all.held());
        if own >= self.own.limit {
            Some(Shortage::Own(self.own.exhausted(own)))
        } else if own >= self.all.limit.saturating_sub(all) {
            Some(Shortage::All(self.all.exhausted(all)))
        } else {
            None
        }
    }

    pub(super) fn is_short(&self) -> bool {
        self.shortage().is_some()
    }

    /// Waits until there is room for an answer.
    ///
    /// # Errors
    /// The peer read nothing for [`STALL`].
    pub(super) async fn room(&self) -> Result<(), Exhausted> {
        loop {
            let (own, all) = (self.own.room.notified(), self.all.room.notified());
            tokio::pin!(own, all);
            own.as_mut().enable();
            all.as_mut().enable();
            let sent = self.sent();
            let (exhausted, freed) = match self.shortage() {
                None => {
                    // There may be room for another.
                    self.own.room.notify_one();
                    return Ok(());
                }
                Some(Shortage::Own(full)) => (full, timeout(STALL, own).await.is_ok()),
                Some(Shortage::All(full)) => (full, timeout(STALL, all).await.is_ok()),
            };
            if !freed && self.sent() == sent {
                return Err(exhausted);
            }
        }
    }

    /// Holds a piece of an answer until its last part is dropped.
    pub(super) fn hold(self: &Arc<Self>, bytes: Bytes) -> Bytes {
        self.own.held.fetch_add(bytes.len(), Ordering::SeqCst);
        self.all.held.fetch_add(bytes.len(), Ordering::SeqCst);
        Bytes::from_owner(Piece { bytes, unread: Arc::clone(self) })
    }

    /// Whether an answer that cannot wait must be refused: up to twice the limits are held for those. One alone fits a
    /// connection.
    pub(super) fn check(&self, bytes: usize) -> Result<(), Exhausted> {
        let (own, all) = (self.own.held(), self.all.held());
        if own > 0 && own + bytes > 2 * self.own.limit {
            return Err(self.own.exhausted(own));
        }
        if all > 0 && all + bytes > 2 * self.all.limit {
            return Err(self.all.exhausted(all));
        }
        Ok(())
    }

    /// The transport took bytes: the peer reads.
    pub(super) fn progress(&self, bytes: usize) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.own.held()
    }

    fn sent(&self) -> usize {
        self.sent.load(Ordering::Relaxed)
    }

    /// Ready once the peer held answers without reading them, while the host was short of room.
    pub(super) async fn stalled(&self) {
        loop {
            let sent = self.sent();
            tokio::time::sleep(STALL).await;
            let is_slow = self.sent().wrapping_sub(sent) < LEAST_READ;
            if is_slow && self.own.held() > 0 && self.all.held() > self.all.limit / 2 {
                return;
            }
        }
    }

    fn release(&self, bytes: usize) {
        self.own.held.fetch_sub(bytes, Ordering::SeqCst);
        self.all.held.fetch_sub(bytes, Ordering::SeqCst);
        self.own.room.notify_one();
        self.all.room.notify_waiters();
    }
}

/// What there is too little of.
enum Shortage {
    Own(Exhausted),
    All(Exhausted),
}

/// A piece of an answer, held until it is dropped.
struct Piece {
    bytes: Bytes,
    unread: Arc<Unread>,
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

    fn piece(unread: &Arc<Unread>, bytes: usize) -> Bytes {
        unread.hold(vec![0; bytes].into())
    }

    #[tokio::test(start_paused = true)]
    async fn answers_wait_until_earlier_ones_are_read() {
        let unread = Arc::new(Unread::new(100, Arc::new(Outgoing::new(1000))));
        let (first, second) = (piece(&unread, 90), piece(&unread, 90));
        let (mut one, mut other) = (Box::pin(unread.room()), Box::pin(unread.room()));
        assert!(futures_util::poll!(&mut one).is_pending() && futures_util::poll!(&mut other).is_pending());
        let part = first.slice(..10);
        drop(first);
        assert!(futures_util::poll!(&mut one).is_pending(), "a part is still held");
        drop(part);
        one.await.unwrap();
        other.await.unwrap();
        drop(second);
        assert_eq!((unread.own.held(), unread.all.held()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn answers_are_refused_only_when_nothing_is_read() {
        let unread = Arc::new(Unread::new(100, Arc::new(Outgoing::new(1000))));
        let _held = piece(&unread, 100);
        let reading = async {
            for _ in 0..10 {
                tokio::time::sleep(STALL / 2).await;
                unread.progress(1);
            }
        };
        let mut room = Box::pin(unread.room());
        tokio::select! {
            () = reading => {}
            _ = &mut room => panic!("it reads"),
        }
        assert_eq!(room.await, Err(Exhausted { used: 100, limit: 100 }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_connections_leave_room_for_others_and_are_cut_if_they_do_not_read() {
        let all = Arc::new(Outgoing::new(1000));
        let connection = || Arc::new(Unread::new(700, Arc::clone(&all)));
        let (one, other, third) = (connection(), connection(), connection());
        let _held = (piece(&one, 500), piece(&other, 250));
        assert!(one.is_short() && other.is_short() && !third.is_short());
        let waits = one.room();
        drop(piece(&third, 10));
        assert!(waits.now_or_never().is_none());
        let start = tokio::time::Instant::now();
        one.stalled().await;
        assert_eq!(start.elapsed(), STALL);
        assert!(tokio::time::timeout(STALL * 3, third.stalled()).await.is_err());
    }

    #[test]
    fn answers_that_cannot_wait_are_held_up_to_twice_the_limit() {
        let unread = Arc::new(Unread::new(100, Arc::new(Outgoing::new(1000))));
        unread.check(1000).unwrap();
        let _held = piece(&unread, 150);
        unread.check(50).unwrap();
        assert_eq!(unread.check(51), Err(Exhausted { used: 150, limit: 100 }));
    }
}
