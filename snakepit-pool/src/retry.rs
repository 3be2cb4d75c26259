//! Retries calls whose worker was lost.
//!
//! A call that was not sent is retried until its deadline. So is a call that did not begin, up to a bound, because the worker
//! probably died of the call that it was running. If the worker had no other call, it probably died of this one, so the number of
//! attempts is small. A call that may have begun is retried only if its caller declared it idempotent. A stream is never retried after its reply.

#[cfg(test)]
mod tests;

use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use snakepit_registry::{ToolCall, ToolError, ToolReply};
use snakepit_worker::error_chain;
use tokio::time::Instant;
use tower::{Layer, Service};

use crate::{attempt::AttemptError, metrics::Totals};

/// How often the pool retries a call that was sent and did not begin, on workers that had other calls too.
const MAX_SAFE_RETRIES: usize = 100;

/// How often the pool retries a call that was sent and did not begin, on workers without other calls. Such a call probably kills
/// every worker that receives it.
const MAX_SOLE_CALL_RETRIES: usize = 4;

/// The layer of [`Retry`].
#[derive(Debug, Clone)]
pub(crate) struct RetryLayer {
    /// The maximum number of times that a call may begin, including the first.
    pub(crate) max_attempts: usize,
    pub(crate) totals: Arc<Totals>,
}

impl<S> Layer<S> for RetryLayer {
    type Service = Retry<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Retry { inner, max_attempts: self.max_attempts, totals: Arc::clone(&self.totals) }
    }
}

/// Retries calls whose worker was lost.
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
        // `poll_ready` made this instance ready, not its clone.
        let clone = self.inner.clone();
        let mut service = std::mem::replace(&mut self.inner, clone);
        let call = Arc::new(call);
        let attempt = Some(service.call(Arc::clone(&call)));
        ResponseFuture {
            attempt,
            service,
            call,
            run_retries: self.max_attempts.saturating_sub(1),
            safe_retries: MAX_SAFE_RETRIES,
            sole_call_retries: MAX_SOLE_CALL_RETRIES,
            earlier_error: None,
            totals: Arc::clone(&self.totals),
        }
    }
}

pin_project! {
    /// Retries one call until it ends with a reply, or with an error after which no retry is left or allowed.
    #[derive(Debug)]
    pub(crate) struct ResponseFuture<S: Service<Arc<ToolCall>>> {
        // `None` between two attempts, until the service is ready.
        #[pin]
        attempt: Option<S::Future>,
        service: S,
        // Shared with the attempt and kept for the next one.
        call: Arc<ToolCall>,
        // Remaining retries after the call may have begun.
        run_retries: usize,
        // Remaining retries after the call did not begin, on workers with other calls.
        safe_retries: usize,
        // Remaining retries after the call did not begin, on workers without other calls.
        sole_call_retries: usize,
        // The error of the last attempt that may have run.
        earlier_error: Option<Box<ToolError>>,
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
                        let remaining = match was_only_call {
                            _ if error.may_have_run() => Some(&mut *this.run_retries),
                            // The pool bounds these attempts, because each needs another worker that has started.
                            _ if !was_sent(&error) => None,
                            true => Some(&mut *this.sole_call_retries),
                            false => Some(&mut *this.safe_retries),
                        };
                        if remaining.as_ref().is_some_and(|remaining| **remaining == 0)
                            || !may_retry(&error, this.call)
                        {
                            return Poll::Ready(Err(with_earlier(error, this.earlier_error)));
                        }
                        if let Some(remaining) = remaining {
                            *remaining -= 1;
                        }
                        tracing::debug!(error = %error_chain(&error), "retrying the call");
                        this.totals.retried.fetch_add(1, Ordering::Relaxed);
                        if error.may_have_run() {
                            *this.earlier_error = Some(Box::new(error));
                        }
                    }
                }
                this.attempt.set(None);
            }
            ready!(this.service.poll_ready(cx))
                .map_err(|failed| with_earlier(failed.error, this.earlier_error))?;
            this.attempt.set(Some(this.service.call(Arc::clone(this.call))));
        }
    }
}

/// Returns the error for the caller, which takes the earlier attempts into account.
fn with_earlier(error: ToolError, earlier: &mut Option<Box<ToolError>>) -> ToolError {
    match earlier.take() {
        Some(earlier) => error.with_earlier_attempt(*earlier),
        None => error,
    }
}

const fn was_sent(error: &ToolError) -> bool {
    !matches!(error, ToolError::WorkerLost { was_sent: false, .. })
}

fn may_retry(error: &ToolError, call: &ToolCall) -> bool {
    matches!(error, ToolError::WorkerLost { .. })
        && (call.idempotent || !error.may_have_run())
        && call.deadline.is_none_or(|at| at > Instant::now())
}
