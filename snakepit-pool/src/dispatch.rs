//! Brings a call to a worker: waits for a lease, hands the call over, and keeps the lease until the answer is complete.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use snakepit_registry::{CallMode, CallStage, ReplyBody, ToolCall, ToolError, ToolReply};
use snakepit_worker::WorkerId;
use tokio::time::Instant;
use tower::Service;
use tracing::{Span, field};

use crate::{
    attempt::AttemptError,
    driver::{Acquire, Ancestry, Denial, Lease, Shared},
    scheduler::Refusal,
};

/// The innermost service of the stack. Always ready: which worker takes a call depends on the call.
#[derive(Debug, Clone)]
pub(crate) struct Dispatch {
    shared: Arc<Shared>,
}

impl Dispatch {
    pub(crate) const fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
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
        let shared = Arc::clone(&self.shared);
        let mut ancestry = Ancestry::of(&call, &shared);
        let mut acquire = Acquire::new(shared, &call);
        let pool = Arc::clone(&self.shared);
        Box::pin(async move {
            loop {
                let lease = match acquire.await {
                    Ok(lease) => lease,
                    Err(denial) => return Err(denied(denial, &call.tool, &pool).into()),
                };
                match run(lease, &call, &mut ancestry).await {
                    Outcome::Answered(answer) => return answer,
                    Outcome::GivenBack(again) => acquire = again,
                }
            }
        })
    }
}

/// What came of handing a call to a worker.
enum Outcome {
    Answered(Result<ToolReply, AttemptError>),
    /// It did not begin, and waits for another worker.
    GivenBack(Acquire),
}

async fn run(mut lease: Lease, call: &ToolCall, ancestry: &mut Option<Box<Ancestry>>) -> Outcome {
    let member = Arc::clone(lease.member());
    let id = member.worker.id();
    Span::current().record("worker", field::display(id));
    let result = {
        // Dropped before the lease, so the worker is freed only after the last poll of the call.
        let mut running = member.worker.handler().call(call.clone());
        poll_fn(|cx| lease.poll(cx, |cx| running.as_mut().poll(cx))).await
    };
    match result {
        Ok(Ok(reply)) => {
            lease.keep(ancestry.take());
            Outcome::Answered(complete(reply, lease, call.mode, id))
        }
        Ok(Err(ToolError::Recalled { .. })) if lease.is_brief() => Outcome::GivenBack(lease.give_back()),
        Ok(Err(error)) => Outcome::Answered(Err(lease.fail(error))),
        // Drops the lease unfinished, because the worker may still run the call.
        Err(cut) => Outcome::Answered(Err(cut.into())),
    }
}

/// Ends the lease, or hands it to a streamed answer.
fn complete(
    mut reply: ToolReply,
    lease: Lease,
    mode: CallMode,
    id: &WorkerId,
) -> Result<ToolReply, AttemptError> {
    reply.worker.get_or_insert_with(|| id.shared());
    match (&mut reply.body, mode) {
        (ReplyBody::Value(_), CallMode::Unary) => lease.finish(reply.execution_time),
        (ReplyBody::Stream(stream), CallMode::Streaming) => lease.hold_for(stream),
        (body, mode) => {
            let problem = format!("worker `{id}` answered a {mode:?} call with {body:?}");
            return Err(ToolError::Internal { problem }.into());
        }
    }
    Ok(reply)
}

/// A place in the queue lasts about as long as its oldest call has waited.
fn retry_after(oldest: Duration) -> Option<Duration> {
    Some(oldest.clamp(Duration::from_millis(50), Duration::from_secs(10)))
}

/// Says why a call got no worker.
fn denied(denial: Denial, tool: &Arc<str>, pool: &Shared) -> ToolError {
    match denial {
        Denial::Refused(Refusal::Overloaded { queued, oldest }) => {
            ToolError::Overloaded { queued, limit: pool.config.queue_limit, retry_after: retry_after(oldest) }
        }
        Denial::Refused(Refusal::TooMuchAtOnce { used, oldest }) => ToolError::TooMuchAtOnce {
            whose: "calls that wait for a worker".to_owned(),
            used,
            limit: pool.config.queue_bytes,
            retry_after: retry_after(oldest),
        },
        Denial::Refused(Refusal::Draining) => ToolError::ShuttingDown { delivered: false },
        Denial::Refused(Refusal::NoWorkers { next_attempt }) => ToolError::Unavailable {
            reason: pool.trouble(),
            retry_after: next_attempt.map(|at| at.saturating_duration_since(Instant::now())),
        },
        Denial::Expired => ToolError::DeadlineExceeded { tool: tool.to_string(), stage: CallStage::Queued },
        Denial::Deadlock => ToolError::Deadlock { tool: tool.to_string() },
        Denial::Orphaned => ToolError::runtime_ended(),
        Denial::Cancelled => ToolError::Cancelled { tool: tool.to_string() },
    }
}
