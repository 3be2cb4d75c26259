//! Brings the scheduler to life: whoever brings an event runs the scheduler inline, under a short lock, and carries out
//! its effects; what takes time is left to the [supervisor].
//!
//! Under the lock nothing is awaited and no foreign code runs; wakers are woken after it is released.

mod ancestry;
mod lease;
#[cfg(all(test, loom))]
mod models;
mod report;
mod revocation;
mod supervisor;
mod times;
mod trouble;
mod waiter;
mod waiters;

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, PoisonError},
    task::Waker,
    time::SystemTime,
};

use slab::Slab;
use snakepit_registry::CallId;
use snakepit_worker::{Worker, WorkerId};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::Instant,
};

pub(crate) use self::{
    ancestry::Ancestry,
    lease::Lease,
    trouble::Trouble,
    waiter::{Acquire, Denial},
};
use self::{
    ancestry::NestedCalls,
    lease::{LeaseRecord, LeaseSignal, SharedChunks},
    supervisor::Order,
    times::Times,
    waiter::Waiter,
    waiters::Waiters,
};
use crate::{
    PoolConfig, PoolError,
    metrics::Totals,
    scheduler::{Effect, Event, KillReason, Limits, Load, Refusal, Scheduler, Ticket, WorkerKey, earlier},
    sync::{Mutex, MutexGuard},
};

/// What all handles, calls and tasks of a pool share.
pub(crate) struct Shared {
    pub(crate) config: PoolConfig,
    pub(crate) totals: Arc<Totals>,
    state: Mutex<State>,
    orders: mpsc::UnboundedSender<Order>,
    startup: watch::Sender<Startup>,
    stopped: watch::Sender<bool>,
    readiness: watch::Sender<bool>,
    /// Notified whenever a call provably ended other than by its own answer.
    ended: Notify,
}

struct State {
    scheduler: Scheduler,
    tickets: u64,
    waiters: Waiters,
    /// Calls that hold a worker.
    leases: Slab<LeaseRecord>,
    times: Times,
    /// No deadline among the running calls is earlier. May be too early; a tick corrects it.
    earliest_deadline: Option<Instant>,
    /// Abandoned calls that may still run.
    settling: Vec<(WorkerKey, CallId)>,
    /// The workers that are up or ending, by slot.
    members: Vec<Option<Arc<Member>>>,
    /// Which slots never had a worker yet.
    never_up: Vec<bool>,
    nested: NestedCalls,
    /// What went wrong last with a worker.
    trouble: Option<Trouble>,
    /// Whether the supervisor ended before the pool did: its runtime shut down.
    is_orphaned: bool,
    /// When the supervisor's timer fires.
    armed: Option<Instant>,
}

/// A worker that was up.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) key: WorkerKey,
    pub(crate) worker: Worker,
    pub(crate) started_at: SystemTime,
}

/// How far the first launches have come.
#[derive(Debug, Clone)]
pub(crate) enum Startup {
    Pending,
    Ready,
    Failed(PoolError),
}

/// What is to be done once the lock is released, because it runs foreign code: wakers to be woken, hardly ever more than one,
/// calls to be asked back.
#[derive(Default)]
struct Wakes {
    first: Option<Waker>,
    more: Vec<Waker>,
    recalls: Vec<(Arc<Member>, CallId)>,
    /// Workers that were killed, to be logged.
    killed: Vec<(Arc<Member>, KillReason)>,
    /// Streams to be dropped.
    streams: Vec<SharedChunks>,
}

impl Wakes {
    fn push(&mut self, waker: Option<Waker>) {
        match (waker, &self.first) {
            (Some(waker), None) => self.first = Some(waker),
            (Some(waker), Some(_)) => self.more.push(waker),
            (None, _) => {}
        }
    }

    fn wake(self) {
        if let Some(first) = self.first {
            first.wake();
            // There are others only beside a first one.
            self.more.into_iter().for_each(Waker::wake);
        }
        for chunks in &self.streams {
            survive("dropping a stream", || {
                drop(chunks.lock().unwrap_or_else(PoisonError::into_inner).take());
            });
        }
        for (member, call) in &self.recalls {
            survive("recalling a call", || member.worker.handler().recall(*call));
        }
        for (member, why) in &self.killed {
            survive(
                "logging",
                || tracing::warn!(worker = %member.worker.id(), reason = %why, "killing worker"),
            );
        }
    }
}

/// Runs a step of foreign code, or of code that logs: a program's log subscriber may panic too. Reports a panic and returns
/// `false`; it costs this step and nothing else.
fn survive(step: &str, run: impl FnOnce()) -> bool {
    let survived = catch_unwind(AssertUnwindSafe(run)).is_ok();
    if !survived {
        let report = || tracing::error!(step, "a step of the pool panicked; the pool goes on");
        // If it was the subscriber, the report fares no better.
        let _ = catch_unwind(AssertUnwindSafe(report));
    }
    survived
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Shared {
    fn new(config: PoolConfig, orders: mpsc::UnboundedSender<Order>) -> Self {
        let now = Instant::now();
        let limits = Limits {
            slots: config.workers,
            concurrency: config.concurrency,
            queue: config.queue_limit,
            queue_bytes: config.queue_bytes,
            cancel_grace: config.cancel_grace,
        };
        let state = State {
            scheduler: Scheduler::new(limits, now),
            tickets: 0,
            waiters: Waiters::default(),
            leases: Slab::new(),
            times: Times::default(),
            earliest_deadline: None,
            settling: Vec::new(),
            members: vec![None; config.workers],
            never_up: vec![true; config.workers],
            nested: NestedCalls::default(),
            trouble: None,
            is_orphaned: false,
            armed: None,
        };
        Self {
            config,
            totals: Arc::default(),
            state: Mutex::new(state),
            orders,
            startup: watch::Sender::new(Startup::Pending),
            stopped: watch::Sender::new(false),
            readiness: watch::Sender::new(false),
            ended: Notify::new(),
        }
    }

    /// No code under this lock panics half-way through a change, so a poisoned state is still whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets an event happen now.
    pub(crate) fn bring(&self, event: Event) {
        self.with_state(|state, wakes| self.apply(state, event, Instant::now(), wakes));
        self.note_readiness();
    }

    /// Runs under the lock, and wakes whom it wants woken once the lock is released.
    fn with_state<T>(&self, run: impl FnOnce(&mut State, &mut Wakes) -> T) -> T {
        let mut wakes = Wakes::default();
        let answer = run(&mut self.lock(), &mut wakes);
        wakes.wake();
        answer
    }

    /// Runs the scheduler and carries out its effects. All of them are quick: what takes time is ordered.
    fn apply(&self, state: &mut State, event: Event, now: Instant, wakes: &mut Wakes) {
        let may_deadlock = Self::may_deadlock(state, &event);
        let State { scheduler, waiters, leases, members, settling, .. } = state;
        for effect in scheduler.on(event, now) {
            match effect {
                Effect::Assign { ticket, worker } => {
                    if let (Some(waiter), Some(member)) =
                        (waiters.get_mut(ticket.waiter), members.get(worker.index()).cloned().flatten())
                    {
                        state.earliest_deadline = earlier(state.earliest_deadline, waiter.deadline);
                        let key = leases.insert(LeaseRecord::new(
                            waiter.call,
                            worker,
                            waiter.deadline,
                            waiter.number,
                            waiter.load,
                        ));
                        wakes.push(waiter.assign(member, key));
                    }
                }
                Effect::Reject { ticket, refusal } => {
                    wakes.push(waiters.get_mut(ticket.waiter).and_then(|waiter| waiter.reject(refusal)));
                }
                Effect::CutOff => {
                    for (_, lease) in leases.iter_mut().filter(|(_, lease)| !lease.must_end()) {
                        wakes.push(lease.send(LeaseSignal::ShuttingDown));
                    }
                }
                Effect::Expire(ticket) => {
                    wakes.push(waiters.get_mut(ticket.waiter).and_then(Waiter::expire));
                }
                Effect::Recall(worker) => {
                    if let Some(member) = members.get(worker.index()).and_then(Option::as_ref) {
                        let held = leases.iter().filter(|(_, lease)| lease.worker == worker);
                        wakes.recalls.extend(held.map(|(_, lease)| (Arc::clone(member), lease.call)));
                    }
                }
                Effect::Kill(worker, why) => {
                    if let Some(member) = members.get(worker.index()).and_then(Option::as_ref) {
                        member.worker.kill(why.to_string());
                        wakes.killed.push((Arc::clone(member), why));
                    }
                }
                Effect::Stop(worker) => {
                    if let Some(member) = members.get(worker.index()).and_then(Option::as_ref) {
                        member.worker.stop(self.config.stop_grace);
                    }
                }
                Effect::Settle(worker, call) => {
                    if let Some(member) = members.get(worker.index()).cloned().flatten() {
                        settling.push((worker, call));
                        self.order(Order::Settle(member, call));
                    }
                }
                Effect::Launch(worker) => self.order(Order::Launch(worker, self.worker_id(worker))),
                Effect::AbortLaunch(worker) => self.order(Order::AbortLaunch(worker)),
                Effect::Stopped => {
                    self.stopped.send_replace(true);
                    self.order(Order::Rearm);
                }
            }
        }
        if may_deadlock {
            self.end_deadlock(state, wakes);
        }
        self.arm(state);
    }

    /// A closed channel means that the supervisor was dropped with its pool: nobody is left to be served.
    fn order(&self, order: Order) {
        let _ = self.orders.send(order);
    }

    fn arm(&self, state: &mut State) {
        if let Some(wake) = earlier(state.scheduler.wake(), state.earliest_deadline)
            && state.armed.is_none_or(|armed| wake < armed)
        {
            state.armed = Some(wake);
            self.order(Order::Rearm);
        }
    }

    fn worker_id(&self, WorkerKey { slot, generation }: WorkerKey) -> WorkerId {
        WorkerId::new(format!("{}-{slot}-{generation}", self.config.name))
    }

    /// Reads an id that [`worker_id`](Self::worker_id) wrote; that of another pool's worker is none.
    fn worker_key(&self, id: &str) -> Option<WorkerKey> {
        let (slot, generation) = id.strip_prefix(&*self.config.name)?.strip_prefix('-')?.split_once('-')?;
        Some(WorkerKey { slot: slot.parse().ok()?, generation: generation.parse().ok()? })
    }

    /// A call gives its worker back.
    fn end(&self, state: &mut State, key: usize, event: Event, wakes: &mut Wakes) -> LeaseRecord {
        let lease = state.leases.remove(key);
        if !lease.revoked {
            self.apply(state, event, Instant::now(), wakes);
        }
        if lease.signal().is_some() {
            self.ended.notify_waiters();
        }
        lease
    }

    /// A call that was given back gives its worker up and waits again, in one step: nobody finds it gone in between.
    fn wait_again(
        self: &Arc<Self>,
        state: &mut State,
        key: usize,
        worker: WorkerKey,
        tool: Arc<str>,
        load: Load,
        wakes: &mut Wakes,
    ) -> (LeaseRecord, Acquire) {
        let lease = state.leases.remove(key);
        let deadline = lease.deadline;
        let waiter = Waiter::new(lease.call, deadline, load, lease.number);
        let ticket = Ticket { number: lease.number, waiter: state.waiters.insert(waiter) };
        let waiter = &mut state.waiters[ticket.waiter];
        let wants_no_more = match lease.signal() {
            Some(LeaseSignal::Cancelled) => Some(waiter.cancel()),
            Some(LeaseSignal::DeadlineExceeded) => Some(waiter.expire()),
            Some(LeaseSignal::ShuttingDown) => Some(waiter.reject(Refusal::Draining)),
            Some(LeaseSignal::Orphaned) => Some(waiter.orphan()),
            Some(LeaseSignal::WorkerExited) | None => None,
        };
        let event = match wants_no_more {
            Some(waker) => {
                wakes.push(waker);
                Event::Released(worker, load)
            }
            None => Event::GivenBack { worker, ticket, deadline, load },
        };
        state.waiters.index(ticket.waiter);
        // One whose worker was taken from it is abandoned already, as far as the scheduler knows.
        if !lease.revoked {
            self.apply(state, event, Instant::now(), wakes);
        }
        if lease.signal().is_some() {
            self.ended.notify_waiters();
        }
        (lease, Acquire::again(Arc::clone(self), ticket, tool, deadline))
    }

    fn launched(&self, key: WorkerKey, worker: Worker) -> Arc<Member> {
        let member = Arc::new(Member { key, worker, started_at: SystemTime::now() });
        let all_were_up = self.with_state(|state, wakes| {
            state.members[key.index()] = Some(Arc::clone(&member));
            state.never_up[key.index()] = false;
            let launched = Event::Launched { worker: key, keeps_calls: member.worker.keeps_calls() };
            self.apply(state, launched, Instant::now(), wakes);
            !state.never_up.contains(&true)
        });
        // Readiness first, so that whoever waited for the start finds the pool ready.
        self.note_readiness();
        if all_were_up {
            self.end_startup(Startup::Ready);
        }
        member
    }

    /// The first outcome counts.
    fn end_startup(&self, outcome: Startup) {
        self.startup.send_if_modified(|startup| {
            let pending = matches!(startup, Startup::Pending);
            if pending {
                *startup = outcome;
            }
            pending
        });
    }

    fn launch_failed(&self, key: WorkerKey, error: PoolError) {
        self.lock().trouble = Some(Trouble::Launch { error: error.to_string() });
        self.end_startup(Startup::Failed(error));
        self.bring(Event::LaunchFailed(key));
    }

    fn exited(&self, key: WorkerKey, id: &WorkerId, reason: String) {
        self.with_state(|state, wakes| {
            state.members[key.index()] = None;
            state.trouble = Some(Trouble::ended(state.trouble.take(), id, reason));
            state.note_company(key);
            state.settling.retain(|(worker, _)| *worker != key);
            for (_, lease) in &mut state.leases {
                if lease.worker == key && !lease.must_end() {
                    wakes.push(lease.send(LeaseSignal::WorkerExited));
                }
            }
            self.apply(state, Event::Exited(key), Instant::now(), wakes);
        });
        self.note_readiness();
        self.ended.notify_waiters();
    }

    fn settled(&self, key: WorkerKey, call: CallId, proven: bool) {
        self.with_state(|state, wakes| {
            if proven {
                state.settling.retain(|settling| *settling != (key, call));
            }
            let event = if proven { Event::Settled(key) } else { Event::Unsettled(key) };
            self.apply(state, event, Instant::now(), wakes);
        });
        self.ended.notify_waiters();
    }

    /// The supervisor was dropped while the pool still served, because its runtime shut down. Nothing that happens from now
    /// on is acted upon, so every call ends, and every one to come is refused.
    fn orphan(&self) {
        if *self.stopped.borrow() {
            return;
        }
        self.with_state(|state, wakes| {
            state.is_orphaned = true;
            for waiter in state.waiters.iter_mut() {
                wakes.push(waiter.orphan());
            }
            for (_, lease) in state.leases.iter_mut().filter(|(_, lease)| !lease.must_end()) {
                wakes.push(lease.send(LeaseSignal::Orphaned));
            }
        });
        self.stopped.send_replace(true);
        self.note_readiness();
        self.ended.notify_waiters();
    }

    /// Whether the runtime that started the pool has shut down.
    pub(crate) fn is_orphaned(&self) -> bool {
        self.lock().is_orphaned
    }

    /// What went wrong last with a worker, for calls that get none.
    pub(crate) fn trouble(&self) -> String {
        // Slots fail only by launches and exits, which say why.
        self.lock().trouble.as_ref().map(ToString::to_string).unwrap_or_default()
    }

    /// The last handle is gone: refuses all calls and kills all workers, without waiting for anything.
    pub(crate) fn abort(&self) {
        self.bring(Event::Drain { until: Instant::now() });
        for member in self.lock().members.iter().flatten() {
            member.worker.kill("its pool was dropped");
        }
        self.stopped.send_replace(true);
    }
}
