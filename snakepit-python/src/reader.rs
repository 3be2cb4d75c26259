//! [`Reader`]: a stream of items from the host, for blocking readers and for event loops.

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

use crate::{
    caller::Caller,
    completions::{Completions, Wait},
    errors::HostError,
    host::is_early_deadline,
    runtime::RuntimeHandle,
};

type Items<T> = Pin<Box<dyn Stream<Item = Result<T, HostError>> + Send>>;

/// A stream of items. Ends when it is closed, when its call or client ends, or with an error. It then drops the source of its items.
#[derive(Debug)]
pub(crate) struct Reader<T> {
    runtime: RuntimeHandle,
    shared: Arc<SharedItems<T>>,
    /// The task that ends the stream with its caller.
    end_task: JoinHandle<()>,
    /// The kind of stream, for messages.
    kind: &'static str,
}

/// The items, which the reader shares with its end task and with waiting coroutines.
struct SharedItems<T> {
    caller: Caller,
    deadline: Option<Instant>,
    closed: CancellationToken,
    state: Mutex<State<T>>,
}

struct State<T> {
    /// The source of items. `None` once the stream has ended.
    items: Option<Items<T>>,
    /// An item that was received and not taken yet. It remains here if the waiting coroutine was cancelled.
    next: Option<Result<T, HostError>>,
}

impl<T: Send + 'static> Reader<T> {
    pub(crate) fn new(
        kind: &'static str,
        runtime: RuntimeHandle,
        caller: Caller,
        items: impl Stream<Item = Result<T, HostError>> + Send + 'static,
    ) -> Self {
        let owner = caller.clone();
        let deadline = caller.stream_deadline();
        let state = Mutex::new(State { items: Some(Box::pin(items) as Items<T>), next: None });
        let shared = Arc::new(SharedItems { caller, deadline, closed: CancellationToken::new(), state });
        // A weak reference, because Python code may keep the stream beyond the call, for example in a global. The host's
        // end of the stream must close nevertheless.
        let weak = Arc::downgrade(&shared);
        let end_task = runtime.tokio().spawn(async move {
            let end = owner.watch_end().await;
            let Some(shared) = weak.upgrade() else { return };
            let mut state = shared.state.lock().await;
            let was_open = state.items.take().is_some();
            match end {
                Ok(()) => state.next = None,
                Err(error) if was_open => state.next = Some(Err(error)),
                // The stream ended before, and its end may not have been read yet.
                Err(_) => {}
            }
        });
        Self { runtime, shared, end_task, kind }
    }

    /// Releases the GIL and waits for the next item. Returns `None` at the end.
    pub(crate) fn next(&self, py: Python<'_>) -> PyResult<Option<T>> {
        let next = async { self.shared.advance().await.next.take() };
        Ok(self.runtime.wait(py, next)?.transpose()?)
    }

    /// Finishes the wait of this key when [`take`](Self::take) can return.
    pub(crate) fn ready(&self, completions: &Completions, key: u64) -> PyResult<Wait> {
        let shared = Arc::clone(&self.shared);
        Wait::start(self.runtime, completions, key, async move { drop(shared.advance().await) })
    }

    /// Takes the item that has arrived. Returns `None` at the end.
    pub(crate) fn take(&self) -> PyResult<Option<T>> {
        let mut state = self.shared.state.try_lock().map_err(|_| self.concurrent_read())?;
        let next = state.next.take();
        if next.is_none() && state.items.is_some() {
            return Err(self.concurrent_read());
        }
        Ok(next.transpose()?)
    }

    /// Ends the stream and every wait for its next item.
    pub(crate) fn close(&self) {
        if self.runtime.is_forked() {
            return;
        }
        self.shared.closed.cancel();
        // A waiting reader holds the lock, and ends through the token.
        if let Ok(mut state) = self.shared.state.try_lock() {
            *state = State { items: None, next: None };
        }
    }

    fn concurrent_read(&self) -> PyErr {
        let kind = self.kind;
        PyRuntimeError::new_err(format!(
            "another thread or coroutine reads from this {kind}; create a separate {kind} for each"
        ))
    }
}

impl<T> Drop for Reader<T> {
    fn drop(&mut self) {
        if self.runtime.is_forked() {
            // The stream belongs to the parent.
            std::mem::forget(Arc::clone(&self.shared));
            return;
        }
        self.end_task.abort();
    }
}

impl<T> SharedItems<T> {
    /// Waits for an item or the end. Cancel safe.
    async fn advance(&self) -> MutexGuard<'_, State<T>> {
        let mut state = self.state.lock().await;
        if state.next.is_none()
            && let Some(items) = &mut state.items
        {
            let next = tokio::select! {
                biased;
                end = self.end() => end.err().map(Err),
                item = items.next() => item,
            };
            if !matches!(next, Some(Ok(_))) {
                state.items = None;
            }
            let is_early = matches!(&next, Some(Err(error)) if self.is_early_deadline(error));
            state.next = next;
            if is_early {
                // As for a single request, the stream must not end before the call.
                state.next = self.end().await.err().map(Err);
            }
        }
        state
    }

    /// Whether the host ended the stream because the deadline of the tool's call is about to pass.
    fn is_early_deadline(&self, error: &HostError) -> bool {
        self.caller.is_tool() && self.deadline.is_some_and(|deadline| is_early_deadline(error, deadline))
    }

    /// Waits until this side must end the stream, and returns the reason.
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

impl<T> fmt::Debug for SharedItems<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedItems").field("closed", &self.closed.is_cancelled()).finish_non_exhaustive()
    }
}
