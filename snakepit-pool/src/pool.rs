//! The handle of a pool: start, watch, shut down.

use std::{sync::Arc, time::Duration};

use snakepit_worker::WorkerLauncher;
use tokio::{sync::watch, task::JoinSet, time::Instant};

use crate::{PoolConfig, PoolError, PoolStatus, RemoteTool, driver::Shared, scheduler::Event, stack::stack};

/// Many workers behind one handle. Clones share the workers; dropping the last one kills them.
#[derive(Debug, Clone)]
pub struct Pool {
    owner: Arc<Owner>,
}

/// Keeps the supervisor, and with it the workers, alive.
#[derive(Debug)]
struct Owner {
    shared: Arc<Shared>,
    tool: Arc<RemoteTool>,
    /// Holds the supervisor; dropping it ends that task.
    _supervisor: JoinSet<()>,
}

impl Pool {
    /// Makes a pool and begins to launch all its workers at the same time. Calls may be made at once; they wait for
    /// the first worker.
    ///
    /// # Errors
    /// [`PoolError::InvalidConfig`] for settings that cannot work, [`PoolError::NoRuntime`] outside a tokio runtime.
    pub fn start(config: PoolConfig, launcher: Arc<dyn WorkerLauncher>) -> Result<Self, PoolError> {
        config.validate()?;
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(PoolError::NoRuntime);
        }
        let (shared, supervisor) = Shared::spawn(config, launcher);
        let tool = Arc::new(RemoteTool::new(Arc::clone(&shared), stack(&shared)));
        Ok(Self { owner: Arc::new(Owner { shared, tool, _supervisor: supervisor }) })
    }

    /// Waits until every worker was up once. Cancel safe; may be called again, also afterwards.
    ///
    /// # Errors
    /// [`PoolError::Start`] with the first launch that failed before that. The pool goes on trying nevertheless, until
    /// it is shut down. [`PoolError::ShutDown`] when it was.
    pub async fn ready(&self) -> Result<(), PoolError> {
        self.owner.shared.ready().await
    }

    /// The pool as something callable.
    #[must_use]
    pub fn tool(&self) -> Arc<RemoteTool> {
        Arc::clone(&self.owner.tool)
    }

    /// How long a call without a deadline may take.
    #[must_use]
    pub fn default_timeout(&self) -> Option<Duration> {
        self.owner.shared.config.default_timeout
    }

    /// What the pool is about now.
    #[must_use]
    pub fn status(&self) -> PoolStatus {
        self.owner.shared.status()
    }

    /// Whether the pool serves: every worker was up once, at least one is now, and it is not shutting down.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.owner.shared.is_ready()
    }

    /// Whether the runtime that started the pool has shut down. Its workers are gone, and every call fails with
    /// [`NoRuntime`](snakepit_registry::ToolError::NoRuntime).
    #[must_use]
    pub fn is_orphaned(&self) -> bool {
        self.owner.shared.is_orphaned()
    }

    /// Follows [`is_ready`](Self::is_ready) as it changes.
    #[must_use]
    pub fn readiness(&self) -> watch::Receiver<bool> {
        self.owner.shared.readiness()
    }

    /// Refuses new calls with [`ShuttingDown`](snakepit_registry::ToolError::ShuttingDown), lets those that are queued or
    /// run finish for up to `drain`, cuts the rest off with the same error, then stops the workers, each within its
    /// [`stop_grace`](PoolConfig::stop_grace), and returns when the last is gone.
    ///
    /// Returns immediately when the runtime that started the pool has shut down: see [`is_orphaned`](Self::is_orphaned).
    ///
    /// May be called several times, also at the same time: the shortest `drain` counts.
    ///
    /// # Cancel safety
    /// The shutdown goes on when the future is dropped; calling it again waits for the same end.
    pub async fn shutdown(&self, drain: Duration) {
        // A drain too long for the clock may as well take a year.
        const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
        let until = Instant::now() + drain.min(YEAR);
        self.owner.shared.bring(Event::Drain { until });
        self.owner.shared.stopped().await;
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.abort();
    }
}
