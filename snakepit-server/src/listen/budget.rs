//! Budgets in bytes: what a client may make the host hold.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use snakepit_proto::MAX_MESSAGE_BYTES;

/// A budget that is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exhausted {
    /// How many bytes are in use.
    pub(crate) used: usize,
    /// How many may be.
    pub(crate) limit: usize,
}

/// What one request may take alone whatever the limit, in bytes: a message of any legal size must be possible.
const ALONE: usize = MAX_MESSAGE_BYTES + 4 * 1024 * 1024;

/// A number of bytes that may be in use at a time. One request alone always fits.
#[derive(Debug)]
pub(crate) struct Budget {
    used: AtomicUsize,
    limit: usize,
}

impl Budget {
    pub(crate) const fn new(limit: usize) -> Self {
        Self { used: AtomicUsize::new(0), limit }
    }

    /// Takes bytes of which `held` are the caller's already.
    pub(crate) fn try_take(&self, bytes: usize, held: usize) -> Result<(), Exhausted> {
        let take = |used: usize| {
            let total = used.checked_add(bytes)?;
            (total <= self.limit || (used == held && total <= ALONE)).then_some(total)
        };
        let taken = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        taken.map(drop).map_err(|used| Exhausted { used, limit: self.limit })
    }

    pub(crate) fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

/// What all requests that are still arriving may hold, on all listeners. Workers have a budget of their own: a client that uses
/// up the other must not stop the tools that serve the rest.
#[derive(Debug, Clone)]
pub(crate) struct Arriving {
    pub(super) clients: Arc<Budget>,
    pub(super) workers: Arc<Budget>,
}

impl Arriving {
    /// So many bytes for either.
    pub(crate) fn new(bytes: usize) -> Self {
        Self { clients: Arc::new(Budget::new(bytes)), workers: Arc::new(Budget::new(bytes)) }
    }
}

/// Bytes of a budget, given back on drop.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Share {
    /// Nothing yet.
    pub(crate) const fn of(budget: Arc<Budget>) -> Self {
        Self { budget, bytes: 0 }
    }

    /// Takes more, or leaves it as it is.
    pub(crate) fn grow(&mut self, bytes: usize) -> Result<(), Exhausted> {
        self.budget.try_take(bytes, self.bytes)?;
        self.bytes += bytes;
        Ok(())
    }

    /// Gives all back.
    pub(crate) fn clear(&mut self) {
        if self.bytes > 0 {
            self.budget.give_back(std::mem::take(&mut self.bytes));
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_exceeds_the_budget_is_refused_with_both_numbers_and_costs_nothing() {
        let budget = Arc::new(Budget::new(100));
        let (mut one, mut other) = (Share::of(Arc::clone(&budget)), Share::of(Arc::clone(&budget)));
        one.grow(60).unwrap();
        assert_eq!(other.grow(50), Err(Exhausted { used: 60, limit: 100 }));
        other.grow(40).unwrap();
        drop(one);
        assert_eq!(budget.used(), 40);
        other.clear();
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn one_alone_always_fits() {
        let budget = Arc::new(Budget::new(100));
        let mut alone = Share::of(Arc::clone(&budget));
        alone.grow(90).unwrap();
        alone.grow(90).unwrap();
        assert_eq!(Share::of(Arc::clone(&budget)).grow(1), Err(Exhausted { used: 180, limit: 100 }));
    }
}
