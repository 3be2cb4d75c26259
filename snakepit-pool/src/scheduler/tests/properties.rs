//! Invariants of the scheduler under random events, checked with a model.

mod operation;
mod recycling;
mod restarts;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proptest::prelude::*;

use self::{
    operation::{Ending, Op, op},
    restarts::Restarts,
};
use super::*;
use crate::scheduler::{load, restart::MAX_REPLACED, slot::STALLED_AFTER};

/// The model of a worker that is up.
#[derive(Debug)]
struct ModelWorker {
    running: Vec<Load>,
    queues_calls: bool,
    concurrency: usize,
    up_since: Instant,
    last_progress: Instant,
    cancelling: usize,
    suspensions: usize,
    is_retiring: bool,
    is_ending: bool,
}

impl ModelWorker {
    fn held(&self) -> usize {
        self.running.len() + self.cancelling
    }

    fn takes_calls(&self) -> bool {
        !self.is_ending && !self.is_retiring && self.suspensions == 0
    }
}

#[derive(Debug, Clone, Copy)]
struct QueuedModel {
    deadline: Option<Instant>,
    /// The number of calls before it in the queue.
    calls_ahead: usize,
    load: Load,
    /// The number of calls that have been assigned from the queue since then.
    assigned_since: usize,
}

/// A call that waits for room in the queue.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    deadline: Option<Instant>,
    end: Instant,
    load: Load,
}

struct Model {
    harness: SchedulerHarness,
    limits: Limits,
    queued: BTreeMap<u64, QueuedModel>,
    waiting: BTreeMap<u64, Waiting>,
    /// The calls that hold a worker, including lost workers.
    running: Vec<(WorkerKey, Load, u64, Option<Instant>)>,
    workers: HashMap<WorkerKey, ModelWorker>,
    launching: Vec<WorkerKey>,
    /// The abandoned calls, and the ends of their grace periods.
    cancelling: Vec<(WorkerKey, CallId, Instant)>,
    /// The numbers of assigned, rejected, expired and withdrawn tickets.
    resolved: BTreeSet<u64>,
    /// The workers whose calls were recalled by the last event.
    recalled: Vec<WorkerKey>,
    /// Whether the last advance caused a tick.
    has_ticked: bool,
    is_draining: bool,
    restarts: Restarts,
    /// The workers that the scheduler recycles.
    recycled: BTreeSet<(u32, u32)>,
    stopped: usize,
}

impl Model {
    fn new(limits: Limits) -> Self {
        let now = Instant::now();
        let harness = SchedulerHarness { scheduler: Scheduler::new(limits, now), now, tickets: 0 };
        let mut model = Self {
            harness,
            limits,
            queued: BTreeMap::new(),
            waiting: BTreeMap::new(),
            running: Vec::new(),
            workers: HashMap::new(),
            launching: Vec::new(),
            cancelling: Vec::new(),
            resolved: BTreeSet::new(),
            recalled: Vec::new(),
            has_ticked: false,
            is_draining: false,
            restarts: Restarts::default(),
            recycled: BTreeSet::new(),
            stopped: 0,
        };
        model.on(Event::Tick);
        model
    }

    fn on(&mut self, event: Event) {
        self.recalled.clear();
        for effect in self.harness.on(event) {
            self.effect(effect, None);
        }
        self.move_to_queue();
        self.check();
    }

    /// Moves the calls that got room in the last event. They get it in submission order, and cause no effect.
    fn move_to_queue(&mut self) {
        while self.harness.scheduler.queued() > self.queued.len() {
            let (number, Waiting { deadline, load, .. }) = self.waiting.pop_first().expect("a call waited");
            let calls_ahead = self.queued.len();
            assert!(calls_ahead < self.limits.queue, "a call got room in a full queue");
            self.queued.insert(number, QueuedModel { deadline, calls_ahead, load, assigned_since: 0 });
        }
    }

    /// Whether a worker can begin a call immediately.
    fn is_idle(up: &ModelWorker) -> bool {
        up.takes_calls() && up.held() < up.concurrency
    }

    /// Whether a worker may get a brief call ahead of its turn: it holds only brief calls and makes progress.
    fn takes_ahead(&self, up: &ModelWorker) -> bool {
        up.takes_calls()
            && up.cancelling == 0
            && up.queues_calls
            && up.last_progress + STALLED_AFTER > self.harness.now
            && up.running.iter().all(|load| load.is_brief())
            && up.running.iter().map(|load| load.time()).sum::<Duration>() < load::MAX_BACKLOG
    }

    /// Whether any worker can take a brief call now.
    fn can_place_brief(&self) -> bool {
        self.workers.values().any(|up| Self::is_idle(up) || self.takes_ahead(up))
    }

    /// `submitted` is the load and deadline of the call that was just submitted. Other calls come from the queue.
    fn effect(&mut self, effect: Effect, submitted: Option<(Load, Option<Instant>)>) {
        match effect {
            Effect::Assign { ticket, worker } => {
                let first = self.waiting.first_key_value().map(|(number, call)| (*number, *call));
                let from_queue = self.resolve(ticket);
                let queued = from_queue.map(|call| (call.load, call.deadline));
                let waited = first.filter(|(number, _)| *number == ticket.number);
                let waited = waited.map(|(_, call)| (call.load, call.deadline));
                let (load, deadline) =
                    queued.or(waited).or(submitted).expect("it is queued, the first to wait, or new");
                assert!(queued.is_some() || first.is_none() || waited.is_some(), "it overtook {first:?}");
                if let Some(call) = from_queue {
                    assert!(call.assigned_since <= 2 * call.calls_ahead + 1, "overtaken too often: {call:?}");
                    assert!(
                        call.deadline.is_none_or(|at| at > self.harness.now),
                        "assigned after its deadline"
                    );
                    self.queued.values_mut().for_each(|call| call.assigned_since += 1);
                }
                let is_any_idle = self.workers.values().any(Self::is_idle);
                let now = self.harness.now;
                let up = &self.workers[&worker];
                assert!(up.takes_calls(), "an ending, retiring or suspended worker got a call: {up:?}");
                if up.held() >= up.concurrency {
                    assert!(load.is_brief() && self.takes_ahead(up), "{load:?} was handed to {up:?}");
                    let backlog = up.running.iter().map(|load| load.time()).sum::<Duration>();
                    let should_wait = load.time() < load::WAKE_COST && backlog < load::MAX_SHORT_BACKLOG;
                    assert!(
                        !is_any_idle || should_wait,
                        "a call was handed over ahead although a worker is idle"
                    );
                }
                let up = self.workers.get_mut(&worker).expect("it is up");
                if up.running.is_empty() {
                    up.last_progress = now;
                }
                up.running.push(load);
                self.running.push((worker, load, ticket.number, deadline));
            }
            Effect::Reject { ticket, .. } => {
                self.resolve(ticket);
            }
            Effect::CutOff => assert!(!self.running.is_empty(), "there is a call to cut off"),
            Effect::Expire(ticket) => {
                let queued = self.resolve(ticket);
                assert!(queued.is_none_or(|call| call.deadline.is_some_and(|at| at <= self.harness.now)));
            }
            Effect::Launch(worker) => {
                self.check_launch(worker);
                self.launching.push(worker);
            }
            Effect::Recycle { worker, reason } => self.on_recycle(worker, reason),
            Effect::AbortLaunch(worker) => assert!(self.launching.contains(&worker)),
            Effect::Cancel(worker, call) => {
                let up = self.workers.get_mut(&worker).expect("it is up");
                up.cancelling += 1;
                self.cancelling.push((worker, call, self.harness.now + self.limits.cancel_grace));
            }
            Effect::Recall(worker) => {
                assert!(self.can_place_brief(), "no worker could take the returned calls");
                let up = &self.workers[&worker];
                assert!(up.held() > up.concurrency);
                assert!(up.last_progress + STALLED_AFTER <= self.harness.now, "it makes progress");
                self.recalled.push(worker);
            }
            Effect::Kill(worker, _) | Effect::Stop(worker) => {
                let up = self.workers.get_mut(&worker).expect("it is up");
                assert!(!std::mem::replace(&mut up.is_ending, true), "ended twice");
            }
            Effect::RestartWaits { slot } => self.on_restart_waits(slot),
            Effect::RestartEnded { number, outcome } => self.on_restart_ended(number, outcome),
            Effect::Stopped => self.stopped += 1,
        }
    }

    /// Checks that the ticket is resolved only once. Returns the call if it was queued.
    fn resolve(&mut self, ticket: Ticket) -> Option<QueuedModel> {
        assert!(self.resolved.insert(ticket.number), "{ticket:?} was resolved twice");
        self.waiting.remove(&ticket.number);
        self.queued.remove(&ticket.number)
    }

    fn is_alive(&self, worker: WorkerKey) -> bool {
        self.launching.iter().chain(self.workers.keys()).any(|other| *other == worker)
    }

    fn check(&self) {
        let scheduler = &self.harness.scheduler;
        assert_eq!(scheduler.queued(), self.queued.len());
        assert_eq!(scheduler.in_flight(), self.running.len());
        assert_eq!(scheduler.waiting_for_room(), self.waiting.len());
        assert!(self.waiting.is_empty() || self.queued.len() >= self.limits.queue, "there is room");
        let is_any_waiting = !self.queued.is_empty() || !self.waiting.is_empty();
        let is_any_idle = self.workers.values().any(Self::is_idle);
        assert!(!is_any_waiting || !is_any_idle, "a call waits while a worker is idle");
        if !self.queued.is_empty() {
            let head = self.queued.values().next().expect("it is not empty");
            let can_hold = self.workers.values().any(|up| self.takes_ahead(up));
            assert!(!head.load.is_brief() || !can_hold, "a brief call waits although a worker could hold it");
        }
        if !self.is_draining {
            for slot in scheduler.slots() {
                let is_backing_off = matches!(slot.state, SlotState::BackingOff { .. });
                assert!(
                    is_backing_off || self.is_alive(slot.key()),
                    "slot without a worker or a scheduled launch: {slot:?}"
                );
                if let SlotState::BackingOff { until } = slot.state {
                    assert!(scheduler.next_tick().is_some_and(|at| at <= until), "no timer for {slot:?}");
                }
            }
        }
        let is_left = |up: &&ModelWorker| up.is_retiring && !up.is_ending && up.held() == 0;
        assert!(!self.workers.values().any(|up| is_left(&up)), "a retired worker was not stopped");
        for (worker, up) in self.workers.iter().filter(|(_, up)| up.is_retiring && up.concurrency > 1) {
            let is_older =
                |other: &WorkerKey| other.slot == worker.slot && other.generation < worker.generation;
            let is_second = self.workers.keys().any(is_older);
            let is_replaced = scheduler.slots()[worker.index()].key() != *worker
                || !matches!(scheduler.slots()[worker.index()].state, SlotState::Up(_));
            let is_launching = self.launching.iter().any(|launching| launching.slot == worker.slot);
            assert!(
                up.is_ending || is_second || is_replaced || is_launching || self.is_draining,
                "{worker:?} has no replacement"
            );
        }
        assert_eq!(self.stopped, usize::from(scheduler.phase() == Phase::Stopped));
        self.check_restarts();
        self.check_recycling();
    }

    fn submit(
        &mut self,
        preferred: Option<(u32, u32)>,
        timeout: Option<u64>,
        micros: u64,
        wait: Option<u64>,
        is_nested: bool,
    ) {
        let load = Load::of(Duration::from_micros(micros));
        let ticket = self.harness.ticket();
        let preferred = preferred.map(|(slot, generation)| worker(slot, generation));
        let deadline = timeout.map(|millis| self.harness.now + Duration::from_millis(millis));
        let (calls_ahead, is_first) = (self.queued.len(), self.waiting.is_empty());
        let wait_for_room = wait.map(Duration::from_millis);
        let effects = self.harness.on(Event::Submit {
            is_nested,
            ticket,
            preferred,
            deadline,
            load,
            bytes: 0,
            wait_for_room,
        });
        let is_resolved = !effects.is_empty();
        effects.into_iter().for_each(|effect| self.effect(effect, Some((load, deadline))));
        assert_eq!(self.resolved.contains(&ticket.number), is_resolved);
        if self.harness.scheduler.queued() > calls_ahead {
            // Only returned calls may exceed the limit of the queue.
            assert!(calls_ahead < self.limits.queue, "a call was queued beyond the limit");
            assert!(is_first, "a new call overtook those that wait for room");
            self.queued.insert(ticket.number, QueuedModel { deadline, calls_ahead, load, assigned_since: 0 });
        } else if !is_resolved {
            let wait =
                wait_for_room.filter(|wait| !wait.is_zero()).expect("a call without a wait was not rejected");
            self.waiting.insert(ticket.number, Waiting { deadline, end: self.harness.now + wait, load });
        }
        self.check();
    }

    fn end_call(&mut self, index: usize, ending: Ending) {
        let (worker, load, number, deadline) = self.running.swap_remove(index);
        if let Some(up) = self.workers.get_mut(&worker) {
            let index = up.running.iter().position(|other| *other == load).expect("it runs there");
            up.running.swap_remove(index);
            if matches!(ending, Ending::Finished | Ending::Abandoned) {
                up.last_progress = self.harness.now;
            }
            up.is_retiring |= matches!(ending, Ending::Retired);
        }
        if let Ending::Returned = ending {
            let ticket = Ticket { number, waiter: 0 };
            self.resolved.remove(&number);
            let calls_ahead = self.queued.range(..number).count();
            // It is queued before calls that were submitted later.
            self.queued.range_mut(number..).for_each(|(_, call)| call.calls_ahead += 1);
            self.queued.insert(number, QueuedModel { deadline, calls_ahead, load, assigned_since: 0 });
            return self.on(Event::Returned { worker, ticket, deadline, load });
        }
        self.on(match ending {
            Ending::Finished => Event::Finished(worker, load),
            Ending::Released => Event::Released(worker, load),
            Ending::Retired => Event::Retired(worker, load),
            Ending::Returned => unreachable!("handled above"),
            Ending::Lost => Event::Lost(worker),
            Ending::Abandoned => Event::Abandoned(worker, CallId::from_u64(number), load),
        });
    }

    /// The workers that are up and fulfil a condition, in a stable order.
    fn keys(&self, is_included: impl Fn(&ModelWorker) -> bool) -> Vec<WorkerKey> {
        let included = self.workers.iter().filter(|(_, up)| is_included(up));
        let mut keys: Vec<_> = included.map(|(key, _)| *key).collect();
        keys.sort_by_key(|key| (key.slot, key.generation));
        keys
    }

    fn advance(&mut self, millis: u64) {
        self.harness.now += Duration::from_millis(millis);
        self.has_ticked = self.harness.scheduler.next_tick().is_some_and(|at| at <= self.harness.now);
        if self.has_ticked {
            self.on(Event::Tick);
        }
        let now = self.harness.now;
        assert!(self.harness.scheduler.next_tick().is_none_or(|at| at > now), "one tick is enough");
        let overdue = |call: &QueuedModel| call.deadline.is_some_and(|at| at <= now);
        assert!(!self.queued.values().any(overdue), "a queued call outlived its deadline");
        let has_ended = |call: &Waiting| call.end <= now || call.deadline.is_some_and(|at| at <= now);
        assert!(!self.waiting.values().any(has_ended), "a call waited for room beyond its limit");
        for (worker, up) in &self.workers {
            let holds_calls = !up.running.is_empty() && up.held() > up.concurrency;
            if self.has_ticked
                && self.can_place_brief()
                && holds_calls
                && !up.is_ending
                && up.last_progress + STALLED_AFTER <= now
            {
                assert!(self.recalled.contains(worker), "{up:?} holds calls that another worker could take");
            }
        }
        for (worker, call, by) in &self.cancelling {
            let is_ending = self.workers.get(worker).is_none_or(|up| up.is_ending);
            assert!(is_ending || *by > now, "call {call} outlived its grace period");
        }
    }

    fn step(&mut self, op: &Op) {
        match op {
            Op::Submit { preferred, timeout, micros, wait, is_nested } => {
                self.submit(*preferred, *timeout, *micros, *wait, *is_nested);
            }
            Op::Withdraw(index) => {
                let numbers: Vec<u64> = self.queued.keys().chain(self.waiting.keys()).copied().collect();
                if !numbers.is_empty() {
                    let number = *index.get(&numbers);
                    self.queued.remove(&number);
                    self.waiting.remove(&number);
                    self.resolved.insert(number);
                    self.on(Event::Withdraw(Ticket { number, waiter: 0 }));
                }
            }
            Op::EndCall(index, ending) if !self.running.is_empty() => {
                self.end_call(index.index(self.running.len()), *ending);
            }
            Op::Cancel(index, is_proven) if !self.cancelling.is_empty() => {
                let (worker, call, _) = self.cancelling.swap_remove(index.index(self.cancelling.len()));
                if *is_proven && let Some(up) = self.workers.get_mut(&worker) {
                    up.cancelling -= 1;
                }
                self.on(if *is_proven {
                    Event::CancelConfirmed(worker, call)
                } else {
                    Event::CancelFailed(worker)
                });
            }
            Op::Launch(index, succeeds) if !self.launching.is_empty() => {
                self.launch(index.index(self.launching.len()), *succeeds);
            }
            Op::Exit(index) if !self.workers.is_empty() => self.exit(*index.get(&self.keys(|_| true))),
            Op::Suspend(index) if !self.workers.is_empty() => {
                let worker = *index.get(&self.keys(|_| true));
                self.workers.get_mut(&worker).expect("it is up").suspensions += 1;
                self.on(Event::Suspend(worker));
            }
            Op::Resume(index) => {
                let suspended = self.keys(|up| up.suspensions > 0);
                if !suspended.is_empty() {
                    let worker = *index.get(&suspended);
                    self.workers.get_mut(&worker).expect("it is up").suspensions -= 1;
                    self.on(Event::Resume(worker));
                }
            }
            Op::Advance(millis) => self.advance(*millis),
            Op::Restart => self.restart(),
            Op::Memory(index, used) if !self.workers.is_empty() => self.measure(index, *used),
            Op::Recycle(index) if !self.workers.is_empty() => self.request_recycling(index),
            Op::Drain(millis) => {
                self.is_draining = true;
                let until = self.harness.now + Duration::from_millis(*millis);
                self.on(Event::Drain { until });
            }
            Op::EndCall(..)
            | Op::Cancel(..)
            | Op::Launch(..)
            | Op::Exit(_)
            | Op::Suspend(_)
            | Op::Memory(..)
            | Op::Recycle(_) => {}
        }
    }

    /// Checks that a drain ends after its time and the exits of all workers.
    fn finish(mut self) {
        self.is_draining = true;
        let until = self.harness.now + Duration::from_secs(1);
        self.on(Event::Drain { until });
        self.advance(1000);
        assert!(self.queued.is_empty() && self.waiting.is_empty());
        while !self.launching.is_empty() {
            self.launch(0, None);
        }
        let remaining: Vec<WorkerKey> = self.workers.keys().copied().collect();
        for worker in remaining {
            assert!(self.workers[&worker].is_ending, "{worker:?} was not asked to stop");
            self.exit(worker);
        }
        assert_eq!(self.stopped, 1);
        assert!(!self.restarts.is_running(), "every restart ended");
        while !self.running.is_empty() {
            self.end_call(0, Ending::Lost);
        }
        assert_eq!(self.resolved.len() as u64, self.harness.tickets, "every ticket was resolved");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_of_events_violates_an_invariant(
        slots in 1..5_usize,
        concurrency in 1..4_usize,
        queue in 0..12_usize,
        recycling in recycling::limits(),
        ops in prop::collection::vec(op(), 0..200),
    ) {
        let limits = Limits {
            slots,
            concurrency,
            queue,
            queue_bytes: 100,
            cancel_grace: Duration::from_secs(2),
            recycling,
        };
        let mut model = Model::new(limits);
        ops.iter().for_each(|op| model.step(op));
        model.finish();
    }
}
