//! Reports the start, the end, the readiness and the status of a pool.

use std::sync::Arc;

use snakepit_worker::Worker;
use tokio::sync::watch;

use super::{Driver, LiveWorker, Startup, State};
use crate::{
    PoolError, PoolStatus, Readiness, WorkerState, WorkerStatus,
    scheduler::{Phase, Slot, SlotState, Up, WorkerKey},
};

impl Driver {
    /// Waits for the end of the start phase.
    pub(crate) async fn ready(&self) -> Result<(), PoolError> {
        self.lock().startup_is_reported = true;
        let (mut startup, mut stopped) = (self.startup.subscribe(), self.stopped.subscribe());
        tokio::select! {
            biased;
            // Neither channel closes while `self` holds its sending end.
            _ = stopped.wait_for(|stopped| *stopped) => Err(PoolError::ShutDown),
            startup = startup.wait_for(|startup| !matches!(startup, Startup::Pending)) => match startup.as_deref() {
                Ok(Startup::Failed(error)) => Err(error.clone()),
                _ if self.lock().scheduler.phase() != Phase::Serving => Err(PoolError::ShutDown),
                _ => Ok(()),
            },
        }
    }

    /// Returns the first cause of a failed start, unless a task has waited for the start. Later calls return `None`.
    pub(super) fn take_unreported_failure(&self) -> Option<PoolError> {
        let Startup::Failed(error) = &*self.startup.borrow() else { return None };
        let is_reported = std::mem::replace(&mut self.lock().startup_is_reported, true);
        (!is_reported).then(|| error.clone())
    }

    /// Waits until every worker has exited after a shutdown.
    pub(crate) async fn stopped(&self) {
        // The channel does not close while `self` holds its sending end.
        let _ = self.stopped.subscribe().wait_for(|stopped| *stopped).await;
    }

    /// Computes the current readiness.
    pub(crate) fn current_readiness(&self) -> Readiness {
        let state = self.lock();
        if state.runtime_has_ended || state.scheduler.phase() != Phase::Serving {
            return Readiness::Stopping;
        }
        let slots = state.scheduler.slots();
        let up = slots.iter().filter(|slot| matches!(slot.state, SlotState::Up(_))).count();
        Readiness::of_workers(state.all_slots_have_launched(), up, slots.len())
    }

    pub(crate) fn readiness(&self) -> watch::Receiver<Readiness> {
        self.readiness.subscribe()
    }

    /// Publishes a change in readiness. Only launches, retirements, kills, exits and drains can change it.
    pub(super) fn update_readiness(&self) {
        let has_changed = self.readiness.send_if_modified(|published| {
            // Computed while no other thread can publish, so that the last value is the newest.
            let current = self.current_readiness();
            std::mem::replace(published, current) != current
        });
        if has_changed {
            // A drain ends the waits for restarts of single workers.
            self.launches.send_replace(());
        }
    }

    pub(crate) fn status(&self) -> PoolStatus {
        let state = self.lock();
        let slots = state.scheduler.slots();
        let status = |key: WorkerKey,
                      slot: &Slot,
                      worker_state: WorkerState,
                      live_worker: Option<&Arc<LiveWorker>>| {
            let worker = live_worker.map(|live_worker| &live_worker.handle);
            WorkerStatus {
                id: self.worker_id(key),
                pid: worker.and_then(Worker::pid),
                state: worker_state,
                address: worker.map_or_else(String::new, |worker| worker.address().to_owned()),
                started_at: live_worker.map(|live_worker| live_worker.started_at),
                calls: slot.ended_calls(),
                restarts: slot.restarts(),
                last_end: state.ended_workers.last(key.index()).map(str::to_owned),
            }
        };
        let workers = slots.iter().zip(state.live_workers.by_slot()).map(|(slot, live_worker)| {
            let key = slot.key();
            // A slot keeps the key of a worker that retired until it launches the next one.
            let has_left = state.scheduler.retired().any(|(retired, _)| retired == key);
            let live_worker = live_worker.filter(|live_worker| live_worker.key == key && !has_left);
            status(key, slot, worker_state(&slot.state), live_worker)
        });
        let retired = state.scheduler.retired().filter_map(|(key, up)| {
            // A worker that exits before the scheduler handles its exit is not listed.
            let live_worker = state.live_workers.get(key)?;
            Some(status(
                key,
                slots.get(key.index())?,
                up.map_or(WorkerState::Stopping, up_state),
                Some(live_worker),
            ))
        });
        let mut retired_workers: Vec<_> = retired.collect();
        retired_workers.sort_by(|one, other| one.id.cmp(&other.id));
        PoolStatus {
            name: self.config.name.clone(),
            queued: state.scheduler.queued(),
            waiting_for_room: state.scheduler.waiting_for_room(),
            in_flight: state.scheduler.in_flight(),
            workers: workers.collect(),
            retired_workers,
            calls: self.totals.read(),
        }
    }
}

impl State {
    pub(super) fn all_slots_have_launched(&self) -> bool {
        self.has_launched.iter().all(|has_launched| *has_launched)
    }
}

fn worker_state(state: &SlotState) -> WorkerState {
    match state {
        SlotState::Launching => WorkerState::Starting,
        SlotState::Up(up) if up.is_retiring => WorkerState::Stopping,
        SlotState::Up(up) => up_state(up),
        SlotState::Ending { .. } => WorkerState::Stopping,
        SlotState::BackingOff { .. } | SlotState::Closed => WorkerState::Dead,
    }
}

const fn up_state(up: &Up) -> WorkerState {
    match (up.running(), up.cancelling) {
        (0, 0) => WorkerState::Idle,
        // A worker that also runs other calls is busy.
        (0, _) => WorkerState::Quarantined,
        _ => WorkerState::Busy,
    }
}
