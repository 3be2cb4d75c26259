//! [`Completions`]: notifies an asyncio event loop of finished tokio tasks, through one file descriptor for all of
//! them.

use std::{
    io::{self, Read, Write},
    os::{fd::AsRawFd, unix::net::UnixStream},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use pyo3::prelude::*;
use tokio::task::JoinHandle;

use crate::runtime::RuntimeHandle;

/// The keys of finished waits of one event loop. The descriptor is readable while the queue is not empty.
#[pyclass(frozen, module = "snakepit_bridge._native")]
#[derive(Debug)]
pub(crate) struct Completions {
    queue: Arc<Queue>,
}

#[derive(Debug)]
struct Queue {
    finished: Mutex<Vec<u64>>,
    readable: UnixStream,
    /// Contains one byte while `finished` is not empty, so writes never block.
    signal: UnixStream,
}

impl Queue {
    /// Code under this lock does not panic.
    fn finished(&self) -> MutexGuard<'_, Vec<u64>> {
        self.finished.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, key: u64) {
        let mut finished = self.finished();
        finished.push(key);
        if finished.len() == 1 {
            // Cannot fail while both ends exist.
            let _ = (&self.signal).write(&[0]);
        }
    }
}

#[pymethods]
impl Completions {
    #[new]
    fn new() -> io::Result<Self> {
        let (readable, signal) = UnixStream::pair()?;
        readable.set_nonblocking(true)?;
        signal.set_nonblocking(true)?;
        Ok(Self { queue: Arc::new(Queue { finished: Mutex::default(), readable, signal }) })
    }

    fn fileno(&self) -> i32 {
        self.queue.readable.as_raw_fd()
    }

    /// Takes the keys of the waits that finished since the last call.
    fn take(&self) -> Vec<u64> {
        let mut finished = self.queue.finished();
        if !finished.is_empty() {
            let _ = (&self.queue.readable).read(&mut [0]);
        }
        std::mem::take(&mut *finished)
    }

    /// Finishes the wait of this key.
    fn complete(&self, key: u64) {
        self.queue.push(key);
    }
}

/// A tokio task that an event loop waits for. Dropping it aborts the task.
#[pyclass(frozen, module = "snakepit_bridge._native")]
#[derive(Debug)]
pub(crate) struct Wait {
    runtime: RuntimeHandle,
    task: JoinHandle<()>,
}

impl Wait {
    /// Spawns a task. When it completes, panics or is aborted, `completions` receives `key`.
    ///
    /// # Errors
    /// [`HostUnavailableError`](crate::errors::HostUnavailableError) in a forked process.
    pub(crate) fn start(
        runtime: RuntimeHandle,
        completions: &Completions,
        key: u64,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> PyResult<Self> {
        Self::start_boxed(runtime, completions, key, Box::pin(task))
    }

    /// Boxed, because each further type of future would get its own copy of the code that runs it.
    fn start_boxed(
        runtime: RuntimeHandle,
        completions: &Completions,
        key: u64,
        task: Pin<Box<dyn Future<Output = ()> + Send>>,
    ) -> PyResult<Self> {
        runtime.check_not_forked()?;
        let completion = Completion { queue: Arc::clone(&completions.queue), key };
        let task = runtime.tokio().spawn(async move {
            let _completion = completion;
            task.await;
        });
        // The executor will wait in its event loop, where it does not drive the IO.
        runtime.hand_over();
        Ok(Self { runtime, task })
    }

    /// Returns whether the task has finished or was aborted.
    pub(crate) fn is_finished(&self) -> bool {
        self.task.is_finished()
    }

    /// Aborts the task.
    pub(crate) fn abort(&self) {
        // A fork has no runtime.
        if !self.is_finished() && !self.runtime.is_forked() {
            self.task.abort();
        }
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.abort();
    }
}

/// Finishes a wait when dropped.
struct Completion {
    queue: Arc<Queue>,
    key: u64,
}

impl Drop for Completion {
    fn drop(&mut self) {
        self.queue.push(self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::background::BackgroundRuntime;

    fn is_readable(completions: &Completions) -> bool {
        let mut byte = [0];
        // std has no `peek` for Unix sockets, so the byte is read and written back.
        match (&completions.queue.readable).read(&mut byte) {
            Ok(1) => (&completions.queue.signal).write(&byte).is_ok(),
            _ => false,
        }
    }

    #[test]
    fn the_descriptor_is_readable_while_finished_waits_are_queued() {
        let completions = Completions::new().unwrap();
        assert!(!is_readable(&completions));
        assert!(completions.take().is_empty());
        for key in 0..100_000 {
            completions.complete(key);
        }
        assert!(is_readable(&completions));
        assert_eq!(completions.take().len(), 100_000);
        assert!(!is_readable(&completions));
        completions.complete(7);
        assert!(is_readable(&completions));
        assert_eq!(completions.take(), vec![7_u64]);
    }

    #[test]
    fn an_aborted_task_finishes_its_wait() {
        let completions = Completions::new().unwrap();
        completions.queue.readable.set_nonblocking(false).unwrap();
        let runtime = RuntimeHandle::Background(BackgroundRuntime::get().unwrap());
        Wait::start(runtime, &completions, 3, std::future::pending()).unwrap().abort();
        // Blocks until the wait has finished.
        let mut byte = [0];
        assert_eq!((&completions.queue.readable).read(&mut byte).unwrap(), 1);
        assert_eq!(*completions.queue.finished(), vec![3_u64]);
    }
}
