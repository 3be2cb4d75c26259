//! How a worker ended.

use std::fmt;

/// Why a worker's process is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExitReason {
    /// It ended by itself, with this exit code.
    Code(i32),
    /// A signal that this host did not send ended it.
    Signal {
        /// The signal's name, such as `SIGSEGV`.
        name: String,
    },
    /// It was asked to stop, and did within its grace period.
    Stopped,
    /// This host killed it.
    Killed {
        /// Why, as the end of a sentence: "it did not stop within 2 s".
        why: String,
    },
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
            Self::Killed { why } => write!(f, "it was killed because {why}"),
        }
    }
}

/// A worker's end, with the last it had to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerExit {
    /// Why it ended.
    pub reason: ExitReason,
    /// Its last lines on stdout and stderr, oldest first.
    pub output_lines: Vec<String>,
}
