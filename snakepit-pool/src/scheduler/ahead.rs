//! Handing calls over ahead of their turn, and asking them back from a worker that has stalled.

use std::time::Duration;

use tokio::time::Instant;

use super::{Effect, Load, Phase, Refusal, Scheduler, SlotState, Up, WorkerKey, earlier, queue::Entry};

/// How soon calls are asked back again that did not come, or that nobody could take.
const RECALL_AGAIN: Duration = Duration::from_millis(2);

impl Scheduler {
    /// The worker that a call may be handed to now: an idle one, of those the one it prefers; or, for a brief call, one that
    /// has only brief ones before it and gets on with them.
    pub(super) fn pick(&mut self, call: &Entry, now: Instant) -> Option<u32> {
        let gathered = self.gathers(self.last_brief, call.load, now);
        let first = self.first(call.load, now)?;
        let is_idle = |slot| self.capacity.running(slot) < self.limits.concurrency;
        // While others may be idle, a busy one is good only for what gathers.
        let is_good = |slot| match gathered {
            true => self.gathers(slot, call.load, now),
            false => !is_idle(first) && !self.is_stalled(slot, now),
        };
        let takes = |slot| self.capacity.contains(slot) && (is_idle(slot) || is_good(slot));
        let preferred = call.preferred.filter(|worker| self.is_current(*worker) && takes(worker.slot));
        Some(preferred.map_or(first, |worker| worker.slot))
    }

    /// The worker whose turn it is for a call of this load. Those that have stalled lose their place until they end a call.
    pub(super) fn first(&mut self, load: Load, now: Instant) -> Option<u32> {
        if self.gathers(self.last_brief, load, now) {
            return Some(self.last_brief);
        }
        loop {
            let slot = if load.is_brief() { self.capacity.warmest()? } else { self.capacity.first()? };
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

    /// Whether a call had better be handed over ahead to this worker than to an idle one.
    fn gathers(&self, slot: u32, load: Load, now: Instant) -> bool {
        let is_full = |up: &Up| up.running() as usize >= self.limits.concurrency;
        let gathers = |up: &Up| is_full(up) && up.gathers(load) && up.stalls_at() > now;
        self.capacity.contains(slot)
            && matches!(&self.slots[slot as usize].state, SlotState::Up(up) if gathers(up))
    }

    /// Whether a worker that runs as many calls as it may has ended none for too long.
    pub(super) fn is_stalled(&self, slot: u32, now: Instant) -> bool {
        match &self.slots[slot as usize].state {
            SlotState::Up(up) => up.running() as usize >= self.limits.concurrency && up.stalls_at() <= now,
            _ => true,
        }
    }

    /// Asks for calls back from workers that have stalled, as soon as anybody else could take them.
    pub(super) fn recall(&mut self, now: Instant) {
        let concurrency = self.limits.concurrency;
        // Those that have stalled lose their place by this.
        let someone_can = self.first(Load::of(Duration::ZERO), now).is_some();
        for index in 0..self.slots.len() {
            let slot = &self.slots[index];
            let SlotState::Up(up) = slot.state else { continue };
            if (up.running() + up.settling) as usize <= concurrency || up.running() == 0 {
                continue;
            }
            let due = up.stalls_at();
            if due <= now && someone_can {
                self.effects.push(Effect::Recall(slot.key()));
            }
            self.wake_at(if due <= now { now + RECALL_AGAIN } else { due });
        }
    }

    pub(super) fn given_back(&mut self, worker: WorkerKey, call: Entry, now: Instant) {
        self.in_flight -= 1;
        self.take_back(worker, call.load);
        // It was admitted once, so only the end of the pool, or of all hope, refuses it.
        if matches!(self.phase, Phase::Stopping | Phase::Stopped) {
            return self.reject(call.ticket, Refusal::Draining);
        }
        if self.has_no_hope() {
            self.reject(call.ticket, Refusal::NoWorkers { next_attempt: self.next_attempt() });
            return self.stop_if_drained();
        }
        self.wake = earlier(self.wake, call.deadline);
        self.queue.push(call);
        self.dispatch(now);
        self.stop_if_drained();
    }

    /// A call did not begin on the worker: that is no progress of its.
    pub(super) fn take_back(&mut self, worker: WorkerKey, load: Load) {
        if self.is_current(worker) {
            if let Some(up) = self.slots[worker.index()].up() {
                up.take_back(load);
            }
            self.refit(worker.slot);
        }
    }
}
