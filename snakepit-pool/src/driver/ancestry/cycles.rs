//! Finds deadlocks between chains of nested calls: each chain waits for a call limit of a worker that calls of another chain hold.

use std::collections::{HashMap, HashSet};

use snakepit_registry::CallId;

use super::State;
use crate::scheduler::WorkerKey;

/// A nested call that waits for a worker, or for its turn on one.
struct WaitingCall<'a> {
    ancestors: &'a [CallId],
    tool: &'a str,
    /// `None` if the call is queued, so that it may begin on any worker.
    worker: Option<WorkerKey>,
}

impl State {
    /// Of these workers, those on which a nested call to this tool could not begin before one of its ancestors ends, because its
    /// ancestors and those of other waiting calls wait for each other.
    pub(super) fn workers_that_close_cycles(
        &self,
        mut workers: Vec<WorkerKey>,
        tool: &str,
        ancestors: &[CallId],
    ) -> Vec<WorkerKey> {
        // A cheap check that is usually decisive: calls that wait for nested calls must hold the limit.
        let may_wait = |call| self.nested.has_descendants(call) || ancestors.contains(&call);
        workers.retain(|worker| !self.can_begin_beside(*worker, tool, may_wait));
        if workers.is_empty() {
            return workers;
        }
        let mut waiting = self.waiting_calls();
        loop {
            let awaited = waiting.iter().flat_map(|call| call.ancestors).chain(ancestors);
            let awaited: HashSet<CallId> = awaited.copied().collect();
            let can_begin =
                |worker, tool| self.can_begin_beside(worker, tool, |call| awaited.contains(&call));
            workers.retain(|worker| !can_begin(*worker, tool));
            if workers.is_empty() {
                return workers;
            }
            // Many calls of the same tools may wait, so each answer is found once.
            let mut answers = HashMap::new();
            let count = waiting.len();
            // Calls that can begin will end, and then their ancestors no longer wait.
            waiting.retain(|call| {
                let answer = answers.entry((call.worker, call.tool)).or_insert_with(|| match call.worker {
                    Some(worker) => can_begin(worker, call.tool),
                    None => self.live_workers.iter().any(|worker| can_begin(worker.key, call.tool)),
                });
                !*answer
            });
            if waiting.len() == count {
                return workers;
            }
        }
    }

    /// The innermost nested calls: those that do not wait for another nested call.
    fn waiting_calls(&self) -> Vec<WaitingCall<'_>> {
        let innermost = self.nested.ancestors.iter().filter(|(call, _)| !self.nested.has_descendants(**call));
        let waiting = innermost.flat_map(|(call, ancestors)| {
            let leased = self.leases.of_call(*call).filter(|lease| !lease.must_end());
            let leased = leased.filter_map(|lease| Some((lease.tool.as_deref()?, Some(lease.worker_key))));
            let queued = self.waiters.queued(*call);
            let queued = queued.and_then(|ticket| Some((self.waiters[ticket.waiter].tool.as_deref()?, None)));
            leased.chain(queued).map(move |(tool, worker)| WaitingCall { ancestors, tool, worker })
        });
        waiting.collect()
    }

    /// Whether a call to this tool can begin on a worker while its calls that satisfy `holds` run.
    fn can_begin_beside(&self, worker: WorkerKey, tool: &str, holds: impl Fn(CallId) -> bool) -> bool {
        let Some(limits) = self.live_workers.get(worker).and_then(|worker| worker.handle.call_limits())
        else {
            return true;
        };
        let holders = self.leases.of_worker(worker);
        let holders: Vec<_> = holders.filter(|lease| !lease.must_end() && holds(lease.call)).collect();
        !holders.iter().any(|lease| lease.blocks_worker)
            && limits.can_begin(tool, holders.iter().filter_map(|lease| lease.tool.as_deref()))
    }
}
