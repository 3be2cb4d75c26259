//! [`Caller`]: the source of a request to the host, which decides its deadline, cancellation and headers.

use std::{sync::Arc, time::Duration};

use snakepit_proto::headers;
use snakepit_registry::TraceContext;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::{
    Status,
    metadata::{MetadataMap, MetadataValue},
};

use crate::{
    client::{Connection, add_to},
    errors::{HostError, connect_problem},
    executor::{is_concurrent, is_loop_thread},
    host::RequestKind,
    state::CallState,
};

/// The source of a request to the host.
#[derive(Debug, Clone)]
pub(crate) enum Caller {
    /// A worker tool. Its requests end with the call that it serves.
    Tool { state: Arc<CallState>, trace: Option<TraceContext>, worker_id: Arc<str> },
    /// A program with a [`Client`](crate::client::HostClient). `timeout` bounds each of its requests, with all its `retries`, which
    /// apply to requests that only read.
    Program { connection: Arc<Connection>, timeout: Option<Duration>, retries: u32 },
}

/// The signals of the two stages in which a client closes.
#[derive(Debug, Clone, Default)]
pub(crate) struct CloseSignals {
    /// Cancelled when the client is closed. The client then does not start requests, and its watches end.
    pub(crate) closed: CancellationToken,
    /// Cancelled when the client stops waiting for running calls, which then fail.
    pub(crate) abort: CancellationToken,
}

/// The default timeout of a program's requests for variables, programs and sessions.
const STATE_TIMEOUT: Duration = Duration::from_secs(30);

impl Caller {
    /// Checks that the caller may send requests.
    ///
    /// # Errors
    /// [`HostError::Closed`] if the client is closed.
    pub(crate) fn check(&self) -> Result<(), HostError> {
        match self {
            Self::Program { connection, .. } if connection.close_signals.closed.is_cancelled() => {
                Err(HostError::Closed)
            }
            _ => Ok(()),
        }
    }

    /// Opens the connection of a program if it is broken or was not opened yet, as a call does. Cancel safe.
    ///
    /// # Errors
    /// If the client is closed or the host cannot be reached until `deadline`, so that nothing was sent.
    pub(crate) async fn connect(&self, deadline: Option<Instant>) -> Result<(), HostError> {
        let Self::Program { connection, .. } = self else { return Ok(()) };
        if connection.usable_stream()?.is_some() {
            return Ok(());
        }
        let opened = async { connection.shared_stream().await.map(drop) };
        match deadline {
            Some(deadline) => timeout_at(deadline, opened)
                .await
                .unwrap_or(Err(HostError::Unanswered { may_have_run: false })),
            None => opened.await,
        }
    }

    /// Converts the status of a failed request.
    pub(crate) async fn request_error(&self, status: Status) -> HostError {
        match (self, connect_problem(&status)) {
            // The connection broke after `connect` had found it open.
            (Self::Program { connection, .. }, Some(problem)) => connection.unreachable(&problem).await,
            _ => status.into(),
        }
    }

    /// How often a request of this kind is repeated after a transient error.
    pub(crate) const fn retries(&self, kind: RequestKind) -> u32 {
        match (self, kind) {
            (Self::Program { retries, .. }, RequestKind::Read | RequestKind::Stream) => *retries,
            _ => 0,
        }
    }

    /// Returns whether the caller is a worker tool.
    pub(crate) const fn is_tool(&self) -> bool {
        matches!(self, Self::Tool { .. })
    }

    /// The state of the call that the tool serves. `None` for a program.
    pub(crate) fn state(&self) -> Option<&CallState> {
        match self {
            Self::Tool { state, .. } => Some(state),
            Self::Program { .. } => None,
        }
    }

    /// The deadline of a request that begins now.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Tool { state, .. } => state.deadline,
            Self::Program { timeout, .. } => Instant::now().checked_add(timeout.unwrap_or(STATE_TIMEOUT)),
        }
    }

    /// The deadline of a stream that begins now. Streams of programs have no default timeout.
    pub(crate) fn stream_deadline(&self) -> Option<Instant> {
        match self {
            Self::Tool { state, .. } => state.deadline,
            Self::Program { timeout, .. } => timeout.and_then(|timeout| Instant::now().checked_add(timeout)),
        }
    }

    pub(crate) fn trace(&self) -> Option<&TraceContext> {
        match self {
            Self::Tool { trace, .. } => trace.as_ref(),
            Self::Program { .. } => None,
        }
    }

    /// Returns whether the call was cancelled, its deadline passed, or the client was closed.
    pub(crate) fn is_cancelled(&self) -> bool {
        match self {
            Self::Tool { state, .. } => state.is_cancelled() || state.is_overdue(Instant::now()),
            Self::Program { connection, .. } => connection.close_signals.closed.is_cancelled(),
        }
    }

    /// Waits until pending requests must be abandoned, and returns their error. Cancel safe.
    pub(crate) async fn cancelled(&self) -> HostError {
        match self {
            Self::Tool { state, .. } => {
                state.cancelled().await;
                HostError::Cancelled
            }
            // Requests that began before `close` continue until the client stops waiting for them.
            Self::Program { connection, .. } => {
                connection.close_signals.abort.cancelled().await;
                HostError::Aborted
            }
        }
    }

    /// Waits until watches of this caller must end. Returns the error to report to their readers. Cancel safe.
    pub(crate) async fn watch_end(&self) -> Result<(), HostError> {
        match self {
            Self::Tool { state, .. } => {
                state.ended().await;
                Ok(())
            }
            Self::Program { connection, .. } => {
                connection.close_signals.closed.cancelled().await;
                Err(HostError::Closed)
            }
        }
    }

    /// Reports in requests that this thread blocks the event loop of a worker that runs several calls, until the returned guard is
    /// dropped. `None` on other threads.
    pub(crate) fn block_loop(&self) -> Option<LoopBlock> {
        match self {
            Self::Tool { state, .. } if is_loop_thread() => {
                state.set_blocking(true);
                Some(LoopBlock(Arc::clone(state)))
            }
            _ => None,
        }
    }

    /// Adds the headers for the trace context, the id of the waiting worker, and the waiting call if the worker runs several.
    pub(crate) fn add_headers(&self, headers: &mut MetadataMap) {
        if let Self::Tool { state, worker_id, .. } = self
            && let Ok(value) = worker_id.parse()
        {
            headers.insert(headers::WORKER_ID, value);
            if is_concurrent() {
                headers.insert(headers::CALL_ID, MetadataValue::from(state.id.as_u64()));
            }
            if state.is_blocking() {
                headers.insert(headers::BLOCKS_WORKER, MetadataValue::from_static("true"));
            }
        }
        if let Self::Program { connection, .. } = self {
            add_to(headers, &connection.headers);
        }
        headers.insert(headers::TAKES_BUFFERS, MetadataValue::from_static("true"));
        let Some(TraceContext { traceparent, tracestate }) = self.trace() else { return };
        // A trace context that arrived as headers is valid in headers. The host validated any other.
        if let Ok(value) = traceparent.parse() {
            headers.insert(headers::TRACEPARENT, value);
        }
        if let Some(Ok(value)) = tracestate.as_ref().map(|state| state.parse()) {
            headers.insert(headers::TRACESTATE, value);
        }
    }
}

/// Marks a call as blocking the event loop, until it is dropped.
#[derive(Debug)]
pub(crate) struct LoopBlock(Arc<CallState>);

impl Drop for LoopBlock {
    fn drop(&mut self) {
        self.0.set_blocking(false);
    }
}
