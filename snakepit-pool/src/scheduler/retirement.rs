//! Retired workers: they finish their calls while replacements run in their slots. A restart retires workers, and a worker that runs
//! several calls retires when it rejects further calls because it is stopping.

use std::time::Duration;

use tokio::time::Instant;

use super::{Effect, KillReason, Load, Phase, RecyclingLimits, Scheduler, Slot, SlotState, Up, WorkerKey};

/// The time that a worker has to finish its calls while its replacement runs.
pub(crate) const RETIREMENT: Duration = Duration::from_secs(300);

/// The workers that finish their calls while replacements run in their slots. A limit per slot bounds the number of processes.
#[derive(Debug, Default)]
pub(super) struct RetiredWorkers(Vec<RetiredWorker>);

#[derive(Debug)]
struct RetiredWorker {
    key: WorkerKey,
    up: Up,
    /// The time by which the worker must have finished its calls. `None` for a worker that a restart has replaced, whose calls have deadlines.
    until: Option<Instant>,
    /// Whether it was killed or asked to stop.
    is_ending: bool,
}

impl RetiredWorkers {
    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) const fn len(&self) -> usize {
        self.0.len()
    }

    /// Each worker and its load, which is `None` if it was killed or asked to stop.
    pub(super) fn iter(&self) -> impl Iterator<Item = (WorkerKey, Option<&Up>)> {
        self.0.iter().map(|retired| (retired.key, (!retired.is_ending).then_some(&retired.up)))
    }

    /// The worker at this position and its load, unless it was killed or asked to stop.
    pub(super) fn running(&self, index: usize) -> Option<(WorkerKey, Up)> {
        self.0.get(index).filter(|retired| !retired.is_ending).map(|retired| (retired.key, retired.up))
    }

    pub(super) fn contains(&self, worker: WorkerKey) -> bool {
        self.0.iter().any(|retired| retired.key == worker)
    }

    fn find(&mut self, worker: WorkerKey) -> Option<&mut RetiredWorker> {
        self.0.iter_mut().find(|retired| retired.key == worker && !retired.is_ending)
    }

    fn overdue(&self, now: Instant) -> Option<WorkerKey> {
        let is_overdue =
            |retired: &&RetiredWorker| !retired.is_ending && retired.until.is_some_and(|until| until <= now);
        self.0.iter().find(is_overdue).map(|retired| retired.key)
    }

    /// The earliest time by which a worker must have finished its calls.
    fn earliest_end(&self) -> Option<Instant> {
        self.0.iter().filter(|retired| !retired.is_ending).filter_map(|retired| retired.until).min()
    }

    /// The number of retired workers of a slot.
    pub(super) fn count_of(&self, slot: u32) -> usize {
        self.0.iter().filter(|retired| retired.key.slot == slot).count()
    }

    /// Adds a worker that a restart has replaced. `up` is `None` if it is ending.
    pub(super) fn add_replaced(&mut self, key: WorkerKey, up: Option<Up>, now: Instant) {
        let is_ending = up.is_none();
        let no_limits = || RecyclingLimits::default().of_worker(key, now);
        let mut up = up.unwrap_or_else(|| Up::new(false, 1, no_limits(), now));
        up.is_retiring = true;
        self.0.push(RetiredWorker { key, up, until: None, is_ending });
    }
}

impl Scheduler {
    /// The state of a worker in service, or of one that finishes its calls while its replacement runs.
    pub(super) fn up(&mut self, worker: WorkerKey) -> Option<&mut Up> {
        if self.is_current(worker) {
            return self.slots[worker.index()].up();
        }
        self.retired.find(worker).map(|retired| &mut retired.up)
    }

    /// The number of calls that a worker runs concurrently. 1 for a worker that is not up.
    pub(crate) fn concurrency_of(&self, worker: WorkerKey) -> u32 {
        let retired = self.retired.0.iter().find(|retired| retired.key == worker).map(|retired| &retired.up);
        let current = || match &self.slots.get(worker.index()).filter(|slot| slot.key() == worker)?.state {
            SlotState::Up(up) => Some(up),
            _ => None,
        };
        retired.or_else(current).map_or(1, |up| up.concurrency)
    }

    /// The workers that finish their calls beside their replacements. The load is `None` if a worker was killed or asked to stop.
    pub(crate) fn retired(&self) -> impl Iterator<Item = (WorkerKey, Option<&Up>)> {
        self.retired.iter()
    }

    pub(super) fn on_retired(&mut self, worker: WorkerKey, load: Load, now: Instant) {
        self.in_flight -= 1;
        self.remove_unbegun(worker, load);
        if self.is_current(worker)
            && let Some(up) = self.slots[worker.index()].up()
        {
            up.is_retiring = true;
            self.capacity.remove(worker.slot);
        }
        self.stop_if_retired(worker, now);
        self.replace_retiring(worker.slot, now);
        self.stop_if_drained();
    }

    /// Stops a worker that rejected a call because it is stopping, once its other calls have ended.
    pub(super) fn stop_if_retired(&mut self, worker: WorkerKey, now: Instant) {
        if self.up(worker).is_none_or(|up| !up.is_retiring || up.held() > 0) {
            return;
        }
        if self.is_current(worker) {
            let is_healthy = self.slots[worker.index()].up().is_some_and(|up| up.is_healthy(now));
            self.take_out_of_service(worker, is_healthy);
        } else {
            self.end_retired(worker);
        }
        self.effects.push(Effect::Stop(worker));
    }

    /// Launches the replacement of a retiring worker that still runs several calls, unless another retired worker of the slot has
    /// not exited.
    pub(super) fn replace_retiring(&mut self, slot: u32, now: Instant) {
        let is_alone =
            self.retired.0.iter().all(|retired| retired.key.slot != slot || retired.until.is_none());
        // A successor replaces the worker anyway.
        let Some(Slot { state: SlotState::Up(up), successor: None, .. }) = self.slots.get(slot as usize)
        else {
            return;
        };
        if !up.is_retiring || up.concurrency == 1 || !is_alone || self.phase == Phase::Stopping {
            return;
        }
        let (up, key, until) = (*up, self.slots[slot as usize].key(), now + RETIREMENT);
        self.retired.0.push(RetiredWorker { key, up, until: Some(until), is_ending: false });
        self.tick_at(until);
        self.workers_up -= 1;
        self.vacate(key, up.is_healthy(now), now);
    }

    /// Marks a retired worker as killed or asked to stop. Returns `false` for other workers, and if it was marked before.
    pub(super) fn end_retired(&mut self, worker: WorkerKey) -> bool {
        let Some(retired) = self.retired.find(worker) else { return false };
        retired.is_ending = true;
        self.cancellations.remove_all(worker);
        true
    }

    /// Kills retired workers that have not finished their calls in time.
    pub(super) fn end_retirements(&mut self, now: Instant) {
        while let Some(worker) = self.retired.overdue(now) {
            self.kill(worker, KillReason::RetiredTooLong { limit: RETIREMENT }, now);
        }
        if let Some(end) = self.retired.earliest_end() {
            self.tick_at(end);
        }
    }

    /// Stops all retired workers.
    pub(super) fn stop_retired(&mut self) {
        while let Some(worker) =
            self.retired.0.iter().find(|retired| !retired.is_ending).map(|retired| retired.key)
        {
            self.end_retired(worker);
            self.effects.push(Effect::Stop(worker));
        }
    }

    /// Handles the exit of a retired worker. Returns `false` for other workers.
    pub(super) fn on_retired_exited(&mut self, worker: WorkerKey, now: Instant) -> bool {
        let Some(index) = self.retired.0.iter().position(|retired| retired.key == worker) else {
            return false;
        };
        self.retired.0.swap_remove(index);
        self.cancellations.remove_all(worker);
        // Its replacement may have retired, too.
        self.replace_retiring(worker.slot, now);
        self.finish_stop();
        true
    }
}
