//! Events of workers: launches, exits, measurements and the ends of cancellations.

use std::{sync::Arc, time::SystemTime};

use snakepit_registry::CallId;
use snakepit_worker::{Worker, WorkerError, WorkerId, error_chain};
use tokio::time::Instant;

use super::{Driver, LastFailure, LeaseSignal, LiveWorker, Startup, WorkerKey};
use crate::{PoolError, scheduler::Event};

impl Driver {
    pub(super) fn on_launched(&self, key: WorkerKey, worker: Worker) -> Arc<LiveWorker> {
        let live_worker = Arc::new(LiveWorker { key, handle: worker, started_at: SystemTime::now() });
        let all_have_launched = self.with_state(|state, deferred| {
            state.live_workers.insert(Arc::clone(&live_worker));
            state.has_launched[key.index()] = true;
            state.has_call_limits |= live_worker.handle.call_limits().is_some();
            let launched = Event::Launched {
                worker: key,
                queues_calls: live_worker.handle.queues_calls(),
                concurrency: live_worker.handle.concurrency(),
            };
            self.apply(state, launched, Instant::now(), deferred);
            state.all_slots_have_launched()
        });
        self.launches.send_replace(());
        // The readiness changes before the start phase ends, so that a task that waits for the start finds the pool ready.
        self.update_readiness();
        if all_have_launched {
            self.end_startup(Startup::Ready);
        }
        live_worker
    }

    /// Ends the start phase, unless it has ended already.
    pub(super) fn end_startup(&self, outcome: Startup) {
        self.startup.send_if_modified(|startup| {
            let is_pending = matches!(startup, Startup::Pending);
            if is_pending {
                *startup = outcome;
            }
            is_pending
        });
    }

    /// Handles a failed launch. Returns whether its cause is reported elsewhere: for one of the first launches by
    /// [`ready`](Self::ready) or [`take_unreported_failure`](Self::take_unreported_failure), otherwise by
    /// [`restart`](Self::restart).
    pub(super) fn on_launch_failed(&self, key: WorkerKey, id: &WorkerId, error: &WorkerError) -> bool {
        let failure = PoolError::start(id.clone(), error.clone());
        let mut state = self.lock();
        state.last_failure = Some(LastFailure::Launch { error: error_chain(&failure).to_string() });
        state.last_launch_error = Some(failure.clone());
        drop(state);
        self.end_startup(Startup::Failed(failure));
        let is_reported = match &*self.startup.borrow() {
            Startup::Failed(PoolError::Start { error: first, .. }) => {
                key.generation == 1 && error_chain(first).to_string() == error_chain(error).to_string()
            }
            _ => false,
        };
        self.handle_event(Event::LaunchFailed(key));
        self.launches.send_replace(());
        is_reported || self.has_ended_restart(id)
    }

    /// Handles the exit of a worker. `was_stopped` is whether it stopped as asked.
    pub(super) fn on_exited(&self, key: WorkerKey, id: &WorkerId, reason: String, was_stopped: bool) {
        let exited = self.with_state(|state, deferred| {
            let exited = state.live_workers.remove(key);
            state.ended_workers.end(key, id, &reason, was_stopped);
            state.last_failure = Some(LastFailure::exited(state.last_failure.take(), id, reason));
            state.mark_concurrent_calls(key);
            state.cancelling.retain(|(worker_key, _)| *worker_key != key);
            for lease in state.leases.iter_mut().filter(|lease| lease.worker_key == key && !lease.must_end())
            {
                deferred.wake(lease.send(LeaseSignal::WorkerExited));
            }
            self.apply(state, Event::Exited(key), Instant::now(), deferred);
            exited
        });
        drop(exited);
        self.update_readiness();
        self.call_ended.notify_waiters();
    }

    /// The workers that are up.
    pub(super) fn workers_up(&self) -> Vec<(WorkerKey, Worker)> {
        let state = self.lock();
        state.live_workers.iter().map(|live_worker| (live_worker.key, live_worker.handle.clone())).collect()
    }

    /// Handles measurements of the workers' private memory, in bytes.
    pub(super) fn on_memory_measured(&self, measured: &[(WorkerKey, u64)]) {
        for &(worker, used) in measured {
            self.handle_event(Event::Memory { worker, used });
        }
    }

    pub(super) fn on_cancel_ended(&self, key: WorkerKey, call: CallId, is_proven: bool) {
        self.with_state(|state, deferred| {
            if is_proven {
                state.cancelling.retain(|cancelling| *cancelling != (key, call));
            }
            let event = if is_proven { Event::CancelConfirmed(key, call) } else { Event::CancelFailed(key) };
            self.apply(state, event, Instant::now(), deferred);
        });
        self.update_readiness();
        self.call_ended.notify_waiters();
    }
}
