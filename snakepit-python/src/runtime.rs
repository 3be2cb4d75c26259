//! [`RuntimeHandle`]: the tokio runtime on which Python code waits for the host.

use std::{
    future::Future,
    pin::{Pin, pin},
};

use pyo3::prelude::*;
use tokio::{
    runtime::Handle,
    time::{Instant, timeout_at},
};

use crate::{
    background::BackgroundRuntime,
    errors::{HostUnavailableError, with_may_have_run},
    fork,
    io::Io,
};

type AnyFuture<'a, T> = Pin<&'a mut (dyn Future<Output = T> + Send + 'a)>;

/// A handle to the runtime of this process. Copies refer to the same runtime.
#[derive(Debug, Clone, Copy)]
pub(crate) enum RuntimeHandle {
    /// The runtime of a worker, driven by the executor and a second thread.
    Worker(Io),
    /// The runtime of any other process, driven by a background thread.
    Background(BackgroundRuntime),
}

impl RuntimeHandle {
    /// The tokio handle, for spawning tasks.
    pub(crate) fn tokio(self) -> &'static Handle {
        match self {
            Self::Worker(io) => io.runtime().handle(),
            Self::Background(background) => background.handle(),
        }
    }

    /// Releases the GIL and blocks until `future` is ready.
    ///
    /// # Errors
    /// [`HostUnavailableError`] in a forked process, and the exception of a Python signal handler.
    pub(crate) fn wait<T: Send>(self, py: Python<'_>, future: impl Future<Output = T> + Send) -> PyResult<T> {
        // Behind a pointer, because each further type of future would get its own copy of the code that waits for it.
        let future: AnyFuture<'_, T> = pin!(future);
        self.check_not_forked()?;
        match self {
            Self::Worker(io) => Ok(py.detach(|| io.block_on(future))),
            Self::Background(background) => background.wait(py, future),
        }
    }

    /// Like [`wait`](Self::wait), until `end` at the latest. Returns `None` if `future` is not ready by then.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub(crate) fn wait_until<T: Send>(
        self,
        py: Python<'_>,
        end: Option<Instant>,
        future: impl Future<Output = T> + Send,
    ) -> PyResult<Option<T>> {
        let future: AnyFuture<'_, T> = pin!(future);
        self.check_not_forked()?;
        match (self, end) {
            (Self::Background(background), end) => background.wait_until(py, end, future),
            (Self::Worker(io), None) => Ok(Some(py.detach(|| io.block_on(future)))),
            (Self::Worker(io), Some(end)) => {
                Ok(py.detach(|| io.block_on(async { timeout_at(end, future).await.ok() })))
            }
        }
    }

    /// Hands the runtime to the second IO thread, because the executor is about to block outside of it.
    pub(crate) fn hand_over(self) {
        if let Self::Worker(io) = self {
            io.hand_over();
        }
    }

    /// Returns whether this process is a fork of the one that owns the runtime. A fork must not touch the parent's
    /// connections: their locks may have been held by threads that do not exist in the fork.
    pub(crate) fn is_forked(self) -> bool {
        match self {
            Self::Worker(_) => fork::is_fork(),
            Self::Background(background) => background.is_forked(),
        }
    }

    /// Returns an error in a forked process, which shares its parent's sockets and must not use them.
    ///
    /// # Errors
    /// [`HostUnavailableError`] in a forked process.
    pub(crate) fn check_not_forked(self) -> PyResult<()> {
        if !self.is_forked() {
            return Ok(());
        }
        let problem = match self {
            Self::Worker(_) => "this process is a fork of a worker; call the host from the worker itself",
            Self::Background(_) => {
                "this process is a fork of the one that connected to the host; create a client in this process"
            }
        };
        Err(with_may_have_run(HostUnavailableError::new_err(problem), false))
    }
}
