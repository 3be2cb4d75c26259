//! [`Caller`]: on whose behalf the host is called, and what ends that.

use std::{sync::Arc, time::Duration};

use snakepit_proto::headers;
use snakepit_registry::TraceContext;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;

use crate::{host::HostError, state::CallState};

/// On whose behalf the host is called.
#[derive(Debug, Clone)]
pub(crate) enum Caller {
    /// A tool, while the call that it serves lasts.
    Tool { state: Arc<CallState>, trace: Option<TraceContext>, worker_id: Arc<str> },
    /// A program that is no worker, until it closes its client. Each of its requests may take so long.
    Program { end: ClientEnd, timeout: Option<Duration> },
}

/// How a client ends.
#[derive(Debug, Clone, Default)]
pub(crate) struct ClientEnd {
    /// Cancelled once it is closed: nothing new begins, and watches end.
    pub(crate) closed: CancellationToken,
    /// Cancelled once it has waited long enough for what was under way.
    pub(crate) cut: CancellationToken,
}

/// How long a request for a session's state may take, unless its caller says something else.
const STATE_TIMEOUT: Duration = Duration::from_secs(30);

impl Caller {
    /// Whether it may ask the host for anything.
    ///
    /// # Errors
    /// [`HostError::Closed`] when the client is.
    pub(crate) fn check(&self) -> Result<(), HostError> {
        match self {
            Self::Program { end, .. } if end.closed.is_cancelled() => Err(HostError::Closed),
            _ => Ok(()),
        }
    }

    /// Until when a request that begins now has to be answered.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Tool { state, .. } => state.deadline,
            Self::Program { timeout, .. } => Instant::now().checked_add(timeout.unwrap_or(STATE_TIMEOUT)),
        }
    }

    /// Until when a stream that begins now may last.
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

    /// Whether it is time to stop.
    pub(crate) fn is_cancelled(&self) -> bool {
        match self {
            Self::Tool { state, .. } => state.is_cancelled() || state.is_overdue(Instant::now()),
            Self::Program { end, .. } => end.closed.is_cancelled(),
        }
    }

    /// Waits until what is on its way to the host is to be given up. Cancel safe.
    pub(crate) async fn cancelled(&self) -> HostError {
        match self {
            Self::Tool { state, .. } => {
                state.cancelled().await;
                HostError::Cancelled
            }
            // What began before the client was closed goes on until then.
            Self::Program { end, .. } => {
                end.cut.cancelled().await;
                HostError::Cut
            }
        }
    }

    /// Waits until nothing is wanted of the host any more; an error is to be told. Cancel safe.
    pub(crate) async fn ended(&self) -> Result<(), HostError> {
        match self {
            Self::Tool { state, .. } => {
                state.ended().await;
                Ok(())
            }
            Self::Program { end, .. } => {
                end.closed.cancelled().await;
                Err(HostError::Closed)
            }
        }
    }

    /// Says in a request's headers to which trace it belongs, and which worker waits for it.
    pub(crate) fn introduce(&self, headers: &mut MetadataMap) {
        if let Self::Tool { worker_id, .. } = self
            && let Ok(value) = worker_id.parse()
        {
            headers.insert(headers::WORKER_ID, value);
        }
        let Some(TraceContext { traceparent, tracestate }) = self.trace() else { return };
        // What came in as a header goes out as one; anything else would have been refused on the way in.
        if let Ok(value) = traceparent.parse() {
            headers.insert(headers::TRACEPARENT, value);
        }
        if let Some(Ok(value)) = tracestate.as_ref().map(|state| state.parse()) {
            headers.insert(headers::TRACESTATE, value);
        }
    }
}
