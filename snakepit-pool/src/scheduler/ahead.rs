//! Hands brief calls to busy workers ahead of their turn, and recalls them from workers that stall.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    Effect, Load, MAX_AHEAD, Phase, Rejection, Scheduler, SlotState, Up, WorkerKey, earlier,
    queue::QueuedCall,
};

/// The interval between recalls of the same calls.
const RECALL_INTERVAL: Duration = Duration::from_millis(2);

impl Scheduler {
    /// Selects the slot for a new call: the preferred one or another idle one. A brief call may also go to a busy slot
    /// that makes progress and holds only brief calls.
    pub(super) fn slot_for(&mut self, call: &QueuedCall, now: Instant) -> Option<u32> {
        let is_last_busy = self.should_wait_behind(self.last_brief_slot, call.load, now);
        let next = self.next_slot(call.load, now)?;
        let is_idle = |slot| self.is_idle(slot);
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
            if self.is_idle(slot) {
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

    /// Whether a worker with room for calls can begin another one immediately.
    pub(super) fn is_idle(&self, slot: u32) -> bool {
        match &self.slots[slot as usize].state {
            SlotState::Up(up) => !up.is_full(),
            _ => false,
        }
    }

    /// Makes room for the ranks of a worker with this concurrency.
    pub(super) fn rank_up_to(&mut self, concurrency: usize) {
        if concurrency <= self.most_concurrent {
            return;
        }
        self.most_concurrent = concurrency;
        self.capacity.reserve(concurrency + MAX_AHEAD);
        // The ranks of slots that cannot begin a call immediately have changed.
        for index in 0..u32::try_from(self.slots.len()).unwrap_or(u32::MAX) {
            if self.capacity.contains(index) {
                self.update_capacity(index);
            }
        }
    }

    /// Whether this call should wait for a busy slot even if another slot is idle.
    fn should_wait_behind(&self, slot: u32, load: Load, now: Instant) -> bool {
        let should_wait = |up: &Up| up.is_full() && up.should_wait_behind(load) && up.stalls_at() > now;
        self.capacity.contains(slot)
            && matches!(&self.slots[slot as usize].state, SlotState::Up(up) if should_wait(up))
    }

    /// Whether a fully busy worker has not ended a call for [`STALLED_AFTER`](super::slot::STALLED_AFTER).
    pub(super) fn is_stalled(&self, slot: u32, now: Instant) -> bool {
        match &self.slots[slot as usize].state {
            SlotState::Up(up) => up.is_full() && up.stalls_at() <= now,
            _ => true,
        }
    }

    /// Recalls calls from stalled workers if another worker can take them.
    pub(super) fn recall(&mut self, now: Instant) {
        // Also removes stalled slots from `capacity`.
        let can_place_brief = self.next_slot(Load::of(Duration::ZERO), now).is_some();
        for index in 0..self.slots.len() {
            let slot = &self.slots[index];
            if let SlotState::Up(up) = slot.state {
                self.recall_from(slot.key(), up, can_place_brief, now);
            }
        }
        for index in 0..self.retired.len() {
            if let Some((worker, up)) = self.retired.running(index) {
                self.recall_from(worker, up, can_place_brief, now);
            }
        }
    }

    fn recall_from(&mut self, worker: WorkerKey, up: Up, can_place_brief: bool, now: Instant) {
        if up.held() <= up.concurrency || up.running() == 0 {
            return;
        }
        let due = up.stalls_at();
        if due <= now && can_place_brief {
            self.effects.push(Effect::Recall(worker));
        }
        self.tick_at(if due <= now { now + RECALL_INTERVAL } else { due });
    }

    /// Returns a recalled call to its old place in the queue.
    pub(super) fn on_returned(&mut self, worker: WorkerKey, call: QueuedCall, now: Instant) {
        self.in_flight -= 1;
        self.remove_unbegun(worker, call.load);
        self.stop_if_retired(worker, now);
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
        if let Some(up) = self.up(worker) {
            up.remove_unbegun(load);
        }
        if self.is_current(worker) {
            self.update_capacity(worker.slot);
        }
    }
}
