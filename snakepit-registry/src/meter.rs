//! [`Meter`]: counts the calls to one host tool, and creates their spans.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_core::Stream;
use serde::Serialize;
use tokio::time::Instant;
use tracing::{Span, field};

use crate::{Chunk, ChunkStream, ReplyBody, ToolCall, ToolError, ToolReply};

/// The calls to one host tool since the start of the host.
///
/// Calls that the host rejects before the tool runs do not count, for example because an argument is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct HostToolStatus {
    /// The name of the tool.
    pub name: String,
    /// Whether Python tools can list and call the tool.
    pub exposed: bool,
    /// The number of calls that have begun.
    pub calls: u64,
    /// The number of calls that run now. A streaming call runs until its stream ends.
    pub in_flight: u64,
    /// The number of calls that ended with an error or a panic.
    pub failures: u64,
    /// The number of calls that were dropped before their end: by a cancellation, at their deadline, or by a shutdown.
    pub cancelled: u64,
    /// The total time of all calls that have ended.
    pub total_time: Duration,
}

/// The counters of one host tool.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    begun: AtomicU64,
    ended: AtomicU64,
    failed: AtomicU64,
    cancelled: AtomicU64,
    total_nanoseconds: AtomicU64,
}

impl Meter {
    /// Counts the start of a call.
    pub(crate) fn begin(self: &Arc<Self>, call: &ToolCall) -> MeasuredCall {
        self.begun.fetch_add(1, Ordering::Relaxed);
        let span = tracing::debug_span!(
            "host_tool",
            tool = %call.tool,
            call = %call.id,
            session = call.session.as_ref().map(|session| session.as_str()),
            outcome = field::Empty,
        );
        MeasuredCall { meter: Some(Arc::clone(self)), began: Instant::now(), span }
    }

    /// The current values.
    pub(crate) fn status(&self, name: &str, exposed: bool) -> HostToolStatus {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        // Ended calls are read first, so that the difference is never negative.
        let ended = read(&self.ended);
        let calls = read(&self.begun);
        HostToolStatus {
            name: name.to_owned(),
            exposed,
            calls,
            in_flight: calls.saturating_sub(ended),
            failures: read(&self.failed),
            cancelled: read(&self.cancelled),
            total_time: Duration::from_nanos(read(&self.total_nanoseconds)),
        }
    }
}

/// A running call. Dropping it counts the call as cancelled.
#[derive(Debug)]
pub(crate) struct MeasuredCall {
    /// `None` after the end.
    meter: Option<Arc<Meter>>,
    began: Instant,
    span: Span,
}

impl MeasuredCall {
    pub(crate) const fn span(&self) -> &Span {
        &self.span
    }

    /// Counts the end of the call, or for a stream, the end of the stream.
    pub(crate) fn finish(mut self, result: Result<ToolReply, ToolError>) -> Result<ToolReply, ToolError> {
        match result {
            Err(error) => {
                self.end(Outcome::Error);
                Err(error)
            }
            Ok(ToolReply { body: ReplyBody::Stream(chunks), metadata, worker, execution_time }) => {
                let body = ReplyBody::Stream(Box::pin(MeasuredStream { chunks, call: self }));
                Ok(ToolReply { body, metadata, worker, execution_time })
            }
            Ok(reply) => {
                self.end(Outcome::Ok);
                Ok(reply)
            }
        }
    }

    /// Counts the end, once.
    fn end(&mut self, outcome: Outcome) {
        let Some(meter) = self.meter.take() else { return };
        let time = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        meter.total_nanoseconds.fetch_add(time, Ordering::Relaxed);
        let (counter, name) = match outcome {
            Outcome::Ok => (None, "ok"),
            Outcome::Error => (Some(&meter.failed), "error"),
            Outcome::Cancelled => (Some(&meter.cancelled), "cancelled"),
        };
        if let Some(counter) = counter {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        meter.ended.fetch_add(1, Ordering::Relaxed);
        self.span.record("outcome", name);
    }
}

impl Drop for MeasuredCall {
    fn drop(&mut self) {
        self.end(Outcome::Cancelled);
    }
}

#[derive(Debug, Clone, Copy)]
enum Outcome {
    Ok,
    Error,
    Cancelled,
}

/// The stream of a measured call.
struct MeasuredStream {
    chunks: ChunkStream,
    call: MeasuredCall,
}

impl Stream for MeasuredStream {
    type Item = Result<Chunk, ToolError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let item = this.call.span.in_scope(|| this.chunks.as_mut().poll_next(cx));
        match &item {
            Poll::Ready(None) => this.call.end(Outcome::Ok),
            Poll::Ready(Some(Err(_))) => this.call.end(Outcome::Error),
            Poll::Ready(Some(Ok(_))) | Poll::Pending => {}
        }
        item
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;
    use snakepit_session::Payload;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn every_end_of_a_call_counts_once() {
        let meter = Arc::new(Meter::default());
        let counts = || {
            let status = meter.status("t", true);
            [status.calls, status.in_flight, status.failures, status.cancelled]
        };
        let call = ToolCall::new("t");
        let value = meter.begin(&call);
        assert_eq!(counts(), [1, 1, 0, 0]);
        tokio::time::advance(Duration::from_secs(2)).await;
        value.finish(Ok(ToolReply::value(Payload::null()))).unwrap();
        assert_eq!(counts(), [1, 0, 0, 0]);
        assert_eq!(meter.status("t", true).total_time, Duration::from_secs(2));

        let failed = Err(ToolError::internal("x"));
        assert!(meter.begin(&call).finish(failed).is_err());
        drop(meter.begin(&call));
        assert_eq!(counts(), [3, 0, 1, 1]);

        let chunks = futures_util::stream::iter([Err(ToolError::internal("x"))]);
        let reply = meter.begin(&call).finish(Ok(ToolReply::stream(Box::pin(chunks)))).unwrap();
        let ReplyBody::Stream(mut chunks) = reply.body else { panic!("a value") };
        assert_eq!(counts(), [4, 1, 1, 1], "a stream runs until its end");
        assert!(chunks.next().await.unwrap().is_err());
        drop(chunks);
        assert_eq!(counts(), [4, 0, 2, 1]);

        let endless = Box::pin(futures_util::stream::pending());
        drop(meter.begin(&call).finish(Ok(ToolReply::stream(endless))).unwrap());
        assert_eq!(counts(), [5, 0, 2, 2]);
    }
}
