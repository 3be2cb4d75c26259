//! Drives the scheduler. The thread that submits an event runs the scheduler inline under a short lock and applies its
//! effects. Slow work goes to the [supervisor].
//!
//! The driver never awaits and never calls foreign code while it holds the lock. It wakes tasks and drops foreign values after it has
//! released the lock. Only the supervisor, which is a task of the pool, is woken under the lock: its commands must have the order of
//! the effects.

mod ancestry;
mod deferred_work;
mod ended_workers;
mod last_failure;
mod lease;
mod leases;
mod live_workers;
#[cfg(all(test, loom))]
mod models;
mod report;
mod restart;
mod revocation;
mod supervisor;
mod tool_times;
mod waiter;
mod waiters;
mod worker_events;

use std::{
    fmt,
    sync::{Arc, PoisonError},
};

use snakepit_registry::{CallId, Principal};
use snakepit_worker::WorkerId;
use tokio::{
    sync::{Notify, mpsc, watch},
    time::Instant,
};

pub(crate) use self::{
    ancestry::Ancestry,
    last_failure::LastFailure,
    lease::Lease,
    live_workers::LiveWorker,
    waiter::{Acquire, AcquireError},
};
use self::{
    ancestry::NestedCalls,
    deferred_work::{DeferredWork, catch_panic},
    ended_workers::EndedWorkers,
    lease::{LeaseRecord, LeaseSignal},
    leases::Leases,
    live_workers::LiveWorkers,
    restart::FinishedRestart,
    supervisor::Command,
    tool_times::ToolTimes,
    waiter::Waiter,
    waiters::Waiters,
};
use crate::{
    PoolConfig, PoolError, Readiness,
    attempt::LayeredAttempts,
    metrics::Totals,
    scheduler::{
        Effect, Event, Limits, Load, RecyclingLimits, Rejection, RestartOutcome, Scheduler, Ticket,
        WorkerKey, earlier,
    },
    sync::{Mutex, MutexGuard},
};

/// The state that all handles, calls and tasks of a pool share.
pub(crate) struct Driver {
    pub(crate) config: PoolConfig,
    pub(crate) totals: Arc<Totals>,
    state: Mutex<State>,
    commands: mpsc::UnboundedSender<Command>,
    startup: watch::Sender<Startup>,
    stopped: watch::Sender<bool>,
    readiness: watch::Sender<Readiness>,
    /// The end of the last restart.
    restarts: watch::Sender<FinishedRestart>,
    /// Changes with each launch that ends, and with the phase of the pool.
    launches: watch::Sender<()>,
    /// Notified when a cancelled or lost call may have ended, so that [`cancel`](Self::cancel) checks again.
    call_ended: Notify,
    pub(crate) layered_attempts: LayeredAttempts,
}

struct State {
    scheduler: Scheduler,
    /// The number of the last ticket.
    last_ticket: u64,
    waiters: Waiters,
    /// The records of the calls that hold a worker.
    leases: Leases,
    tool_times: ToolTimes,
    /// A lower bound of the deadlines in `leases`. A tick makes it exact.
    earliest_deadline: Option<Instant>,
    /// The abandoned calls that may still run.
    cancelling: Vec<(WorkerKey, CallId)>,
    live_workers: LiveWorkers,
    /// Whether each slot has launched a worker before.
    has_launched: Vec<bool>,
    nested: NestedCalls,
    /// Whether a worker has declared limits of tools.
    has_call_limits: bool,
    /// The last failed launch or lost worker.
    last_failure: Option<LastFailure>,
    /// Why the last worker of each slot was replaced.
    ended_workers: EndedWorkers,
    /// The error of the last failed launch, for the restart that it ends.
    last_launch_error: Option<PoolError>,
    /// The number of the last restart.
    last_restart: u64,
    /// Whether the outcome of the start phase was reported, or a task waits for it.
    startup_is_reported: bool,
    /// Whether the runtime, and with it the supervisor, shut down before the pool.
    runtime_has_ended: bool,
    /// The time at which the supervisor's timer fires.
    timer_at: Option<Instant>,
}

/// The outcome of the first launches.
#[derive(Debug, Clone)]
pub(crate) enum Startup {
    Pending,
    Ready,
    Failed(PoolError),
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Driver {
    fn new(config: PoolConfig, commands: mpsc::UnboundedSender<Command>) -> Self {
        let now = Instant::now();
        let limits = Limits {
            slots: config.workers,
            concurrency: config.concurrency.unwrap_or(1),
            queue: config.queue_limit,
            queue_bytes: config.queue_bytes,
            cancel_grace: config.cancel_grace,
            recycling: RecyclingLimits {
                calls: config.max_worker_calls,
                age: config.max_worker_age,
                idle: config.max_worker_idle,
                memory: config.max_worker_memory,
                hard_memory: config.max_worker_memory_hard,
            },
        };
        let state = State {
            scheduler: Scheduler::new(limits, now),
            last_ticket: 0,
            waiters: Waiters::default(),
            leases: Leases::default(),
            tool_times: ToolTimes::default(),
            earliest_deadline: None,
            cancelling: Vec::new(),
            live_workers: LiveWorkers::new(config.workers),
            has_launched: vec![false; config.workers],
            nested: NestedCalls::default(),
            has_call_limits: false,
            last_failure: None,
            ended_workers: EndedWorkers::new(config.workers),
            last_launch_error: None,
            last_restart: 0,
            startup_is_reported: false,
            runtime_has_ended: false,
            timer_at: None,
        };
        let workers = config.workers;
        Self {
            config,
            totals: Arc::default(),
            state: Mutex::new(state),
            commands,
            // A pool without workers has nothing to wait for.
            startup: watch::Sender::new(if workers == 0 { Startup::Ready } else { Startup::Pending }),
            stopped: watch::Sender::new(false),
            readiness: watch::Sender::new(Readiness::of_workers(workers == 0, 0, workers)),
            restarts: watch::Sender::default(),
            launches: watch::Sender::default(),
            call_ended: Notify::new(),
            layered_attempts: LayeredAttempts::default(),
        }
    }

    /// Locks the state. Ignores poisoning, because no code panics while the state is inconsistent.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Submits an event to the scheduler.
    pub(crate) fn handle_event(&self, event: Event) {
        self.with_state(|state, deferred| self.apply(state, event, Instant::now(), deferred));
        self.update_readiness();
    }

    /// Runs `run` under the lock, and its deferred work after the lock is released.
    fn with_state<T>(&self, run: impl FnOnce(&mut State, &mut DeferredWork) -> T) -> T {
        let mut deferred = DeferredWork::default();
        let output = run(&mut self.lock(), &mut deferred);
        deferred.run(self);
        output
    }

    /// Runs the scheduler and applies its effects. None of them blocks; slow work becomes a [`Command`].
    fn apply(&self, state: &mut State, event: Event, now: Instant, deferred: &mut DeferredWork) {
        let may_deadlock = Self::may_deadlock(state, &event);
        let State { scheduler, waiters, leases, live_workers, cancelling, .. } = state;
        for effect in scheduler.handle_event(event, now) {
            match effect {
                Effect::Assign { ticket, worker: worker_key } => {
                    if let (Some(waiter), Some(live_worker)) =
                        (waiters.get_mut(ticket.waiter), live_workers.get(worker_key).cloned())
                    {
                        state.earliest_deadline = earlier(state.earliest_deadline, waiter.deadline);
                        let key = leases.insert(LeaseRecord::new(
                            waiter.call,
                            std::mem::replace(&mut waiter.principal, Principal::unset()),
                            worker_key,
                            waiter.deadline,
                            waiter.number,
                            waiter.load,
                            waiter.tool.clone(),
                        ));
                        deferred.wake(waiter.assign(live_worker, key));
                    }
                }
                Effect::Reject { ticket, rejection } => {
                    deferred.wake(
                        waiters
                            .get_mut(ticket.waiter)
                            .and_then(|waiter| waiter.fail(AcquireError::Rejected(rejection))),
                    );
                }
                Effect::CutOff => {
                    for lease in leases.iter_mut().filter(|lease| !lease.must_end()) {
                        deferred.wake(lease.send(LeaseSignal::ShuttingDown));
                    }
                }
                Effect::Expire(ticket) => {
                    deferred.wake(
                        waiters.get_mut(ticket.waiter).and_then(|waiter| waiter.fail(AcquireError::Expired)),
                    );
                }
                Effect::Recall(key) => {
                    if let Some(live_worker) = live_workers.get(key) {
                        let held_leases = leases.of_worker(key);
                        deferred
                            .rare()
                            .recalls
                            .extend(held_leases.map(|lease| (Arc::clone(live_worker), lease.call)));
                    }
                }
                Effect::Kill(key, reason) => {
                    deferred
                        .rare()
                        .kills
                        .extend(live_workers.get(key).map(|worker| (Arc::clone(worker), reason)));
                }
                Effect::Stop(key) => {
                    deferred.rare().stops.extend(live_workers.get(key).cloned());
                }
                Effect::Cancel(key, call) => {
                    if let Some(live_worker) = live_workers.get(key).cloned() {
                        cancelling.push((key, call));
                        self.send_command(Command::Cancel(live_worker, call));
                    }
                }
                Effect::Launch(key) => self.send_command(Command::Launch(key, self.worker_id(key))),
                Effect::Recycle { worker, reason } => {
                    state.ended_workers.recycle(worker, reason);
                    deferred.rare().recycled.extend(
                        live_workers.get(worker).map(|live_worker| (Arc::clone(live_worker), reason)),
                    );
                }
                Effect::AbortLaunch(key) => self.send_command(Command::AbortLaunch(key)),
                Effect::RestartWaits { slot } => {
                    let replaced = live_workers.replaced(slot);
                    let calls =
                        |worker: &LiveWorker| leases.of_worker(worker.key).map(|lease| lease.call).collect();
                    deferred
                        .rare()
                        .awaited_workers
                        .extend(replaced.map(|worker| (Arc::clone(worker), calls(worker))));
                }
                Effect::RestartEnded { number, outcome } => {
                    let launch_error = state.last_launch_error.take();
                    deferred.rare().ended_restart = Some(self.ended_restart(launch_error, number, outcome));
                }
                Effect::Stopped => {
                    deferred.rare().has_stopped = true;
                }
            }
        }
        if may_deadlock {
            self.end_deadlock(state, deferred);
        }
        self.arm_timer(state);
    }

    /// Sends a command to the supervisor. The channel is closed only after the supervisor was dropped with its pool.
    fn send_command(&self, command: Command) {
        let _ = self.commands.send(command);
    }

    fn arm_timer(&self, state: &mut State) {
        if let Some(due) = earlier(state.scheduler.next_tick(), state.earliest_deadline)
            && state.timer_at.is_none_or(|timer_at| due < timer_at)
        {
            state.timer_at = Some(due);
            self.send_command(Command::Rearm);
        }
    }

    fn worker_id(&self, WorkerKey { slot, generation }: WorkerKey) -> WorkerId {
        WorkerId::new(format!("{}-{slot}-{generation}", self.config.name))
    }

    /// Parses an id from [`worker_id`](Self::worker_id). Returns `None` for the id of another pool's worker.
    fn worker_key(&self, id: &str) -> Option<WorkerKey> {
        let (slot, generation) = id.strip_prefix(&*self.config.name)?.strip_prefix('-')?.split_once('-')?;
        Some(WorkerKey { slot: slot.parse().ok()?, generation: generation.parse().ok()? })
    }

    /// Removes the record of a lease and submits the event that ended it.
    fn end_lease(
        &self,
        state: &mut State,
        key: usize,
        event: Event,
        deferred: &mut DeferredWork,
    ) -> LeaseRecord {
        let lease = state.leases.remove(key);
        if !lease.is_revoked {
            self.apply(state, event, Instant::now(), deferred);
        }
        if lease.signal().is_some() {
            deferred.rare().has_ended_call = true;
        }
        lease
    }

    /// Ends the lease of a returned call and queues the call again. Both happen under one lock, so that a concurrent
    /// cancellation finds the call.
    fn requeue(
        self: &Arc<Self>,
        state: &mut State,
        key: usize,
        worker_key: WorkerKey,
        tool: Arc<str>,
        load: Load,
        deferred: &mut DeferredWork,
    ) -> (LeaseRecord, Acquire) {
        let mut lease = state.leases.remove(key);
        let (deadline, principal) =
            (lease.deadline, std::mem::replace(&mut lease.principal, Principal::unset()));
        let waiter = Waiter::new(lease.call, principal, deadline, load, lease.number, lease.tool.take());
        let ticket = Ticket { number: lease.number, waiter: state.waiters.insert(waiter) };
        let waiter = &mut state.waiters[ticket.waiter];
        let failed_waker = match lease.signal() {
            Some(LeaseSignal::Cancelled) => Some(waiter.fail(AcquireError::Cancelled)),
            Some(LeaseSignal::DeadlineExceeded) => Some(waiter.fail(AcquireError::Expired)),
            Some(LeaseSignal::ShuttingDown) => Some(waiter.fail(AcquireError::Rejected(Rejection::Draining))),
            Some(LeaseSignal::RuntimeEnded) => Some(waiter.fail(AcquireError::RuntimeEnded)),
            Some(LeaseSignal::WorkerExited) | None => None,
        };
        let event = match failed_waker {
            Some(waker) => {
                deferred.wake(waker);
                Event::Released(worker_key, load)
            }
            None => Event::Returned { worker: worker_key, ticket, deadline, load },
        };
        state.waiters.index(ticket.waiter);
        // The scheduler counts the call of a revoked lease as abandoned already.
        if !lease.is_revoked {
            self.apply(state, event, Instant::now(), deferred);
        }
        if lease.signal().is_some() {
            deferred.rare().has_ended_call = true;
        }
        (lease, Acquire::resume(Arc::clone(self), ticket, tool, deadline))
    }

    /// Does nothing after a shutdown. Otherwise fails all calls and rejects later ones, because no task handles events any
    /// more.
    fn on_supervisor_dropped(&self) {
        if *self.stopped.borrow() {
            return;
        }
        self.with_state(|state, deferred| {
            state.runtime_has_ended = true;
            for waiter in state.waiters.iter_mut() {
                deferred.wake(waiter.fail(AcquireError::RuntimeEnded));
            }
            for lease in state.leases.iter_mut().filter(|lease| !lease.must_end()) {
                deferred.wake(lease.send(LeaseSignal::RuntimeEnded));
            }
        });
        self.stopped.send_replace(true);
        self.launches.send_replace(());
        self.report_restart(self.ended_restart(None, u64::MAX, RestartOutcome::ShutDown));
        self.update_readiness();
        self.call_ended.notify_waiters();
    }

    /// Whether the runtime that started the pool has shut down.
    pub(crate) fn runtime_has_ended(&self) -> bool {
        self.lock().runtime_has_ended
    }

    /// The last failure of a worker, for the errors of calls that do not get a worker.
    pub(crate) fn last_failure(&self) -> Option<LastFailure> {
        self.lock().last_failure.clone()
    }

    /// Rejects all calls and kills all workers without waiting, after the last handle was dropped.
    pub(crate) fn abort(&self) {
        self.handle_event(Event::Drain { until: Instant::now() });
        let live_workers: Vec<_> = self.lock().live_workers.iter().cloned().collect();
        for live_worker in live_workers {
            live_worker.handle.kill("its pool was dropped");
        }
        self.stopped.send_replace(true);
    }
}
