//! The client's own deadline for calls. It protects against a host that no longer responds, so it fires slightly later than the
//! host's.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::Stream;
use snakepit_registry::{CallStage, Chunk, ChunkStream, ToolError};
use snakepit_wire::mux::CallInfo;
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};

use super::CallStream;

/// The extra time for the host to report the deadline itself, with more detail.
pub(super) const GRACE: Duration = Duration::from_millis(200);

/// Waits for a reply until the deadline of its call and the grace period are over.
pub(super) async fn within<T>(
    info: &CallInfo,
    reply: impl Future<Output = Result<T, ToolError>>,
) -> Result<T, ToolError> {
    match end_of_wait(info) {
        Some(end) => timeout_at(end, reply).await.unwrap_or_else(|_| Err(deadline_exceeded(info))),
        None => reply.await,
    }
}

/// Returns the time at which the client stops waiting for the host.
fn end_of_wait(info: &CallInfo) -> Option<Instant> {
    info.deadline?.checked_add(GRACE)
}

fn deadline_exceeded(info: &CallInfo) -> ToolError {
    ToolError::deadline_exceeded(info.tool.to_string(), CallStage::Running)
}

/// The chunks of a call until its deadline. Keeps the call stream that delivers them open until its last item.
pub(super) struct BoundedChunks {
    /// The chunks and their call stream. `None` after the end.
    chunks: Option<(ChunkStream, Arc<CallStream>)>,
    info: CallInfo,
    timer: Option<Pin<Box<Sleep>>>,
}

impl BoundedChunks {
    pub(super) fn new(chunks: ChunkStream, info: CallInfo, stream: Arc<CallStream>) -> Self {
        let timer = end_of_wait(&info).map(|end| Box::pin(sleep_until(end)));
        Self { chunks: Some((chunks, stream)), info, timer }
    }
}

impl Stream for BoundedChunks {
    type Item = Result<Chunk, ToolError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let Some((chunks, _)) = &mut this.chunks else { return Poll::Ready(None) };
        // Polls the timer first, because chunks that keep arriving must not extend the deadline.
        if let Some(timer) = &mut this.timer
            && timer.as_mut().poll(cx).is_ready()
        {
            this.chunks = None;
            return Poll::Ready(Some(Err(deadline_exceeded(&this.info))));
        }
        let polled = chunks.as_mut().poll_next(cx);
        if let Poll::Ready(None | Some(Err(_))) = polled {
            this.chunks = None;
        }
        polled
    }
}
