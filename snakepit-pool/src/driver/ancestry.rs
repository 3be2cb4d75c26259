//! Detects deadlocks of nested calls. A deadlock occurs if tools call other tools, directly or through host tools, while the
//! ancestors of such calls hold every worker. Without detection, all of them would wait until their deadlines.
//!
//! The host knows a call's parent in two cases. If a worker calls a tool, the parent is the call that the worker runs, or the one
//! that the worker reports if it runs several. If a host tool calls a tool through the embedding API, the parent is the host
//! tool's call on the same task.

mod cycles;

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    sync::Arc,
};

use snakepit_registry::{CallId, CallReports, Principal, ToolCall};
use tokio::time::Instant;

use super::{AcquireError, DeferredWork, Driver, Event, State, lease::LeaseRecord};
use crate::{
    scheduler::{Slot, SlotState, Ticket, Up, WorkerKey},
    sync::MutexGuard,
};

/// Records the ancestors of one call, and the receivers of the output of its nested calls. Dropping it removes the record.
#[derive(Debug)]
pub(crate) struct Ancestry {
    driver: Arc<Driver>,
    call: CallId,
}

impl Ancestry {
    /// Records the ancestors of a call. Returns `None` for a call that is not nested, and whose caller does not receive output.
    pub(crate) fn of(call: &ToolCall, driver: &Arc<Driver>) -> Option<Box<Self>> {
        let reports = CallReports::of(call).and_then(CallReports::for_nested);
        if call.ancestors.is_none() && reports.is_none() {
            return None;
        }
        let mut state = driver.lock();
        if let Some(ancestors) = &call.ancestors {
            state.nested.insert(call.id, Arc::clone(ancestors));
        }
        let replaced = reports.and_then(|reports| state.nested.reports.insert(call.id, reports));
        drop(state);
        // Dropped after the lock is released, because receivers are closures of the program.
        drop(replaced);
        Some(Box::new(Self { driver: Arc::clone(driver), call: call.id }))
    }
}

impl Drop for Ancestry {
    fn drop(&mut self) {
        let reports = self.driver.lock().nested.remove(self.call);
        // Dropped after the lock is released, because receivers are closures of the program.
        drop(reports);
    }
}

/// The nested calls of a pool.
#[derive(Debug, Default)]
pub(super) struct NestedCalls {
    /// The ancestors of each nested call.
    ancestors: HashMap<CallId, Arc<[CallId]>>,
    /// For each call, the number of nested calls of which it is an ancestor.
    descendants: HashMap<CallId, usize>,
    /// The receivers for nested calls, by the call that makes them. Only for calls whose callers receive output.
    reports: HashMap<CallId, CallReports>,
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

    /// Removes a call, and returns the receivers of its nested calls.
    fn remove(&mut self, call: CallId) -> Option<CallReports> {
        if let Some(ancestors) = self.ancestors.remove(&call) {
            self.remove_descendant(&ancestors);
        }
        self.reports.remove(&call)
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
    /// The call that runs on this worker, after its own ancestors. `None` if it is idle. Empty if the worker runs several calls
    /// and does not report which of them makes a nested call.
    pub(crate) fn ancestors_on(&self, worker: &str, reported: Option<u64>) -> Option<Arc<[CallId]>> {
        let key = self.worker_key(worker)?;
        let reported = self.find_call(key, reported);
        let state = self.lock_indexed();
        let Some(running) = state.running_on(key, reported) else {
            let runs_calls = state.leases.of_worker(key).next().is_some();
            return (runs_calls && state.scheduler.concurrency_of(key) > 1).then(Arc::default);
        };
        let call = running.call;
        let outer = state.nested.of(call).unwrap_or_default();
        Some(outer.iter().copied().chain([call]).collect())
    }

    /// Records whether a running call blocks its worker while it waits for a request to the host.
    pub(crate) fn set_blocks_worker(&self, worker: &str, reported: u64, blocks_worker: bool) {
        let Some(key) = self.worker_key(worker) else { return };
        let Some(call) = self.find_call(key, Some(reported)) else { return };
        let mut state = self.lock_indexed();
        if let Some(lease) = state.leases.of_call_on(call, key) {
            lease.blocks_worker = blocks_worker;
        }
    }

    /// Returns the principal of the call that runs on this worker. For a nested call, returns the principal of its outermost
    /// ancestor in this pool. Returns `None` if the worker is unknown or idle, or if it runs several calls and does not report
    /// which of them it means.
    pub(crate) fn acting_principal(&self, worker: &str, reported: Option<u64>) -> Option<Principal> {
        let key = self.worker_key(worker)?;
        let reported = self.find_call(key, reported);
        let state = self.lock_indexed();
        let running = state.running_on(key, reported)?;
        let outermost = state.nested.of(running.call).and_then(|ancestors| ancestors.first());
        let outermost = outermost.and_then(|call| state.leases.of_call(*call).next());
        Some(outermost.unwrap_or(running).principal.clone())
    }

    /// The receivers of the output of nested calls that the call on this worker makes.
    pub(crate) fn reports_on(&self, worker: &str, reported: Option<u64>) -> Option<CallReports> {
        let key = self.worker_key(worker)?;
        if self.lock().nested.reports.is_empty() {
            return None;
        }
        let reported = self.find_call(key, reported);
        let state = self.lock_indexed();
        let running = state.running_on(key, reported)?;
        state.nested.reports.get(&running.call).cloned()
    }

    /// Locks the state, and creates the index of leases, because a tool makes requests to the host.
    fn lock_indexed(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        state.leases.index();
        state
    }

    /// The call that a worker reports under its own id. Asks the handler of the worker without the lock.
    fn find_call(&self, key: WorkerKey, reported: Option<u64>) -> Option<CallId> {
        let reported = reported?;
        let live_worker = self.lock().live_workers.get(key).cloned()?;
        live_worker.handle.handler().find_call(reported)
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
        if !holds_every_slot(state, state.nested.descendants.keys()) {
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
        if holds_every_slot(state, &awaited) {
            deferred.wake(state.waiters[newest.waiter].fail(AcquireError::Deadlock));
            self.apply(state, Event::Withdraw(newest), Instant::now(), deferred);
        }
    }
}

impl State {
    /// Whether an ancestor of a nested call runs on a worker. An empty list means that a worker made the call and did not
    /// report which of its running calls waits for it.
    pub(super) fn runs_any(&self, ancestors: &[CallId]) -> bool {
        ancestors.is_empty() || self.leases_of(ancestors).next().is_some()
    }

    /// The workers with places on which a call to this tool could not begin before one of its ancestors ends: an ancestor blocks the
    /// worker, ancestors use up a limit of the worker, or other nested calls that wait for these ancestors do.
    pub(super) fn workers_blocked_for(&self, tool: &str, ancestors: &[CallId]) -> Vec<WorkerKey> {
        let holders = self.leases_of(ancestors).filter(|lease| !lease.must_end());
        let holders: Vec<_> =
            holders.filter(|lease| self.scheduler.concurrency_of(lease.worker_key) > 1).collect();
        let mut workers: Vec<_> = holders.iter().map(|lease| lease.worker_key).collect();
        workers.sort_unstable_by_key(|worker| (worker.slot, worker.generation));
        workers.dedup();
        workers.retain(|worker| {
            let holders = holders.iter().filter(|lease| lease.worker_key == *worker);
            let limits = self.live_workers.get(*worker).and_then(|worker| worker.handle.call_limits());
            holders.clone().any(|lease| lease.blocks_worker)
                || limits.is_some_and(|limits| {
                    !limits.can_begin(tool, holders.filter_map(|lease| lease.tool.as_deref()))
                })
        });
        if self.has_call_limits {
            // Only calls that wait for nested calls can hold a limit until an ancestor ends.
            let others = self.leases_of(self.nested.descendants.keys()).map(|lease| lease.worker_key);
            let is_other =
                |worker: &WorkerKey| !workers.contains(worker) && self.live_workers.get(*worker).is_some();
            let others: HashSet<WorkerKey> = others.filter(is_other).collect();
            workers.extend(self.workers_that_close_cycles(others.into_iter().collect(), tool, ancestors));
        }
        workers
    }

    /// The leases of these calls.
    fn leases_of<'a>(
        &'a self,
        calls: impl IntoIterator<Item = &'a CallId>,
    ) -> impl Iterator<Item = &'a LeaseRecord> {
        calls.into_iter().flat_map(|call| self.leases.of_call(*call))
    }

    /// Returns the call that a worker runs. If the worker runs one call at a time, that call has the lowest number of all calls
    /// on the worker, because the worker received the others ahead of their turn. Otherwise, it is the reported one.
    fn running_on(&self, worker: WorkerKey, reported: Option<CallId>) -> Option<&LeaseRecord> {
        if self.scheduler.concurrency_of(worker) > 1 {
            return self.leases.of_call(reported?).find(|lease| lease.worker_key == worker);
        }
        self.leases.of_worker(worker).min_by_key(|lease| lease.number)
    }
}

/// Whether these calls occupy every place of every slot, or suspend its worker. Ignores slots whose workers keep failing.
fn holds_every_slot<'a>(state: &'a State, calls: impl IntoIterator<Item = &'a CallId>) -> bool {
    let mut holders: HashMap<WorkerKey, u32> = HashMap::new();
    for lease in state.leases_of(calls).filter(|lease| !lease.must_end()) {
        *holders.entry(lease.worker_key).or_default() += 1;
    }
    let is_up = |slot: &Slot| matches!(slot.state, SlotState::Up(_));
    let is_held = |slot: &Slot| {
        let held = holders.get(&slot.key()).copied().unwrap_or_default();
        // The scheduler assigns no further calls to a retiring worker, and replaces it when its calls have ended.
        let places = |up: &Up| if up.is_retiring { up.held() } else { up.concurrency };
        matches!(&slot.state, SlotState::Up(up) if held > 0 && (held >= places(up) || up.suspensions > 0))
    };
    !holders.is_empty()
        && state.scheduler.slots().iter().all(|slot| is_held(slot) || (!is_up(slot) && slot.is_failing()))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::FutureExt;
    use snakepit_registry::FnTool;
    use snakepit_worker::{CallLimits, LauncherEnd, Worker};
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    use super::*;
    use crate::{
        PoolConfig,
        collections::take_accesses,
        driver::{Acquire, Lease, supervisor::Command},
    };

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

    /// A pool without a supervisor, whose workers run several calls each.
    struct TestPool {
        driver: Arc<Driver>,
        leases: Vec<Lease>,
        _commands: UnboundedReceiver<Command>,
        _launcher_ends: Vec<LauncherEnd>,
    }

    impl TestPool {
        fn new(workers: usize, concurrency: usize, limits: &CallLimits) -> Self {
            let (sender, mut commands) = unbounded_channel();
            let driver = Arc::new(Driver::new(PoolConfig { workers, ..PoolConfig::default() }, sender));
            driver.on_tick(Instant::now());
            let mut launcher_ends = Vec::new();
            while let Ok(command) = commands.try_recv() {
                let Command::Launch(key, id) = command else { continue };
                let handler = Arc::new(FnTool::typed("t", |(): ()| async { Ok::<_, Infallible>(()) }));
                let (worker, launcher_end) = Worker::new(id, None, "model", handler);
                let worker = worker.with_concurrency(concurrency).with_call_limits(limits.clone());
                driver.on_launched(key, worker);
                launcher_ends.push(launcher_end);
            }
            Self { driver, leases: Vec::new(), _commands: commands, _launcher_ends: launcher_ends }
        }

        /// Takes places of the workers, and returns the calls that hold them.
        fn take(&mut self, places: usize, tool: &str) -> Vec<CallId> {
            let calls: Vec<_> = (0..places).map(|_| ToolCall::new(tool)).collect();
            self.leases.extend(calls.iter().map(|call| self.acquire(call)).collect::<Vec<_>>());
            calls.iter().map(|call| call.id).collect()
        }

        fn acquire(&self, call: &ToolCall) -> Lease {
            let acquire = Acquire::new(Arc::clone(&self.driver), call);
            acquire.now_or_never().expect("a place is free").expect("the pool serves")
        }
    }

    /// Makes a nested call, and requests for the calls of the worker that makes it. Returns the number of accessed leases and queued calls.
    fn accesses_of_nested_call(workers: usize) -> usize {
        let mut pool = TestPool::new(workers, 4, &CallLimits::new(4));
        pool.take(workers * 4 - 1, "t");
        let outer = pool.driver.lock().leases.iter().next().map(|lease| (lease.call, lease.worker_key));
        let (outer, worker_key) = outer.expect("the pool runs calls");
        let worker = pool.driver.worker_id(worker_key);
        let nested = ToolCall::new("t").with_ancestors(Arc::from([outer]));
        let ancestors = || pool.driver.ancestors_on(worker.as_str(), None).expect("the worker runs calls");
        // The first request of a tool creates the index.
        ancestors();
        take_accesses();
        let ancestry = Ancestry::of(&nested, &pool.driver);
        let acquire = Acquire::new(Arc::clone(&pool.driver), &nested);
        assert!(pool.driver.lock().running_on(worker_key, Some(outer)).is_some());
        ancestors();
        drop((acquire, ancestry));
        take_accesses()
    }

    #[test]
    fn a_nested_call_accesses_only_the_leases_of_its_ancestors_and_their_workers() {
        let [few, many] = [4, 256].map(accesses_of_nested_call);
        // A scan of the leases would access 1023 of them.
        assert_eq!(few, many);
        assert!(many <= 30, "{many}");
    }

    #[test]
    fn the_search_for_cycles_checks_each_worker_once_for_all_waiting_calls_of_a_tool() {
        const WORKERS: usize = 4;
        let mut pool = TestPool::new(WORKERS, 32, &CallLimits::new(32).with_tool("limited", 1));
        // The calls that hold the limits wait for nested calls that can begin.
        let holders = pool.take(WORKERS, "limited");
        let mut waiting = Vec::new();
        let mut call_nested = |pool: &TestPool, tool: &str, ancestor: CallId| {
            let nested = ToolCall::new(tool).with_ancestors(Arc::from([ancestor]));
            let ancestry = Ancestry::of(&nested, &pool.driver);
            waiting.push((Acquire::new(Arc::clone(&pool.driver), &nested), ancestry));
        };
        for holder in holders {
            call_nested(&pool, "t", holder);
        }
        // The others wait for the limits, in a queue or on a worker.
        let outer = pool.take(WORKERS * 32 - 2 * WORKERS, "t");
        for ancestor in &outer {
            take_accesses();
            call_nested(&pool, "limited", *ancestor);
        }
        let accesses = take_accesses();
        // All leases once for each of four steps, and a few accesses for each waiting call. If the search checked all workers for
        // each waiting call, it would access more than 60,000.
        assert!(accesses <= 20 * WORKERS * 32, "{accesses}");
    }
}
