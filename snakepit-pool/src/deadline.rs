//! Gives every call its deadline, for queueing, all attempts and the whole of a stream together; and ends streams then.
//!
//! Inside the layers that observe, outside the one that retries: the deadline is the caller's budget for everything. A call
//! that waits for a worker, or for its answer, needs no timer of its own: the [driver](crate::driver) has one for them all.

#[cfg(test)]
mod tests;

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_core::Stream;
use pin_project_lite::pin_project;
use snakepit_registry::{CallMode, CallStage, Chunk, ChunkStream, ReplyBody, ToolCall, ToolError, ToolReply};
use tokio::time::{Instant, Sleep, sleep_until};
use tower::{Layer, Service};

use crate::chunks::wrap;

/// Makes [`Deadline`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct DeadlineLayer {
    /// What a call without a deadline gets.
    pub(crate) default_timeout: Option<Duration>,
}

impl<S> Layer<S> for DeadlineLayer {
    type Service = Deadline<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Deadline { inner, default_timeout: self.default_timeout }
    }
}

/// Gives every call a deadline.
#[derive(Debug, Clone)]
pub(crate) struct Deadline<S> {
    inner: S,
    default_timeout: Option<Duration>,
}

impl<S> Service<ToolCall> for Deadline<S>
where
    S: Service<ToolCall, Response = ToolReply, Error = ToolError>,
{
    type Response = ToolReply;
    type Error = ToolError;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ToolError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut call: ToolCall) -> Self::Future {
        // A timeout too long for the clock is none.
        let by_default = || Instant::now().checked_add(self.default_timeout?);
        call.deadline = call.deadline.or_else(by_default);
        let streams = call.mode == CallMode::Streaming;
        let bound = call.deadline.filter(|_| streams).map(|deadline| (Arc::clone(&call.tool), deadline));
        ResponseFuture { inner: self.inner.call(call), bound }
    }
}

pin_project! {
    /// Bounds the answer of one call, if it is a stream.
    #[derive(Debug)]
    pub(crate) struct ResponseFuture<F> {
        #[pin]
        inner: F,
        bound: Option<(Arc<str>, Instant)>,
    }
}

impl<F: Future<Output = Result<ToolReply, ToolError>>> Future for ResponseFuture<F> {
    type Output = Result<ToolReply, ToolError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut result = ready!(this.inner.poll(cx));
        if let (Ok(ToolReply { body: ReplyBody::Stream(stream), .. }), Some((tool, deadline))) =
            (&mut result, this.bound.take())
        {
            let sleep = Box::pin(sleep_until(deadline));
            wrap(stream, |inner| Bounded { inner: Some(inner), tool, sleep });
        }
        Poll::Ready(result)
    }
}

/// Ends a stream at its call's deadline.
struct Bounded {
    /// `None` once it has ended.
    inner: Option<ChunkStream>,
    tool: Arc<str>,
    sleep: Pin<Box<Sleep>>,
}

impl Stream for Bounded {
    type Item = Result<Chunk, ToolError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let Some(inner) = &mut this.inner else { return Poll::Ready(None) };
        // A stream that always has a chunk ready must not run on for ever, so the clock comes first here.
        if this.sleep.as_mut().poll(cx).is_ready() {
            this.inner = None;
            let (tool, stage) = (this.tool.to_string(), CallStage::Running);
            return Poll::Ready(Some(Err(ToolError::DeadlineExceeded { tool, stage })));
        }
        inner.as_mut().poll_next(cx)
    }
}
