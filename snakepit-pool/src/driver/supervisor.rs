//! The one task that waits for what takes time: launches, exits, cancellations and timers.

use std::{collections::HashMap, sync::Arc};

use snakepit_registry::{CallId, ToolError};
use snakepit_worker::{Worker, WorkerError, WorkerExit, WorkerId, WorkerLauncher};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinError, JoinSet},
    time::{Instant, sleep_until},
};

use super::{Member, Shared, WorkerKey};
use crate::{PoolConfig, PoolError};

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
    Settle { worker: WorkerKey, id: WorkerId, call: CallId },
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
                    Some(order) => self.carry_out(order),
                    None => return,
                },
                Some(done) = self.tasks.join_next_with_id() => self.take(done),
                () = sleep_until(due), if timer.is_some() => self.shared.tick(Instant::now()),
            }
        }
    }

    fn carry_out(&mut self, order: Order) {
        match order {
            Order::Launch(worker, id) => {
                tracing::debug!(worker = %id, "launching worker");
                let (launcher, name) = (Arc::clone(&self.launcher), id.clone());
                let abort = self.tasks.spawn(async move { Done::Launched(launcher.launch(name).await) });
                self.jobs.insert(abort.id(), Job::Launch { worker, id, abort });
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
                let (worker, id) = (member.key, member.worker.id().clone());
                tracing::debug!(worker = %id, %call, "cancelling an abandoned call");
                let task = self
                    .tasks
                    .spawn(async move { Done::Settled(member.worker.handler().cancel(call).await) });
                self.jobs.insert(task.id(), Job::Settle { worker, id, call });
            }
            Order::Rearm => {}
        }
    }

    fn take(&mut self, done: Result<(tokio::task::Id, Done), JoinError>) {
        let (task, done) = match done {
            Ok((task, done)) => (task, Ok(done)),
            Err(error) => (error.id(), Err(error)),
        };
        match (self.jobs.remove(&task), done) {
            (Some(Job::Launch { worker, id, .. }), Ok(Done::Launched(Ok(up)))) => {
                self.launched(worker, id, up);
            }
            (Some(Job::Launch { worker, id, .. }), Ok(Done::Launched(Err(error)))) => {
                self.launch_failed(worker, id, error);
            }
            (Some(Job::Launch { worker, id, .. }), Err(error)) => {
                let error =
                    WorkerError::Refused { error: format!("its launch {}", fate(&error)), traceback: None };
                self.launch_failed(worker, id, error);
            }
            (Some(Job::Settle { worker, id, call }), done) => {
                let problem = match done {
                    Ok(Done::Settled(Err(error))) => Some(error.to_string()),
                    Err(error) => Some(format!("its cancellation {}", fate(&error))),
                    Ok(_) => None,
                };
                if let Some(problem) = &problem {
                    tracing::warn!(worker = %id, %call, %problem, "cannot tell whether an abandoned call has ended");
                }
                self.shared.settled(worker, call, problem.is_none());
            }
            (Some(Job::Watch { worker, id }), done) => {
                let reason = match done {
                    Ok(Done::Exited(exit)) => {
                        tracing::info!(worker = %id, reason = %exit.reason, "worker ended");
                        exit.reason.to_string()
                    }
                    _ => {
                        tracing::error!(worker = %id, "worker's end cannot be watched; taking it for gone");
                        "its end cannot be watched".to_owned()
                    }
                };
                self.shared.exited(worker, &id, reason);
            }
            (Some(Job::Launch { .. }), Ok(_)) | (None, _) => {
                tracing::error!("a task of the pool's supervisor ended unexpectedly");
            }
        }
    }

    fn launched(&mut self, worker: WorkerKey, id: WorkerId, up: Worker) {
        tracing::info!(worker = %id, pid = up.pid(), address = up.address(), "worker is up");
        let member = self.shared.launched(worker, up);
        let watch = self.tasks.spawn(async move { Done::Exited(member.worker.exited().await) });
        self.jobs.insert(watch.id(), Job::Watch { worker, id });
    }

    fn launch_failed(&self, worker: WorkerKey, id: WorkerId, error: WorkerError) {
        tracing::warn!(worker = %id, %error, "worker did not start");
        self.shared.launch_failed(worker, PoolError::Start { worker: id, error });
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
