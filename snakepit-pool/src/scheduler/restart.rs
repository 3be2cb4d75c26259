//! Restarts: the rolling replacement of all workers. In each slot, the new worker is up before the old one retires.

use tokio::time::Instant;

use super::{Effect, Phase, RecycleReason, RestartOutcome, Scheduler, SlotState, WorkerKey};

/// The maximum number of replaced workers per slot that still finish calls. Another restart waits until one of them exits.
pub(super) const MAX_REPLACED: usize = 4;

/// A restart in progress.
#[derive(Debug)]
pub(super) struct Restart {
    /// The number of the newest restart. It includes all earlier ones.
    number: u64,
    /// The progress in each slot.
    slots: Vec<SlotProgress>,
}

#[derive(Debug, Clone, Copy)]
struct SlotProgress {
    /// The generation of the last worker that was launched before the restart.
    last_old_generation: u32,
    is_replaced: bool,
    /// Whether the scheduler has reported that the slot has too many replaced workers.
    has_reported_wait: bool,
}

impl Restart {
    /// Whether the worker was launched after the restart began.
    fn is_new(&self, worker: WorkerKey) -> bool {
        self.slots.get(worker.index()).is_some_and(|slot| worker.generation > slot.last_old_generation)
    }

    /// The number of slots that may launch a new worker at the same time: one until the first new worker is up, then a quarter.
    fn surge(&self) -> usize {
        if self.slots.iter().any(|slot| slot.is_replaced) { (self.slots.len() / 4).max(1) } else { 1 }
    }
}

impl Scheduler {
    /// Begins a restart. It supersedes the restart in progress, whose new workers are replaced too.
    pub(super) fn on_restart(&mut self, number: u64) {
        if self.phase != Phase::Serving {
            return self.effects.push(Effect::RestartEnded { number, outcome: RestartOutcome::ShutDown });
        }
        let initial = |slot: &super::Slot| SlotProgress {
            last_old_generation: slot.last_generation(),
            is_replaced: false,
            has_reported_wait: false,
        };
        self.restart = Some(Restart { number, slots: self.slots.iter().map(initial).collect() });
        self.abort_successors();
    }

    fn abort_successors(&mut self) {
        let successors = self.slots.iter().filter_map(super::Slot::successor);
        self.effects.extend(successors.map(Effect::AbortLaunch));
    }

    fn end_restart(&mut self, outcome: RestartOutcome) {
        if let Some(Restart { number, .. }) = self.restart.take() {
            self.effects.push(Effect::RestartEnded { number, outcome });
        }
    }

    /// Launches the next successors, and ends the restart when every slot has a new worker.
    pub(super) fn advance_restart(&mut self) {
        if self.phase != Phase::Serving {
            self.abort_successors();
            return self.end_restart(RestartOutcome::ShutDown);
        }
        let Some(restart) = &mut self.restart else { return };
        if restart.slots.iter().all(|slot| slot.is_replaced) {
            return self.end_restart(RestartOutcome::Replaced);
        }
        let is_launching =
            |slot: &&super::Slot| matches!(slot.state, SlotState::Launching) || slot.successor.is_some();
        let mut remaining = restart.surge().saturating_sub(self.slots.iter().filter(is_launching).count());
        for index in 0..self.slots.len() {
            let (slot, progress) = (&mut self.slots[index], &mut restart.slots[index]);
            if remaining == 0 || progress.is_replaced {
                continue;
            }
            let launched = match slot.state {
                SlotState::BackingOff { .. } => slot.launch(),
                SlotState::Up(_) if slot.successor.is_none() => {
                    if self.retired.count_of(slot.key().slot) >= MAX_REPLACED {
                        if !std::mem::replace(&mut progress.has_reported_wait, true) {
                            self.effects.push(Effect::RestartWaits { slot: slot.key().slot });
                        }
                        continue;
                    }
                    slot.launch_successor()
                }
                // The launch or the exit of this worker continues the restart.
                SlotState::Up(_) | SlotState::Launching | SlotState::Ending { .. } | SlotState::Closed => {
                    continue;
                }
            };
            self.effects.push(Effect::Launch(launched));
            remaining -= 1;
        }
    }

    /// Records that a slot has a new worker.
    pub(super) fn mark_replaced(&mut self, worker: WorkerKey) {
        if let Some(restart) = self.restart.as_mut().filter(|restart| restart.is_new(worker)) {
            restart.slots[worker.index()].is_replaced = true;
        }
    }

    /// Ends the restart if this worker, which did not start, belongs to it.
    pub(super) fn fail_restart(&mut self, worker: WorkerKey) {
        let is_failure =
            |restart: &&Restart| restart.is_new(worker) && !restart.slots[worker.index()].is_replaced;
        if self.phase == Phase::Serving
            && let Some(restart) = self.restart.as_ref().filter(is_failure)
        {
            let replaced = restart.slots.iter().filter(|slot| slot.is_replaced).count();
            self.abort_successors();
            self.end_restart(RestartOutcome::Failed { worker, replaced });
        }
    }

    pub(super) fn is_successor(&self, worker: WorkerKey) -> bool {
        self.slots.get(worker.index()).is_some_and(|slot| slot.successor() == Some(worker))
    }

    /// Makes a successor that is up the current worker of its slot. Returns the replaced worker if it must finish its calls.
    pub(super) fn replace_by_successor(&mut self, worker: WorkerKey, now: Instant) -> Option<WorkerKey> {
        let slot = &mut self.slots[worker.index()];
        let (replaced, state) = (slot.key(), slot.state);
        slot.promote_successor();
        match state {
            SlotState::Up(up) => {
                self.capacity.remove(worker.slot);
                self.workers_up -= 1;
                self.retired.add_replaced(replaced, Some(up), now);
                // Calls that the replaced worker has not begun move to other workers.
                self.tick_at(now);
                Some(replaced)
            }
            SlotState::Ending { .. } => {
                self.retired.add_replaced(replaced, None, now);
                None
            }
            SlotState::BackingOff { .. } | SlotState::Launching | SlotState::Closed => None,
        }
    }

    /// Stops a successor that came up after the drain began.
    pub(super) fn stop_successor(&mut self, worker: WorkerKey, now: Instant) {
        self.slots[worker.index()].successor = None;
        self.retired.add_replaced(worker, None, now);
        self.effects.push(Effect::Stop(worker));
    }

    /// Keeps the current worker of a slot, because its successor did not start.
    pub(super) fn on_successor_failed(&mut self, worker: WorkerKey, now: Instant) {
        let slot = &mut self.slots[worker.index()];
        let retry_at = slot.record_failed_successor(now);
        // A requested replacement is not repeated.
        if let Some(up) = slot.up()
            && up.recycle == Some(RecycleReason::Requested)
        {
            up.recycle = None;
        }
        self.tick_at(retry_at);
        // The current worker may have retired during the launch.
        self.replace_retiring(worker.slot, now);
        self.finish_stop();
    }
}
