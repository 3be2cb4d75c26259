//! Everything that can go wrong with a call. `snakepit-server` maps it to gRPC, in one place.

use std::{fmt, time::Duration};

use snakepit_session::SessionError;

/// The exception that a tool raised, as far as the worker could tell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ToolFailure {
    /// The tool that failed.
    pub tool: String,
    /// The exception's type as Python's traceback prints it, with its module unless it is a builtin: `ValueError`,
    /// `shop.OutOfStock`, `shop.Shelf.Empty`. Of a host tool, the name of its error type in Rust. Empty when the worker did not
    /// say.
    pub error_type: String,
    /// The exception's message.
    pub message: String,
    /// The formatted traceback. Empty when there is none.
    pub traceback: String,
    /// The worker that ran the call. Empty for a tool of the host.
    pub worker: String,
    /// The last lines the worker wrote to stdout and stderr, oldest first.
    pub output_lines: Vec<String>,
}

impl fmt::Display for ToolFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.error_type.is_empty() {
            f.write_str(&self.message)
        } else if self.message.is_empty() {
            f.write_str(&self.error_type)
        } else {
            write!(f, "{}: {}", self.error_type, self.message)
        }
    }
}

/// How far a call had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallStage {
    /// It waited for a worker: nothing of it was run.
    Queued,
    /// It was handed to a worker.
    Running,
}

impl fmt::Display for CallStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Queued => "while queued",
            Self::Running => "while running",
        })
    }
}

/// Why a call failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ToolError {
    /// Nobody serves a tool of this name.
    #[error("tool `{tool}` not found{}", suggestion.as_ref().map(|s| format!("; did you mean `{s}`?")).unwrap_or_default())]
    NotFound {
        /// The name asked for.
        tool: String,
        /// A registered name that looks alike.
        suggestion: Option<String>,
    },
    /// An argument is missing, unknown or of the wrong type.
    #[error("argument `{argument}` of tool `{tool}` {problem}")]
    InvalidArgument {
        /// The tool called.
        tool: String,
        /// The argument's name.
        argument: String,
        /// What is wrong with it, as the end of a sentence: "is missing; ...".
        problem: String,
    },
    /// The tool cannot be called this way.
    #[error("tool `{tool}` {problem}")]
    Unsupported {
        /// The tool called.
        tool: String,
        /// Why not, as the end of a sentence.
        problem: String,
    },
    /// The tool ran and raised an exception.
    #[error("tool `{}` failed: {_0}", _0.tool)]
    Failed(Box<ToolFailure>),
    /// The queue is full: the call was refused at once.
    #[error("pool is overloaded: {queued} calls wait, the limit is {limit}; retry later or add workers")]
    Overloaded {
        /// How many calls waited.
        queued: usize,
        /// How many may.
        limit: usize,
        /// When a retry may succeed.
        retry_after: Option<Duration>,
    },
    /// Calls hold as many bytes as they may: the call was refused at once.
    #[error("{whose} hold {used} bytes already, the limit is {limit}; retry later or send less at once")]
    TooMuchAtOnce {
        /// Which calls, such as "calls that wait for a worker".
        whose: String,
        /// How many bytes they hold.
        used: usize,
        /// How many they may.
        limit: usize,
        /// When a retry may succeed.
        retry_after: Option<Duration>,
    },
    /// The tool ran, but its value was dropped, because answers that the caller has not read hold as many bytes as they may.
    #[error(
        "the answer was dropped: answers that wait to be read hold {used} bytes already, the limit is {limit}; read them first"
    )]
    AnswerDropped {
        /// How many bytes they hold.
        used: usize,
        /// How many they may.
        limit: usize,
    },
    /// The call's deadline passed.
    #[error("deadline of tool `{tool}` exceeded {stage}; raise the timeout or make the tool faster")]
    DeadlineExceeded {
        /// The tool called.
        tool: String,
        /// Where the call was at that moment.
        stage: CallStage,
    },
    /// The caller, or somebody on its behalf, cancelled the call.
    #[error("call of tool `{tool}` was cancelled")]
    Cancelled {
        /// The tool called.
        tool: String,
    },
    /// The worker went away before the call ended.
    #[error("worker `{worker}` was lost: {reason}{}", output_tail(output_lines))]
    WorkerLost {
        /// The worker's id.
        worker: String,
        /// How it ended.
        reason: String,
        /// Whether the call may have begun to run.
        delivered: bool,
        /// The last lines the worker wrote to stdout and stderr, oldest first.
        output_lines: Vec<String>,
    },
    /// The connection to what ran the call was lost, and with it what became of the call.
    #[error("connection to {peer} was lost: {problem}; the call may have run")]
    ConnectionLost {
        /// What was at the other end, such as "the host".
        peer: String,
        /// What happened to the connection.
        problem: String,
    },
    /// The worker gave the call back before it began, because it was [asked to](crate::ToolHandler::recall). Only what
    /// schedules workers sees this: it hands the call to another one.
    #[error("call of tool `{tool}` was given back before it began")]
    Recalled {
        /// The tool called.
        tool: String,
    },
    /// No worker can take calls now.
    #[error("no worker is available: {reason}")]
    Unavailable {
        /// Why not.
        reason: String,
        /// When a retry may succeed.
        retry_after: Option<Duration>,
    },
    /// The host is shutting down: it takes no more calls, or its drain ended before the call did. Every kind of call that
    /// ends so gets this error.
    #[error("the host is shutting down{}", if *delivered { "; the call was cut off and may have run" } else { "" })]
    ShuttingDown {
        /// Whether the call may have begun to run.
        delivered: bool,
    },
    /// Every worker is held by calls that wait, through host tools, for calls that wait for a worker: this call would wait
    /// for itself.
    #[error(
        "call of tool `{tool}` would wait for itself: every worker runs a call that waits for it through a host tool; add \
         workers, or call no tool of a worker from a host tool that workers call"
    )]
    Deadlock {
        /// The tool called.
        tool: String,
    },
    /// A tokio runtime is missing: the one that started the host has ended, or the caller of a method with a deadline runs
    /// in none.
    #[error("{problem}")]
    NoRuntime {
        /// Which runtime is missing, and what to do.
        problem: &'static str,
    },
    /// The call's session is not there.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// Somebody broke the protocol: a bug, here or in the worker.
    #[error("internal error: {problem}")]
    Internal {
        /// What happened.
        problem: String,
    },
}

/// The last few lines, cut: a message is one line that people read, the rest belongs into details.
fn output_tail(lines: &[String]) -> String {
    const LINES: usize = 3;
    const CHARS: usize = 160;
    let last: Vec<String> = lines[lines.len().saturating_sub(LINES)..]
        .iter()
        .map(|line| match line.char_indices().nth(CHARS) {
            Some((end, _)) => format!("{}...", &line[..end]),
            None => line.clone(),
        })
        .collect();
    if last.is_empty() { String::new() } else { format!("; its last output: {}", last.join(" | ")) }
}

impl ToolError {
    /// The runtime that started the host has shut down: nothing acts upon what happens in the host any more.
    #[must_use]
    pub const fn runtime_ended() -> Self {
        Self::NoRuntime {
            problem: "the tokio runtime that started this host has shut down, and its workers with it; start the host in \
                      a runtime that lives as long as the host is used (each `#[tokio::test]` has a runtime of its own)",
        }
    }

    /// A deadline cannot be kept where there is no clock.
    #[must_use]
    pub const fn outside_runtime() -> Self {
        Self::NoRuntime {
            problem: "a call with a deadline needs a tokio runtime; await it inside `Runtime::block_on` or an async main",
        }
    }

    /// Whether a worker may have begun to run the call. Only calls that were not delivered are safe to retry
    /// whatever the tool does.
    #[must_use]
    pub const fn is_delivered(&self) -> bool {
        match self {
            Self::NotFound { .. }
            | Self::InvalidArgument { .. }
            | Self::Unsupported { .. }
            | Self::Overloaded { .. }
            | Self::TooMuchAtOnce { .. }
            | Self::Unavailable { .. }
            | Self::Recalled { .. }
            | Self::NoRuntime { .. }
            | Self::Deadlock { .. }
            | Self::Session(_) => false,
            Self::DeadlineExceeded { stage, .. } => matches!(stage, CallStage::Running),
            Self::WorkerLost { delivered, .. } | Self::ShuttingDown { delivered } => *delivered,
            Self::Failed(_)
            | Self::Cancelled { .. }
            | Self::ConnectionLost { .. }
            | Self::AnswerDropped { .. }
            | Self::Internal { .. } => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_worker_says_its_last_words_in_short() {
        let lost = |lines: Vec<String>| {
            let error = ToolError::WorkerLost {
                worker: "w".into(),
                reason: "it exited with code 1".into(),
                delivered: true,
                output_lines: lines,
            };
            error.to_string()
        };
        assert_eq!(lost(vec![]), "worker `w` was lost: it exited with code 1");
        let long = lost((0..20).map(|n| format!("{n}: {}", "ü".repeat(8 * 1024))).collect());
        assert!(long.contains("; its last output: 17: üü") && long.ends_with("ü..."), "{long}");
        assert!(long.chars().count() < 600, "{long}");
    }
}
