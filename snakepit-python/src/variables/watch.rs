//! Updates of variables as a stream that Python pulls: blocking, or from an event loop.

use std::{fmt, pin::Pin, sync::Arc};

use futures_core::Stream;
use pyo3::{exceptions::PyRuntimeError, prelude::*};
use tokio::{
    sync::{Mutex, MutexGuard},
    task::JoinHandle,
    time::{Instant, sleep_until},
};
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;

use super::VariableUpdate;
use crate::{
    caller::Caller,
    completions::{Completions, Wait},
    driver::Driver,
    host::HostError,
};

type Updates = Pin<Box<dyn Stream<Item = Result<VariableUpdate, HostError>> + Send>>;

/// Updates as they come. They end when the watch is closed, with the call that it belongs to, or by an error.
#[pyclass(frozen, module = "snakepit_bridge._native")]
#[derive(Debug)]
pub(crate) struct VariableWatch {
    driver: Driver,
    watched: Arc<Watched>,
    /// Waits for the end of the caller.
    end: JoinHandle<()>,
}

struct Watched {
    caller: Caller,
    deadline: Option<Instant>,
    closed: CancellationToken,
    state: Mutex<State>,
}

struct State {
    /// `None` once it has ended.
    updates: Option<Updates>,
    /// What came and was not taken yet. An update stays here when whoever waited for it went away.
    next: Option<Result<VariableUpdate, HostError>>,
}

impl VariableWatch {
    pub(crate) fn new(
        driver: Driver,
        caller: Caller,
        updates: impl Stream<Item = Result<VariableUpdate, HostError>> + Send + 'static,
    ) -> Self {
        let owner = caller.clone();
        let deadline = caller.stream_deadline();
        let state = Mutex::new(State { updates: Some(Box::pin(updates)), next: None });
        let watched = Arc::new(Watched { caller, deadline, closed: CancellationToken::new(), state });
        // A watch that outlives its caller, in a global say, must not keep the host's end of it.
        let left = Arc::downgrade(&watched);
        let end = driver.runtime().spawn(async move {
            let end = owner.ended().await;
            let Some(watched) = left.upgrade() else { return };
            let mut state = watched.state.lock().await;
            let was_open = state.updates.take().is_some();
            match end {
                Ok(()) => state.next = None,
                Err(error) if was_open => state.next = Some(Err(error)),
                // It had an end of its own, which may be still to be told.
                Err(_) => {}
            }
        });
        Self { driver, watched, end }
    }
}

impl Drop for VariableWatch {
    fn drop(&mut self) {
        if self.driver.is_forked() {
            // The parent still has it.
            std::mem::forget(Arc::clone(&self.watched));
            return;
        }
        self.end.abort();
    }
}

impl Watched {
    /// Waits until there is an update, or the end. Cancel safe.
    async fn advance(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().await;
        if state.next.is_none()
            && let Some(updates) = &mut state.updates
        {
            let next = tokio::select! {
                biased;
                end = self.end() => end.err().map(Err),
                // A host ends a watch that nobody closed only when it stops: it never is complete.
                update = updates.next() => Some(update.unwrap_or(Err(HostError::Stopped))),
            };
            if !matches!(next, Some(Ok(_))) {
                state.updates = None;
            }
            state.next = next;
        }
        state
    }

    /// Waits for what ends the watch from this side.
    async fn end(&self) -> Result<(), HostError> {
        let deadline = async {
            match self.deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.closed.cancelled() => Ok(()),
            error = self.caller.cancelled() => Err(error),
            () = deadline => Err(HostError::Deadline),
            end = self.caller.ended() => end,
        }
    }
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").field("closed", &self.closed.is_cancelled()).finish_non_exhaustive()
    }
}

#[pymethods]
impl VariableWatch {
    /// Waits for the next update, while other Python threads go on. `None` at the end.
    fn next(&self, py: Python<'_>) -> PyResult<Option<VariableUpdate>> {
        let next = async { self.watched.advance().await.next.take() };
        Ok(self.driver.wait(py, next)?.transpose()?)
    }

    /// Completes the wait of this key once `take` has something to take.
    fn ready(&self, completions: &Completions, key: u64) -> PyResult<Wait> {
        let watched = Arc::clone(&self.watched);
        self.driver.start_wait(completions, key, async move { drop(watched.advance().await) })
    }

    /// The update that is there. `None` at the end.
    fn take(&self) -> PyResult<Option<VariableUpdate>> {
        let mut state = self.watched.state.try_lock().map_err(|_| taken())?;
        let next = state.next.take();
        if next.is_none() && state.updates.is_some() {
            return Err(taken());
        }
        Ok(next.transpose()?)
    }

    /// Ends the watch, and whoever waits for it.
    fn close(&self) {
        if self.driver.is_forked() {
            return;
        }
        self.watched.closed.cancel();
        // Who waits holds the lock, and ends it by itself.
        if let Ok(mut state) = self.watched.state.try_lock() {
            *state = State { updates: None, next: None };
        }
    }
}

fn taken() -> PyErr {
    PyRuntimeError::new_err("another thread or coroutine reads from this watch; give each its own")
}
