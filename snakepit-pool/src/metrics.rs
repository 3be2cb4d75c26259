//! Counts calls by the outcome that the caller sees.
//!
//! A call counts when its reply is complete. A streaming call counts at the end of its stream. A call that its caller
//! drops counts as cancelled.

#[cfg(test)]
mod tests;

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use futures_core::Stream;
use pin_project_lite::pin_project;
use snakepit_registry::{
    CallOutcome, CallTotals, Chunk, ChunkStream, ReplyBody, ToolCall, ToolError, ToolReply,
};
use tower::{Layer, Service};

use crate::chunks::wrap;

/// The counters behind [`CallTotals`].
#[derive(Debug, Default)]
pub(crate) struct Totals {
    succeeded: AtomicU64,
    failed: AtomicU64,
    rejected: AtomicU64,
    timed_out: AtomicU64,
    cancelled: AtomicU64,
    lost: AtomicU64,
    pub(crate) retried: AtomicU64,
}

impl Totals {
    pub(crate) fn read(&self) -> CallTotals {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut totals = CallTotals::default();
        totals.succeeded = read(&self.succeeded);
        totals.failed = read(&self.failed);
        totals.rejected = read(&self.rejected);
        totals.timed_out = read(&self.timed_out);
        totals.cancelled = read(&self.cancelled);
        totals.lost = read(&self.lost);
        totals.retried = read(&self.retried);
        totals
    }

    fn counter_for(&self, error: &ToolError) -> &AtomicU64 {
        match error.outcome() {
            CallOutcome::Rejected => &self.rejected,
            CallOutcome::TimedOut => &self.timed_out,
            CallOutcome::Cancelled => &self.cancelled,
            CallOutcome::Lost => &self.lost,
            _ => &self.failed,
        }
    }
}

/// Counts one call: by its outcome, or as cancelled if the guard is dropped before.
#[derive(Debug)]
struct CallGuard {
    totals: Arc<Totals>,
    is_counted: bool,
}

impl CallGuard {
    fn count(&mut self, result: Result<(), &ToolError>) {
        if !std::mem::replace(&mut self.is_counted, true) {
            let counter =
                result.map_or_else(|error| self.totals.counter_for(error), |()| &self.totals.succeeded);
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for CallGuard {
    fn drop(&mut self) {
        if !self.is_counted {
            self.totals.cancelled.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The layer of [`Metrics`].
#[derive(Debug, Clone)]
pub(crate) struct MetricsLayer(pub(crate) Arc<Totals>);

impl<S> Layer<S> for MetricsLayer {
    type Service = Metrics<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Metrics { inner, totals: Arc::clone(&self.0) }
    }
}

/// Counts the outcomes of calls.
#[derive(Debug, Clone)]
pub(crate) struct Metrics<S> {
    inner: S,
    totals: Arc<Totals>,
}

impl<S> Service<ToolCall> for Metrics<S>
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
        let guard = CallGuard { totals: Arc::clone(&self.totals), is_counted: false };
        ResponseFuture { inner: self.inner.call(call), guard: Some(guard) }
    }
}

pin_project! {
    /// Counts one call.
    #[derive(Debug)]
    pub(crate) struct ResponseFuture<F> {
        #[pin]
        inner: F,
        guard: Option<CallGuard>,
    }
}

impl<F: Future<Output = Result<ToolReply, ToolError>>> Future for ResponseFuture<F> {
    type Output = Result<ToolReply, ToolError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut result = ready!(this.inner.poll(cx));
        let Some(mut guard) = this.guard.take() else { return Poll::Ready(result) };
        match &mut result {
            Ok(ToolReply { body: ReplyBody::Value(_), .. }) => guard.count(Ok(())),
            Ok(ToolReply { body: ReplyBody::Stream(stream), .. }) => {
                wrap(stream, |inner| CountedStream { inner, guard });
            }
            Err(error) => guard.count(Err(error)),
        }
        Poll::Ready(result)
    }
}

/// Counts a call at the end of its stream.
struct CountedStream {
    inner: ChunkStream,
    guard: CallGuard,
}

impl Stream for CountedStream {
    type Item = Result<Chunk, ToolError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let item = ready!(self.inner.as_mut().poll_next(cx));
        match &item {
            Some(Ok(_)) => {}
            Some(Err(error)) => self.guard.count(Err(error)),
            None => self.guard.count(Ok(())),
        }
        Poll::Ready(item)
    }
}
