//! Deadlines as the client keeps them: for a host that has gone silent, and so a little later than the host's own.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::Stream;
use snakepit_registry::{CallStage, Chunk, ChunkStream, ToolError};
use snakepit_wire::mux::Asked;
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};

use super::Line;

/// How long after the deadline the host's own answer may come, which says more.
pub(super) const GRACE: Duration = Duration::from_millis(200);

/// Waits for an answer, but not much longer than until its deadline.
pub(super) async fn within<T>(
    asked: &Asked,
    answer: impl Future<Output = Result<T, ToolError>>,
) -> Result<T, ToolError> {
    match gives_up_at(asked) {
        Some(end) => timeout_at(end, answer).await.unwrap_or_else(|_| Err(exceeded(asked))),
        None => answer.await,
    }
}

/// When this side no longer waits for the host.
fn gives_up_at(asked: &Asked) -> Option<Instant> {
    asked.deadline?.checked_add(GRACE)
}

fn exceeded(asked: &Asked) -> ToolError {
    ToolError::DeadlineExceeded { tool: asked.tool.to_string(), stage: CallStage::Running }
}

/// Chunks until their deadline. Keeps the line that they come by.
pub(super) struct Timed {
    /// `None` after the end.
    chunks: Option<ChunkStream>,
    asked: Asked,
    end: Option<Pin<Box<Sleep>>>,
    _line: Arc<Line>,
}

impl Timed {
    pub(super) fn new(chunks: ChunkStream, asked: Asked, line: Arc<Line>) -> Self {
        let end = gives_up_at(&asked).map(|end| Box::pin(sleep_until(end)));
        Self { chunks: Some(chunks), asked, end, _line: line }
    }
}

impl Stream for Timed {
    type Item = Result<Chunk, ToolError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let Some(chunks) = &mut this.chunks else { return Poll::Ready(None) };
        // Asked first: what comes after the deadline comes too late, however fast it comes.
        if let Some(end) = &mut this.end
            && end.as_mut().poll(cx).is_ready()
        {
            this.chunks = None;
            return Poll::Ready(Some(Err(exceeded(&this.asked))));
        }
        let polled = chunks.as_mut().poll_next(cx);
        if let Poll::Ready(None | Some(Err(_))) = polled {
            this.chunks = None;
        }
        polled
    }
}
