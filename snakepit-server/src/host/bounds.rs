//! Ends what the host runs itself: session lookups, host tools and their streams. Each ends at its call's deadline, or when
//! the host cuts off what is left at the end of its drain.
//!
//! Calls on workers are not bounded here: the pool keeps their deadlines, and knows how far each has come
//! ([`ToolHandler::keeps_deadlines`](snakepit_registry::ToolHandler::keeps_deadlines)).

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

/// When one call must end, at the latest.
#[derive(Debug, Clone)]
pub(crate) struct Bounds {
    tool: Arc<str>,
    deadline: Option<Instant>,
    /// Cancelled when the host cuts off its calls.
    cut: CancellationToken,
}

impl Bounds {
    pub(crate) fn of(call: &ToolCall, cut: &CancellationToken) -> Self {
        Self { tool: Arc::clone(&call.tool), deadline: call.deadline, cut: cut.clone() }
    }

    /// Waits for a future within the bounds. One that is ready at its first poll costs no timer.
    ///
    /// # Errors
    /// [`ToolError::DeadlineExceeded`] with this stage, without polling the future when there is no time left;
    /// [`ToolError::ShuttingDown`]; [`ToolError::NoRuntime`] when a timer is needed and there is no runtime.
    pub(crate) async fn within<T>(
        &self,
        stage: CallStage,
        future: impl Future<Output = Result<T, ToolError>>,
    ) -> Result<T, ToolError> {
        if self.deadline.is_some_and(|at| at <= Instant::now()) {
            return Err(self.exceeded(CallStage::Queued));
        }
        let (mut future, mut end) = (pin!(future), None);
        poll_fn(|cx| {
            // The future first: an answer that comes at the last moment still counts.
            if let Poll::Ready(answer) = future.as_mut().poll(cx) {
                return Poll::Ready(answer);
            }
            self.poll_end(&mut end, stage, cx).map(Err)
        })
        .await
    }

    /// Bounds the stream of a reply, if it is one. `in_flight` counts as long as the stream lives.
    pub(crate) fn bound(self, reply: ToolReply, in_flight: Option<TaskTrackerToken>) -> ToolReply {
        let ReplyBody::Stream(chunks) = reply.body else { return reply };
        let bounded = Bounded { open: Some((chunks, in_flight)), bounds: self, end: None };
        ToolReply { body: ReplyBody::Stream(Box::pin(bounded)), ..reply }
    }

    fn poll_end(
        &self,
        end: &mut Option<Box<End>>,
        stage: CallStage,
        cx: &mut Context<'_>,
    ) -> Poll<ToolError> {
        let end = match end {
            Some(end) => end,
            None => match self.end() {
                Ok(made) => end.insert(made),
                Err(error) => return Poll::Ready(error),
            },
        };
        if end.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(ToolError::ShuttingDown { delivered: stage == CallStage::Running });
        }
        match &mut end.deadline {
            Some(deadline) => deadline.as_mut().poll(cx).map(|()| self.exceeded(stage)),
            None => Poll::Pending,
        }
    }

    fn end(&self) -> Result<Box<End>, ToolError> {
        let deadline = match self.deadline {
            Some(_) if tokio::runtime::Handle::try_current().is_err() => {
                return Err(ToolError::outside_runtime());
            }
            Some(at) => Some(Box::pin(sleep_until(at))),
            None => None,
        };
        Ok(Box::new(End { deadline, cut: Box::pin(self.cut.clone().cancelled_owned()) }))
    }

    fn exceeded(&self, stage: CallStage) -> ToolError {
        ToolError::DeadlineExceeded { tool: self.tool.to_string(), stage }
    }
}

/// What a call that had no answer at first waits for besides.
struct End {
    deadline: Option<Pin<Box<Sleep>>>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

/// A stream that ends within bounds.
struct Bounded {
    /// `None` once it has ended.
    open: Option<(ChunkStream, Option<TaskTrackerToken>)>,
    bounds: Bounds,
    end: Option<Box<End>>,
}

impl Stream for Bounded {
    type Item = Result<Chunk, ToolError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let Some((chunks, _)) = &mut this.open else { return Poll::Ready(None) };
        // The end first: a stream that always has a chunk ready must not run on for ever.
        if let Poll::Ready(error) = this.bounds.poll_end(&mut this.end, CallStage::Running, cx) {
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
