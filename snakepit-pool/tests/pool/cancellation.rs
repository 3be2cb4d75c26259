//! Tests of dropped and cancelled calls, which leave the queue, or free their worker once it has confirmed their end.

use std::time::Duration;

use snakepit_pool::WorkerState;
use snakepit_registry::{CallStage, ToolCall, ToolError, ToolHandler};
use snakepit_worker::WorkerCommand;
use tokio::time::Instant;

use crate::puppet::{PoolHarness, config, is_pending};

#[tokio::test(start_paused = true)]
async fn dropping_a_queued_call_removes_it_from_the_queue() {
    let (mut harness, _workers) = PoolHarness::up(config(1)).await;
    let running = harness.call_tool("a").await;
    let queued = harness.call_tool("b").await;
    let behind = harness.call_tool("c").await;
    queued.drop_call().await;
    assert_eq!(harness.status().queued, 1);
    harness.next_call().await.succeed();
    let call = harness.next_call().await;
    assert_eq!(&*call.call.tool, "c");
    call.succeed();
    running.answer().await.unwrap();
    behind.answer().await.unwrap();
    assert_eq!(harness.status().calls.cancelled, 1);
}

#[tokio::test(start_paused = true)]
async fn dropping_a_running_call_quarantines_the_worker_until_the_call_has_ended() {
    let (mut harness, _workers) = PoolHarness::up(config(1)).await;
    let running = harness.call_tool("a").await;
    let mut call = harness.next_call().await;
    let queued = harness.call_tool("b").await;
    running.drop_call().await;
    call.answer.closed().await;
    let cancel = harness.next_cancel().await;
    assert_eq!((cancel.call, &cancel.worker), (call.call.id, &call.worker));
    assert_eq!(harness.state(0), WorkerState::Quarantined);
    assert!(harness.calls.is_empty(), "a quarantined worker does not get a call");
    cancel.answer.send(Ok(())).unwrap();
    harness.next_call().await.succeed();
    queued.answer().await.unwrap();
    assert_eq!(harness.state(0), WorkerState::Idle);
    assert_eq!(harness.status().workers[0].restarts, 0);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_does_not_end_a_cancelled_call_is_killed_and_replaced() {
    let (mut harness, mut workers) = PoolHarness::up(config(1)).await;
    let start = Instant::now();
    let deadline = start + Duration::from_secs(1);
    let caller = harness.call(ToolCall::new("endless").with_deadline(deadline)).await;
    let error = caller.error().await;
    assert!(matches!(error, ToolError::DeadlineExceeded { stage: CallStage::Running, .. }), "{error}");
    assert!(start.elapsed() < Duration::from_millis(1010), "the caller does not wait for the worker");
    let _unanswered = harness.next_cancel().await;
    let WorkerCommand::Kill { reason } = workers.remove(0).exit_on_command().await else {
        panic!("it must be killed")
    };
    assert_eq!(reason, "a cancelled call did not end within 2s");
    let waited = start.elapsed();
    assert!(waited >= Duration::from_secs(3) && waited < Duration::from_millis(3010), "{waited:?}");
    let _worker = harness.launch().await.succeed();
    let caller = harness.call_tool("t").await;
    assert_eq!(&*harness.next_call().await.call.tool, "endless", "it was sent to the first worker");
    harness.next_call().await.succeed();
    caller.answer().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_cannot_confirm_a_cancellation_is_killed() {
    let (mut harness, mut workers) = PoolHarness::up(config(1)).await;
    let running = harness.call_tool("a").await;
    let _call = harness.next_call().await;
    running.drop_call().await;
    let problem = ToolError::internal("unknown call");
    harness.next_cancel().await.answer.send(Err(problem)).unwrap();
    let WorkerCommand::Kill { reason } = workers.remove(0).exit_on_command().await else {
        panic!("it must be killed")
    };
    assert_eq!(reason, "it could not confirm the end of a cancelled call");
    assert_eq!(harness.launch().await.id.as_str(), "p-0-2");
}

#[tokio::test(start_paused = true)]
async fn cancelling_by_id_ends_a_queued_call() {
    let (mut harness, _workers) = PoolHarness::up(config(1)).await;
    let _running = harness.call_tool("a").await;
    let call = ToolCall::new("b");
    let id = call.id;
    let queued = harness.call(call).await;
    harness.tool().cancel(id).await.unwrap();
    assert!(matches!(queued.error().await, ToolError::Cancelled { .. }));
    assert_eq!(harness.status().queued, 0);
    assert_eq!(&*harness.next_call().await.call.tool, "a");
    assert!(harness.cancels.is_empty(), "no worker had the call");
}

#[tokio::test(start_paused = true)]
async fn cancelling_by_id_waits_for_the_workers_confirmation() {
    let (mut harness, _workers) = PoolHarness::up(config(1)).await;
    let call = ToolCall::new("a");
    let id = call.id;
    let caller = harness.call(call).await;
    let _running = harness.next_call().await;
    let tool = harness.tool();
    let cancelled = tool.cancel(id);
    tokio::pin!(cancelled);
    let cancel = tokio::select! {
        done = &mut cancelled => panic!("{done:?} before the confirmation"),
        cancel = harness.next_cancel() => cancel,
    };
    assert!(matches!(caller.error().await, ToolError::Cancelled { .. }), "the caller does not wait");
    assert!(is_pending(cancelled.as_mut()).await);
    cancel.answer.send(Ok(())).unwrap();
    cancelled.await.unwrap();
    assert_eq!(harness.state(0), WorkerState::Idle);
}

#[tokio::test(start_paused = true)]
async fn cancelling_by_id_ends_when_the_worker_is_killed() {
    let (mut harness, mut workers) = PoolHarness::up(config(1)).await;
    let call = ToolCall::new("a");
    let id = call.id;
    let _caller = harness.call(call).await;
    let tool = harness.tool();
    let (cancelled, command) = tokio::join!(tool.cancel(id), workers.remove(0).exit_on_command());
    cancelled.unwrap();
    assert!(matches!(command, WorkerCommand::Kill { .. }));
    drop(harness.next_cancel().await);
}

#[tokio::test(start_paused = true)]
async fn cancelling_an_unknown_call_returns_immediately() {
    let (harness, _workers) = PoolHarness::up(config(1)).await;
    harness.tool().cancel(ToolCall::new("unknown").id).await.unwrap();
}
