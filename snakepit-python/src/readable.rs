//! [`Readable`]: how an event loop waits for the IO without a thread.

use std::{
    io,
    os::{fd::AsRawFd, unix::net::UnixStream},
};

use pyo3::prelude::*;
use tokio::{runtime::Handle, task::JoinHandle};

/// A file descriptor that becomes readable once a task is done. Dropping it aborts the task.
#[pyclass(frozen, module = "snakepit_bridge._native")]
#[derive(Debug)]
pub(crate) struct Readable {
    readable: UnixStream,
    task: JoinHandle<()>,
}

impl Readable {
    /// Starts a task.
    ///
    /// # Errors
    /// When the system refuses the descriptors.
    pub(crate) fn once_done(
        runtime: &Handle,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<Self> {
        let (readable, done) = UnixStream::pair()?;
        let task = runtime.spawn(async move {
            task.await;
            // Closing this end makes the other one readable.
            drop(done);
        });
        Ok(Self { readable, task })
    }

    /// Whether the task has ended, or never will.
    pub(crate) fn is_over(&self) -> bool {
        self.task.is_finished()
    }

    /// Gives the task up.
    pub(crate) fn abort(&self) {
        self.task.abort();
    }
}

#[pymethods]
impl Readable {
    pub(crate) fn fileno(&self) -> i32 {
        self.readable.as_raw_fd()
    }
}

impl Drop for Readable {
    fn drop(&mut self) {
        self.task.abort();
    }
}
