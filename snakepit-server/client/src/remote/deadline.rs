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

/// The extra time for the host's own answer, which carries more detail.
pub(super) const GRACE: Duration = Duration::from_millis(200);

/// Waits for an answer until the deadline of its call and the grace period are over.
pub(super) async fn within<T>(
    info: &CallInfo,
    answer: impl Future<Output = Result<T, ToolError>>,
) -> Result<T, ToolError> {
    match end_of_wait(info) {
        Some(end) => timeout_at(end, answer).await.unwrap_or_else(|_| Err(exceeded(info))),
        None => answer.await,
    }
}

/// Returns the time at which this side stops waiting for the host.
fn end_of_wait(info: &CallInfo) -> Option<Instant> {
    info.deadline?.checked_add(GRACE)
}

fn exceeded(info: &CallInfo) -> ToolError {
    ToolError::DeadlineExceeded { tool: info.tool.to_string(), stage: CallStage::Running }
}

/// Chunks until their deadline. Keeps the call stream that delivers them open.
pub(super) struct BoundedChunks {
    /// `None` after the end.
    chunks: Option<ChunkStream>,
    info: CallInfo,
    end: Option<Pin<Box<Sleep>>>,
    _stream: Arc<CallStream>,
}

impl BoundedChunks {
    pub(super) fn new(chunks: ChunkStream, info: CallInfo, stream: Arc<CallStream>) -> Self {
        let end = end_of_wait(&info).map(|end| Box::pin(sleep_until(end)));
        Self { chunks: Some(chunks), info, end, _stream: stream }
    }
}

impl Stream for BoundedChunks {
    type Item = Result<Chunk, ToolError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let Some(chunks) = &mut this.chunks else { return Poll::Ready(None) };
        // The timer goes first, because chunks that keep arriving must not extend the deadline.
        if let Some(end) = &mut this.end
            && end.as_mut().poll(cx).is_ready()
        {
            this.chunks = None;
            return Poll::Ready(Some(Err(exceeded(&this.info))));
        }
        let polled = chunks.as_mut().poll_next(cx);
        if let Poll::Ready(None | Some(Err(_))) = polled {
            this.chunks = None;
        }
        polled
    }
}
