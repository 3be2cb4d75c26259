//! [`WorkerError`], the error of a launch.

use std::{error::Error, path::PathBuf, time::Duration};

use snakepit_registry::RegistryError;
use snakepit_session::SharedError;

use crate::settings;

/// The error of a launch.
///
/// The message omits the cause, which is the [`source`](std::error::Error::source). [`error_chain`](crate::error_chain) prints both.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// The program does not exist or cannot be executed.
    #[error(
        "cannot start worker program `{program}`; check the path, or choose another with {} or {}",
        settings::PYTHON,
        settings::WORKER_COMMAND
    )]
    #[non_exhaustive]
    Spawn {
        /// The program as configured.
        program: String,
        /// The error of the operating system.
        source: SharedError,
    },
    /// The worker or its launcher reported that the worker cannot start, for example because its adapter cannot be imported.
    #[error("worker cannot start: {error}")]
    #[non_exhaustive]
    StartFailed {
        /// The message of the worker or the launcher.
        error: String,
        /// The Python traceback, if an exception was the cause.
        traceback: Option<String>,
        /// The cause, if the launcher reported the problem and knows it.
        source: Option<SharedError>,
    },
    /// The worker exited before it was ready.
    #[error("worker ended before it was ready: {reason}{}", tail(output_lines))]
    #[non_exhaustive]
    EndedEarly {
        /// The reason for its exit, as a sentence about "it".
        reason: String,
        /// Its last lines on stdout and stderr, oldest first.
        output_lines: Vec<String>,
    },
    /// The worker did not report readiness before the start timeout, and was killed.
    #[error(
        "worker was not ready within {timeout:?} and was killed; raise {} or see its output{}",
        settings::START_TIMEOUT,
        tail(output_lines)
    )]
    #[non_exhaustive]
    NotReady {
        /// The start timeout.
        timeout: Duration,
        /// Its last lines on stdout and stderr, oldest first.
        output_lines: Vec<String>,
    },
    /// The worker reported readiness, but the launcher could not connect to it.
    #[error("cannot connect to worker at `{address}`: {problem}{}", tail(output_lines))]
    #[non_exhaustive]
    Connect {
        /// The address that the worker reported.
        address: String,
        /// The problem of the last attempt, with its root cause.
        problem: String,
        /// Its last lines on stdout and stderr, oldest first.
        output_lines: Vec<String>,
        /// The error of the last attempt, if there was one.
        source: Option<SharedError>,
    },
    /// The worker needs a host, and the launch has no access to one.
    #[error("worker cannot call a host: {problem}")]
    #[non_exhaustive]
    NoHost {
        /// The problem.
        problem: String,
        /// The error of the operating system, if there was one.
        source: Option<SharedError>,
    },
    /// The host rejected the tools that the worker announced, for example because another provider has a tool with one of their
    /// names.
    #[error("the host rejected the tools of worker `{worker}`")]
    #[non_exhaustive]
    ToolsRejected {
        /// The id of the worker.
        worker: String,
        /// The reason, which names the tool.
        source: RegistryError,
    },
    /// The launcher could not use its run directory or ledger.
    #[error("cannot use `{}`: {problem}", path.display())]
    #[non_exhaustive]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The problem.
        problem: String,
        /// The error of the operating system, if there was one.
        source: Option<SharedError>,
    },
}

impl WorkerError {
    /// The Python traceback, if the worker reported an exception.
    #[must_use]
    pub fn traceback(&self) -> Option<&str> {
        match self {
            Self::StartFailed { traceback, .. } => traceback.as_deref(),
            _ => None,
        }
    }

    /// Creates the error of a launcher whose worker cannot start. `error` names the problem and the fix.
    ///
    /// ```
    /// use std::io;
    ///
    /// use snakepit_worker::{WorkerError, error_chain};
    ///
    /// let refused = io::Error::from(io::ErrorKind::PermissionDenied);
    /// let error = WorkerError::start_failed("no container runtime; start it").with_source(refused);
    /// assert_eq!(
    ///     error_chain(&error).to_string(),
    ///     "worker cannot start: no container runtime; start it: permission denied"
    /// );
    /// ```
    pub fn start_failed(error: impl Into<String>) -> Self {
        Self::StartFailed { error: error.into(), traceback: None, source: None }
    }

    /// Creates the error of a program that does not exist or cannot be executed.
    pub fn spawn(program: impl Into<String>, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Spawn { program: program.into(), source: SharedError::new(cause) }
    }

    /// Creates the error of a worker that exited before it was ready. `reason` is a sentence about "it".
    pub fn ended_early(reason: impl Into<String>) -> Self {
        Self::EndedEarly { reason: reason.into(), output_lines: Vec::new() }
    }

    /// Creates the error of a worker that was not ready within the timeout.
    #[must_use]
    pub const fn not_ready(timeout: Duration) -> Self {
        Self::NotReady { timeout, output_lines: Vec::new() }
    }

    /// Creates the error of a worker that reported readiness at an address to which the launcher cannot connect.
    pub fn connect(address: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Connect {
            address: address.into(),
            problem: problem.into(),
            output_lines: Vec::new(),
            source: None,
        }
    }

    /// Creates the error of a worker whose tools the host rejected.
    pub fn tools_rejected(worker: impl Into<String>, source: RegistryError) -> Self {
        Self::ToolsRejected { worker: worker.into(), source }
    }

    /// Creates the error of a worker that needs a host, in a launch that has no access to one.
    pub fn no_host(problem: impl Into<String>) -> Self {
        Self::NoHost { problem: problem.into(), source: None }
    }

    /// Creates the error of a file or directory that cannot be used.
    pub fn io(path: impl Into<PathBuf>, problem: impl Into<String>) -> Self {
        Self::Io { path: path.into(), problem: problem.into(), source: None }
    }

    /// Sets the last lines that the worker wrote, oldest first, for errors with a field `output_lines`. Has no effect on other
    /// errors.
    #[must_use]
    pub fn with_output_lines(mut self, lines: Vec<String>) -> Self {
        if let Self::EndedEarly { output_lines, .. }
        | Self::NotReady { output_lines, .. }
        | Self::Connect { output_lines, .. } = &mut self
        {
            *output_lines = lines;
        }
        self
    }

    /// Sets the cause. Has no effect on errors without one: [`EndedEarly`](Self::EndedEarly), [`NotReady`](Self::NotReady) and
    /// [`ToolsRejected`](Self::ToolsRejected), whose source is the error of the registry.
    #[must_use]
    pub fn with_source(mut self, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        match &mut self {
            Self::Spawn { source, .. } => *source = SharedError::new(cause),
            Self::StartFailed { source, .. }
            | Self::Connect { source, .. }
            | Self::NoHost { source, .. }
            | Self::Io { source, .. } => *source = Some(SharedError::new(cause)),
            Self::EndedEarly { .. } | Self::NotReady { .. } | Self::ToolsRejected { .. } => {}
        }
        self
    }
}

fn tail(lines: &[String]) -> String {
    match lines {
        [] => String::new(),
        lines => format!("; its last output:\n{}", lines.join("\n")),
    }
}
