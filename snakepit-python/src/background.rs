//! [`BackgroundRuntime`]: the tokio runtime of processes that are not workers, driven by a background thread.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use pyo3::prelude::*;
use tokio::{
    runtime::Handle,
    time::{Instant, timeout},
};

/// The interval at which a wait checks for Python signals.
const SIGNAL_CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// A runtime that lives until the process ends. Copies refer to the same runtime.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BackgroundRuntime {
    handle: &'static Handle,
    /// The process whose thread drives the runtime. A fork inherits the memory, but not the thread.
    process: u32,
}

impl BackgroundRuntime {
    /// Returns the runtime of this process. The first call creates it.
    ///
    /// # Errors
    /// If the system provides no file descriptor or thread.
    pub(crate) fn get() -> io::Result<Self> {
        // A thread locks this only while it holds the GIL, and a fork happens under the GIL too. Therefore, a forked
        // process never inherits a locked mutex.
        static CURRENT: Mutex<Option<BackgroundRuntime>> = Mutex::new(None);
        let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        match *current {
            Some(background) if !background.is_forked() => Ok(background),
            _ => Ok(*current.insert(Self::start()?)),
        }
    }

    fn start() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        std::thread::Builder::new()
            .name("snakepit-client".to_owned())
            .spawn(move || runtime.block_on(std::future::pending::<()>()))?;
        Ok(Self { handle: Box::leak(Box::new(handle)), process: std::process::id() })
    }

    /// Returns whether this process is a fork of the one that created the runtime.
    pub(crate) fn is_forked(self) -> bool {
        std::process::id() != self.process
    }

    /// The tokio handle, for spawning tasks.
    pub(crate) const fn handle(self) -> &'static Handle {
        self.handle
    }

    /// Releases the GIL and waits. Signals can interrupt the wait. Must not be called in a fork.
    ///
    /// # Errors
    /// The exception of a Python signal handler.
    pub(crate) fn wait<T: Send>(self, py: Python<'_>, future: impl Future<Output = T> + Send) -> PyResult<T> {
        let mut future = std::pin::pin!(future);
        loop {
            if let Some(outcome) = self.wait_for_at_most(py, SIGNAL_CHECK_INTERVAL, future.as_mut()) {
                return Ok(outcome);
            }
            py.check_signals()?;
        }
    }

    /// Like [`wait`](Self::wait), until `end` at the latest. Returns `None` if the future is not ready by then.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub(crate) fn wait_until<T: Send>(
        self,
        py: Python<'_>,
        end: Option<Instant>,
        future: impl Future<Output = T> + Send,
    ) -> PyResult<Option<T>> {
        let Some(end) = end else { return self.wait(py, future).map(Some) };
        let mut future = std::pin::pin!(future);
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if let Some(outcome) = self.wait_for_at_most(py, left.min(SIGNAL_CHECK_INTERVAL), future.as_mut())
            {
                return Ok(Some(outcome));
            }
            if left <= SIGNAL_CHECK_INTERVAL {
                return Ok(None);
            }
            py.check_signals()?;
        }
    }

    fn wait_for_at_most<T: Send>(
        self,
        py: Python<'_>,
        limit: Duration,
        future: Pin<&mut (impl Future<Output = T> + Send)>,
    ) -> Option<T> {
        py.detach(|| self.handle.block_on(async { timeout(limit, future).await })).ok()
    }
}
