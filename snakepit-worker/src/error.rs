//! [`WorkerError`], the error of a launch.

use std::{path::PathBuf, time::Duration};

use snakepit_registry::RegistryError;

/// The error of a launch.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// The program does not exist or cannot be executed.
    #[error(
        "cannot start worker program `{program}`: {problem}; check the path, or pass another with --python or --worker-command"
    )]
    Spawn {
        /// The program as configured.
        program: String,
        /// The error of the operating system.
        problem: String,
    },
    /// The worker reported that it cannot start, for example because its adapter cannot be imported.
    #[error("worker cannot start: {error}")]
    StartFailed {
        /// The worker's message.
        error: String,
        /// The Python traceback, if an exception was the cause.
        traceback: Option<String>,
    },
    /// The worker exited before it was ready.
    #[error("worker ended before it was ready: {reason}{}", tail(output_lines))]
    EndedEarly {
        /// The reason for its exit, as a sentence about "it".
        reason: String,
        /// Its last lines on stdout and stderr, oldest first.
        output_lines: Vec<String>,
    },
    /// The worker did not report readiness before the start timeout, and was killed.
    #[error(
        "worker was not ready within {timeout:?} and was killed; raise the start timeout or see its output{}",
        tail(output_lines)
    )]
    NotReady {
        /// The start timeout.
        timeout: Duration,
        /// Its last lines on stdout and stderr, oldest first.
        output_lines: Vec<String>,
    },
    /// The worker reported readiness, but the launcher could not connect to it.
    #[error("cannot connect to worker at `{address}`: {problem}{}", tail(output_lines))]
    Connect {
        /// The address that the worker reported.
        address: String,
        /// The error of the last attempt.
        problem: String,
        /// Its last lines on stdout and stderr, oldest first.
        output_lines: Vec<String>,
    },
    /// The worker needs a host, and the launch has no access to one.
    #[error("worker cannot call a host: {problem}")]
    NoHost {
        /// The problem.
        problem: String,
    },
    /// The host rejected the tools that the worker announced, for example because another provider has a tool with one of their
    /// names.
    #[error("the host rejected the tools of worker `{worker}`: {error}")]
    ToolsRejected {
        /// The id of the worker.
        worker: String,
        /// The reason, which names the tool.
        error: RegistryError,
    },
    /// The launcher could not use its run directory or ledger.
    #[error("cannot use `{}`: {problem}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The error of the operating system.
        problem: String,
    },
}

impl WorkerError {
    /// Creates the error of a launcher whose worker cannot start. `error` names the problem and its fix.
    pub fn start_failed(error: impl Into<String>) -> Self {
        Self::StartFailed { error: error.into(), traceback: None }
    }
}

fn tail(lines: &[String]) -> String {
    match lines {
        [] => String::new(),
        lines => format!("; its last output:\n{}", lines.join("\n")),
    }
}
