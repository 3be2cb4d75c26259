//! Decides which worker runs which call, and when workers come and go.
//!
//! A pure state machine: what happened goes in as an [`Event`], what is to be done comes out as [`Effect`]s. It does
//! no IO, starts no tasks, takes no locks and reads no clock. [`driver`](crate::driver) brings it to life.

mod ahead;
mod capacity;
mod event;
mod load;
mod queue;
mod slot;
mod stop;
#[cfg(test)]
mod tests;

use std::{time::Duration, vec::Drain};

use tokio::time::Instant;

use self::{
    capacity::Capacity,
    queue::{Entry, Queue},
    slot::Up,
};
pub(crate) use self::{
    event::{Effect, Event, KillReason, Refusal, Ticket, WorkerKey},
    load::Load,
    queue::earlier,
    slot::{Slot, SlotState},
};

/// How many calls a worker may be handed beyond those that it runs.
const MOST_AHEAD: usize = 64;

/// What the scheduler must know of the pool's configuration.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// How many workers there are.
    pub(crate) slots: usize,
    /// How many calls a worker runs at a time.
    pub(crate) concurrency: usize,
    /// How many calls may wait.
    pub(crate) queue: usize,
    /// What those may hold, in bytes.
    pub(crate) queue_bytes: usize,
    /// How long an abandoned call may take to end.
    pub(crate) cancel_grace: Duration,
}

/// What the pool is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It takes calls.
    Serving,
    /// It takes no more calls, and finishes those it has until this time.
    Draining { until: Instant },
    /// It waits for its workers to go.
    Stopping,
    /// Nothing is left.
    Stopped,
}

#[derive(Debug)]
pub(crate) struct Scheduler {
    limits: Limits,
    phase: Phase,
    slots: Vec<Slot>,
    capacity: Capacity,
    queue: Queue,
    /// The slot that was handed the last brief call.
    last_brief: u32,
    /// Calls that hold a worker, lost workers included.
    in_flight: usize,
    /// Slots whose worker is up.
    up: usize,
    /// No timer is earlier. May be too early; a tick corrects it.
    wake: Option<Instant>,
    effects: Vec<Effect>,
}

impl Scheduler {
    /// A scheduler whose workers are all to be launched by the first [`Event::Tick`].
    pub(crate) fn new(limits: Limits, now: Instant) -> Self {
        let indices = 0..u32::try_from(limits.slots).unwrap_or(u32::MAX);
        Self {
            limits,
            phase: Phase::Serving,
            slots: indices.map(|index| Slot::new(index, now)).collect(),
            capacity: Capacity::new(limits.slots, limits.concurrency + MOST_AHEAD),
            queue: Queue::default(),
            last_brief: 0,
            in_flight: 0,
            up: 0,
            wake: Some(now),
            effects: Vec::new(),
        }
    }

    /// Takes in what happened, and hands out what is to be done about it, in this order.
    pub(crate) fn on(&mut self, event: Event, now: Instant) -> Drain<'_, Effect> {
        match event {
            Event::Submit { ticket, preferred, deadline, load, bytes } => {
                self.submit(Entry { ticket, preferred, deadline, since: now, load, bytes }, now);
            }
            Event::Withdraw(ticket) => {
                self.queue.remove(ticket);
                // It may have stood before one that can be handed over ahead.
                self.dispatch(now);
                self.stop_if_drained();
            }
            Event::Finished(worker, load) => self.finished(worker, load, now),
            Event::Released(worker, load) => self.released(worker, load, now),
            Event::GivenBack { worker, ticket, deadline, load } => {
                // Only brief calls are given back, which are small and few.
                let bytes = 0;
                self.given_back(
                    worker,
                    Entry { ticket, preferred: None, deadline, since: now, load, bytes },
                    now,
                );
            }
            Event::Retired(worker, load) => self.retired(worker, load, now),
            Event::Lost(worker) => {
                self.in_flight -= 1;
                self.count_end(worker);
                self.kill(worker, KillReason::Lost, now);
                self.stop_if_drained();
            }
            Event::Abandoned(worker, call, load) => {
                self.in_flight -= 1;
                self.count_end(worker);
                self.abandoned(worker, call, load, now);
                self.stop_if_drained();
            }
            Event::Settled(worker) => self.settled(worker, now),
            Event::Unsettled(worker) => self.kill(worker, KillReason::CancelFailed, now),
            Event::Launched { worker, keeps_calls } => self.launched(worker, keeps_calls, now),
            Event::LaunchFailed(worker) => {
                if self.is_current(worker) && matches!(self.slot(worker).state, SlotState::Launching) {
                    self.vacate(worker, false, now);
                }
            }
            Event::Exited(worker) => self.exited(worker, now),
            Event::Tick => self.tick(now),
            Event::Drain { until } => self.drain(until, now),
        }
        self.effects.drain(..)
    }

    /// When [`Event::Tick`] is due.
    pub(crate) const fn wake(&self) -> Option<Instant> {
        self.wake
    }

    pub(crate) const fn phase(&self) -> Phase {
        self.phase
    }

    pub(crate) const fn queued(&self) -> usize {
        self.queue.len()
    }

    pub(crate) const fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub(crate) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    fn submit(&mut self, call: Entry, now: Instant) {
        let ticket = call.ticket;
        if self.phase != Phase::Serving {
            return self.reject(ticket, Refusal::Draining);
        }
        if call.deadline.is_some_and(|at| at <= now) {
            return self.effects.push(Effect::Expire(ticket));
        }
        // Nobody overtakes the queue.
        if self.queue.len() == 0
            && let Some(slot) = self.pick(&call, now)
        {
            return self.assign(ticket, slot, call.load, now);
        }
        if self.has_no_hope() {
            return self.reject(ticket, Refusal::NoWorkers { next_attempt: self.next_attempt() });
        }
        let queued = self.queue.len();
        if queued >= self.limits.queue {
            let oldest = self.queue.oldest(now);
            return self.reject(ticket, Refusal::Overloaded { queued, oldest });
        }
        let used = self.queue.bytes();
        if queued > 0 && used.saturating_add(call.bytes) > self.limits.queue_bytes {
            let oldest = self.queue.oldest(now);
            return self.reject(ticket, Refusal::TooMuchAtOnce { used, oldest });
        }
        let earliest = earlier(self.wake, call.deadline);
        self.queue.push(call);
        self.wake = earliest;
    }

    fn reject(&mut self, ticket: Ticket, refusal: Refusal) {
        self.effects.push(Effect::Reject { ticket, refusal });
    }

    fn assign(&mut self, ticket: Ticket, index: u32, load: Load, now: Instant) {
        let slot = &mut self.slots[index as usize];
        let worker = slot.key();
        if let Some(up) = slot.up() {
            up.add(load, now);
            if load.is_brief() {
                self.last_brief = index;
            }
            let is_ahead = up.running() as usize > self.limits.concurrency;
            self.in_flight += 1;
            self.effects.push(Effect::Assign { ticket, worker });
            let stalls_at = up.stalls_at();
            self.refit(index);
            if is_ahead {
                self.wake_at(stalls_at.max(now));
            }
        }
    }

    /// Puts a slot where its load says it belongs.
    fn refit(&mut self, index: u32) {
        let (concurrency, most) = (self.limits.concurrency, self.limits.concurrency + MOST_AHEAD);
        let Some(up) = self.slots[index as usize].up() else { return };
        let running = up.running() as usize;
        let has_room = running < concurrency || (running < most && up.takes_ahead());
        if has_room && up.settling == 0 {
            self.capacity.put(index, up.running());
        } else {
            self.capacity.remove(index);
        }
    }

    /// Hands queued calls to workers with room.
    fn dispatch(&mut self, now: Instant) {
        while let Some(load) = self.queue.head_load()
            && let Some(slot) = self.first(load, now)
        {
            let call = if self.capacity.running(slot) < self.limits.concurrency {
                self.queue.take_for(self.slots[slot as usize].key())
            } else {
                self.queue.take_first()
            };
            match call {
                None => return,
                Some(call) if call.deadline.is_some_and(|at| at <= now) => {
                    self.effects.push(Effect::Expire(call.ticket));
                }
                Some(call) => self.assign(call.ticket, slot, call.load, now),
            }
        }
    }

    fn retired(&mut self, worker: WorkerKey, load: Load, now: Instant) {
        self.in_flight -= 1;
        self.take_back(worker, load);
        if self.is_current(worker)
            && let Some(up) = self.slots[worker.index()].up()
        {
            let healthy = up.is_healthy(now);
            self.end(worker, healthy);
            self.effects.push(Effect::Stop(worker));
        }
        self.stop_if_drained();
    }

    fn released(&mut self, worker: WorkerKey, load: Load, now: Instant) {
        self.in_flight -= 1;
        self.take_back(worker, load);
        self.dispatch(now);
        self.stop_if_drained();
    }

    fn finished(&mut self, worker: WorkerKey, load: Load, now: Instant) {
        self.in_flight -= 1;
        if self.is_current(worker) {
            let slot = &mut self.slots[worker.index()];
            slot.serve();
            if let Some(up) = slot.up() {
                up.remove(load, now);
            }
            self.refit(worker.slot);
            self.dispatch(now);
        }
        self.stop_if_drained();
    }

    /// Counts a call that ended otherwise than by its answer: by its deadline, a cancellation, or with its worker.
    fn count_end(&mut self, worker: WorkerKey) {
        if let Some(slot) = self.slots.get_mut(worker.index()) {
            slot.served += 1;
        }
    }

    fn abandoned(&mut self, worker: WorkerKey, call: snakepit_registry::CallId, load: Load, now: Instant) {
        let settle_by = now + self.limits.cancel_grace;
        if !self.is_current(worker) {
            return;
        }
        if let Some(up) = self.slots[worker.index()].up() {
            up.remove(load, now);
            up.settling += 1;
            up.settle_by = settle_by;
            self.capacity.remove(worker.slot);
            self.wake_at(settle_by);
            self.effects.push(Effect::Settle(worker, call));
        }
    }

    fn settled(&mut self, worker: WorkerKey, now: Instant) {
        if !self.is_current(worker) {
            return;
        }
        if let Some(up) = self.slots[worker.index()].up()
            && up.settling > 0
        {
            up.settling -= 1;
            // It answers, so it is well, even if it ends now because the call did it harm.
            up.answered();
            if up.settling == 0 {
                self.refit(worker.slot);
                self.dispatch(now);
            }
        }
    }

    fn kill(&mut self, worker: WorkerKey, why: KillReason, now: Instant) {
        if !self.is_current(worker) {
            return;
        }
        if let Some(up) = self.slots[worker.index()].up() {
            let healthy = up.is_healthy(now);
            self.end(worker, healthy);
            self.effects.push(Effect::Kill(worker, why));
        }
    }

    /// Takes a worker that is up out of service.
    fn end(&mut self, worker: WorkerKey, healthy: bool) {
        self.capacity.remove(worker.slot);
        self.up -= 1;
        self.slots[worker.index()].state = SlotState::Ending { healthy };
    }

    fn launched(&mut self, worker: WorkerKey, keeps_calls: bool, now: Instant) {
        if !self.is_current(worker) || !matches!(self.slot(worker).state, SlotState::Launching) {
            return;
        }
        self.slots[worker.index()].state = SlotState::Up(Up::new(keeps_calls, now));
        self.up += 1;
        if self.phase == Phase::Stopping {
            self.end(worker, true);
            self.effects.push(Effect::Stop(worker));
            return;
        }
        self.capacity.put(worker.slot, 0);
        self.dispatch(now);
    }

    fn exited(&mut self, worker: WorkerKey, now: Instant) {
        if !self.is_current(worker) {
            return;
        }
        let healthy = match self.slot(worker).state {
            SlotState::Up(up) => {
                let healthy = up.is_healthy(now);
                self.end(worker, healthy);
                healthy
            }
            SlotState::Ending { healthy } => healthy,
            SlotState::BackingOff { .. } | SlotState::Launching | SlotState::Gone => return,
        };
        self.vacate(worker, healthy, now);
    }

    /// Plans the next worker of a slot that has none any more.
    fn vacate(&mut self, worker: WorkerKey, healthy: bool, now: Instant) {
        let slot = &mut self.slots[worker.index()];
        if self.phase == Phase::Stopping {
            slot.state = SlotState::Gone;
            return self.stopped_if_gone();
        }
        let until = slot.vacate(healthy, now);
        if until <= now {
            self.effects.push(Effect::Launch(slot.launch()));
        } else {
            self.wake_at(until);
        }
        if self.has_no_hope() {
            let next_attempt = self.next_attempt();
            while let Some(call) = self.queue.take_first() {
                self.reject(call.ticket, Refusal::NoWorkers { next_attempt });
            }
            self.stop_if_drained();
        }
    }

    /// Whether every slot fails to bring up a worker, again and again. Calls then had better fail than wait.
    fn has_no_hope(&self) -> bool {
        self.up == 0 && self.slots.iter().all(Slot::is_failing)
    }

    fn next_attempt(&self) -> Option<Instant> {
        let due = |slot: &Slot| match slot.state {
            SlotState::BackingOff { until } => Some(until),
            _ => None,
        };
        self.slots.iter().filter_map(due).min()
    }

    fn tick(&mut self, now: Instant) {
        self.wake = None;
        for ticket in self.queue.expired(now) {
            self.effects.push(Effect::Expire(ticket));
        }
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            match slot.state {
                SlotState::BackingOff { until } if until <= now => {
                    self.effects.push(Effect::Launch(slot.launch()));
                }
                SlotState::BackingOff { until } => self.wake_at(until),
                SlotState::Up(up) if up.settling > 0 && up.settle_by <= now => {
                    let worker = slot.key();
                    self.kill(worker, KillReason::CancelIgnored { grace: self.limits.cancel_grace }, now);
                }
                SlotState::Up(up) if up.settling > 0 => self.wake_at(up.settle_by),
                _ => {}
            }
        }
        self.dispatch(now);
        self.recall(now);
        match self.phase {
            Phase::Draining { until } if until <= now => self.stop(),
            Phase::Draining { until } => {
                self.wake_at(until);
                self.stop_if_drained();
            }
            _ => {}
        }
        self.wake = earlier(self.wake, self.queue.earliest_deadline());
    }

    /// Whether the event speaks of the worker that the slot holds, and not of one it held before.
    fn is_current(&self, worker: WorkerKey) -> bool {
        self.slots.get(worker.index()).is_some_and(|slot| slot.key() == worker)
    }

    fn slot(&self, worker: WorkerKey) -> &Slot {
        &self.slots[worker.index()]
    }

    fn wake_at(&mut self, at: Instant) {
        self.wake = earlier(self.wake, Some(at));
    }
}
