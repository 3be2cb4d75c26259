//! Brings the scheduler to life: whoever brings an event runs the scheduler inline, under a short lock, and carries out
//! its effects; what takes time is left to the [supervisor].
//!
//! Under the lock nothing is awaited and no foreign code runs; wakers are woken after it is released.

mod lease;
mod supervisor;
mod waiter;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Waker,
    time::{Duration, SystemTime},
};

use slab::Slab;
use snakepit_registry::CallId;
use snakepit_worker::{Worker, WorkerId};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::Instant,
};

use self::{lease::Running, supervisor::Order, waiter::Waiter};
pub(crate) use self::{
    lease::{Lease, Signal},
    waiter::{Acquire, Denial},
};
use crate::{
    PoolConfig, PoolError, PoolStatus, WorkerState, WorkerStatus,
    metrics::Totals,
    scheduler::{Effect, Event, Limits, Phase, Refusal, Scheduler, SlotState, WorkerKey},
};

/// How long a call that must let go of its worker may take to notice. Only one that nobody polls takes longer.
const STALLED: Duration = Duration::from_millis(50);

/// What all handles, calls and tasks of a pool share.
pub(crate) struct Shared {
    pub(crate) config: PoolConfig,
    pub(crate) totals: Arc<Totals>,
    state: Mutex<State>,
    orders: mpsc::UnboundedSender<Order>,
    startup: watch::Sender<Startup>,
    stopped: watch::Sender<bool>,
    /// Notified whenever a call provably ended other than by its own answer.
    ended: Notify,
}

struct State {
    scheduler: Scheduler,
    tickets: u64,
    /// Calls that wait for a worker, or for their task to fetch the one they got.
    waiters: Slab<Waiter>,
    /// Calls that hold a worker.
    running: Slab<Running>,
    /// No deadline among the running calls is earlier. May be too early; a tick corrects it.
    earliest_deadline: Option<Instant>,
    /// Abandoned calls that may still run.
    settling: Vec<(WorkerKey, CallId)>,
    /// The workers that are up or ending, by slot.
    members: Vec<Option<Arc<Member>>>,
    /// Which slots never had a worker yet.
    never_up: Vec<bool>,
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

/// Wakers to be woken once the lock is released; hardly ever more than one.
#[derive(Debug, Default)]
struct Wakes {
    first: Option<Waker>,
    more: Vec<Waker>,
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
        self.first.into_iter().chain(self.more).for_each(Waker::wake);
    }
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
            cancel_grace: config.cancel_grace,
        };
        let state = State {
            scheduler: Scheduler::new(limits, now),
            tickets: 0,
            waiters: Slab::new(),
            running: Slab::new(),
            earliest_deadline: None,
            settling: Vec::new(),
            members: vec![None; config.workers],
            never_up: vec![true; config.workers],
            armed: None,
        };
        Self {
            config,
            totals: Arc::default(),
            state: Mutex::new(state),
            orders,
            startup: watch::Sender::new(Startup::Pending),
            stopped: watch::Sender::new(false),
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
        let State { scheduler, waiters, running, members, settling, .. } = state;
        for effect in scheduler.on(event, now) {
            match effect {
                Effect::Assign { ticket, worker } => {
                    if let (Some(waiter), Some(member)) =
                        (waiters.get_mut(ticket.waiter), members.get(worker.index()).cloned().flatten())
                    {
                        state.earliest_deadline = earlier(state.earliest_deadline, waiter.deadline);
                        let key = running.insert(Running::new(waiter.call, worker, waiter.deadline));
                        wakes.push(waiter.assign(member, key));
                    }
                }
                Effect::Reject { ticket, refusal } => {
                    wakes.push(waiters.get_mut(ticket.waiter).and_then(|waiter| waiter.reject(refusal)));
                }
                Effect::Expire(ticket) => {
                    wakes.push(waiters.get_mut(ticket.waiter).and_then(Waiter::expire));
                }
                Effect::Kill(worker, why) => {
                    if let Some(member) = members.get(worker.index()).and_then(Option::as_ref) {
                        tracing::warn!(worker = %member.worker.id(), reason = %why, "killing worker");
                        member.worker.kill(why.to_string());
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

    /// Cancels a call of this pool wherever it is, and returns once it provably runs no more.
    pub(crate) async fn cancel(&self, call: CallId) {
        self.with_state(|state, wakes| {
            let queued =
                state.waiters.iter_mut().find(|(_, waiter)| waiter.call == call && waiter.is_waiting());
            if let Some((index, waiter)) = queued {
                let ticket = waiter.ticket(index);
                wakes.push(waiter.cancel());
                self.apply(state, Event::Withdraw(ticket), Instant::now(), wakes);
            }
            self.signal(state, wakes, Signal::Cancelled, |running| running.call == call);
            self.arm(state);
        });
        loop {
            let ended = self.ended.notified();
            if !self.lock().runs(call) {
                return;
            }
            ended.await;
        }
    }

    /// Tells running calls to let go of their workers, and sees to it that they do.
    fn signal(&self, state: &mut State, wakes: &mut Wakes, why: Signal, which: impl Fn(&Running) -> bool) {
        let patience = Instant::now() + STALLED;
        for (_, running) in &mut state.running {
            if which(running) && !running.must_end() {
                wakes.push(running.signal(why));
                running.deadline = Some(patience);
                state.earliest_deadline = earlier(state.earliest_deadline, Some(patience));
            }
        }
    }

    /// Takes the workers away from calls that were told to let go of them and did not: nobody polls those. A stream whose
    /// reader has stalled would else hold its worker beyond every deadline.
    fn revoke(&self, state: &mut State, wakes: &mut Wakes, now: Instant) {
        let mut abandoned = Vec::new();
        for (_, running) in &mut state.running {
            if running.must_end() && !running.revoked && running.deadline.is_some_and(|at| at <= now) {
                running.revoked = true;
                running.deadline = None;
                abandoned.push(Event::Abandoned(running.worker, running.call));
            }
        }
        for event in abandoned {
            self.apply(state, event, now, wakes);
        }
    }

    /// A call gives its worker back.
    fn end(&self, state: &mut State, key: usize, event: Event, wakes: &mut Wakes) -> Running {
        let running = state.running.remove(key);
        if !running.revoked {
            self.apply(state, event, Instant::now(), wakes);
        }
        if running.is_signalled() {
            self.ended.notify_waiters();
        }
        running
    }

    /// The supervisor's timer fired.
    fn tick(&self, now: Instant) {
        self.with_state(|state, wakes| {
            state.armed = None;
            if state.earliest_deadline.is_some_and(|at| at <= now) {
                self.revoke(state, wakes, now);
                let overdue = |running: &Running| running.deadline.is_some_and(|at| at <= now);
                self.signal(state, wakes, Signal::DeadlineExceeded, overdue);
                state.earliest_deadline =
                    state.running.iter().filter_map(|(_, running)| running.deadline).min();
            }
            self.apply(state, Event::Tick, now, wakes);
        });
    }

    fn launched(&self, key: WorkerKey, worker: Worker) -> Arc<Member> {
        let member = Arc::new(Member { key, worker, started_at: SystemTime::now() });
        self.with_state(|state, wakes| {
            state.members[key.index()] = Some(Arc::clone(&member));
            state.never_up[key.index()] = false;
            if !state.never_up.contains(&true) {
                self.startup.send_if_modified(|startup| {
                    let pending = matches!(startup, Startup::Pending);
                    if pending {
                        *startup = Startup::Ready;
                    }
                    pending
                });
            }
            self.apply(state, Event::Launched(key), Instant::now(), wakes);
        });
        member
    }

    fn launch_failed(&self, key: WorkerKey, error: PoolError) {
        self.startup.send_if_modified(|startup| {
            let pending = matches!(startup, Startup::Pending);
            if pending {
                *startup = Startup::Failed(error);
            }
            pending
        });
        self.bring(Event::LaunchFailed(key));
    }

    fn exited(&self, key: WorkerKey) {
        self.with_state(|state, wakes| {
            state.members[key.index()] = None;
            state.settling.retain(|(worker, _)| *worker != key);
            for (_, running) in &mut state.running {
                if running.worker == key && !running.must_end() {
                    wakes.push(running.signal(Signal::WorkerGone));
                }
            }
            self.apply(state, Event::Exited(key), Instant::now(), wakes);
        });
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

    /// The last handle is gone: refuses all calls and kills all workers, without waiting for anything.
    pub(crate) fn abort(&self) {
        self.bring(Event::Drain { until: Instant::now() });
        for member in self.lock().members.iter().flatten() {
            member.worker.kill("its pool was dropped");
        }
    }

    /// Waits for the end of the start phase.
    pub(crate) async fn ready(&self) -> Result<(), PoolError> {
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

    /// Waits until every worker is gone for good.
    pub(crate) async fn stopped(&self) {
        // The channel does not close while `self` holds its sending end.
        let _ = self.stopped.subscribe().wait_for(|stopped| *stopped).await;
    }

    pub(crate) fn is_ready(&self) -> bool {
        let state = self.lock();
        let is_up = |slot: &crate::scheduler::Slot| matches!(slot.state, SlotState::Up(_));
        state.scheduler.phase() == Phase::Serving
            && !state.never_up.contains(&true)
            && state.scheduler.slots().iter().any(is_up)
    }

    pub(crate) fn status(&self) -> PoolStatus {
        let state = self.lock();
        let workers = state.scheduler.slots().iter().zip(&state.members).map(|(slot, member)| {
            let worker = member.as_ref().map(|member| &member.worker);
            WorkerStatus {
                id: self.worker_id(slot.key()),
                pid: worker.and_then(Worker::pid),
                state: worker_state(&slot.state),
                address: worker.map_or_else(String::new, |worker| worker.address().to_owned()),
                started_at: member.as_ref().map(|member| member.started_at),
                calls: slot.served(),
                restarts: slot.restarts(),
            }
        });
        PoolStatus {
            name: self.config.name.clone(),
            queued: state.scheduler.queued(),
            in_flight: state.scheduler.in_flight(),
            workers: workers.collect(),
            calls: self.totals.read(),
        }
    }
}

impl State {
    fn runs(&self, call: CallId) -> bool {
        self.settling.iter().any(|(_, settling)| *settling == call)
            || self.running.iter().any(|(_, running)| running.call == call && !running.revoked)
    }
}

fn worker_state(state: &SlotState) -> WorkerState {
    match state {
        SlotState::Launching => WorkerState::Starting,
        SlotState::Up(up) if up.settling > 0 => WorkerState::Quarantined,
        SlotState::Up(up) if up.running > 0 => WorkerState::Busy,
        SlotState::Up(_) => WorkerState::Idle,
        SlotState::Ending { .. } => WorkerState::Stopping,
        SlotState::BackingOff { .. } | SlotState::Gone => WorkerState::Dead,
    }
}

/// The earlier of two times, where there are any.
fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
