//! [`FakeLauncher`]: workers without processes, for tests and examples of pools and hosts.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use async_trait::async_trait;
use snakepit_registry::ToolHandler;
use tokio::task::JoinSet;

use crate::{ExitReason, Worker, WorkerCommand, WorkerError, WorkerExit, WorkerId, WorkerLauncher};

/// Launches workers that run their calls in this process with a given handler. They stop and exit as soon as the pool asks
/// them to. Uses tokio's clock, so tests can pause it.
#[derive(Debug)]
pub struct FakeLauncher {
    handler: Arc<dyn ToolHandler>,
    launched: AtomicUsize,
    /// Dropping the launcher aborts these tasks, and their workers count as killed.
    drivers: Mutex<JoinSet<()>>,
}

impl FakeLauncher {
    /// Creates a launcher whose workers run all their calls with this handler.
    #[must_use]
    pub fn new(handler: Arc<dyn ToolHandler>) -> Self {
        Self { handler, launched: AtomicUsize::new(0), drivers: Mutex::default() }
    }

    /// The number of workers launched so far.
    #[must_use]
    pub fn launched(&self) -> usize {
        self.launched.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl WorkerLauncher for FakeLauncher {
    async fn launch(&self, id: WorkerId) -> Result<Worker, WorkerError> {
        self.launched.fetch_add(1, Ordering::Relaxed);
        let (worker, mut launcher_end) = Worker::new(id, None, "in-process", Arc::clone(&self.handler));
        let drive = async move {
            let reason = match launcher_end.command().await {
                WorkerCommand::Stop { .. } => ExitReason::Stopped,
                WorkerCommand::Kill { why } => ExitReason::Killed { why },
            };
            launcher_end.exited(WorkerExit { reason, output_lines: Vec::new() });
        };
        self.drivers.lock().unwrap_or_else(PoisonError::into_inner).spawn(drive);
        Ok(worker)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use snakepit_registry::FnTool;

    use super::*;

    #[tokio::test]
    async fn the_fake_keeps_the_contract() {
        let tool = FnTool::typed("unit", |(): ()| async { Ok::<_, Infallible>(()) });
        crate::contract::launcher_contract(Arc::new(FakeLauncher::new(Arc::new(tool)))).await;
    }
}
