//! [`Driver`]: who sends and receives while Python waits for the host.

use std::future::Future;

use pyo3::prelude::*;
use tokio::{
    runtime::Handle,
    time::{Instant, timeout_at},
};

use crate::{
    background::Background,
    completions::{Completions, Wait},
    fork,
    host::{HostUnavailableError, ran},
    io::Io,
};

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

    /// Waits as [`wait`](Self::wait) does, but not longer than until then. `None`: it is late.
    ///
    /// # Errors
    /// In a fork, and what the handler of a signal raised.
    pub(crate) fn wait_until<T: Send>(
        self,
        py: Python<'_>,
        end: Option<Instant>,
        future: impl Future<Output = T> + Send,
    ) -> PyResult<Option<T>> {
        self.refuse_fork()?;
        match (self, end) {
            (Self::Background(background), end) => background.wait_until(py, end, future),
            (Self::Io(io), None) => Ok(Some(py.detach(|| io.block_on(future)))),
            (Self::Io(io), Some(end)) => {
                Ok(py.detach(|| io.block_on(async { timeout_at(end, future).await.ok() })))
            }
        }
    }

    /// Starts a task that an event loop waits for.
    ///
    /// # Errors
    /// In a fork.
    pub(crate) fn start_wait(
        self,
        completions: &Completions,
        key: u64,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> PyResult<Wait> {
        self.refuse_fork()?;
        let wait = Wait::spawn(self, completions, key, task);
        if let Self::Io(io) = self {
            // The executor, whose event loop is to wait for it, does not drive the IO meanwhile.
            io.hand_over();
        }
        Ok(wait)
    }

    /// Whether this is a fork of the process that connected. It must not touch the parent's connections: locks may be
    /// held there by threads that do not exist here.
    pub(crate) fn is_forked(self) -> bool {
        match self {
            Self::Io(_) => fork::is_fork(),
            Self::Background(background) => background.is_forked(),
        }
    }

    /// A fork shares the sockets of whoever connected, and must leave them alone.
    ///
    /// # Errors
    /// [`HostUnavailableError`] in a fork.
    pub(crate) fn refuse_fork(self) -> PyResult<()> {
        if !self.is_forked() {
            return Ok(());
        }
        let problem = match self {
            Self::Io(_) => "this process is a fork of a worker; call the host from the worker itself",
            Self::Background(_) => {
                "this process is a fork of the one that connected to the host; connect here, too"
            }
        };
        Err(ran(HostUnavailableError::new_err(problem), false))
    }
}
