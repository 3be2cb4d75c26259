//! Workers without processes, for tests and examples of what lies above this crate.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use async_trait::async_trait;
use snakepit_registry::ToolHandler;
use tokio::task::JoinSet;

use crate::{DriverCommand, ExitReason, Worker, WorkerError, WorkerExit, WorkerId, WorkerLauncher};

/// Launches workers that live in this process and do as they are told: each runs its calls by the given handler, stops
/// when asked to and is gone when killed. Goes by tokio's clock.
#[derive(Debug)]
pub struct FakeLauncher {
    handler: Arc<dyn ToolHandler>,
    launched: AtomicUsize,
    /// Aborted when the launcher is dropped; their workers then count as killed.
    drivers: Mutex<JoinSet<()>>,
}

impl FakeLauncher {
    /// A launcher whose workers all run their calls by this handler.
    #[must_use]
    pub fn new(handler: Arc<dyn ToolHandler>) -> Self {
        Self { handler, launched: AtomicUsize::new(0), drivers: Mutex::default() }
    }

    /// How many workers were launched so far.
    #[must_use]
    pub fn launched(&self) -> usize {
        self.launched.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl WorkerLauncher for FakeLauncher {
    async fn launch(&self, id: WorkerId) -> Result<Worker, WorkerError> {
        self.launched.fetch_add(1, Ordering::Relaxed);
        let (worker, mut driver) = Worker::new(id, None, "in-process", Arc::clone(&self.handler));
        let obey = async move {
            let reason = match driver.command().await {
                DriverCommand::Stop { .. } => ExitReason::Stopped,
                DriverCommand::Kill { why } => ExitReason::Killed { why },
            };
            driver.exited(WorkerExit { reason, output_lines: Vec::new() });
        };
        self.drivers.lock().unwrap_or_else(PoisonError::into_inner).spawn(obey);
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
