//! Calls whose callers receive reports. They end after their last report.

use std::pin::Pin;

use futures_util::{StreamExt, stream};
use snakepit_registry::{ChunkStream, ReplyBody, ToolError, ToolReply};

use super::super::output::ReceiverGuard;

/// Waits for the answer of a call, and for its last reports.
pub(super) async fn with_reports(
    guard: ReceiverGuard,
    answer: Pin<Box<dyn Future<Output = Result<ToolReply, ToolError>> + Send + '_>>,
) -> Result<ToolReply, ToolError> {
    let answer = answer.await;
    match answer {
        Ok(ToolReply { body: ReplyBody::Stream(chunks), metadata, worker, execution_time }) => {
            let body = ReplyBody::Stream(chunks_with_reports(guard, chunks));
            Ok(ToolReply { body, metadata, worker, execution_time })
        }
        // The call has not begun, so it has no reports.
        Err(error) if !error.may_have_run() => Err(error),
        answer => {
            guard.drained().await;
            answer
        }
    }
}

/// The chunks of a call. The end, or the error that ends them, waits for the last reports.
fn chunks_with_reports(guard: ReceiverGuard, chunks: ChunkStream) -> ChunkStream {
    let state = Some((guard, chunks));
    Box::pin(stream::unfold(state, |state| async move {
        let (guard, mut chunks) = state?;
        let chunk = chunks.next().await;
        if matches!(chunk, Some(Ok(_))) {
            return Some((chunk?, Some((guard, chunks))));
        }
        guard.drained().await;
        Some((chunk?, None))
    }))
}
