//! [`StartErrorKind`], the kind of a [`StartError`].

use snakepit_pool::PoolError;
use snakepit_worker::WorkerError;

use super::StartError;

/// The kind of a [`StartError`], without its data. Several errors can have the same kind.
///
/// ```
/// use snakepit_server::{Snakepit, StartErrorKind};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let error = Snakepit::builder().start().await.unwrap_err();
/// match error.kind() {
///     StartErrorKind::Configuration => println!("change a setting: {error}"),
///     StartErrorKind::Listen => println!("another program uses the address: {error}"),
///     kind => println!("{kind:?}: {error}"),
/// }
/// assert_eq!(error.kind(), StartErrorKind::Configuration);
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum StartErrorKind {
    /// A setting is missing or invalid, or needs another one.
    Configuration,
    /// A worker or its launcher reported that the worker cannot start. With the default launcher, usually the adapter cannot be
    /// imported. A [custom launcher](crate::Builder::launcher) reports it with `WorkerError::start_failed`, for any reason.
    Adapter,
    /// The Python interpreter or the worker command cannot be executed, or the interpreter lacks the package `snakepit_bridge`.
    Interpreter,
    /// The host cannot listen on an address.
    Listen,
    /// The run directory cannot be used.
    RunDirectory,
    /// A worker was not ready within [`Builder::start_timeout`](crate::Builder::start_timeout).
    Timeout,
    /// A worker exited before it was ready.
    WorkerExited,
    /// The host cannot connect to a worker, or a worker cannot connect to the host.
    Connection,
    /// The name of a tool is invalid, or two providers have tools with the same name.
    Tools,
    /// The caller cancelled the start.
    Cancelled,
    /// The host was started outside a tokio runtime.
    NoRuntime,
    /// The host was shut down before it had started.
    ShutDown,
    /// Any other cause.
    Other,
}

impl StartError {
    /// The kind of the error.
    #[must_use]
    pub const fn kind(&self) -> StartErrorKind {
        match self {
            Self::Config { .. } | Self::NotLoopback { .. } => StartErrorKind::Configuration,
            Self::Listen { .. } => StartErrorKind::Listen,
            Self::Cancelled => StartErrorKind::Cancelled,
            Self::NoBridge { .. } => StartErrorKind::Interpreter,
            Self::Registry(_) => StartErrorKind::Tools,
            Self::Pool(error) => match error {
                PoolError::InvalidConfig { .. } => StartErrorKind::Configuration,
                PoolError::NoRuntime => StartErrorKind::NoRuntime,
                PoolError::Start { error, .. } => launch_error_kind(error),
                PoolError::ShutDown => StartErrorKind::ShutDown,
                _ => StartErrorKind::Other,
            },
            Self::Worker(error) => launch_error_kind(error),
        }
    }
}

const fn launch_error_kind(error: &WorkerError) -> StartErrorKind {
    match error {
        WorkerError::Spawn { .. } => StartErrorKind::Interpreter,
        WorkerError::StartFailed { .. } => StartErrorKind::Adapter,
        WorkerError::EndedEarly { .. } => StartErrorKind::WorkerExited,
        WorkerError::NotReady { .. } => StartErrorKind::Timeout,
        WorkerError::Connect { .. } | WorkerError::NoHost { .. } => StartErrorKind::Connection,
        WorkerError::ToolsRejected { .. } => StartErrorKind::Tools,
        WorkerError::Io { .. } => StartErrorKind::RunDirectory,
        _ => StartErrorKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use std::{io, time::Duration};

    use snakepit_pool::settings::WORKERS;
    use snakepit_registry::RegistryError;
    use snakepit_worker::{SharedError, WorkerId};

    use super::*;
    use crate::InterpreterOrigin;

    #[test]
    fn each_error_has_a_kind() {
        let taken = RegistryError::NameTaken { name: "add".into(), owner: "host".into() };
        let launch_failure =
            |error: WorkerError| StartError::from(PoolError::Start { worker: WorkerId::new("w"), error });
        let spawn = WorkerError::Spawn { program: "p".into(), source: SharedError::new("missing") };
        let (reason, output_lines) = (String::new(), Vec::new());
        let late = WorkerError::NotReady { timeout: Duration::ZERO, output_lines: Vec::new() };
        let rejected = WorkerError::ToolsRejected { worker: "w".into(), source: taken.clone() };
        for (error, kind) in [
            (StartError::Config { problem: String::new() }, StartErrorKind::Configuration),
            (StartError::NotLoopback { address: String::new() }, StartErrorKind::Configuration),
            (
                PoolError::InvalidConfig { setting: WORKERS, problem: String::new() }.into(),
                StartErrorKind::Configuration,
            ),
            (
                StartError::Listen { address: String::new(), source: io::ErrorKind::AddrInUse.into() },
                StartErrorKind::Listen,
            ),
            (
                StartError::NoBridge { python: "p".into(), origin: InterpreterOrigin::Setting },
                StartErrorKind::Interpreter,
            ),
            (launch_failure(spawn), StartErrorKind::Interpreter),
            (launch_failure(WorkerError::start_failed("no module")), StartErrorKind::Adapter),
            (launch_failure(WorkerError::EndedEarly { reason, output_lines }), StartErrorKind::WorkerExited),
            (launch_failure(late), StartErrorKind::Timeout),
            (launch_failure(WorkerError::no_host("none")), StartErrorKind::Connection),
            (launch_failure(rejected), StartErrorKind::Tools),
            (taken.into(), StartErrorKind::Tools),
            (WorkerError::io("/run", "read-only").into(), StartErrorKind::RunDirectory),
            (StartError::Cancelled, StartErrorKind::Cancelled),
            (PoolError::NoRuntime.into(), StartErrorKind::NoRuntime),
            (PoolError::ShutDown.into(), StartErrorKind::ShutDown),
        ] {
            assert_eq!(error.kind(), kind, "{error}");
            assert_eq!(error.is_timeout(), kind == StartErrorKind::Timeout, "{error}");
        }
    }
}
