//! Restarts: the rolling replacement of the workers and of their tools.

use std::sync::Arc;

use snakepit_pool::{Pool, PoolError, PoolStatus};
use snakepit_worker::error_chain;

use super::Host;

impl Host {
    /// The state of the pool, unless the host is still starting or was dropped.
    pub(crate) fn pool_status(&self) -> Option<PoolStatus> {
        Some(self.pool_if_started()?.status())
    }

    /// Replaces all workers. Then replaces the tools of the old workers, which may still finish calls, with those of the new
    /// ones. If the future is dropped, the restart continues, including the replacement of the tools.
    pub(crate) async fn restart_workers(self: &Arc<Self>, pool: Arc<Pool>) -> Result<(), PoolError> {
        let host = Arc::clone(self);
        let restarting = self.runtime.spawn(async move {
            host.registry.begin_restart(&pool.status().name);
            tokio::select! {
                // If the future was dropped, nothing else reports the error.
                restarted = pool.restart() => restarted.inspect_err(|error| {
                    tracing::warn!(error = %error_chain(error), "the workers were not replaced");
                })?,
                // The task must not keep the workers of a dropped host alive.
                () = host.stop.cancelled() => return Err(PoolError::ShutDown),
            }
            let status = pool.status();
            let is_current =
                |worker: &str| status.workers.iter().any(|current| current.id.as_str() == worker);
            host.registry.retire_replaced_workers(&status.name, is_current);
            Ok(())
        });
        // The task fails only if its runtime shuts down.
        restarting.await.unwrap_or(Err(PoolError::ShutDown))
    }
}
