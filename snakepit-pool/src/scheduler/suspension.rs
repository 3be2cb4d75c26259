//! Suspends workers on which a nested call could not begin, because a call that waits for it blocks the worker.

use tokio::time::Instant;

use super::{Scheduler, WorkerKey};

impl Scheduler {
    /// Hands no calls to a worker until [`resume`](Self::resume), for example because a running call blocks it.
    pub(super) fn suspend(&mut self, worker: WorkerKey) {
        if self.is_current(worker)
            && let Some(up) = self.slots[worker.index()].up()
        {
            up.suspensions += 1;
            self.capacity.remove(worker.slot);
        }
    }

    /// Ends one [`suspend`](Self::suspend).
    pub(super) fn resume(&mut self, worker: WorkerKey, now: Instant) {
        if self.is_current(worker)
            && let Some(up) = self.slots[worker.index()].up()
        {
            up.suspensions = up.suspensions.saturating_sub(1);
            self.update_capacity(worker.slot);
            self.dispatch(now);
        }
    }
}
