//! [`VariableWatch`]: a stream of variable updates, for blocking readers and for event loops.

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
    errors::HostError,
    runtime::RuntimeHandle,
};

type Updates = Pin<Box<dyn Stream<Item = Result<VariableUpdate, HostError>> + Send>>;

/// A stream of updates. Ends when the watch is closed, when its call or client ends, or with an error.
#[pyclass(frozen, module = "snakepit_bridge._native")]
#[derive(Debug)]
pub(crate) struct VariableWatch {
    runtime: RuntimeHandle,
    shared: Arc<SharedWatch>,
    /// The task that ends the watch with its caller.
    end_task: JoinHandle<()>,
}

struct SharedWatch {
    caller: Caller,
    deadline: Option<Instant>,
    closed: CancellationToken,
    state: Mutex<State>,
}

struct State {
    /// The source of updates. `None` once the watch has ended.
    updates: Option<Updates>,
    /// An update that was received and not taken yet. It remains here if the waiting coroutine was cancelled.
    next: Option<Result<VariableUpdate, HostError>>,
}

impl VariableWatch {
    pub(crate) fn new(
        runtime: RuntimeHandle,
        caller: Caller,
        updates: impl Stream<Item = Result<VariableUpdate, HostError>> + Send + 'static,
    ) -> Self {
        let owner = caller.clone();
        let deadline = caller.stream_deadline();
        let state = Mutex::new(State { updates: Some(Box::pin(updates)), next: None });
        let shared = Arc::new(SharedWatch { caller, deadline, closed: CancellationToken::new(), state });
        // A weak reference, because Python code may keep the watch beyond the call, for example in a global. The host's
        // end of the watch must close nevertheless.
        let weak = Arc::downgrade(&shared);
        let end_task = runtime.tokio().spawn(async move {
            let end = owner.watch_end().await;
            let Some(shared) = weak.upgrade() else { return };
            let mut state = shared.state.lock().await;
            let was_open = state.updates.take().is_some();
            match end {
                Ok(()) => state.next = None,
                Err(error) if was_open => state.next = Some(Err(error)),
                // The watch ended before, and its end may not have been read yet.
                Err(_) => {}
            }
        });
        Self { runtime, shared, end_task }
    }
}

impl Drop for VariableWatch {
    fn drop(&mut self) {
        if self.runtime.is_forked() {
            // The watch belongs to the parent.
            std::mem::forget(Arc::clone(&self.shared));
            return;
        }
        self.end_task.abort();
    }
}

impl SharedWatch {
    /// Waits for an update or the end. Cancel safe.
    async fn advance(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().await;
        if state.next.is_none()
            && let Some(updates) = &mut state.updates
        {
            let next = tokio::select! {
                biased;
                end = self.end() => end.err().map(Err),
                // A host ends an open watch only when it shuts down.
                update = updates.next() => Some(update.unwrap_or(Err(HostError::WatchEnded))),
            };
            if !matches!(next, Some(Ok(_))) {
                state.updates = None;
            }
            state.next = next;
        }
        state
    }

    /// Waits until this side must end the watch, and returns the reason.
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
            end = self.caller.watch_end() => end,
        }
    }
}

impl fmt::Debug for SharedWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedWatch").field("closed", &self.closed.is_cancelled()).finish_non_exhaustive()
    }
}

#[pymethods]
impl VariableWatch {
    /// Releases the GIL and waits for the next update. Returns `None` at the end.
    fn next(&self, py: Python<'_>) -> PyResult<Option<VariableUpdate>> {
        let next = async { self.shared.advance().await.next.take() };
        Ok(self.runtime.wait(py, next)?.transpose()?)
    }

    /// Finishes the wait of this key when `take` can return.
    fn ready(&self, completions: &Completions, key: u64) -> PyResult<Wait> {
        let shared = Arc::clone(&self.shared);
        Wait::start(self.runtime, completions, key, async move { drop(shared.advance().await) })
    }

    /// Takes the update that has arrived. Returns `None` at the end.
    fn take(&self) -> PyResult<Option<VariableUpdate>> {
        let mut state = self.shared.state.try_lock().map_err(|_| concurrent_read())?;
        let next = state.next.take();
        if next.is_none() && state.updates.is_some() {
            return Err(concurrent_read());
        }
        Ok(next.transpose()?)
    }

    /// Ends the watch and every wait for its next update.
    fn close(&self) {
        if self.runtime.is_forked() {
            return;
        }
        self.shared.closed.cancel();
        // A waiting reader holds the lock, and ends through the token.
        if let Ok(mut state) = self.shared.state.try_lock() {
            *state = State { updates: None, next: None };
        }
    }
}

fn concurrent_read() -> PyErr {
    PyRuntimeError::new_err(
        "another thread or coroutine reads from this watch; create a separate watch for each",
    )
}
