//! [`Completions`]: how an event loop learns which of its waits are over. One descriptor serves all of them.

use std::{
    io::{self, Read, Write},
    os::{fd::AsRawFd, unix::net::UnixStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use pyo3::prelude::*;
use tokio::task::JoinHandle;

use crate::driver::Driver;

/// The waits of one event loop that are over. The descriptor is readable while there are any.
#[pyclass(frozen, module = "snakepit_bridge._native")]
#[derive(Debug)]
pub(crate) struct Completions {
    queue: Arc<Queue>,
}

#[derive(Debug)]
struct Queue {
    done: Mutex<Vec<u64>>,
    readable: UnixStream,
    /// Holds one byte while `done` is not empty, so writing never blocks.
    signal: UnixStream,
}

impl Queue {
    /// No code under this lock panics.
    fn done(&self) -> MutexGuard<'_, Vec<u64>> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, key: u64) {
        let mut done = self.done();
        done.push(key);
        if done.len() == 1 {
            // Cannot fail while this end and the other exist.
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
        Ok(Self { queue: Arc::new(Queue { done: Mutex::default(), readable, signal }) })
    }

    fn fileno(&self) -> i32 {
        self.queue.readable.as_raw_fd()
    }

    /// The keys of the waits that ended since the last time.
    fn take(&self) -> Vec<u64> {
        let mut done = self.queue.done();
        if !done.is_empty() {
            let _ = (&self.queue.readable).read(&mut [0]);
        }
        std::mem::take(&mut *done)
    }

    /// Ends a wait.
    fn complete(&self, key: u64) {
        self.queue.push(key);
    }
}

/// A task that an event loop waits for. Dropping it aborts the task.
#[pyclass(frozen, module = "snakepit_bridge._native")]
#[derive(Debug)]
pub(crate) struct Wait {
    driver: Driver,
    task: JoinHandle<()>,
}

impl Wait {
    /// Starts a task. Its end, however it ends, completes the wait of this key.
    pub(crate) fn spawn(
        driver: Driver,
        completions: &Completions,
        key: u64,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        let completion = Completion { queue: Arc::clone(&completions.queue), key };
        let task = driver.runtime().spawn(async move {
            let _completion = completion;
            task.await;
        });
        Self { driver, task }
    }

    /// Whether the task has ended, or never will.
    pub(crate) fn is_over(&self) -> bool {
        self.task.is_finished()
    }

    /// Aborts the task.
    pub(crate) fn abort(&self) {
        // A fork has no runtime to tell.
        if !self.is_over() && !self.driver.is_forked() {
            self.task.abort();
        }
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.abort();
    }
}

/// Completes a wait when it is dropped.
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
    use crate::background::Background;

    fn is_readable(completions: &Completions) -> bool {
        let mut byte = [0];
        // A peek would need a crate; what was read is put back.
        match (&completions.queue.readable).read(&mut byte) {
            Ok(1) => (&completions.queue.signal).write(&byte).is_ok(),
            _ => false,
        }
    }

    #[test]
    fn the_descriptor_is_readable_while_waits_are_over() {
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
    fn a_task_that_is_aborted_completes_its_wait_too() {
        let completions = Completions::new().unwrap();
        completions.queue.readable.set_nonblocking(false).unwrap();
        let driver = Driver::Background(Background::get().unwrap());
        Wait::spawn(driver, &completions, 3, std::future::pending()).abort();
        // Blocks until the wait is over.
        let mut byte = [0];
        assert_eq!((&completions.queue.readable).read(&mut byte).unwrap(), 1);
        assert_eq!(*completions.queue.done(), vec![3_u64]);
    }
}
