//! [`WorkerExit`], the exit of a worker and its reason.

use std::fmt;

/// The reason for the exit of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExitReason {
    /// The process exited with this code, without a request from the host.
    Code(i32),
    /// A signal that the host did not send killed the process.
    Signal {
        /// The signal's name, such as `SIGSEGV`.
        name: String,
    },
    /// The worker stopped within its grace period after the host asked it to.
    Stopped,
    /// The host killed the worker.
    Killed {
        /// The reason, as the end of a sentence: "it did not stop within 2 s".
        reason: String,
    },
}

impl ExitReason {
    /// The reason of a worker whose supervising task ended without reporting the exit, because its runtime aborted the task.
    pub(crate) fn supervisor_ended() -> Self {
        Self::Killed { reason: "the task that supervised it has ended".to_owned() }
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "it exited with code {code}"),
            Self::Signal { name } if name == "SIGKILL" => {
                f.write_str("it was killed by SIGKILL (by itself, the kernel's OOM killer, or a person)")
            }
            Self::Signal { name } => write!(f, "it was killed by {name}"),
            Self::Stopped => f.write_str("it was asked to stop"),
            Self::Killed { reason } => write!(f, "it was killed because {reason}"),
        }
    }
}

/// The exit of a worker, with its last output.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerExit {
    /// The reason for the exit.
    pub reason: ExitReason,
    /// Its last lines on stdout and stderr, oldest first.
    pub output_lines: Vec<String>,
}

impl WorkerExit {
    /// Creates the exit of a worker that wrote nothing. See [`with_output_lines`](Self::with_output_lines).
    #[must_use]
    pub const fn new(reason: ExitReason) -> Self {
        Self { reason, output_lines: Vec::new() }
    }

    /// Sets the last lines that the worker wrote, oldest first.
    #[must_use]
    pub fn with_output_lines(mut self, lines: Vec<String>) -> Self {
        self.output_lines = lines;
        self
    }
}
