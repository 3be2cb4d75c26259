//! [`FakeLauncher`]: workers without processes, for tests and examples of pools and hosts.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use async_trait::async_trait;
use snakepit_registry::ToolHandler;
use tokio::task::JoinSet;

use crate::{ExitReason, Worker, WorkerCommand, WorkerError, WorkerExit, WorkerId, WorkerLauncher};

/// Launches workers that run their calls in this process, all with the same handler. A worker exits as soon as the pool stops or
/// kills it.
#[derive(Debug)]
pub struct FakeLauncher {
    handler: Arc<dyn ToolHandler>,
    launch_count: AtomicUsize,
    /// Dropping the launcher aborts these tasks, and their workers count as killed.
    tasks: Mutex<JoinSet<()>>,
}

impl FakeLauncher {
    /// Creates a launcher whose workers run all their calls with this handler.
    #[must_use]
    pub fn new(handler: Arc<dyn ToolHandler>) -> Self {
        Self { handler, launch_count: AtomicUsize::new(0), tasks: Mutex::default() }
    }

    /// The number of workers launched so far.
    #[must_use]
    pub fn launched(&self) -> usize {
        self.launch_count.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl WorkerLauncher for FakeLauncher {
    async fn launch(&self, id: WorkerId) -> Result<Worker, WorkerError> {
        self.launch_count.fetch_add(1, Ordering::Relaxed);
        let (worker, mut launcher_end) = Worker::new(id, None, "in-process", Arc::clone(&self.handler));
        let run = async move {
            let reason = match launcher_end.command().await {
                WorkerCommand::Stop { .. } => ExitReason::Stopped,
                WorkerCommand::Kill { why } => ExitReason::Killed { why },
            };
            launcher_end.exited(WorkerExit { reason, output_lines: Vec::new() });
        };
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).spawn(run);
        Ok(worker)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use snakepit_registry::FnTool;

    use super::*;

    #[tokio::test]
    async fn the_fake_launcher_satisfies_the_contract() {
        let tool = FnTool::typed("unit", |(): ()| async { Ok::<_, Infallible>(()) });
        crate::contract::launcher_contract(Arc::new(FakeLauncher::new(Arc::new(tool)))).await;
    }
}
