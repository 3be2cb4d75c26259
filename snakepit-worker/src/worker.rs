//! The two ends of a worker: [`Worker`] for the pool, [`WorkerDriver`] for the launcher that keeps it alive.

use std::{fmt, sync::Arc, time::Duration};

use snakepit_registry::ToolHandler;
use tokio::sync::{mpsc, watch};

use crate::{ExitReason, WorkerExit, WorkerId};

/// A launched worker. Dropping the last clone of it asks its driver to kill it.
#[derive(Clone)]
pub struct Worker {
    id: WorkerId,
    pid: Option<u32>,
    address: Arc<str>,
    handler: Arc<dyn ToolHandler>,
    keeps_calls: bool,
    commands: mpsc::UnboundedSender<DriverCommand>,
    exit: watch::Receiver<Option<WorkerExit>>,
}

/// What the pool asks of a worker's driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DriverCommand {
    /// Ask it to stop; kill it if it has not within `grace`.
    Stop {
        /// How long it has.
        grace: Duration,
    },
    /// Kill it, with all it started.
    Kill {
        /// Why, as the end of a sentence.
        why: String,
    },
}

/// The launcher's end of a worker: receives commands, reports the exit.
#[derive(Debug)]
pub struct WorkerDriver {
    commands: mpsc::UnboundedReceiver<DriverCommand>,
    exit: watch::Sender<Option<WorkerExit>>,
}

impl Worker {
    /// Makes the two ends of a worker. `handler` runs its calls; `address` is for people to read.
    #[must_use]
    pub fn new(
        id: WorkerId,
        pid: Option<u32>,
        address: impl Into<Arc<str>>,
        handler: Arc<dyn ToolHandler>,
    ) -> (Self, WorkerDriver) {
        let (commands, received) = mpsc::unbounded_channel();
        let (exit_tx, exit) = watch::channel(None);
        let worker = Self { id, pid, address: address.into(), handler, keeps_calls: false, commands, exit };
        (worker, WorkerDriver { commands: received, exit: exit_tx })
    }

    /// Says that the worker runs one call at a time, keeps those that it is handed meanwhile in their order, and gives
    /// back those that it has not begun when it is [asked to](ToolHandler::recall). Such a worker may be handed short
    /// calls ahead of their turn, which saves it a round trip for each.
    #[must_use]
    pub const fn keeping_calls(mut self, keeps: bool) -> Self {
        self.keeps_calls = keeps;
        self
    }

    /// Whether it may be [handed calls ahead](Self::keeping_calls).
    #[must_use]
    pub const fn keeps_calls(&self) -> bool {
        self.keeps_calls
    }

    /// Its id.
    #[must_use]
    pub const fn id(&self) -> &WorkerId {
        &self.id
    }

    /// The process it runs in, if it is one.
    #[must_use]
    pub const fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Where it serves, for people to read.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What runs its calls.
    #[must_use]
    pub const fn handler(&self) -> &Arc<dyn ToolHandler> {
        &self.handler
    }

    /// Asks it to stop and returns at once; [`exited`](Self::exited) tells when it has. Killed after `grace`.
    pub fn stop(&self, grace: Duration) {
        // A closed channel means that the driver is done: the worker is gone already.
        let _ = self.commands.send(DriverCommand::Stop { grace });
    }

    /// Kills it with all it started and returns at once; [`exited`](Self::exited) tells when it is gone.
    pub fn kill(&self, why: impl Into<String>) {
        let _ = self.commands.send(DriverCommand::Kill { why: why.into() });
    }

    /// Waits for its end. Cancel safe; may be called any number of times, also after the end.
    pub async fn exited(&self) -> WorkerExit {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(exit)) => exit.clone(),
            // The driver is gone without a word: its task was aborted together with its runtime.
            _ => WorkerExit {
                reason: ExitReason::Killed { why: "its driver was dropped".to_owned() },
                output_lines: Vec::new(),
            },
        }
    }

    /// How it ended; `None` while it lives.
    #[must_use]
    pub fn exit(&self) -> Option<WorkerExit> {
        self.exit.borrow().clone()
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("id", &self.id)
            .field("pid", &self.pid)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl WorkerDriver {
    /// Waits for the next command. When nobody holds the worker any more, that counts as an order to kill it, again
    /// and again. Cancel safe.
    pub async fn command(&mut self) -> DriverCommand {
        self.commands
            .recv()
            .await
            .unwrap_or_else(|| DriverCommand::Kill { why: "nobody holds it any more".to_owned() })
    }

    /// Reports the end. All calls still in flight must have failed or be about to.
    pub fn exited(self, exit: WorkerExit) {
        self.exit.send_replace(Some(exit));
    }
}
