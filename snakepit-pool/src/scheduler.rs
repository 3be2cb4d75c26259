//! Decides which worker runs which call, and when workers start and stop.
//!
//! A pure state machine: it maps an [`Event`] and a time to [`Effect`]s. It does not perform IO, start tasks, take locks or
//! read a clock. The [`driver`](crate::driver) connects it to the outside.

mod admission;
mod ahead;
mod cancellations;
mod capacity;
mod event;
mod launch;
mod load;
mod overflow;
mod queue;
mod recycling;
mod restart;
mod retirement;
mod slot;
mod stop;
mod suspension;
#[cfg(test)]
mod tests;

use std::{collections::VecDeque, time::Duration, vec::Drain};

use tokio::time::Instant;

use self::{
    cancellations::Cancellations,
    capacity::Capacity,
    overflow::Overflow,
    queue::{Queue, QueuedCall},
    restart::Restart,
    retirement::RetiredWorkers,
};
pub(crate) use self::{
    event::{Effect, Event, KillReason, Rejection, RestartOutcome, Ticket, WorkerKey},
    load::Load,
    queue::earlier,
    recycling::{RecycleReason, RecyclingLimits, Replacement},
    slot::{Slot, SlotState, Up},
};

/// The maximum number of calls that a worker may hold ahead of their turn, in addition to the running ones.
const MAX_AHEAD: usize = 64;

/// The maximum number of calls that a worker may run concurrently.
pub(crate) const MAX_CONCURRENCY: usize = 256;

/// The settings of the pool that the scheduler needs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// The number of slots, and so of workers.
    pub(crate) slots: usize,
    /// The number of calls that a worker runs concurrently, unless the worker declares another number.
    pub(crate) concurrency: usize,
    /// The maximum number of queued calls.
    pub(crate) queue: usize,
    /// The maximum total size of all queued calls, in bytes.
    pub(crate) queue_bytes: usize,
    /// The time that an abandoned call has to end.
    pub(crate) cancel_grace: Duration,
    pub(crate) recycling: RecyclingLimits,
}

/// The phase of the pool's lifecycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The pool accepts calls.
    Serving,
    /// The pool finishes its calls until this time. It rejects new ones, unless a running call waits for them.
    Draining { until: Instant },
    /// The pool waits for its workers to exit.
    Stopping,
    /// All workers have exited.
    Stopped,
}

#[derive(Debug)]
pub(crate) struct Scheduler {
    limits: Limits,
    phase: Phase,
    slots: Vec<Slot>,
    capacity: Capacity,
    queue: Queue,
    /// The calls that wait for room in the queue.
    overflow: Overflow,
    /// The abandoned calls that may still run.
    cancellations: Cancellations,
    /// The workers that finish their calls while their replacements run.
    retired: RetiredWorkers,
    /// The restart in progress.
    restart: Option<Restart>,
    /// The workers that must be replaced, in this order. Entries of workers that have left their slot are ignored.
    due_for_recycling: VecDeque<WorkerKey>,
    /// Whether the next successor of a worker that is due may be launched now.
    may_recycle: bool,
    /// The largest number of calls that a worker has declared to run concurrently, and at least the setting of the pool.
    most_concurrent: usize,
    /// The slot of the last brief call.
    last_brief_slot: u32,
    /// The number of calls that hold a worker, including lost workers.
    in_flight: usize,
    /// The number of slots whose worker is up.
    workers_up: usize,
    /// A lower bound of all timers. A tick makes it exact.
    next_tick: Option<Instant>,
    effects: Vec<Effect>,
}

impl Scheduler {
    /// Creates a scheduler that launches all workers at the first [`Event::Tick`].
    pub(crate) fn new(limits: Limits, now: Instant) -> Self {
        let indices = 0..u32::try_from(limits.slots).unwrap_or(u32::MAX);
        Self {
            limits,
            phase: Phase::Serving,
            slots: indices.map(|index| Slot::new(index, now)).collect(),
            capacity: Capacity::new(limits.slots, limits.concurrency + MAX_AHEAD),
            queue: Queue::default(),
            overflow: Overflow::default(),
            cancellations: Cancellations::default(),
            retired: RetiredWorkers::default(),
            restart: None,
            due_for_recycling: VecDeque::new(),
            may_recycle: false,
            most_concurrent: limits.concurrency,
            last_brief_slot: 0,
            in_flight: 0,
            workers_up: 0,
            next_tick: Some(now),
            effects: Vec::new(),
        }
    }

    /// Handles an event. Returns the effects in the order in which they must be applied.
    pub(crate) fn handle_event(&mut self, event: Event, now: Instant) -> Drain<'_, Effect> {
        match event {
            Event::Submit { ticket, preferred, deadline, load, bytes, wait_for_room, is_nested } => {
                let call = QueuedCall { ticket, preferred, deadline, queued_at: now, load, bytes };
                self.on_submit(call, wait_for_room, is_nested, now);
            }
            Event::Withdraw(ticket) => {
                if self.queue.remove(ticket).is_none() {
                    self.overflow.remove(ticket);
                }
                // The next call may be brief, and so fit on a busy worker.
                self.dispatch(now);
                self.stop_if_drained();
            }
            Event::Finished(worker, load) => self.on_finished(worker, load, now),
            Event::Released(worker, load) => self.on_released(worker, load, now),
            Event::Returned { worker, ticket, deadline, load } => {
                // Only brief calls are returned. They are too small and few to count.
                let bytes = 0;
                self.on_returned(
                    worker,
                    QueuedCall { ticket, preferred: None, deadline, queued_at: now, load, bytes },
                    now,
                );
            }
            Event::Retired(worker, load) => self.on_retired(worker, load, now),
            Event::Lost(worker) => {
                self.in_flight -= 1;
                self.count_end(worker);
                self.kill(worker, KillReason::Lost, now);
                self.stop_if_drained();
            }
            Event::Abandoned(worker, call, load) => {
                self.in_flight -= 1;
                self.count_end(worker);
                self.on_abandoned(worker, call, load, now);
                self.stop_if_drained();
            }
            Event::CancelConfirmed(worker, call) => self.on_cancel_confirmed(worker, call, now),
            Event::CancelFailed(worker) => self.kill(worker, KillReason::CancelFailed, now),
            Event::Launched { worker, queues_calls, concurrency } => {
                self.on_launched(worker, queues_calls, concurrency, now);
            }
            Event::LaunchFailed(worker) => {
                if self.is_current(worker) && matches!(self.slot(worker).state, SlotState::Launching) {
                    self.vacate(worker, false, now);
                } else if self.is_successor(worker) {
                    self.on_successor_failed(worker, now);
                }
                self.fail_restart(worker);
                self.may_recycle = true;
            }
            Event::Exited(worker) => self.on_exited(worker, now),
            Event::Suspend(worker) => self.suspend(worker),
            Event::Resume(worker) => self.resume(worker, now),
            Event::Tick => self.on_tick(now),
            Event::Memory { worker, used } => self.on_memory(worker, used, now),
            Event::Recycle(worker) => self.recycle(worker, RecycleReason::Requested),
            Event::Restart { number } => self.on_restart(number),
            Event::Drain { until } => self.on_drain(until, now),
        }
        if self.restart.is_some() {
            self.advance_restart();
        }
        if self.may_recycle {
            self.may_recycle = false;
            self.advance_recycling(now);
        }
        if !self.overflow.is_empty() {
            self.admit(now);
        }
        self.effects.drain(..)
    }

    /// The time at which the next [`Event::Tick`] is due.
    pub(crate) const fn next_tick(&self) -> Option<Instant> {
        self.next_tick
    }

    pub(crate) const fn phase(&self) -> Phase {
        self.phase
    }

    pub(crate) const fn queued(&self) -> usize {
        self.queue.len()
    }

    /// The number of calls that wait for room in the queue.
    pub(crate) fn waiting_for_room(&self) -> usize {
        self.overflow.len()
    }

    pub(crate) const fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub(crate) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    fn on_submit(
        &mut self,
        call: QueuedCall,
        wait_for_room: Option<Duration>,
        is_nested: bool,
        now: Instant,
    ) {
        let ticket = call.ticket;
        let is_draining = matches!(self.phase, Phase::Draining { .. });
        if self.phase != Phase::Serving && !(is_nested && is_draining) {
            return self.reject(ticket, Rejection::Draining);
        }
        if call.deadline.is_some_and(|at| at <= now) {
            return self.effects.push(Effect::Expire(ticket));
        }
        // A new call must not overtake queued ones.
        if self.queue.len() == 0
            && self.overflow.is_empty()
            && let Some(slot) = self.slot_for(&call, now)
        {
            return self.assign(ticket, slot, call.load, now);
        }
        if self.cannot_start_workers() {
            return self.reject(ticket, Rejection::NoWorkers { next_attempt: self.next_attempt() });
        }
        self.enqueue(call, wait_for_room, now);
    }

    fn reject(&mut self, ticket: Ticket, rejection: Rejection) {
        self.effects.push(Effect::Reject { ticket, rejection });
    }

    fn assign(&mut self, ticket: Ticket, index: u32, load: Load, now: Instant) {
        let slot = &mut self.slots[index as usize];
        let worker = slot.key();
        if let Some(up) = slot.up() {
            up.add(load, now);
            if load.is_brief() {
                self.last_brief_slot = index;
            }
            let is_ahead = up.running() > up.concurrency;
            self.in_flight += 1;
            self.effects.push(Effect::Assign { ticket, worker });
            let stalls_at = up.stalls_at();
            self.update_capacity(index);
            if is_ahead {
                self.tick_at(stalls_at.max(now));
            }
        }
    }

    /// Updates the position of a slot in `capacity` after its load has changed.
    fn update_capacity(&mut self, index: u32) {
        let Some(up) = self.slots[index as usize].up() else { return };
        if up.has_room() {
            self.capacity.insert(index, up.rank(self.most_concurrent));
        } else {
            self.capacity.remove(index);
        }
    }

    /// Assigns queued calls to workers that can take them.
    fn dispatch(&mut self, now: Instant) {
        while let Some(load) = self.queue.head_load()
            && let Some(slot) = self.next_slot(load, now)
        {
            let call = if self.is_idle(slot) {
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

    fn on_released(&mut self, worker: WorkerKey, load: Load, now: Instant) {
        self.in_flight -= 1;
        self.remove_unbegun(worker, load);
        self.stop_if_retired(worker, now);
        self.dispatch(now);
        self.stop_if_drained();
    }

    fn on_finished(&mut self, worker: WorkerKey, load: Load, now: Instant) {
        self.in_flight -= 1;
        if self.is_current(worker) {
            let slot = &mut self.slots[worker.index()];
            slot.record_finished();
            if let Some(up) = slot.up() {
                up.remove(load, now);
            }
            self.update_capacity(worker.slot);
            self.recycle_by_calls(worker.slot);
            self.stop_if_retired(worker, now);
            self.dispatch(now);
        } else if let Some(up) = self.up(worker) {
            up.remove(load, now);
            self.count_end(worker);
            self.stop_if_retired(worker, now);
        }
        self.stop_if_drained();
    }

    /// Counts a call that ended without an answer, because of its deadline, a cancellation or the loss of its worker.
    fn count_end(&mut self, worker: WorkerKey) {
        let is_current = self.is_current(worker);
        if let Some(slot) = self.slots.get_mut(worker.index()) {
            slot.ended_calls += 1;
            if is_current {
                slot.count_call();
                self.recycle_by_calls(worker.slot);
            }
        }
    }

    fn kill(&mut self, worker: WorkerKey, reason: KillReason, now: Instant) {
        if !self.is_current(worker) {
            if self.end_retired(worker) {
                self.effects.push(Effect::Kill(worker, reason));
            }
        } else if let Some(up) = self.slots[worker.index()].up() {
            let is_healthy = up.is_healthy(now);
            self.take_out_of_service(worker, is_healthy);
            self.effects.push(Effect::Kill(worker, reason));
        }
    }

    /// Takes a worker that is up out of service, either before a stop or kill, or after its exit.
    fn take_out_of_service(&mut self, worker: WorkerKey, is_healthy: bool) {
        self.capacity.remove(worker.slot);
        self.cancellations.remove_all(worker);
        self.workers_up -= 1;
        self.slots[worker.index()].state = SlotState::Ending { is_healthy };
    }

    fn on_tick(&mut self, now: Instant) {
        self.next_tick = None;
        for ticket in self.queue.take_expired(now) {
            self.effects.push(Effect::Expire(ticket));
        }
        self.end_waits_for_room(now);
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            match slot.state {
                SlotState::BackingOff { until } if until <= now => {
                    self.effects.push(Effect::Launch(slot.launch()));
                }
                SlotState::BackingOff { until } => self.tick_at(until),
                _ => {}
            }
        }
        while let Some(worker) = self.cancellations.overdue(now) {
            // Also removes the cancellations of the worker.
            self.kill(worker, KillReason::CancelIgnored { grace: self.limits.cancel_grace }, now);
        }
        self.end_retirements(now);
        self.recycle_by_time(now);
        self.may_recycle = true;
        self.next_tick = earlier(self.next_tick, self.cancellations.earliest());
        self.dispatch(now);
        self.recall(now);
        match self.phase {
            Phase::Draining { until } if until <= now => self.stop(),
            Phase::Draining { until } => {
                self.tick_at(until);
                self.stop_if_drained();
            }
            _ => {}
        }
        self.next_tick =
            earlier(self.next_tick, earlier(self.queue.earliest_deadline(), self.overflow.next_end()));
    }

    /// Whether the key names the current worker of its slot, not a previous one. Until the next launch, the slot keeps the key of a
    /// worker that left it.
    fn is_current(&self, worker: WorkerKey) -> bool {
        self.slots.get(worker.index()).is_some_and(|slot| slot.key() == worker)
            && !self.retired.contains(worker)
    }

    fn slot(&self, worker: WorkerKey) -> &Slot {
        &self.slots[worker.index()]
    }

    fn tick_at(&mut self, at: Instant) {
        self.next_tick = earlier(self.next_tick, Some(at));
    }
}
