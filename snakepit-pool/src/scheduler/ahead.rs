//! Hands brief calls to busy workers ahead of their turn, and recalls them from workers that stall.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    Effect, Load, Phase, Rejection, Scheduler, SlotState, Up, WorkerKey, earlier, queue::QueuedCall,
};

/// The interval between recalls of the same calls.
const RECALL_INTERVAL: Duration = Duration::from_millis(2);

impl Scheduler {
    /// Selects the slot for a new call: the preferred one or another idle one. A brief call may also go to a busy slot
    /// that makes progress and holds only brief calls.
    pub(super) fn slot_for(&mut self, call: &QueuedCall, now: Instant) -> Option<u32> {
        let is_last_busy = self.should_wait_behind(self.last_brief_slot, call.load, now);
        let next = self.next_slot(call.load, now)?;
        let is_idle = |slot| self.capacity.running(slot) < self.limits.concurrency;
        // While another worker may be idle, a busy worker receives only calls that are short enough to wait.
        let may_wait_behind = |slot| match is_last_busy {
            true => self.should_wait_behind(slot, call.load, now),
            false => !is_idle(next) && !self.is_stalled(slot, now),
        };
        let can_take = |slot| self.capacity.contains(slot) && (is_idle(slot) || may_wait_behind(slot));
        let preferred = call.preferred.filter(|worker| self.is_current(*worker) && can_take(worker.slot));
        Some(preferred.map_or(next, |worker| worker.slot))
    }

    /// Selects the slot for the next call of this load. Removes stalled slots from `capacity` until they end a call.
    pub(super) fn next_slot(&mut self, load: Load, now: Instant) -> Option<u32> {
        if self.should_wait_behind(self.last_brief_slot, load, now) {
            return Some(self.last_brief_slot);
        }
        loop {
            let slot =
                if load.is_brief() { self.capacity.most_recent()? } else { self.capacity.least_recent()? };
            if self.capacity.running(slot) < self.limits.concurrency {
                return Some(slot);
            }
            if !load.is_brief() {
                return None;
            }
            if !self.is_stalled(slot, now) {
                return Some(slot);
            }
            self.capacity.remove(slot);
        }
    }

    /// Whether this call should wait for a busy slot even if another slot is idle.
    fn should_wait_behind(&self, slot: u32, load: Load, now: Instant) -> bool {
        let is_full = |up: &Up| up.running() as usize >= self.limits.concurrency;
        let should_wait = |up: &Up| is_full(up) && up.should_wait_behind(load) && up.stalls_at() > now;
        self.capacity.contains(slot)
            && matches!(&self.slots[slot as usize].state, SlotState::Up(up) if should_wait(up))
    }

    /// Whether a fully busy worker has not ended a call for [`STALLED_AFTER`](super::slot::STALLED_AFTER).
    pub(super) fn is_stalled(&self, slot: u32, now: Instant) -> bool {
        match &self.slots[slot as usize].state {
            SlotState::Up(up) => up.running() as usize >= self.limits.concurrency && up.stalls_at() <= now,
            _ => true,
        }
    }

    /// Recalls calls from stalled workers if another worker can take them.
    pub(super) fn recall(&mut self, now: Instant) {
        let concurrency = self.limits.concurrency;
        // Also removes stalled slots from `capacity`.
        let can_place_brief = self.next_slot(Load::of(Duration::ZERO), now).is_some();
        for index in 0..self.slots.len() {
            let slot = &self.slots[index];
            let SlotState::Up(up) = slot.state else { continue };
            if (up.running() + up.cancelling) as usize <= concurrency || up.running() == 0 {
                continue;
            }
            let due = up.stalls_at();
            if due <= now && can_place_brief {
                self.effects.push(Effect::Recall(slot.key()));
            }
            self.tick_at(if due <= now { now + RECALL_INTERVAL } else { due });
        }
    }

    /// Returns a recalled call to its old place in the queue.
    pub(super) fn on_returned(&mut self, worker: WorkerKey, call: QueuedCall, now: Instant) {
        self.in_flight -= 1;
        self.remove_unbegun(worker, call.load);
        // The limits of the queue do not apply, because the call was admitted before.
        if matches!(self.phase, Phase::Stopping | Phase::Stopped) {
            return self.reject(call.ticket, Rejection::Draining);
        }
        if self.cannot_start_workers() {
            self.reject(call.ticket, Rejection::NoWorkers { next_attempt: self.next_attempt() });
            return self.stop_if_drained();
        }
        self.next_tick = earlier(self.next_tick, call.deadline);
        self.queue.push(call);
        self.dispatch(now);
        self.stop_if_drained();
    }

    /// Removes a call that did not begin from its worker's backlog. It does not count as progress of the worker.
    pub(super) fn remove_unbegun(&mut self, worker: WorkerKey, load: Load) {
        if self.is_current(worker) {
            if let Some(up) = self.slots[worker.index()].up() {
                up.remove_unbegun(load);
            }
            self.update_capacity(worker.slot);
        }
    }
}
