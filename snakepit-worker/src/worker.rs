//! The two ends of a worker: [`Worker`] for the pool, and [`LauncherEnd`] for the launcher.

use std::{fmt, sync::Arc, time::Duration};

use snakepit_registry::{Announcer, ToolHandler, ToolSpec};
use tokio::sync::{mpsc, watch};

use crate::{CallLimits, ExitReason, WorkerExit, WorkerId};

/// A handle to a launched worker. Dropping the last clone kills the worker.
#[derive(Clone)]
pub struct Worker {
    id: WorkerId,
    pid: Option<u32>,
    address: Arc<str>,
    handler: Arc<dyn ToolHandler>,
    queues_calls: bool,
    concurrency: Option<usize>,
    call_limits: Option<Arc<CallLimits>>,
    tools: Option<Arc<[ToolSpec]>>,
    announcer: Announcer,
    commands: mpsc::UnboundedSender<WorkerCommand>,
    exit: watch::Receiver<Option<WorkerExit>>,
}

/// A command from the pool to the launcher of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkerCommand {
    /// Ask the worker to stop, and kill it if it still runs after `grace`.
    Stop {
        /// The grace period.
        grace: Duration,
    },
    /// Kill the worker and its descendants.
    Kill {
        /// The reason, as the end of a sentence: "it did not stop within 2 s".
        reason: String,
    },
}

/// The launcher's end of a worker. It receives commands and reports the exit.
#[derive(Debug)]
pub struct LauncherEnd {
    commands: mpsc::UnboundedReceiver<WorkerCommand>,
    exit: watch::Sender<Option<WorkerExit>>,
    /// Keeps the worker's announcer alive.
    announcer_alive: Arc<()>,
}

impl Worker {
    /// Creates the two ends of a worker. `handler` runs its calls. `address` appears in logs and listings.
    #[must_use]
    pub fn new(
        id: WorkerId,
        pid: Option<u32>,
        address: impl Into<Arc<str>>,
        handler: Arc<dyn ToolHandler>,
    ) -> (Self, LauncherEnd) {
        Self::with_exit(id, pid, address.into(), handler, watch::channel(None))
    }

    /// Creates the two ends of a worker whose handler also watches the exit.
    pub(crate) fn with_exit(
        id: WorkerId,
        pid: Option<u32>,
        address: Arc<str>,
        handler: Arc<dyn ToolHandler>,
        (exit_sender, exit): (watch::Sender<Option<WorkerExit>>, watch::Receiver<Option<WorkerExit>>),
    ) -> (Self, LauncherEnd) {
        let (commands, command_receiver) = mpsc::unbounded_channel();
        let announcer_alive = Arc::new(());
        let announcer = Announcer::new(id.shared(), &announcer_alive);
        let (tools, queues_calls, concurrency, call_limits) = (None, false, None, None);
        let worker = Self {
            id,
            pid,
            address,
            handler,
            queues_calls,
            concurrency,
            call_limits,
            tools,
            announcer,
            commands,
            exit,
        };
        (worker, LauncherEnd { commands: command_receiver, exit: exit_sender, announcer_alive })
    }

    /// Declares whether the worker queues calls beyond its [concurrency](Self::with_concurrency), and keeps them in their order.
    /// On [`recall`](ToolHandler::recall), it returns a call that it has not begun. The pool may dispatch short calls ahead to
    /// such a worker, which saves a round trip per call.
    #[must_use]
    pub const fn with_call_queue(mut self, queues_calls: bool) -> Self {
        self.queues_calls = queues_calls;
        self
    }

    /// Declares the number of calls that the worker runs concurrently, which takes precedence over the pool's setting. The pool
    /// limits it to 1 to 256.
    #[must_use]
    pub const fn with_concurrency(mut self, calls: usize) -> Self {
        self.concurrency = Some(calls);
        self
    }

    /// Declares the limits of a worker that runs several calls. The pool then rejects nested calls that would wait for their
    /// ancestors because of such a limit, unless another worker can run them.
    #[must_use]
    pub fn with_call_limits(mut self, limits: CallLimits) -> Self {
        self.call_limits = Some(Arc::new(limits));
        self
    }

    /// Announces the tools of the worker, for workers that do not register them over the host's socket. The host registers
    /// them when the launch returns, under the name of the pool.
    ///
    /// All workers of a pool announce the same tools. The launch fails with [`WorkerError::ToolsRejected`] if a name belongs
    /// to a host tool, if another live worker serves a tool with another spec, or if the tools exceed a limit. The tools remain
    /// registered while workers are replaced.
    ///
    /// [`WorkerError::ToolsRejected`]: crate::WorkerError::ToolsRejected
    #[must_use]
    pub fn with_tools(mut self, tools: impl Into<Arc<[ToolSpec]>>) -> Self {
        self.tools = Some(tools.into());
        self
    }

    /// The tools that the worker [announces](Self::with_tools). `None` if it registers them itself.
    #[must_use]
    pub fn tools(&self) -> Option<&[ToolSpec]> {
        self.tools.as_deref()
    }

    /// The worker's identity in the tool registry, which is alive until the worker exits.
    #[must_use]
    pub const fn announcer(&self) -> &Announcer {
        &self.announcer
    }

    /// Returns whether the worker [queues calls](Self::with_call_queue).
    #[must_use]
    pub const fn queues_calls(&self) -> bool {
        self.queues_calls
    }

    /// The number of calls that the worker [declares](Self::with_concurrency) to run concurrently.
    #[must_use]
    pub const fn concurrency(&self) -> Option<usize> {
        self.concurrency
    }

    /// The limits that the worker [declares](Self::with_call_limits).
    #[must_use]
    pub fn call_limits(&self) -> Option<&CallLimits> {
        self.call_limits.as_deref()
    }

    /// The worker's id.
    #[must_use]
    pub const fn id(&self) -> &WorkerId {
        &self.id
    }

    /// The pid of the worker, if it is a process.
    #[must_use]
    pub const fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Measures the memory that only this worker uses, in bytes: its anonymous pages in memory and in swap (`RssAnon` and `VmSwap`
    /// of proc(5)), without files and without its subprocesses. `None` if the worker has exited, for a worker without a
    /// [pid](Self::pid), and on other systems than Linux. May block.
    #[must_use]
    pub fn private_memory(&self) -> Option<u64> {
        if self.exit.borrow().is_some() {
            return None;
        }
        crate::memory::private_memory(self.pid?)
    }

    /// The worker's address, for logs and listings.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The handler that runs the worker's calls.
    #[must_use]
    pub const fn handler(&self) -> &Arc<dyn ToolHandler> {
        &self.handler
    }

    /// Asks the worker to stop, and kills it if it still runs after `grace`. Returns immediately; await
    /// [`exited`](Self::exited) to wait for the exit.
    pub fn stop(&self, grace: Duration) {
        // A closed channel means that the worker has exited.
        let _ = self.commands.send(WorkerCommand::Stop { grace });
    }

    /// Kills the worker and its descendants. Returns immediately; await [`exited`](Self::exited) to wait for the exit.
    pub fn kill(&self, reason: impl Into<String>) {
        let _ = self.commands.send(WorkerCommand::Kill { reason: reason.into() });
    }

    /// Waits until the worker has exited. Returns the same exit however often it is called.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn exited(&self) -> WorkerExit {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(exit)) => exit.clone(),
            // The `LauncherEnd` was dropped without a report, because the runtime aborted its task.
            _ => WorkerExit { reason: ExitReason::supervisor_ended(), output_lines: Vec::new() },
        }
    }

    /// The worker's exit, or `None` while it runs.
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

impl LauncherEnd {
    /// Waits for the next command. Cancel safe.
    ///
    /// After the last [`Worker`] clone was dropped, every call returns [`WorkerCommand::Kill`].
    pub async fn command(&mut self) -> WorkerCommand {
        self.commands
            .recv()
            .await
            .unwrap_or_else(|| WorkerCommand::Kill { reason: "its last handle was dropped".to_owned() })
    }

    /// Reports the exit. Call it when all calls in flight have failed, or will fail without further action by the launcher.
    pub fn exited(self, exit: WorkerExit) {
        // Dropped first: a replacement that is launched after the exit may announce other tools.
        drop(self.announcer_alive);
        self.exit.send_replace(Some(exit));
    }
}
