//! Tests that futures and streams of the host end at the deadline or at the cut-off.

use std::time::Duration;

use futures_util::StreamExt;
use snakepit_registry::{FnTool, ToolHandler};
use tokio::time::advance;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn bounds(timeout: Duration, cut: &CancellationToken) -> CallBounds {
    CallBounds::new(&ToolCall::new("t").with_deadline(Instant::now() + timeout), cut)
}

fn chunk() -> Result<Chunk, ToolError> {
    Ok(Chunk { data: "1".into(), ..Chunk::default() })
}

fn bounded_stream(
    bounds: CallBounds,
    chunks: impl Stream<Item = Result<Chunk, ToolError>> + Send + 'static,
) -> ChunkStream {
    let ReplyBody::Stream(chunks) = bounds.bound(ToolReply::stream(Box::pin(chunks)), None).body else {
        panic!("a value")
    };
    chunks
}

#[tokio::test(start_paused = true)]
async fn a_future_ends_at_the_deadline_or_at_the_cut_off() {
    let cut = CancellationToken::new();
    let start = Instant::now();
    let never = std::future::pending::<Result<(), _>>;
    let late = bounds(SECOND, &cut).within(CallStage::Queued, never()).await.unwrap_err();
    assert!(matches!(late, ToolError::DeadlineExceeded { stage: CallStage::Queued, .. }), "{late}");
    assert_eq!(start.elapsed(), SECOND);
    let expired_bounds = bounds(Duration::ZERO, &cut);
    let expired: Result<(), _> = expired_bounds.within(CallStage::Running, async { panic!("polled") }).await;
    assert!(matches!(expired, Err(ToolError::DeadlineExceeded { stage: CallStage::Queued, .. })));
    let bounds = bounds(SECOND, &cut);
    let (cut_off, ()) = tokio::join!(bounds.within(CallStage::Running, never()), async { cut.cancel() });
    assert!(matches!(cut_off, Err(ToolError::ShuttingDown { may_have_run: true, .. })));
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_a_host_tool_ends_at_the_deadline() {
    let tool = FnTool::new("count", |_: serde_json::Value| {
        futures_util::stream::unfold(0, |n| async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Some((Ok::<_, String>(n), n + 1))
        })
    });
    let call = ToolCall::new("count").streaming().with_deadline(Instant::now() + Duration::from_millis(220));
    let (bounds, start) = (CallBounds::new(&call, &CancellationToken::new()), Instant::now());
    let reply = bounds.within(CallStage::Running, tool.call(call)).await.unwrap();
    let ReplyBody::Stream(chunks) = bounds.bound(reply, None).body else { panic!("a value") };
    let items: Vec<_> = chunks.collect().await;
    assert_eq!(items.len(), 5);
    assert!(matches!(items[4], Err(ToolError::DeadlineExceeded { stage: CallStage::Running, .. })));
    assert_eq!(start.elapsed(), Duration::from_millis(220));
}

#[tokio::test(start_paused = true)]
async fn a_stream_whose_next_chunk_is_always_ready_ends_too() {
    let cut = CancellationToken::new();
    let endless = || futures_util::stream::repeat_with(chunk);
    let mut late = bounded_stream(bounds(SECOND, &cut), endless());
    assert!(late.next().await.unwrap().is_ok());
    advance(SECOND).await;
    assert!(matches!(late.next().await, Some(Err(ToolError::DeadlineExceeded { .. }))));
    assert!(late.next().await.is_none());
    let mut cut_off = bounded_stream(bounds(SECOND, &cut), endless());
    assert!(cut_off.next().await.unwrap().is_ok());
    cut.cancel();
    assert!(matches!(cut_off.next().await, Some(Err(ToolError::ShuttingDown { may_have_run: true, .. }))));
}

#[test]
fn without_a_runtime_only_a_ready_future_succeeds() {
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let bounds = bounds(SECOND, &CancellationToken::new());
    let mut poll = |ready: bool| {
        let future = async move { if ready { Ok(1) } else { std::future::pending().await } };
        pin!(bounds.within(CallStage::Running, future)).poll(&mut cx)
    };
    assert!(matches!(poll(true), Poll::Ready(Ok(1))));
    assert!(matches!(poll(false), Poll::Ready(Err(ToolError::NoRuntime { may_have_run: true, .. }))));
}
