//! Tests that a streaming call holds its worker until the stream ends.

use std::time::Duration;

use snakepit_pool::WorkerState;
use snakepit_registry::{ReplyBody, ToolCall, ToolError, ToolReply};
use snakepit_worker::ExitReason;
use tokio::{sync::mpsc, time::Instant};

use crate::puppet::{Item, PoolHarness, PuppetWorker, chunk, config, next};

/// A pool of one worker that runs a stream, after its first chunk.
async fn start_stream(call: ToolCall) -> (PoolHarness, PuppetWorker, ToolReply, mpsc::UnboundedSender<Item>) {
    let (mut harness, mut workers) = PoolHarness::up(config(1)).await;
    let caller = harness.call(call.streaming()).await;
    let chunk_sender = harness.next_call().await.stream();
    let mut reply = caller.answer().await.unwrap();
    assert_eq!(reply.worker.as_deref(), Some("p-0-1"));
    chunk_sender.send(chunk()).unwrap();
    assert!(matches!(next(&mut reply).await, Some(Ok(_))));
    (harness, workers.remove(0), reply, chunk_sender)
}

#[tokio::test(start_paused = true)]
async fn the_worker_is_busy_until_the_stream_ends() {
    let (mut harness, _worker, mut reply, chunk_sender) = start_stream(ToolCall::new("s")).await;
    let behind = harness.call_tool("t").await;
    harness.settle().await;
    assert_eq!(harness.state(0), WorkerState::Busy);
    assert!(harness.calls.is_empty());
    assert_eq!(harness.status().calls.succeeded, 0);
    drop(chunk_sender);
    assert!(next(&mut reply).await.is_none());
    assert!(next(&mut reply).await.is_none(), "an ended stream stays ended");
    harness.next_call().await.succeed();
    behind.answer().await.unwrap();
    drop(reply);
    assert!(harness.cancels.is_empty(), "a stream read to its end is not cancelled");
    assert_eq!(harness.status().calls.succeeded, 2);
}

#[tokio::test(start_paused = true)]
async fn an_error_ends_the_stream_and_frees_the_worker() {
    let (harness, _worker, mut reply, chunk_sender) = start_stream(ToolCall::new("s")).await;
    chunk_sender.send(Err(ToolError::Failed(Box::default()))).unwrap();
    let Some(Err(ToolError::Failed(failure))) = next(&mut reply).await else { panic!("no failure") };
    assert_eq!(failure.tool, "s", "the pool adds the name of the tool");
    assert_eq!(harness.state(0), WorkerState::Idle);
    assert!(next(&mut reply).await.is_none());
    assert_eq!(harness.status().calls.failed, 1);
}

#[tokio::test(start_paused = true)]
async fn a_stream_dropped_early_quarantines_the_worker() {
    let (mut harness, _worker, reply, chunk_sender) = start_stream(ToolCall::new("s")).await;
    drop(reply);
    assert!(chunk_sender.is_closed());
    assert_eq!(harness.state(0), WorkerState::Quarantined);
    assert_eq!(harness.status().calls.cancelled, 1);
    harness.next_cancel().await.answer.send(Ok(())).unwrap();
    harness.settle().await;
    assert_eq!(harness.state(0), WorkerState::Idle);
}

#[tokio::test(start_paused = true)]
async fn a_stream_fails_when_its_worker_is_lost() {
    let (mut harness, worker, mut reply, _chunk_sender) = start_stream(ToolCall::new("s")).await;
    let start = Instant::now();
    worker.exit(ExitReason::Code(3));
    let error = next(&mut reply).await.unwrap().unwrap_err();
    assert!(start.elapsed() < Duration::from_millis(100));
    let ToolError::WorkerLost { reason, .. } = error else { panic!("{error}") };
    assert_eq!(reason, "it exited with code 3");
    assert!(next(&mut reply).await.is_none());
    assert_eq!(harness.launch().await.id.as_str(), "p-0-2");
    assert_eq!(harness.status().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_at_its_deadline() {
    let start = Instant::now();
    let call = ToolCall::new("s").with_deadline(start + Duration::from_secs(1));
    let (mut harness, _worker, mut reply, chunk_sender) = start_stream(call).await;
    let error = next(&mut reply).await.unwrap().unwrap_err();
    assert!(matches!(error, ToolError::DeadlineExceeded { .. }), "{error}");
    assert!(chunk_sender.is_closed());
    harness.next_cancel().await.answer.send(Ok(())).unwrap();
    harness.settle().await;
    assert_eq!(harness.state(0), WorkerState::Idle);
    assert_eq!(harness.status().calls.timed_out, 1);
}

#[tokio::test(start_paused = true)]
async fn a_stalled_reader_does_not_hold_the_worker_beyond_the_deadline() {
    let start = Instant::now();
    let call = ToolCall::new("s").with_deadline(start + Duration::from_secs(1));
    let (mut harness, _worker, mut reply, chunk_sender) = start_stream(call).await;
    let behind = harness.call_tool("t").await;
    // The stream is not polled, but its worker must become free.
    harness.next_cancel().await.answer.send(Ok(())).unwrap();
    harness.next_call().await.succeed();
    behind.answer().await.unwrap();
    assert!(start.elapsed() < Duration::from_millis(1100));
    assert!(chunk_sender.is_closed(), "unread chunks are dropped with the lease");
    let error = next(&mut reply).await.unwrap().unwrap_err();
    assert!(matches!(error, ToolError::DeadlineExceeded { .. }), "{error}");
    assert_eq!(harness.state(0), WorkerState::Idle, "the late reader changes nothing");
}

#[tokio::test(start_paused = true)]
async fn a_stream_cancelled_by_id_fails_even_if_it_is_not_polled() {
    let call = ToolCall::new("s");
    let id = call.id;
    let (mut harness, _worker, mut reply, chunk_sender) = start_stream(call).await;
    let tool = harness.tool();
    let (cancelled, ()) = tokio::join!(snakepit_registry::ToolHandler::cancel(&*tool, id), async {
        harness.next_cancel().await.answer.send(Ok(())).unwrap();
    });
    cancelled.unwrap();
    assert_eq!(harness.state(0), WorkerState::Idle);
    assert!(chunk_sender.is_closed());
    assert!(matches!(next(&mut reply).await, Some(Err(ToolError::Cancelled { .. }))));
    assert!(matches!(reply.body, ReplyBody::Stream(_)) && next(&mut reply).await.is_none());
}
