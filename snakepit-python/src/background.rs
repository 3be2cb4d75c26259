//! The runtime of whoever is no worker, driven by a thread of its own.

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

/// How often a wait looks whether Python wants to be interrupted.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A runtime, which lives as long as the process. Copies are the same one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Background {
    runtime: &'static Handle,
    /// The process whose thread drives it. A fork of it has the memory, but not the thread.
    process: u32,
}

impl Background {
    /// The runtime of this process, made with the first use.
    ///
    /// # Errors
    /// When the system refuses a file descriptor or a thread.
    pub(crate) fn get() -> io::Result<Self> {
        // Locked with the GIL held, which who forks holds, too: in a fork it is never locked by a thread that does not exist.
        static CURRENT: Mutex<Option<Background>> = Mutex::new(None);
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
        Ok(Self { runtime: Box::leak(Box::new(handle)), process: std::process::id() })
    }

    /// Whether this is a fork of the process that the runtime belongs to.
    pub(crate) fn is_forked(self) -> bool {
        std::process::id() != self.process
    }

    /// The runtime, to spawn tasks on.
    pub(crate) const fn runtime(self) -> &'static Handle {
        self.runtime
    }

    /// Waits while other Python threads go on, and lets signals interrupt. Must not be called in a fork.
    ///
    /// # Errors
    /// What the handler of a signal raised.
    pub(crate) fn wait<T: Send>(self, py: Python<'_>, future: impl Future<Output = T> + Send) -> PyResult<T> {
        let mut future = std::pin::pin!(future);
        loop {
            if let Some(outcome) = self.wait_a_moment(py, LOOK_EVERY, future.as_mut()) {
                return Ok(outcome);
            }
            py.check_signals()?;
        }
    }

    /// Waits as [`wait`](Self::wait) does, but not longer than until then. `None`: it is late.
    ///
    /// # Errors
    /// What the handler of a signal raised.
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
            if let Some(outcome) = self.wait_a_moment(py, left.min(LOOK_EVERY), future.as_mut()) {
                return Ok(Some(outcome));
            }
            if left <= LOOK_EVERY {
                return Ok(None);
            }
            py.check_signals()?;
        }
    }

    fn wait_a_moment<T: Send>(
        self,
        py: Python<'_>,
        moment: Duration,
        future: Pin<&mut (impl Future<Output = T> + Send)>,
    ) -> Option<T> {
        py.detach(|| self.runtime.block_on(async { timeout(moment, future).await })).ok()
    }
}
