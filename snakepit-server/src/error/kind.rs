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
    /// The name of a tool is invalid, two providers have tools with the same name, or a host tool needs a state that the builder
    /// does not have ([`Builder::state`](crate::Builder::state)).
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
    use snakepit_registry::{FnTool, Registry};
    use snakepit_worker::WorkerId;

    use super::*;
    use crate::InterpreterOrigin;

    #[test]
    fn each_error_has_a_kind() {
        let registry = Registry::new();
        let register = || registry.register_host_tool(FnTool::typed("add", |()| async {}));
        register().unwrap();
        let taken = register().unwrap_err();
        let of_launch = |error: WorkerError| StartError::from(PoolError::start(WorkerId::new("w"), error));
        let rejected = WorkerError::tools_rejected("w", taken.clone());
        for (error, kind) in [
            (StartError::Config { problem: String::new() }, StartErrorKind::Configuration),
            (StartError::NotLoopback { address: String::new() }, StartErrorKind::Configuration),
            (PoolError::invalid_config(WORKERS, "").into(), StartErrorKind::Configuration),
            (
                StartError::Listen { address: String::new(), source: io::ErrorKind::AddrInUse.into() },
                StartErrorKind::Listen,
            ),
            (
                StartError::NoBridge { python: "p".into(), origin: InterpreterOrigin::Setting },
                StartErrorKind::Interpreter,
            ),
            (of_launch(WorkerError::spawn("p", "missing")), StartErrorKind::Interpreter),
            (of_launch(WorkerError::start_failed("no module")), StartErrorKind::Adapter),
            (of_launch(WorkerError::ended_early("it exited")), StartErrorKind::WorkerExited),
            (of_launch(WorkerError::not_ready(Duration::ZERO)), StartErrorKind::Timeout),
            (of_launch(WorkerError::no_host("none")), StartErrorKind::Connection),
            (of_launch(rejected), StartErrorKind::Tools),
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
