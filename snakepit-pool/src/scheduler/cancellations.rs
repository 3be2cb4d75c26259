//! The abandoned calls of each worker, with the times by which they must have ended.

use snakepit_registry::CallId;
use tokio::time::Instant;

use super::{Effect, Load, Scheduler, WorkerKey};

/// A worker that runs several calls may end some abandoned calls while others hang, so each call has its own time.
#[derive(Debug, Default)]
pub(super) struct Cancellations(Vec<Cancellation>);

#[derive(Debug)]
struct Cancellation {
    worker: WorkerKey,
    call: CallId,
    by: Instant,
}

impl Cancellations {
    pub(super) fn add(&mut self, worker: WorkerKey, call: CallId, by: Instant) {
        self.0.push(Cancellation { worker, call, by });
    }

    /// Removes a call that has ended. Returns `false` if the call is unknown.
    pub(super) fn remove(&mut self, worker: WorkerKey, call: CallId) -> bool {
        let found = self.0.iter().position(|other| other.worker == worker && other.call == call);
        found.map(|index| self.0.swap_remove(index)).is_some()
    }

    /// Removes all calls of a worker.
    pub(super) fn remove_all(&mut self, worker: WorkerKey) {
        self.0.retain(|other| other.worker != worker);
    }

    /// Returns a worker with a call that has not ended in time.
    pub(super) fn overdue(&self, now: Instant) -> Option<WorkerKey> {
        self.0.iter().find(|other| other.by <= now).map(|other| other.worker)
    }

    /// The earliest time by which a call must have ended.
    pub(super) fn earliest(&self) -> Option<Instant> {
        self.0.iter().map(|other| other.by).min()
    }
}

impl Scheduler {
    pub(super) fn on_abandoned(&mut self, worker: WorkerKey, call: CallId, load: Load, now: Instant) {
        let by = now + self.limits.cancel_grace;
        let Some(up) = self.up(worker) else { return };
        up.remove(load, now);
        up.cancelling += 1;
        if self.is_current(worker) {
            self.update_capacity(worker.slot);
        }
        self.cancellations.add(worker, call, by);
        self.tick_at(by);
        self.effects.push(Effect::Cancel(worker, call));
    }

    pub(super) fn on_cancel_confirmed(&mut self, worker: WorkerKey, call: CallId, now: Instant) {
        if !self.cancellations.remove(worker, call) {
            return;
        }
        let Some(up) = self.up(worker) else { return };
        up.cancelling -= 1;
        // A worker that confirms a cancellation is healthy.
        up.mark_served();
        if self.is_current(worker) {
            self.update_capacity(worker.slot);
        }
        self.stop_if_retired(worker, now);
        self.dispatch(now);
    }
}
