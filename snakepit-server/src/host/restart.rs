//! Restarts: the rolling replacement of the workers and of their tools.

use snakepit_pool::{Pool, PoolError, PoolStatus};

use super::Host;

impl Host {
    /// The state of the pool, unless the host is still starting or was dropped.
    pub(crate) fn pool_status(&self) -> Option<PoolStatus> {
        Some(self.pool_if_started()?.status())
    }

    /// Replaces all workers. Their tools then replace those of the old workers, which may still finish calls.
    pub(crate) async fn restart_workers(&self, pool: &Pool) -> Result<(), PoolError> {
        pool.restart().await?;
        let status = pool.status();
        let is_current = |worker: &str| status.workers.iter().any(|current| current.id.as_str() == worker);
        self.registry.retire_announcers(&status.name, is_current);
        Ok(())
    }
}
