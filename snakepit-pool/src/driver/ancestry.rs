//! Finds calls that wait for themselves: a tool calls a host tool, which calls a tool, which finds every worker held by the
//! calls that it was made from. Such a call would wait until its deadline, and so would all the others.
//!
//! Only chains are known that the host can follow: a worker says on whose behalf it calls a host tool, and the host tool makes
//! its calls through the embedding API, on the same task.

use std::{collections::HashSet, sync::Arc};

use snakepit_registry::{CallId, ToolCall};
use tokio::time::Instant;

use super::{Event, Shared, State, Wakes};
use crate::scheduler::SlotState;

/// Keeps the ancestors of one call in the books for as long as the call lasts.
#[derive(Debug)]
pub(crate) struct Ancestry {
    shared: Arc<Shared>,
    call: CallId,
}

impl Ancestry {
    /// `None` for a call from outside.
    pub(crate) fn of(call: &ToolCall, shared: &Arc<Shared>) -> Option<Box<Self>> {
        let ancestors = Arc::clone(call.ancestors.as_ref()?);
        shared.lock().ancestors.insert(call.id, ancestors);
        Some(Box::new(Self { shared: Arc::clone(shared), call: call.id }))
    }
}

impl Drop for Ancestry {
    fn drop(&mut self) {
        self.shared.lock().ancestors.remove(&self.call);
    }
}

impl Shared {
    /// The call that this worker runs, and those that wait for that one. A worker that runs several at a time does not say
    /// which of them is meant.
    pub(crate) fn ancestors_on(&self, worker: &str) -> Option<Arc<[CallId]>> {
        if self.config.concurrency != 1 {
            return None;
        }
        let key = self.worker_key(worker)?;
        let state = self.lock();
        // Those that were handed over ahead of their turn have larger numbers.
        let on_worker =
            state.running.iter().map(|(_, running)| running).filter(|running| running.worker == key);
        let call = on_worker.min_by_key(|running| running.number)?.call;
        let before = state.ancestors.get(&call).map(|ancestors| &**ancestors).unwrap_or_default();
        Some(before.iter().copied().chain([call]).collect())
    }

    /// Refuses the newest of the calls that wait for each other, if every worker is held by calls that wait for them.
    pub(super) fn end_deadlock(&self, state: &mut State, wakes: &mut Wakes) {
        let waiting = || {
            let ancestors = state.ancestors.iter();
            ancestors.filter_map(|(call, its)| Some((state.waiters.queued(*call)?, Arc::clone(its))))
        };
        let Some((newest, _)) = waiting().max_by_key(|(ticket, _)| *ticket) else { return };
        let stuck: HashSet<CallId> = waiting().flat_map(|(_, ancestors)| ancestors.to_vec()).collect();
        let is_stuck = |slot: &crate::scheduler::Slot| {
            matches!(slot.state, SlotState::Up(_))
                && state.running.iter().any(|(_, running)| {
                    running.worker == slot.key() && !running.must_end() && stuck.contains(&running.call)
                })
        };
        if !state.scheduler.slots().iter().all(is_stuck) {
            return;
        }
        wakes.push(state.waiters[newest.waiter].deadlock());
        self.apply(state, Event::Withdraw(newest), Instant::now(), wakes);
    }
}
