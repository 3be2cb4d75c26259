//! [`ExitWatch`]: waits for a worker's exit.

use tokio::sync::watch;

use crate::{ExitReason, WorkerExit};

/// Receives the exit of a worker from its supervisor. Clones watch the same worker.
#[derive(Debug, Clone)]
pub(super) struct ExitWatch(watch::Receiver<Option<WorkerExit>>);

impl ExitWatch {
    /// Creates a watch, and the sender with which the supervisor reports the exit.
    pub(super) fn channel() -> (watch::Sender<Option<WorkerExit>>, Self) {
        let (sender, receiver) = watch::channel(None);
        (sender, Self(receiver))
    }

    /// Creates a watch of a channel whose sender another owner has.
    pub(super) const fn new(receiver: watch::Receiver<Option<WorkerExit>>) -> Self {
        Self(receiver)
    }

    /// Waits until the worker has exited. Cancel safe.
    ///
    /// If the supervisor is dropped without a report, returns a [`Killed`](ExitReason::Killed) exit, although the worker may
    /// still run. [`reported`](Self::reported) then returns `None`.
    pub(super) async fn exited(&self) -> WorkerExit {
        let mut receiver = self.0.clone();
        match receiver.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(exit)) => exit.clone(),
            _ => WorkerExit {
                reason: ExitReason::Killed { reason: "its supervisor was dropped".to_owned() },
                output_lines: Vec::new(),
            },
        }
    }

    /// The exit, if the supervisor has reported it.
    pub(super) fn reported(&self) -> Option<WorkerExit> {
        self.0.borrow().clone()
    }
}
