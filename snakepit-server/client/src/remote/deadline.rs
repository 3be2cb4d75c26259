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
        Some(end) => {
            let late = |_| Err(deadline_exceeded(info).of_unanswered_call());
            timeout_at(end, reply).await.unwrap_or_else(late)
        }
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
            // Unread chunks show that the host answered. Its error follows them.
            let has_chunk = chunks.as_mut().poll_next(cx).is_ready();
            this.chunks = None;
            let error = deadline_exceeded(&this.info);
            return Poll::Ready(Some(Err(if has_chunk { error } else { error.of_unanswered_call() })));
        }
        let polled = chunks.as_mut().poll_next(cx);
        if let Poll::Ready(None | Some(Err(_))) = polled {
            this.chunks = None;
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt, stream};
    use snakepit_registry::ToolCall;

    use super::{super::closing::CloseState, *};

    fn info() -> CallInfo {
        let mut call = ToolCall::new("add").streaming();
        call.deadline = Some(Instant::now() + Duration::from_secs(1));
        CallInfo::of(&call)
    }

    async fn last_error(chunks: impl Stream<Item = Result<Chunk, ToolError>> + Send + 'static) -> String {
        let stream = Arc::new(CallStream::unusable(&CloseState::default()));
        let mut chunks = BoundedChunks::new(Box::pin(chunks), info(), stream);
        tokio::time::sleep(Duration::from_secs(2)).await;
        let error = chunks.next().await.unwrap().unwrap_err();
        assert!(error.is_timeout() && chunks.next().await.is_none());
        error.to_string()
    }

    #[tokio::test(start_paused = true)]
    async fn the_error_names_a_host_that_did_not_answer() {
        let silent = "deadline of tool `add` passed and the host did not answer; check that it is running and reachable";
        let error = within(&info(), std::future::pending::<Result<(), _>>()).await.unwrap_err();
        assert_eq!(error.to_string(), silent);
        assert_eq!(last_error(stream::pending()).await, silent);
        // The reader was slow. The host has sent chunks.
        let error = last_error(stream::repeat_with(|| Ok(Chunk::default()))).await;
        assert_eq!(
            error,
            "deadline of tool `add` exceeded while running; raise the timeout or make the tool faster"
        );
    }
}
