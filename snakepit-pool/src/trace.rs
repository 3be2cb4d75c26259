//! Creates one span per call. The span of a streaming call ends with its stream.
//!
//! Spans have the level DEBUG, because a span costs the host more than the rest of a short call.

#[cfg(test)]
mod tests;

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_core::Stream;
use pin_project_lite::pin_project;
use snakepit_registry::{CallId, Chunk, ChunkStream, ReplyBody, ToolCall, ToolError, ToolReply};
use snakepit_worker::error_chain;
use tower::{Layer, Service};
use tracing::{Span, field};

use crate::chunks::wrap;

/// The layer of [`Trace`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct TraceLayer;

impl<S> Layer<S> for TraceLayer {
    type Service = Trace<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Trace { inner }
    }
}

/// Runs each call in a span.
#[derive(Debug, Clone)]
pub(crate) struct Trace<S> {
    inner: S,
}

impl<S> Service<ToolCall> for Trace<S>
where
    S: Service<ToolCall, Response = ToolReply, Error = ToolError>,
{
    type Response = ToolReply;
    type Error = ToolError;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ToolError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, call: ToolCall) -> Self::Future {
        let span = tracing::debug_span!(
            "tool_call",
            tool = %call.tool,
            call = %call.id,
            session = call.session.as_ref().map(|session| session.as_str()),
            // Recorded when the call gets a worker.
            worker = field::Empty,
            outcome = field::Empty,
        );
        let info = CallInfo { tool: Arc::clone(&call.tool), call: call.id };
        let inner = span.in_scope(|| self.inner.call(call));
        ResponseFuture { inner, span, info }
    }
}

pin_project! {
    /// Runs one call in its span.
    #[derive(Debug)]
    pub(crate) struct ResponseFuture<F> {
        #[pin]
        inner: F,
        span: Span,
        info: CallInfo,
    }
}

/// The fields of log events about a failure. The span has them too, but is disabled unless the level DEBUG is enabled.
#[derive(Debug, Clone)]
struct CallInfo {
    tool: Arc<str>,
    call: CallId,
}

impl<F: Future<Output = Result<ToolReply, ToolError>>> Future for ResponseFuture<F> {
    type Output = Result<ToolReply, ToolError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let _entered = this.span.enter();
        let mut result = ready!(this.inner.poll(cx));
        match &mut result {
            Ok(ToolReply { body: ReplyBody::Value(_), .. }) => record_outcome(this.span, this.info, Ok(())),
            Ok(ToolReply { body: ReplyBody::Stream(stream), .. }) => {
                let (span, info) = (this.span.clone(), this.info.clone());
                wrap(stream, |inner| TracedStream { inner, span, info, has_ended: false });
            }
            Err(error) => record_outcome(this.span, this.info, Err(error)),
        }
        Poll::Ready(result)
    }
}

/// Runs a stream in the span of its call.
struct TracedStream {
    inner: ChunkStream,
    span: Span,
    info: CallInfo,
    /// Whether the outcome was recorded. Readers may poll the stream again after an error.
    has_ended: bool,
}

impl Stream for TracedStream {
    type Item = Result<Chunk, ToolError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let _entered = this.span.enter();
        let item = ready!(this.inner.as_mut().poll_next(cx));
        match &item {
            Some(Ok(_)) => {}
            _ if std::mem::replace(&mut this.has_ended, true) => {}
            Some(Err(error)) => record_outcome(&this.span, &this.info, Err(error)),
            None => record_outcome(&this.span, &this.info, Ok(())),
        }
        Poll::Ready(item)
    }
}

/// Records the outcome of a call, inside its span. The span has the reason of an error, and the event has its message. Lost
/// workers and internal errors are warnings, because they concern the operator of the host. Other failures concern only the
/// caller.
fn record_outcome(span: &Span, CallInfo { tool, call }: &CallInfo, result: Result<(), &ToolError>) {
    match result {
        Ok(()) => {
            span.record("outcome", "ok");
            tracing::debug!("call succeeded");
        }
        Err(error @ (ToolError::WorkerLost { .. } | ToolError::Internal { .. })) => {
            span.record("outcome", error.kind().reason().as_str());
            tracing::warn!(%tool, %call, error = %error_chain(error), "call failed");
        }
        Err(error) => {
            span.record("outcome", error.kind().reason().as_str());
            tracing::debug!(error = %error_chain(error), "call failed");
        }
    }
}
