//! Bounds the parts of a call that the host runs itself, which are session lookups, host tools and their streams. Each ends at
//! the deadline of its call, or when the host aborts its calls at the end of the drain.
//!
//! The pool bounds calls on workers, because it can report how far each got
//! ([`ToolHandler::enforces_deadlines`](snakepit_registry::ToolHandler::enforces_deadlines)).

#[cfg(test)]
mod tests;

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
};

use futures_core::Stream;
use snakepit_registry::{CallStage, Chunk, ChunkStream, ReplyBody, ToolCall, ToolError, ToolReply};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::{
    sync::{CancellationToken, WaitForCancellationFutureOwned},
    task::task_tracker::TaskTrackerToken,
};

/// The deadline of one call, and the host's cut-off.
#[derive(Debug, Clone)]
pub(crate) struct CallBounds {
    tool: Arc<str>,
    deadline: Option<Instant>,
    /// Cancelled when the host aborts its calls.
    cut: CancellationToken,
}

impl CallBounds {
    pub(crate) fn new(call: &ToolCall, cut: &CancellationToken) -> Self {
        Self { tool: Arc::clone(&call.tool), deadline: call.deadline, cut: cut.clone() }
    }

    /// Waits for a future within the bounds. A future that is ready at the first poll needs no timer.
    ///
    /// # Errors
    /// - [`ToolError::DeadlineExceeded`] with this stage. If the deadline has already passed, the future is not polled, and the
    ///   stage is [`CallStage::Queued`].
    /// - [`ToolError::ShuttingDown`] at the cut-off.
    /// - [`ToolError::NoRuntime`] if a timer is needed outside of a runtime.
    pub(crate) async fn within<T>(
        &self,
        stage: CallStage,
        future: impl Future<Output = Result<T, ToolError>>,
    ) -> Result<T, ToolError> {
        if self.deadline.is_some_and(|at| at <= Instant::now()) {
            return Err(self.deadline_exceeded(CallStage::Queued));
        }
        let (mut future, mut early_end) = (pin!(future), None);
        poll_fn(|cx| {
            // Polls the future first, so that a reply takes precedence over a deadline at the same time.
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(output);
            }
            self.poll_end(&mut early_end, stage, cx).map(Err)
        })
        .await
    }

    /// Bounds a reply that is a stream. The stream holds `in_flight` until it ends.
    pub(crate) fn bound(self, reply: ToolReply, in_flight: Option<TaskTrackerToken>) -> ToolReply {
        let ReplyBody::Stream(chunks) = reply.body else { return reply };
        let bounded = BoundedStream { open: Some((chunks, in_flight)), bounds: self, early_end: None };
        ToolReply { body: ReplyBody::Stream(Box::pin(bounded)), ..reply }
    }

    /// Resolves to an error at the deadline or the cut-off. Creates the timer at the first poll.
    fn poll_end(
        &self,
        early_end: &mut Option<Box<EarlyEnd>>,
        stage: CallStage,
        cx: &mut Context<'_>,
    ) -> Poll<ToolError> {
        let early_end = match early_end {
            Some(early_end) => early_end,
            None => match self.early_end(stage) {
                Ok(created) => early_end.insert(created),
                Err(error) => return Poll::Ready(error),
            },
        };
        if early_end.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(ToolError::shutting_down(stage == CallStage::Running));
        }
        match &mut early_end.deadline {
            Some(deadline) => deadline.as_mut().poll(cx).map(|()| self.deadline_exceeded(stage)),
            None => Poll::Pending,
        }
    }

    fn early_end(&self, stage: CallStage) -> Result<Box<EarlyEnd>, ToolError> {
        let deadline = match self.deadline {
            Some(_) if tokio::runtime::Handle::try_current().is_err() => {
                return Err(ToolError::no_runtime(stage == CallStage::Running));
            }
            Some(at) => Some(Box::pin(sleep_until(at))),
            None => None,
        };
        Ok(Box::new(EarlyEnd { deadline, cut: Box::pin(self.cut.clone().cancelled_owned()) }))
    }

    fn deadline_exceeded(&self, stage: CallStage) -> ToolError {
        ToolError::deadline_exceeded(self.tool.to_string(), stage)
    }
}

/// The events that end a call early.
struct EarlyEnd {
    deadline: Option<Pin<Box<Sleep>>>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

/// A stream that ends within the bounds of its call.
struct BoundedStream {
    /// `None` after the end.
    open: Option<(ChunkStream, Option<TaskTrackerToken>)>,
    bounds: CallBounds,
    /// `None` before the first poll.
    early_end: Option<Box<EarlyEnd>>,
}

impl Stream for BoundedStream {
    type Item = Result<Chunk, ToolError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let Some((chunks, _)) = &mut this.open else { return Poll::Ready(None) };
        // Polls the bounds first, so that a stream whose next chunk is always ready also ends.
        if let Poll::Ready(error) = this.bounds.poll_end(&mut this.early_end, CallStage::Running, cx) {
            this.open = None;
            return Poll::Ready(Some(Err(error)));
        }
        let polled = chunks.as_mut().poll_next(cx);
        if let Poll::Ready(None | Some(Err(_))) = polled {
            this.open = None;
        }
        polled
    }
}
