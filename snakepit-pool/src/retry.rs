//! Tries a call again when its worker was lost, as far as that cannot do harm.
//!
//! A call that never began is tried again until its deadline, because the loss of its worker has nothing to do with it: a
//! worker that dies holds calls that wait behind the running one. A call that may have begun is tried again only if its caller
//! declared it idempotent. Streams are retried only before they begin, so never after a first chunk.

#[cfg(test)]
mod tests;

use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use snakepit_registry::{ToolCall, ToolError, ToolReply};
use tokio::time::Instant;
use tower::{Layer, Service};

use crate::{attempt::AttemptError, metrics::Totals};

/// How often a call is retried that did not begin before its worker was lost.
const MAX_UNDELIVERED: usize = 100;

/// How often such a call is retried if it was the only call of its worker, and so probably kills workers that receive it.
const MAX_UNDELIVERED_ALONE: usize = 4;

/// Makes [`Retry`].
#[derive(Debug, Clone)]
pub(crate) struct RetryLayer {
    /// How often a call may begin, the first time included.
    pub(crate) max_attempts: usize,
    pub(crate) totals: Arc<Totals>,
}

impl<S> Layer<S> for RetryLayer {
    type Service = Retry<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Retry { inner, max_attempts: self.max_attempts, totals: Arc::clone(&self.totals) }
    }
}

/// Tries calls again when their worker was lost.
#[derive(Debug, Clone)]
pub(crate) struct Retry<S> {
    inner: S,
    max_attempts: usize,
    totals: Arc<Totals>,
}

impl<S> Service<ToolCall> for Retry<S>
where
    S: Service<Arc<ToolCall>, Response = ToolReply, Error = AttemptError> + Clone,
{
    type Response = ToolReply;
    type Error = ToolError;
    type Future = ResponseFuture<S>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ToolError>> {
        self.inner.poll_ready(cx).map_err(|failed| failed.error)
    }

    fn call(&mut self, call: ToolCall) -> Self::Future {
        // The service that is ready takes the call; its clone, which is not, stays behind.
        let clone = self.inner.clone();
        let mut service = std::mem::replace(&mut self.inner, clone);
        let call = Arc::new(call);
        let attempt = Some(service.call(Arc::clone(&call)));
        ResponseFuture {
            attempt,
            service,
            call,
            left: self.max_attempts.saturating_sub(1),
            undelivered_left: MAX_UNDELIVERED,
            alone_left: MAX_UNDELIVERED_ALONE,
            totals: Arc::clone(&self.totals),
        }
    }
}

pin_project! {
    /// Tries one call until it is answered or its attempts are used up.
    #[derive(Debug)]
    pub(crate) struct ResponseFuture<S: Service<Arc<ToolCall>>> {
        // `None` while the service is not ready for the next attempt.
        #[pin]
        attempt: Option<S::Future>,
        service: S,
        // Shared with the attempt, for there may be a next one.
        call: Arc<ToolCall>,
        // How often the call may begin again.
        left: usize,
        // How many attempts may still end before the call begins.
        undelivered_left: usize,
        // The same for attempts that lost a worker without other calls.
        alone_left: usize,
        totals: Arc<Totals>,
    }
}

impl<S> Future for ResponseFuture<S>
where
    S: Service<Arc<ToolCall>, Response = ToolReply, Error = AttemptError>,
{
    type Output = Result<ToolReply, ToolError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            if let Some(attempt) = this.attempt.as_mut().as_pin_mut() {
                match ready!(attempt.poll(cx)) {
                    Ok(reply) => return Poll::Ready(Ok(reply)),
                    Err(AttemptError { error, was_only_call }) => {
                        let left = match was_only_call {
                            _ if error.is_delivered() => &mut *this.left,
                            true => &mut *this.alone_left,
                            false => &mut *this.undelivered_left,
                        };
                        if *left == 0 || !may_retry(&error, this.call) {
                            return Poll::Ready(Err(error));
                        }
                        *left -= 1;
                        tracing::debug!(%error, "retrying the call");
                        this.totals.retried.fetch_add(1, Ordering::Relaxed);
                    }
                }
                this.attempt.set(None);
            }
            ready!(this.service.poll_ready(cx)).map_err(|failed| failed.error)?;
            this.attempt.set(Some(this.service.call(Arc::clone(this.call))));
        }
    }
}

fn may_retry(error: &ToolError, call: &ToolCall) -> bool {
    matches!(error, ToolError::WorkerLost { .. })
        && (call.idempotent || !error.is_delivered())
        && call.deadline.is_none_or(|at| at > Instant::now())
}
