//! [`Driver`]: who sends and receives while Python waits for the host.

use std::future::Future;

use pyo3::prelude::*;
use tokio::runtime::Handle;

use crate::{background::Background, host::HostUnavailableError, io::Io, readable::Readable};

/// Who drives what Python waits for. Copies are the same one.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Driver {
    /// The worker.
    Io(Io),
    /// A thread of its own, where there is no worker.
    Background(Background),
}

impl Driver {
    /// The runtime, to spawn tasks on.
    pub(crate) fn runtime(self) -> &'static Handle {
        match self {
            Self::Io(io) => io.runtime().handle(),
            Self::Background(background) => background.runtime(),
        }
    }

    /// Waits while other Python threads go on.
    ///
    /// # Errors
    /// In a fork, and what the handler of a signal raised.
    pub(crate) fn wait<T: Send>(self, py: Python<'_>, future: impl Future<Output = T> + Send) -> PyResult<T> {
        self.refuse_fork()?;
        match self {
            Self::Io(io) => Ok(py.detach(|| io.block_on(future))),
            Self::Background(background) => background.wait(py, future),
        }
    }

    /// Starts a task that an event loop waits for.
    ///
    /// # Errors
    /// In a fork, and when the system refuses the descriptors.
    pub(crate) fn readable(self, task: impl Future<Output = ()> + Send + 'static) -> PyResult<Readable> {
        self.refuse_fork()?;
        let readable = Readable::once_done(self.runtime(), task)?;
        if let Self::Io(io) = self {
            // The executor, whose event loop is to wait for it, does not drive the IO meanwhile.
            io.hand_over();
        }
        Ok(readable)
    }

    /// A fork shares the sockets of whoever connected, and must leave them alone.
    ///
    /// # Errors
    /// [`HostUnavailableError`] in a fork.
    pub(crate) fn refuse_fork(self) -> PyResult<()> {
        let problem = match self {
            Self::Io(io) if io.is_forked() => {
                "this process is a fork of a worker; call the host from the worker itself"
            }
            Self::Background(background) if background.is_forked() => {
                "this process is a fork of the one that connected to the host; connect here, too"
            }
            _ => return Ok(()),
        };
        Err(HostUnavailableError::new_err(problem))
    }
}
