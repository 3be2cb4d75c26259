//! The handle of a pool: starts it, reports its status, shuts it down.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use snakepit_registry::CallLayers;
use snakepit_worker::{LaunchRequest, Worker, WorkerError, WorkerLauncher};
use tokio::{sync::watch, task::JoinSet, time::Instant};

use crate::{
    PoolConfig, PoolError, PoolService, PoolStatus, Readiness, RemoteTool, driver::Driver, scheduler::Event,
    stack::stack,
};

/// A handle to a worker pool. Clones share the workers. Dropping the last clone kills them.
///
/// ```
/// use std::{collections::HashMap, sync::Arc, time::Duration};
///
/// use snakepit_pool::{Pool, PoolConfig};
/// use snakepit_registry::{FnTool, ToolCall, ToolHandler};
/// use snakepit_worker::testing::InProcessWorkers;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let double = FnTool::typed("double", |args: HashMap<String, i64>| async move { args["n"] * 2 });
/// let launcher = Arc::new(InProcessWorkers::new().fn_tool(double));
/// let pool = Pool::start(PoolConfig::default().workers(2), launcher)?;
/// pool.ready().await?;
///
/// let call = ToolCall::new("double").try_with_argument("n", &21)?;
/// let reply = pool.tool().call(call).await?;
/// assert!(reply.worker.is_some_and(|worker| worker.starts_with("default-")));
/// assert_eq!(pool.status().calls.succeeded, 1);
/// pool.shutdown(Duration::from_secs(10)).await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Pool {
    owner: Arc<Owner>,
}

/// Aborts the pool when the last handle is dropped.
#[derive(Debug)]
struct Owner {
    driver: Arc<Driver>,
    tool: Arc<RemoteTool>,
    /// The supervisor's task, which ends when this set is dropped.
    _supervisor: JoinSet<()>,
}

/// The launcher of a pool without workers. It does not launch anything.
#[derive(Debug)]
struct NoLauncher;

#[async_trait]
impl WorkerLauncher for NoLauncher {
    async fn launch(&self, _: LaunchRequest) -> Result<Worker, WorkerError> {
        Err(WorkerError::start_failed("this pool has no workers"))
    }
}

impl Pool {
    /// Creates a pool and launches all its workers concurrently. You can make calls immediately. They wait for the first
    /// worker.
    ///
    /// # Errors
    /// [`PoolError::InvalidConfig`] for an invalid setting, [`PoolError::NoRuntime`] outside a tokio runtime.
    pub fn start(config: PoolConfig, launcher: Arc<dyn WorkerLauncher>) -> Result<Self, PoolError> {
        Self::start_with_layers(config, launcher, CallLayers::default())
    }

    /// Like [`start`](Self::start), with layers around each attempt at a call: outside of the wait for a worker, and inside the
    /// retries.
    ///
    /// # Errors
    /// As for `start`.
    pub fn start_with_layers(
        config: PoolConfig,
        launcher: Arc<dyn WorkerLauncher>,
        attempt_layers: CallLayers,
    ) -> Result<Self, PoolError> {
        config.validate()?;
        Self::spawn(config, launcher, attempt_layers)
    }

    /// Creates a pool without workers, for a host that has only its own tools. It is ready immediately. Calls on it fail with
    /// [`Unavailable`](snakepit_registry::ToolError::Unavailable). The number of workers in the configuration has no effect.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub fn without_workers(config: PoolConfig) -> Result<Self, PoolError> {
        let config = config.workers(1);
        config.validate()?;
        Self::spawn(config.workers(0), Arc::new(NoLauncher), CallLayers::default())
    }

    fn spawn(
        config: PoolConfig,
        launcher: Arc<dyn WorkerLauncher>,
        attempt_layers: CallLayers,
    ) -> Result<Self, PoolError> {
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(PoolError::NoRuntime);
        }
        let (driver, supervisor) = Driver::spawn(config, launcher);
        let tool = Arc::new(RemoteTool::new(Arc::clone(&driver), stack(&driver, attempt_layers)));
        Ok(Self { owner: Arc::new(Owner { driver, tool, _supervisor: supervisor }) })
    }

    /// Waits until every slot has had a worker. Cancel safe. You can call it repeatedly, even after the start.
    ///
    /// # Errors
    /// [`PoolError::Start`] with the first failed launch. The pool keeps launching workers nevertheless.
    /// [`PoolError::ShutDown`] after a shutdown.
    pub async fn ready(&self) -> Result<(), PoolError> {
        self.owner.driver.ready().await
    }

    /// The handler that runs calls on the pool's workers.
    #[must_use]
    pub fn tool(&self) -> Arc<RemoteTool> {
        Arc::clone(&self.owner.tool)
    }

    /// The pool as a [`tower::Service`](https://docs.rs/tower/0.5/tower/trait.Service.html), to which you can add layers.
    #[must_use]
    pub fn service(&self) -> PoolService {
        PoolService::new(self.tool())
    }

    /// The timeout of calls without a deadline.
    #[must_use]
    pub fn default_timeout(&self) -> Option<Duration> {
        self.owner.driver.config.default_timeout
    }

    /// A snapshot of the pool, its workers and its counters.
    #[must_use]
    pub fn status(&self) -> PoolStatus {
        self.owner.driver.status()
    }

    /// Whether the pool serves calls: every slot has had a worker, at least one worker is up, and the pool is not
    /// shutting down.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.owner.driver.current_readiness().serves_calls()
    }

    /// Whether the tokio runtime that started the pool has shut down. Its workers have ended, and every call fails with
    /// [`RuntimeEnded`](snakepit_registry::ToolError::RuntimeEnded).
    #[must_use]
    pub fn runtime_has_ended(&self) -> bool {
        self.owner.driver.runtime_has_ended()
    }

    /// Returns a channel with the current [`Readiness`], which is updated on each change. A slow receiver skips to the latest
    /// value.
    ///
    /// ```
    /// # use std::{sync::Arc, time::Duration};
    /// # use snakepit_pool::{Pool, PoolConfig, Readiness};
    /// # use snakepit_worker::testing::InProcessWorkers;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let launcher = Arc::new(InProcessWorkers::new());
    /// let pool = Pool::start(PoolConfig::default(), launcher)?;
    /// let mut readiness = pool.readiness();
    /// let ready = readiness.wait_for(|readiness| readiness.serves_calls()).await?;
    /// assert!(matches!(*ready, Readiness::Ready { workers: 4, .. }));
    /// # drop(ready);
    /// # pool.shutdown(Duration::ZERO).await;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn readiness(&self) -> watch::Receiver<Readiness> {
        self.owner.driver.readiness()
    }

    /// Replaces all workers (rolling restart), for example after their code has changed. In each slot, the old worker
    /// serves calls until the new one is up, and then finishes its calls beside its replacement. In large pools, up to a
    /// quarter of the slots are replaced at the same time, after the first one.
    ///
    /// Returns when every slot has a new worker. Old workers may still finish their calls. A later restart supersedes this one, and
    /// both return the outcome of the later one.
    ///
    /// # Errors
    /// [`PoolError::Start`] if a new worker did not start. The pool then continues with the remaining old workers and those that
    /// were replaced before. [`PoolError::ShutDown`] during and after a shutdown.
    ///
    /// # Cancel safety
    /// The restart continues when the future is dropped.
    pub async fn restart(&self) -> Result<(), PoolError> {
        self.owner.driver.restart().await
    }

    /// Replaces one worker, as [`restart`](Self::restart) replaces all of them. `worker` is an id from [`status`](Self::status).
    ///
    /// # Errors
    /// [`PoolError::NoSuchWorker`] if no worker with this id is in service, [`PoolError::Start`] if its replacement did not
    /// start, so that it remains in service, and [`PoolError::ShutDown`] during and after a shutdown.
    ///
    /// # Cancel safety
    /// The replacement continues when the future is dropped.
    pub async fn restart_worker(&self, worker: &str) -> Result<(), PoolError> {
        self.owner.driver.restart_worker(worker).await
    }

    /// Shuts the pool down gracefully:
    ///
    /// 1. The pool rejects new calls with [`ShuttingDown`](snakepit_registry::ToolError::ShuttingDown).
    /// 2. Queued and running calls may finish for up to `drain`. The others fail with the same error.
    /// 3. The workers stop, each within [`stop_grace`](PoolConfig::stop_grace).
    ///
    /// Returns when the last worker has exited, or immediately if its [runtime has ended](Self::runtime_has_ended). May be
    /// called several times, even concurrently. The shortest `drain` applies.
    ///
    /// # Cancel safety
    /// The shutdown continues when the future is dropped. Another call waits for its end.
    pub async fn shutdown(&self, drain: Duration) {
        // Keeps the sum below within the range of the clock.
        const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
        let until = Instant::now() + drain.min(YEAR);
        self.owner.driver.handle_event(Event::Drain { until });
        self.owner.driver.stopped().await;
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.driver.abort();
    }
}
