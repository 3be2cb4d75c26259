//! Runs a call on a worker: waits for a lease, calls the worker's handler, and holds the lease until the reply is
//! complete.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use snakepit_registry::{
    CallMode, CallProgress, CallStage, CallTimeline, ReplyBody, ToolCall, ToolError, ToolReply,
};
use snakepit_worker::WorkerId;
use tokio::time::Instant;
use tower::Service;
use tracing::{Span, field};

use crate::{
    attempt::AttemptError,
    driver::{Acquire, AcquireError, Ancestry, Driver, LastFailure, Lease},
    scheduler::Rejection,
};

/// The innermost service of the stack. Always ready, because each call waits for its own worker.
#[derive(Debug, Clone)]
pub(crate) struct Dispatch {
    driver: Arc<Driver>,
}

impl Dispatch {
    pub(crate) const fn new(driver: Arc<Driver>) -> Self {
        Self { driver }
    }
}

impl Service<Arc<ToolCall>> for Dispatch {
    type Response = ToolReply;
    type Error = AttemptError;
    type Future = Pin<Box<dyn Future<Output = Result<ToolReply, AttemptError>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), AttemptError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Arc<ToolCall>) -> Self::Future {
        let driver = Arc::clone(&self.driver);
        let mut ancestry = Ancestry::of(&call, &driver);
        let mut acquire = Acquire::new(driver, &call);
        let pool = Arc::clone(&self.driver);
        Box::pin(async move {
            loop {
                // Polled in place, because a queued call holds this future.
                let lease = match (&mut acquire).await {
                    Ok(lease) => lease,
                    Err(error) => return Err(to_tool_error(error, &call.tool, &pool).into()),
                };
                match run_call(lease, &call, &mut ancestry).await {
                    Outcome::Answered(answer) => return answer,
                    Outcome::Requeued(requeued) => acquire = requeued,
                }
            }
        })
    }
}

/// The result of calling a worker's handler.
enum Outcome {
    Answered(Result<ToolReply, AttemptError>),
    /// The worker returned the call without having begun it. The call waits for another worker.
    Requeued(Acquire),
}

/// Calls the worker's handler. This is not an `async fn`, whose future would store the lease twice.
fn run_call<'a>(
    mut lease: Lease,
    call: &'a ToolCall,
    ancestry: &'a mut Option<Box<Ancestry>>,
) -> impl Future<Output = Outcome> + Send + 'a {
    let live_worker = Arc::clone(lease.live_worker());
    async move {
        let id = live_worker.handle.id();
        Span::current().record("worker", field::display(id));
        if let Some(progress) = CallProgress::of(call) {
            progress.begin();
        }
        let timeline = CallTimeline::of(call);
        if let Some(timeline) = timeline {
            timeline.assigned(id.shared());
        }
        let result = {
            // The call is dropped before the lease, so the worker is freed only after the last poll of the call.
            let mut running = live_worker.handle.handler().call(call.clone());
            let mut poll_running = |cx: &mut Context<'_>| {
                let polled = running.as_mut().poll(cx);
                if let Some(timeline) = timeline {
                    // The first poll hands the call to the worker.
                    timeline.sent();
                }
                polled
            };
            poll_fn(|cx| lease.poll(cx, &mut poll_running)).await
        };
        match result {
            Ok(Ok(reply)) => {
                lease.hold_ancestry(ancestry.take());
                Outcome::Answered(complete(reply, lease, call.mode, id))
            }
            Ok(Err(ToolError::Recalled { .. })) if lease.is_brief() => {
                if let Some(timeline) = timeline {
                    timeline.recalled();
                }
                Outcome::Requeued(lease.requeue())
            }
            Ok(Err(error)) => Outcome::Answered(Err(lease.fail(error))),
            // Drops the lease unfinished, because the worker may still run the call.
            Err(error) => Outcome::Answered(Err(error.into())),
        }
    }
}

/// Ends the lease, or attaches it to a streamed reply.
fn complete(
    mut reply: ToolReply,
    lease: Lease,
    mode: CallMode,
    id: &WorkerId,
) -> Result<ToolReply, AttemptError> {
    reply.worker.get_or_insert_with(|| id.shared());
    match (&mut reply.body, mode) {
        (ReplyBody::Value(_), CallMode::Unary) => lease.finish(reply.execution_time),
        (ReplyBody::Stream(stream), CallMode::Streaming) => lease.attach_to(stream),
        (body, mode) => {
            let problem = format!("worker `{id}` answered a {mode:?} call with {body:?}");
            return Err(ToolError::internal(problem).into());
        }
    }
    Ok(reply)
}

/// Estimates the time until the queue has room: about as long as its oldest call has waited.
fn retry_after(oldest: Duration) -> Option<Duration> {
    Some(oldest.clamp(Duration::from_millis(50), Duration::from_secs(10)))
}

/// Converts the error of a call that did not get a worker.
fn to_tool_error(error: AcquireError, tool: &Arc<str>, pool: &Driver) -> ToolError {
    match error {
        AcquireError::Rejected(Rejection::Overloaded { queued, oldest }) => {
            ToolError::overloaded(queued, pool.config.queue_limit).with_retry_after(retry_after(oldest))
        }
        AcquireError::Rejected(Rejection::TooManyBytes { used, oldest }) => {
            ToolError::too_many_bytes("calls that wait for a worker", used, pool.config.queue_bytes)
                .with_retry_after(retry_after(oldest))
        }
        AcquireError::Rejected(Rejection::Draining) => ToolError::shutting_down(false),
        AcquireError::Rejected(Rejection::NoWorkers { next_attempt }) => {
            // A slot fails only after a failed launch or an exit, and both set the last failure.
            let (reason, last_error) =
                pool.last_failure().map(LastFailure::into_reason_and_error).unwrap_or_default();
            let retry_after = next_attempt.map(|at| at.saturating_duration_since(Instant::now()));
            ToolError::unavailable(reason).with_last_error(last_error).with_retry_after(retry_after)
        }
        AcquireError::Expired => ToolError::deadline_exceeded(tool.to_string(), CallStage::Queued),
        AcquireError::Deadlock => ToolError::deadlock(tool.to_string()),
        AcquireError::RuntimeEnded => ToolError::runtime_ended(false),
        AcquireError::Cancelled => ToolError::cancelled(tool.to_string()),
    }
}
