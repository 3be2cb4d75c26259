//! Everything that can go wrong between the decision to launch a worker and its first call.

use std::{path::PathBuf, time::Duration};

/// Why a worker could not be launched.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// The program is not there or cannot be run.
    #[error(
        "cannot start worker program `{program}`: {problem}; check the path, or pass another with --python or --worker-command"
    )]
    Spawn {
        /// The program as configured.
        program: String,
        /// What the operating system said.
        problem: String,
    },
    /// The worker reported that it cannot start: its adapter does not import, for example.
    #[error("worker cannot start: {error}")]
    StartFailed {
        /// What the worker said.
        error: String,
        /// The Python traceback, when an exception was the cause.
        traceback: Option<String>,
    },
    /// The worker ended before it was ready.
    #[error("worker ended before it was ready: {reason}{}", tail(output_lines))]
    EndedEarly {
        /// How it ended.
        reason: String,
        /// Its last lines on stdout and stderr, oldest first.
        output_lines: Vec<String>,
    },
    /// The worker did not report readiness in time; it was killed.
    #[error(
        "worker was not ready within {timeout:?} and was killed; raise the start timeout or see its output{}",
        tail(output_lines)
    )]
    NotReady {
        /// How long the launcher waited.
        timeout: Duration,
        /// Its last lines on stdout and stderr, oldest first.
        output_lines: Vec<String>,
    },
    /// The worker reported readiness but accepts no connection.
    #[error("cannot connect to worker at `{address}`: {problem}{}", tail(output_lines))]
    Connect {
        /// Where it said it listens.
        address: String,
        /// What went wrong last.
        problem: String,
        /// Its last lines on stdout and stderr, oldest first.
        output_lines: Vec<String>,
    },
    /// The launcher could not use its own directory or ledger.
    #[error("cannot use `{}`: {problem}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        problem: String,
    },
}

fn tail(lines: &[String]) -> String {
    match lines {
        [] => String::new(),
        lines => format!("; its last output:\n{}", lines.join("\n")),
    }
}
