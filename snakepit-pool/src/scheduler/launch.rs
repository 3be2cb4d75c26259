//! Launches and exits of workers.

use tokio::time::Instant;

use super::{Effect, MAX_CONCURRENCY, Phase, Rejection, Scheduler, Slot, SlotState, Up, WorkerKey};

impl Scheduler {
    pub(super) fn on_launched(
        &mut self,
        worker: WorkerKey,
        queues_calls: bool,
        concurrency: Option<usize>,
        now: Instant,
    ) {
        let replaced = match self.is_successor(worker) {
            true if self.phase == Phase::Serving => self.replace_by_successor(worker, now),
            true => return self.stop_successor(worker, now),
            false => None,
        };
        if !self.is_current(worker) || !matches!(self.slot(worker).state, SlotState::Launching) {
            return;
        }
        let concurrency = concurrency.unwrap_or(self.limits.concurrency).clamp(1, MAX_CONCURRENCY);
        self.rank_up_to(concurrency);
        let limits = self.limits.recycling.of_worker(worker, now);
        let up = Up::new(queues_calls, concurrency, limits, now);
        self.slots[worker.index()].state = SlotState::Up(up);
        self.workers_up += 1;
        if self.phase == Phase::Stopping {
            self.take_out_of_service(worker, true);
            self.effects.push(Effect::Stop(worker));
            return;
        }
        self.capacity.insert(worker.slot, 0);
        self.mark_replaced(worker);
        self.arm_recycling(&up, now);
        self.may_recycle = true;
        if let Some(replaced) = replaced {
            self.stop_if_retired(replaced, now);
        }
        self.dispatch(now);
    }

    pub(super) fn on_exited(&mut self, worker: WorkerKey, now: Instant) {
        self.may_recycle = true;
        if self.on_retired_exited(worker, now) || !self.is_current(worker) {
            return;
        }
        let is_healthy = match self.slot(worker).state {
            SlotState::Up(up) => {
                let is_healthy = up.is_healthy(now);
                self.take_out_of_service(worker, is_healthy);
                is_healthy
            }
            SlotState::Ending { is_healthy } => is_healthy,
            SlotState::BackingOff { .. } | SlotState::Launching | SlotState::Closed => return,
        };
        self.vacate(worker, is_healthy, now);
    }

    /// Schedules the next launch of a slot whose worker has exited or failed to start.
    pub(super) fn vacate(&mut self, worker: WorkerKey, is_healthy: bool, now: Instant) {
        let slot = &mut self.slots[worker.index()];
        if self.phase == Phase::Stopping {
            slot.state = SlotState::Closed;
            return self.finish_stop();
        }
        if slot.promote_successor() {
            return;
        }
        let until = slot.vacate(is_healthy, now);
        if until <= now {
            self.effects.push(Effect::Launch(slot.launch()));
        } else {
            self.tick_at(until);
        }
        if self.cannot_start_workers() {
            let next_attempt = self.next_attempt();
            while let Some(call) = self.queue.take_first() {
                self.reject(call.ticket, Rejection::NoWorkers { next_attempt });
            }
            self.reject_overflow(Rejection::NoWorkers { next_attempt });
            self.stop_if_drained();
        }
    }

    /// Whether all slots have failed several times in a row. Calls then fail instead of waiting.
    pub(super) fn cannot_start_workers(&self) -> bool {
        self.workers_up == 0 && self.slots.iter().all(Slot::is_failing)
    }

    pub(super) fn next_attempt(&self) -> Option<Instant> {
        let due = |slot: &Slot| match slot.state {
            SlotState::BackingOff { until } => Some(until),
            _ => None,
        };
        self.slots.iter().filter_map(due).min()
    }
}
