//! The trait [`WorkerLauncher`].

use async_trait::async_trait;

use crate::{Worker, WorkerError, WorkerId};

/// Launches workers, for example as child processes, in containers, on other machines, or in a test.
///
/// Run the suite `contract` (feature `test-util`) against your implementation. The [crate documentation](crate) has an
/// example.
#[async_trait]
pub trait WorkerLauncher: Send + Sync + std::fmt::Debug + 'static {
    /// Starts a worker and returns when it accepts calls. Launches may run concurrently.
    ///
    /// # Errors
    /// [`WorkerError`] if the worker could not be started. A process that the launch started has exited by then.
    ///
    /// # Cancel safety
    /// Dropping the future kills the process that it started.
    async fn launch(&self, id: WorkerId) -> Result<Worker, WorkerError>;
}
