//! The task that waits for launches, exits, cancellations and timers.

use std::{collections::HashMap, sync::Arc, time::Duration};

use snakepit_registry::{CallId, ToolError};
use snakepit_worker::{
    ExitReason, LaunchRequest, Worker, WorkerError, WorkerExit, WorkerId, WorkerLauncher, WorkerSlot,
    error_chain,
};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinError, JoinSet},
    time::{Instant, sleep_until},
};

use super::{Driver, LiveWorker, WorkerKey, catch_panic};
use crate::PoolConfig;

/// The pause after a tick that panicked.
const PANIC_PAUSE: Duration = Duration::from_millis(100);

/// The time between measurements of the workers' memory.
const MEMORY_INTERVAL: Duration = Duration::from_millis(500);

/// Slow work that the driver leaves to the supervisor.
#[derive(Debug)]
pub(super) enum Command {
    Launch(WorkerKey, WorkerId),
    AbortLaunch(WorkerKey),
    Cancel(Arc<LiveWorker>, CallId),
    /// Wakes the supervisor, because the timer has changed or the pool has stopped.
    Rearm,
}

/// The result of a job.
#[derive(Debug)]
enum JobResult {
    Launched(Result<Worker, WorkerError>),
    Cancelled(Result<(), ToolError>),
    Exited(WorkerExit),
    /// The workers with their private memory, in bytes.
    Measured(Vec<(WorkerKey, u64)>),
}

/// The purpose of a job. It is stored outside of the job's task, because the task may panic.
#[derive(Debug)]
enum Job {
    Launch { key: WorkerKey, id: WorkerId, abort: AbortHandle },
    Cancel { live_worker: Arc<LiveWorker>, call: CallId },
    Watch { key: WorkerKey, id: WorkerId },
    MeasureMemory,
}

struct Supervisor {
    driver: Arc<Driver>,
    launcher: Arc<dyn WorkerLauncher>,
    commands: mpsc::UnboundedReceiver<Command>,
    tasks: JoinSet<JobResult>,
    jobs: HashMap<tokio::task::Id, Job>,
}

impl Driver {
    /// Creates a driver and the set that holds its supervisor. The workers live as long as the set.
    pub(crate) fn spawn(config: PoolConfig, launcher: Arc<dyn WorkerLauncher>) -> (Arc<Self>, JoinSet<()>) {
        let (command_sender, commands) = mpsc::unbounded_channel();
        let driver = Arc::new(Self::new(config, command_sender));
        // Sends the commands of the first launches, so `status` shows them from the start.
        driver.on_tick(Instant::now());
        let supervisor = Supervisor {
            driver: Arc::clone(&driver),
            launcher,
            commands,
            tasks: JoinSet::new(),
            jobs: HashMap::new(),
        };
        let mut set = JoinSet::new();
        set.spawn(supervisor.run());
        (driver, set)
    }
}

impl Supervisor {
    async fn run(mut self) {
        if self.driver.config.limits_memory() {
            self.measure_memory();
        }
        while !*self.driver.stopped.borrow() {
            let timer = self.driver.lock().timer_at;
            let due = timer.unwrap_or_else(Instant::now);
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(command) => {
                        catch_panic("a command", || self.execute(command));
                    }
                    None => return,
                },
                Some(result) = self.tasks.join_next_with_id() => {
                    catch_panic("the end of a job", || self.finish_job(result));
                }
                () = sleep_until(due), if timer.is_some() => {
                    if !catch_panic("a timer", || self.driver.on_tick(Instant::now())) {
                        // The tick did not set the next timer. Avoids a busy loop.
                        self.driver.lock().timer_at = Some(Instant::now() + PANIC_PAUSE);
                    }
                }
            }
        }
    }

    fn execute(&mut self, command: Command) {
        match command {
            Command::Launch(key, id) => {
                // This launch is a retry, so a task that wants the outcome of the start already waits for it.
                if key.generation > 1
                    && let Some(failure) = self.driver.take_unreported_failure()
                {
                    tracing::warn!(error = %error_chain(&failure), "the pool did not start; launching workers again");
                }
                let config = &self.driver.config;
                let slot = WorkerSlot::new(&*config.name, key.slot as usize, config.workers);
                let (launcher, request) =
                    (Arc::clone(&self.launcher), LaunchRequest::new(id.clone()).with_slot(slot));
                let abort =
                    self.tasks.spawn(async move { JobResult::Launched(launcher.launch(request).await) });
                self.jobs.insert(abort.id(), Job::Launch { key, id: id.clone(), abort });
                tracing::debug!(worker = %id, "launching worker");
            }
            Command::AbortLaunch(key) => {
                for job in self.jobs.values() {
                    if let Job::Launch { key: launching, abort, .. } = job
                        && *launching == key
                    {
                        abort.abort();
                    }
                }
            }
            Command::Cancel(live_worker, call) => {
                let worker = live_worker.handle.clone();
                let id = worker.id().clone();
                let task = self
                    .tasks
                    .spawn(async move { JobResult::Cancelled(worker.handler().cancel(call).await) });
                self.jobs.insert(task.id(), Job::Cancel { live_worker, call });
                tracing::debug!(worker = %id, %call, "cancelling an abandoned call");
            }
            Command::Rearm => {}
        }
    }

    /// Handles the result of a job. Submits the event before it logs, because a lost event would block a slot and a log
    /// subscriber may panic.
    fn finish_job(&mut self, result: Result<(tokio::task::Id, JobResult), JoinError>) {
        let (task, result) = match result {
            Ok((task, result)) => (task, Ok(result)),
            Err(error) => (error.id(), Err(error)),
        };
        match (self.jobs.remove(&task), result) {
            (Some(Job::Launch { key, id, .. }), Ok(JobResult::Launched(Ok(worker)))) => {
                self.on_launched(key, &id, worker);
            }
            (Some(Job::Launch { key, id, .. }), Ok(JobResult::Launched(Err(error)))) => {
                self.on_launch_failed(key, &id, &error);
            }
            (Some(Job::Launch { key, id, .. }), Err(error)) => {
                let error_text = format!("its launch {}", describe_join_error(&error));
                let failure = WorkerError::start_failed(error_text);
                if error.is_cancelled() {
                    // The pool aborted the launch itself.
                    self.driver.on_launch_failed(key, &id, &failure);
                    tracing::debug!(worker = %id, error = %error_chain(&failure), "worker did not start");
                } else {
                    self.on_launch_failed(key, &id, &failure);
                }
            }
            (Some(Job::Cancel { live_worker, call }), result) => {
                let problem = match result {
                    Ok(JobResult::Cancelled(Err(error))) => Some(error_chain(&error).to_string()),
                    Err(error) => Some(format!("its cancellation {}", describe_join_error(&error))),
                    Ok(_) => None,
                };
                if problem.is_some() && live_worker.handle.exit().is_some() {
                    // The call ended with its worker, whose exit is about to be reported.
                    return;
                }
                self.driver.on_cancel_ended(live_worker.key, call, problem.is_none());
                if let Some(problem) = &problem {
                    let id = live_worker.handle.id();
                    tracing::warn!(worker = %id, %call, %problem, "cannot confirm the end of an abandoned call");
                }
            }
            (Some(Job::Watch { key, id }), result) => {
                let reason = match &result {
                    Ok(JobResult::Exited(exit)) => exit.reason.to_string(),
                    _ => "its exit cannot be watched".to_owned(),
                };
                let was_stopped =
                    matches!(&result, Ok(JobResult::Exited(exit)) if exit.reason == ExitReason::Stopped);
                self.driver.on_exited(key, &id, reason, was_stopped);
                match result {
                    Ok(JobResult::Exited(WorkerExit { reason, .. })) => match &reason {
                        ExitReason::Stopped | ExitReason::Killed { .. } => {
                            tracing::info!(worker = %id, %reason, "worker ended");
                        }
                        // The pool did not stop this worker.
                        _ => tracing::warn!(worker = %id, %reason, "worker ended"),
                    },
                    _ => {
                        tracing::error!(worker = %id, "cannot watch the worker's exit; treating it as exited");
                    }
                }
            }
            (Some(Job::MeasureMemory), result) => {
                if let Ok(JobResult::Measured(measured)) = result {
                    self.driver.on_memory_measured(&measured);
                }
                self.measure_memory();
            }
            (Some(Job::Launch { .. }), Ok(_)) | (None, _) => {
                tracing::error!("a task of the pool's supervisor ended unexpectedly");
            }
        }
    }

    fn on_launched(&mut self, key: WorkerKey, id: &WorkerId, worker: Worker) {
        // Watches the worker before its first use, so that the pool learns of its exit even if the code below panics.
        let watched = worker.clone();
        let (pid, address) = (worker.pid(), worker.address().to_owned());
        let watch = self.tasks.spawn(async move { JobResult::Exited(watched.exited().await) });
        self.jobs.insert(watch.id(), Job::Watch { key, id: id.clone() });
        self.driver.on_launched(key, worker);
        tracing::info!(worker = %id, pid, %address, "worker is up");
    }

    /// Starts the next measurement of the workers' memory, on a thread that may block.
    fn measure_memory(&mut self) {
        let driver = Arc::clone(&self.driver);
        let task = self.tasks.spawn(async move {
            tokio::time::sleep(MEMORY_INTERVAL).await;
            let workers = driver.workers_up();
            let measure = move || {
                let measured = |(key, worker): (WorkerKey, Worker)| Some((key, worker.private_memory()?));
                workers.into_iter().filter_map(measured).collect()
            };
            // A measurement that panics measures nothing.
            JobResult::Measured(tokio::task::spawn_blocking(measure).await.unwrap_or_default())
        });
        self.jobs.insert(task.id(), Job::MeasureMemory);
    }

    fn on_launch_failed(&self, key: WorkerKey, id: &WorkerId, error: &WorkerError) {
        if self.driver.on_launch_failed(key, id, error) {
            // Several workers usually fail for the same cause, which the caller of `Pool::ready` or `Pool::restart` receives.
            // Without a caller of `ready`, the next launch logs it.
            tracing::debug!(worker = %id, error = %error_chain(error), "worker did not start");
        } else {
            tracing::warn!(worker = %id, error = %error_chain(error), "worker did not start");
        }
    }
}

/// Runs when the pool has stopped, when the pool is dropped, and when its runtime shuts down.
impl Drop for Supervisor {
    fn drop(&mut self) {
        self.driver.on_supervisor_dropped();
    }
}

fn describe_join_error(error: &JoinError) -> &'static str {
    if error.is_cancelled() { "was aborted" } else { "panicked" }
}
