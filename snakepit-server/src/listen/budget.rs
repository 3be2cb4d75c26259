//! Budgets for the memory that clients can make the host hold, in bytes.

use std::sync::{Arc, atomic::Ordering};

use snakepit_proto::MAX_MESSAGE_BYTES;

use crate::{limits::BudgetExhausted, sync::AtomicUsize};

/// The bytes that a single request may reserve even if the limit is lower, so that every legal message size is possible. The 4 MiB
/// above the message size cover the overhead of its segments.
const SINGLE_REQUEST_BYTES: usize = MAX_MESSAGE_BYTES + 4 * 1024 * 1024;

/// A limit on the bytes in use. A request that is the only user always fits.
#[derive(Debug)]
pub(crate) struct Budget {
    used: AtomicUsize,
    limit: usize,
}

impl Budget {
    pub(crate) fn new(limit: usize) -> Self {
        Self { used: AtomicUsize::new(0), limit }
    }

    /// Takes bytes for a caller that has already taken `own_bytes`.
    pub(crate) fn try_take(&self, bytes: usize, own_bytes: usize) -> Result<(), BudgetExhausted> {
        let take = |used: usize| {
            let total = used.checked_add(bytes)?;
            (total <= self.limit || (used == own_bytes && total <= SINGLE_REQUEST_BYTES)).then_some(total)
        };
        let taken = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        taken.map(drop).map_err(|used| BudgetExhausted { used, limit: self.limit })
    }

    pub(crate) fn release(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

/// The budgets for requests that are still arriving, on all listeners. Workers have a separate budget, so that clients that exhaust
/// theirs do not stop tools from calling back.
#[derive(Debug, Clone)]
pub(crate) struct ArrivalBudgets {
    pub(super) clients: Arc<Budget>,
    pub(super) workers: Arc<Budget>,
    /// Additional memory for messages of streams when the budgets are exhausted.
    pub(super) client_headroom: Arc<Budget>,
    pub(super) worker_headroom: Arc<Budget>,
}

/// The headroom that all client connections share, in bytes. Worker connections share another one of this size.
const HOST_HEADROOM: usize = 64 * 1024 * 1024;

impl ArrivalBudgets {
    /// Creates the budgets of clients and workers, each of this many bytes, and their headroom.
    pub(crate) fn new(bytes: usize) -> Self {
        let budget = |bytes| Arc::new(Budget::new(bytes));
        Self {
            clients: budget(bytes),
            workers: budget(bytes),
            client_headroom: budget(HOST_HEADROOM),
            worker_headroom: budget(HOST_HEADROOM),
        }
    }
}

/// Bytes taken from a budget. Dropping it releases them.
#[derive(Debug)]
pub(crate) struct Reservation {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Reservation {
    /// Creates an empty reservation.
    pub(crate) const fn new(budget: Arc<Budget>) -> Self {
        Self { budget, bytes: 0 }
    }

    /// Reserves more bytes. A failure changes nothing.
    pub(crate) fn grow(&mut self, bytes: usize) -> Result<(), BudgetExhausted> {
        self.budget.try_take(bytes, self.bytes)?;
        self.bytes += bytes;
        Ok(())
    }

    /// Returns the number of reserved bytes.
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Releases all bytes.
    pub(crate) fn clear(&mut self) {
        if self.bytes > 0 {
            self.budget.release(std::mem::take(&mut self.bytes));
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exhausted_budget_reports_both_numbers_and_stays_unchanged() {
        let budget = Arc::new(Budget::new(100));
        let (mut one, mut other) =
            (Reservation::new(Arc::clone(&budget)), Reservation::new(Arc::clone(&budget)));
        one.grow(60).unwrap();
        assert_eq!(other.grow(50), Err(BudgetExhausted { used: 60, limit: 100 }));
        other.grow(40).unwrap();
        drop(one);
        assert_eq!(budget.used(), 40);
        other.clear();
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn the_only_user_always_fits() {
        let budget = Arc::new(Budget::new(100));
        let mut alone = Reservation::new(Arc::clone(&budget));
        alone.grow(90).unwrap();
        alone.grow(90).unwrap();
        assert_eq!(
            Reservation::new(Arc::clone(&budget)).grow(1),
            Err(BudgetExhausted { used: 180, limit: 100 })
        );
    }
}

#[cfg(all(test, loom))]
mod models {
    use loom::thread;

    use super::*;

    #[test]
    fn loom_racing_requests_stay_within_the_budget() {
        loom::model(|| {
            let budget = Arc::new(Budget::new(100));
            let (mut one, mut other) =
                (Reservation::new(Arc::clone(&budget)), Reservation::new(Arc::clone(&budget)));
            let grows = thread::spawn(move || other.grow(60).is_ok());
            // The other request returns its bytes at the end of its thread.
            let is_reserved = one.grow(60).is_ok();
            let used = budget.used.load(Ordering::Relaxed);
            assert!(used <= 100 && (!is_reserved || used >= 60), "{used} bytes are reserved");
            assert!(grows.join().unwrap() || is_reserved, "both requests are rejected");
            drop(one);
            assert_eq!(budget.used.load(Ordering::Relaxed), 0);
        });
    }
}
