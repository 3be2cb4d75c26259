//! The one task that waits for what takes time: launches, exits, cancellations and timers.

use std::{collections::HashMap, sync::Arc, time::Duration};

use snakepit_registry::{CallId, ToolError};
use snakepit_worker::{ExitReason, Worker, WorkerError, WorkerExit, WorkerId, WorkerLauncher};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinError, JoinSet},
    time::{Instant, sleep_until},
};

use super::{Member, Shared, WorkerKey, survive};
use crate::{PoolConfig, PoolError};

/// Pause after a timer whose work panicked.
const AFTER_PANIC: Duration = Duration::from_millis(100);

/// What the holder of the lock leaves to the supervisor.
#[derive(Debug)]
pub(super) enum Order {
    Launch(WorkerKey, WorkerId),
    AbortLaunch(WorkerKey),
    Settle(Arc<Member>, CallId),
    /// The next timer changed, or the pool has stopped.
    Rearm,
}

/// What one of the supervisor's jobs came to.
#[derive(Debug)]
enum Done {
    Launched(Result<Worker, WorkerError>),
    Settled(Result<(), ToolError>),
    Exited(WorkerExit),
}

/// What a job is for, so that its outcome finds its place even if it panicked.
#[derive(Debug)]
enum Job {
    Launch { worker: WorkerKey, id: WorkerId, abort: AbortHandle },
    Settle { member: Arc<Member>, call: CallId },
    Watch { worker: WorkerKey, id: WorkerId },
}

struct Supervisor {
    shared: Arc<Shared>,
    launcher: Arc<dyn WorkerLauncher>,
    orders: mpsc::UnboundedReceiver<Order>,
    tasks: JoinSet<Done>,
    jobs: HashMap<tokio::task::Id, Job>,
}

impl Shared {
    /// Makes a pool's shared part, and the set that holds its supervisor. The workers live as long as the set.
    pub(crate) fn spawn(config: PoolConfig, launcher: Arc<dyn WorkerLauncher>) -> (Arc<Self>, JoinSet<()>) {
        let (orders, received) = mpsc::unbounded_channel();
        let shared = Arc::new(Self::new(config, orders));
        // The first tick orders the first launches, so `status` shows them from the start.
        shared.tick(Instant::now());
        let supervisor = Supervisor {
            shared: Arc::clone(&shared),
            launcher,
            orders: received,
            tasks: JoinSet::new(),
            jobs: HashMap::new(),
        };
        let mut set = JoinSet::new();
        set.spawn(supervisor.run());
        (shared, set)
    }
}

impl Supervisor {
    async fn run(mut self) {
        while !*self.shared.stopped.borrow() {
            let timer = self.shared.lock().armed;
            let due = timer.unwrap_or_else(Instant::now);
            tokio::select! {
                order = self.orders.recv() => match order {
                    Some(order) => {
                        survive("an order", || self.carry_out(order));
                    }
                    None => return,
                },
                Some(done) = self.tasks.join_next_with_id() => {
                    survive("the end of a job", || self.take(done));
                }
                () = sleep_until(due), if timer.is_some() => {
                    if !survive("a timer", || self.shared.tick(Instant::now())) {
                        // The tick did not set the next timer, and must not run in a busy loop.
                        self.shared.lock().armed = Some(Instant::now() + AFTER_PANIC);
                    }
                }
            }
        }
    }

    fn carry_out(&mut self, order: Order) {
        match order {
            Order::Launch(worker, id) => {
                let (launcher, name) = (Arc::clone(&self.launcher), id.clone());
                let abort = self.tasks.spawn(async move { Done::Launched(launcher.launch(name).await) });
                self.jobs.insert(abort.id(), Job::Launch { worker, id: id.clone(), abort });
                tracing::debug!(worker = %id, "launching worker");
            }
            Order::AbortLaunch(worker) => {
                for job in self.jobs.values() {
                    if let Job::Launch { worker: launching, abort, .. } = job
                        && *launching == worker
                    {
                        abort.abort();
                    }
                }
            }
            Order::Settle(member, call) => {
                let settling = Arc::clone(&member);
                let task = self
                    .tasks
                    .spawn(async move { Done::Settled(settling.worker.handler().cancel(call).await) });
                let id = member.worker.id().clone();
                self.jobs.insert(task.id(), Job::Settle { member, call });
                tracing::debug!(worker = %id, %call, "cancelling an abandoned call");
            }
            Order::Rearm => {}
        }
    }

    /// Events come first and logging last: a panic of the log must not cost an event, and with it a slot.
    fn take(&mut self, done: Result<(tokio::task::Id, Done), JoinError>) {
        let (task, done) = match done {
            Ok((task, done)) => (task, Ok(done)),
            Err(error) => (error.id(), Err(error)),
        };
        match (self.jobs.remove(&task), done) {
            (Some(Job::Launch { worker, id, .. }), Ok(Done::Launched(Ok(up)))) => {
                self.launched(worker, &id, up);
            }
            (Some(Job::Launch { worker, id, .. }), Ok(Done::Launched(Err(error)))) => {
                self.launch_failed(worker, &id, &error);
            }
            (Some(Job::Launch { worker, id, .. }), Err(error)) => {
                let error = WorkerError::StartFailed {
                    error: format!("its launch {}", fate(&error)),
                    traceback: None,
                };
                self.launch_failed(worker, &id, &error);
            }
            (Some(Job::Settle { member, call }), done) => {
                let problem = match done {
                    Ok(Done::Settled(Err(error))) => Some(error.to_string()),
                    Err(error) => Some(format!("its cancellation {}", fate(&error))),
                    Ok(_) => None,
                };
                if problem.is_some() && member.worker.exit().is_some() {
                    // The call has ended with its worker, whose own end is about to be reported.
                    return;
                }
                self.shared.settled(member.key, call, problem.is_none());
                if let Some(problem) = &problem {
                    let worker = member.worker.id();
                    tracing::warn!(%worker, %call, %problem, "cannot tell whether an abandoned call has ended");
                }
            }
            (Some(Job::Watch { worker, id }), done) => {
                let reason = match &done {
                    Ok(Done::Exited(exit)) => exit.reason.to_string(),
                    _ => "its end cannot be watched".to_owned(),
                };
                self.shared.exited(worker, &id, reason);
                match done {
                    Ok(Done::Exited(WorkerExit { reason, .. })) => match &reason {
                        ExitReason::Stopped | ExitReason::Killed { .. } => {
                            tracing::info!(worker = %id, %reason, "worker ended");
                        }
                        // Nobody asked for it.
                        _ => tracing::warn!(worker = %id, %reason, "worker ended"),
                    },
                    _ => tracing::error!(worker = %id, "worker's end cannot be watched; taking it for gone"),
                }
            }
            (Some(Job::Launch { .. }), Ok(_)) | (None, _) => {
                tracing::error!("a task of the pool's supervisor ended unexpectedly");
            }
        }
    }

    fn launched(&mut self, worker: WorkerKey, id: &WorkerId, up: Worker) {
        // Watched before it is used, so its end is noticed whatever happens here.
        let watched = up.clone();
        let (pid, address) = (up.pid(), up.address().to_owned());
        let watch = self.tasks.spawn(async move { Done::Exited(watched.exited().await) });
        self.jobs.insert(watch.id(), Job::Watch { worker, id: id.clone() });
        self.shared.launched(worker, up);
        tracing::info!(worker = %id, pid, %address, "worker is up");
    }

    fn launch_failed(&self, worker: WorkerKey, id: &WorkerId, error: &WorkerError) {
        self.shared.launch_failed(worker, PoolError::Start { worker: id.clone(), error: error.clone() });
        tracing::warn!(worker = %id, %error, "worker did not start");
    }
}

/// The supervisor ends by itself when the pool has stopped, and is dropped with the pool, or with its runtime.
impl Drop for Supervisor {
    fn drop(&mut self) {
        self.shared.orphan();
    }
}

fn fate(error: &JoinError) -> &'static str {
    if error.is_cancelled() { "was called off" } else { "panicked" }
}
