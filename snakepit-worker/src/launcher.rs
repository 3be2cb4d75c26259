//! The trait that makes workers.

use async_trait::async_trait;

use crate::{Worker, WorkerError, WorkerId};

/// How a worker comes to be: as a child process, in a container, on another machine, inside a test.
///
/// Implementations prove themselves by the suite in `contract` (feature `test-util`).
#[async_trait]
pub trait WorkerLauncher: Send + Sync + std::fmt::Debug + 'static {
    /// Starts a worker and returns once it takes calls. Several launches may run at the same time.
    ///
    /// # Errors
    /// [`WorkerError`]. Whatever was started is gone by the time the error is returned.
    ///
    /// # Cancel safety
    /// Dropping the future kills what it started.
    async fn launch(&self, id: WorkerId) -> Result<Worker, WorkerError>;
}
