//! Detects deadlocks of nested calls. A deadlock occurs if tools call other tools, directly or through host tools, while the
//! ancestors of such calls hold every worker. Without detection, all of them would wait until their deadlines.
//!
//! The host knows a call's parent in two cases. If a worker calls a tool, the parent is the call that the worker runs. If a
//! host tool calls a tool through the embedding API, the parent is the host tool's call on the same task.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    sync::Arc,
};

use snakepit_registry::{CallId, Principal, ToolCall};
use tokio::time::Instant;

use super::{AcquireError, DeferredWork, Driver, Event, State, lease::LeaseRecord};
use crate::scheduler::{Slot, SlotState, Ticket, WorkerKey};

/// Records the ancestors of one call. Dropping it removes the record.
#[derive(Debug)]
pub(crate) struct Ancestry {
    driver: Arc<Driver>,
    call: CallId,
}

impl Ancestry {
    /// Records the ancestors of a call. Returns `None` for a call that is not nested.
    pub(crate) fn of(call: &ToolCall, driver: &Arc<Driver>) -> Option<Box<Self>> {
        let ancestors = Arc::clone(call.ancestors.as_ref()?);
        driver.lock().nested.insert(call.id, ancestors);
        Some(Box::new(Self { driver: Arc::clone(driver), call: call.id }))
    }
}

impl Drop for Ancestry {
    fn drop(&mut self) {
        self.driver.lock().nested.remove(self.call);
    }
}

/// The nested calls of a pool.
#[derive(Debug, Default)]
pub(super) struct NestedCalls {
    /// The ancestors of each nested call.
    ancestors: HashMap<CallId, Arc<[CallId]>>,
    /// For each call, the number of nested calls of which it is an ancestor.
    descendants: HashMap<CallId, usize>,
}

impl NestedCalls {
    fn insert(&mut self, call: CallId, ancestors: Arc<[CallId]>) {
        for ancestor in &*ancestors {
            *self.descendants.entry(*ancestor).or_default() += 1;
        }
        if let Some(old_ancestors) = self.ancestors.insert(call, ancestors) {
            self.remove_descendant(&old_ancestors);
        }
    }

    fn remove(&mut self, call: CallId) {
        if let Some(ancestors) = self.ancestors.remove(&call) {
            self.remove_descendant(&ancestors);
        }
    }

    fn remove_descendant(&mut self, ancestors: &[CallId]) {
        for ancestor in ancestors {
            if let Entry::Occupied(mut count) = self.descendants.entry(*ancestor) {
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    count.remove();
                }
            }
        }
    }

    fn of(&self, call: CallId) -> Option<&[CallId]> {
        self.ancestors.get(&call).map(|ancestors| &**ancestors)
    }

    fn has_descendants(&self, call: CallId) -> bool {
        self.descendants.contains_key(&call)
    }
}

impl Driver {
    /// The call that runs on this worker, after its own ancestors. `None` if it runs no call. Empty if workers run several calls
    /// concurrently, because a worker does not report which of them makes a nested call.
    pub(crate) fn ancestors_on(&self, worker: &str) -> Option<Arc<[CallId]>> {
        let key = self.worker_key(worker)?;
        let state = self.lock();
        if self.config.concurrency != 1 {
            return state.leases.iter().any(|(_, lease)| lease.worker_key == key).then(Arc::default);
        }
        let call = state.running_on(key)?.call;
        let outer = state.nested.of(call).unwrap_or_default();
        Some(outer.iter().copied().chain([call]).collect())
    }

    /// Returns the principal of the call that runs on this worker. For a nested call, returns the principal of its outermost
    /// ancestor in this pool. Returns `None` if the worker is unknown or runs no call, or if workers run several calls
    /// concurrently.
    pub(crate) fn acting_principal(&self, worker: &str) -> Option<Principal> {
        if self.config.concurrency != 1 {
            return None;
        }
        let key = self.worker_key(worker)?;
        let state = self.lock();
        let running = state.running_on(key)?;
        let outermost = state.nested.of(running.call).and_then(|ancestors| ancestors.first());
        let outermost = outermost.and_then(|call| state.leases.iter().find(|(_, lease)| lease.call == *call));
        Some(outermost.map_or(running, |(_, lease)| lease).principal.clone())
    }

    /// Whether an event may complete a deadlock, because a nested call begins to wait or a slot loses its worker.
    pub(super) fn may_deadlock(state: &State, event: &Event) -> bool {
        if state.nested.ancestors.is_empty() {
            return false;
        }
        match event {
            Event::Submit { ticket, .. } | Event::Returned { ticket, .. } => {
                state.nested.of(state.waiters[ticket.waiter].call).is_some()
            }
            Event::LaunchFailed(_) | Event::Exited(_) => true,
            _ => false,
        }
    }

    /// Rejects the newest queued nested call if ancestors of queued calls hold every worker.
    pub(super) fn end_deadlock(&self, state: &mut State, deferred: &mut DeferredWork) {
        // A cheap check that is usually decisive: every worker must run an ancestor of some nested call.
        if !holds_every_slot(state, |call| state.nested.has_descendants(call)) {
            return;
        }
        let (mut newest, mut awaited) = (None::<Ticket>, HashSet::<CallId>::new());
        for (call, ancestors) in &state.nested.ancestors {
            if let Some(ticket) = state.waiters.queued(*call) {
                newest = newest.max(Some(ticket));
                awaited.extend(&**ancestors);
            }
        }
        let Some(newest) = newest else { return };
        if holds_every_slot(state, |call| awaited.contains(&call)) {
            deferred.wake(state.waiters[newest.waiter].fail(AcquireError::Deadlock));
            self.apply(state, Event::Withdraw(newest), Instant::now(), deferred);
        }
    }
}

impl State {
    /// Returns the call that a worker runs, if workers run one call at a time. That call has the lowest number of all calls on
    /// the worker, because the worker received the others ahead of their turn.
    fn running_on(&self, worker: WorkerKey) -> Option<&LeaseRecord> {
        let leases = self.leases.iter().map(|(_, lease)| lease);
        leases.filter(|lease| lease.worker_key == worker).min_by_key(|lease| lease.number)
    }
}

/// Whether every slot runs a call that satisfies `is_holder`. Ignores slots whose workers keep failing.
fn holds_every_slot(state: &State, is_holder: impl Fn(CallId) -> bool) -> bool {
    let leases = state.leases.iter().map(|(_, lease)| lease);
    let held_workers: HashSet<_> = leases
        .filter(|lease| !lease.must_end() && is_holder(lease.call))
        .map(|lease| lease.worker_key)
        .collect();
    let is_up = |slot: &Slot| matches!(slot.state, SlotState::Up(_));
    let is_held = |slot: &Slot| is_up(slot) && held_workers.contains(&slot.key());
    !held_workers.is_empty()
        && state.scheduler.slots().iter().all(|slot| is_held(slot) || (!is_up(slot) && slot.is_failing()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descendants_are_counted_until_the_last_is_removed() {
        let id = CallId::from_u64;
        let mut nested = NestedCalls::default();
        nested.insert(id(2), Arc::from([id(1)]));
        nested.insert(id(3), Arc::from([id(1), id(2)]));
        assert!(nested.has_descendants(id(1)) && nested.has_descendants(id(2)));
        nested.remove(id(2));
        assert!(nested.has_descendants(id(1)));
        nested.remove(id(3));
        assert!(nested.ancestors.is_empty() && nested.descendants.is_empty());
        nested.remove(id(3));
    }
}
