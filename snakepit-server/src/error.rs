//! The error type of starting a host.

use std::{fmt, io, path::PathBuf};

use snakepit_client::{Error, write_with_sources};
use snakepit_pool::PoolError;
use snakepit_registry::RegistryError;
use snakepit_worker::WorkerError;

use crate::{InterpreterOrigin, settings};

mod kind;

pub use kind::StartErrorKind;

/// The reason why a host did not start.
///
/// The message omits the cause, which is the [`source`](std::error::Error::source). [`error_chain`](crate::error_chain) prints
/// both on one line. `{:?}` prints one per line, because `main` prints a returned error that way. To branch on an error, match on
/// its [`kind`](Self::kind).
///
/// `?` converts the error to [`Error`], so a program that starts a host and calls it needs one error type.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The builder lacks a setting or has an invalid one.
    #[error("cannot start: {problem}")]
    #[non_exhaustive]
    Config {
        /// The problem and its solution.
        problem: String,
    },
    /// The host cannot listen on an address.
    #[error("cannot listen on {address}; choose another address, or port 0 for a free one")]
    #[non_exhaustive]
    Listen {
        /// The requested address.
        address: String,
        /// The error of the operating system.
        source: io::Error,
    },
    /// Other machines can reach the address, and [`Builder::allow_remote`](crate::Builder::allow_remote) was not called.
    #[error(
        "refusing to listen on {address}: it is not a loopback address and there is no encryption; set {} if the network \
         is trusted",
        settings::ALLOW_REMOTE
    )]
    #[non_exhaustive]
    NotLoopback {
        /// The requested address, with the resolved one if it is a name.
        address: String,
    },
    /// The caller cancelled the start through [`Builder::start_unless`](crate::Builder::start_unless).
    #[error("the start was cancelled before the workers were ready")]
    Cancelled,
    /// The Python interpreter of the workers lacks the package `snakepit_bridge`.
    #[error(
        "Python `{0}`, chosen {origin}, has no package `snakepit_bridge`; install it with \
         `{0} -m pip install CHECKOUT/snakepit-python`, or choose another Python with {1} or $SNAKEPIT_PYTHON",
        python.display(),
        settings::PYTHON
    )]
    #[non_exhaustive]
    NoBridge {
        /// The interpreter.
        python: PathBuf,
        /// The origin of the interpreter.
        origin: InterpreterOrigin,
    },
    /// The workers did not start.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The host cannot set up its run directory or launch worker processes.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// A host tool cannot be registered.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl StartError {
    /// The error of the worker or of its launch, if that is the cause.
    #[must_use]
    pub const fn worker_error(&self) -> Option<&WorkerError> {
        match self {
            Self::Worker(error) | Self::Pool(PoolError::Start { error, .. }) => Some(error),
            _ => None,
        }
    }

    /// Whether a worker was not ready within [`Builder::start_timeout`](crate::Builder::start_timeout).
    #[must_use]
    pub const fn is_timeout(&self) -> bool {
        matches!(self.kind(), StartErrorKind::Timeout)
    }
}

impl fmt::Debug for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_with_sources(self, f)
    }
}

impl From<StartError> for Error {
    fn from(error: StartError) -> Self {
        Self::Start(Box::new(error))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        error::Error as _,
        process::{ExitCode, Termination},
        time::Duration,
    };

    use snakepit_worker::WorkerId;

    use super::*;

    #[test]
    fn the_cause_of_a_failed_start_can_be_read() {
        let error = WorkerError::not_ready(Duration::from_secs(1));
        let late = StartError::from(PoolError::start(WorkerId::new("w"), error));
        assert!(late.is_timeout() && late.source().unwrap().is::<WorkerError>(), "{late}");
        let failed = StartError::from(WorkerError::start_failed("no module"));
        assert!(failed.worker_error().is_some() && !failed.is_timeout());
        let busy = StartError::Listen { address: "h:1".into(), source: io::ErrorKind::AddrInUse.into() };
        assert!(busy.source().unwrap().is::<io::Error>() && busy.worker_error().is_none());
    }

    #[test]
    fn main_prints_the_message_of_a_failed_start() {
        let error =
            || StartError::Listen { address: "1.2.3.4:1".to_owned(), source: io::Error::other("in use") };
        let message = "cannot listen on 1.2.3.4:1; choose another address, or port 0 for a free one\n\n\
                       Caused by:\n    in use";
        assert_eq!(format!("{:?}", error()), message);
        // `main` may return either error.
        assert_eq!(format!("{:?}", Error::from(error())), message);
        let failed: Result<(), Error> = Err(error().into());
        assert_eq!(format!("{:?}", failed.report()), format!("{:?}", ExitCode::FAILURE));
    }
}
