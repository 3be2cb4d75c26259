//! One span per call, which lives until the answer is complete: for a stream, until its end.
//!
//! At the level of debug, because a span costs more than all the rest that the host does for a short call.

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
use tower::{Layer, Service};
use tracing::{Span, field};

use crate::chunks::wrap;

/// Makes [`Trace`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct TraceLayer;

impl<S> Layer<S> for TraceLayer {
    type Service = Trace<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Trace { inner }
    }
}

/// Puts every call into a span of its own.
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
            // Known once the call has got one.
            worker = field::Empty,
            outcome = field::Empty,
        );
        let subject = Subject { tool: Arc::clone(&call.tool), call: call.id };
        let inner = span.in_scope(|| self.inner.call(call));
        ResponseFuture { inner, span, subject }
    }
}

pin_project! {
    /// Runs one call inside its span.
    #[derive(Debug)]
    pub(crate) struct ResponseFuture<F> {
        #[pin]
        inner: F,
        span: Span,
        subject: Subject,
    }
}

/// What a failure is about: told with it, because the span is there only where somebody asked for the level of detail.
#[derive(Debug, Clone)]
struct Subject {
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
            Ok(ToolReply { body: ReplyBody::Value(_), .. }) => conclude(this.span, this.subject, Ok(())),
            Ok(ToolReply { body: ReplyBody::Stream(stream), .. }) => {
                let (span, subject) = (this.span.clone(), this.subject.clone());
                wrap(stream, |inner| Traced { inner, span, subject, has_ended: false });
            }
            Err(error) => conclude(this.span, this.subject, Err(error)),
        }
        Poll::Ready(result)
    }
}

/// Runs a stream inside its call's span.
struct Traced {
    inner: ChunkStream,
    span: Span,
    subject: Subject,
    /// Readers poll on after an error, up to the end of the stream.
    has_ended: bool,
}

impl Stream for Traced {
    type Item = Result<Chunk, ToolError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let _entered = this.span.enter();
        let item = ready!(this.inner.as_mut().poll_next(cx));
        match &item {
            Some(Ok(_)) => {}
            _ if std::mem::replace(&mut this.has_ended, true) => {}
            Some(Err(error)) => conclude(&this.span, &this.subject, Err(error)),
            None => conclude(&this.span, &this.subject, Ok(())),
        }
        Poll::Ready(item)
    }
}

/// Records the outcome; called inside the span. A lost worker is the host's trouble, any other failure the caller's.
fn conclude(span: &Span, Subject { tool, call }: &Subject, result: Result<(), &ToolError>) {
    match result {
        Ok(()) => {
            span.record("outcome", "ok");
            tracing::debug!("call succeeded");
        }
        Err(error @ (ToolError::WorkerLost { .. } | ToolError::Internal { .. })) => {
            span.record("outcome", field::display(error));
            tracing::warn!(%tool, %call, %error, "call failed");
        }
        Err(error) => {
            span.record("outcome", field::display(error));
            tracing::debug!(%error, "call failed");
        }
    }
}
