//! Tests of calls that wait for room in the full queue of a pool.
#![allow(clippy::disallowed_methods, reason = "tests may panic and detach tasks")]

use std::time::Duration;

use snakepit_registry::{CallStage, ToolCall, ToolError, ToolHandler};
use tokio::time::Instant;

use crate::puppet::{PoolHarness, config};

const SECOND: Duration = Duration::from_secs(1);

fn call_that_waits() -> ToolCall {
    ToolCall::new("waiting").with_wait_for_room(SECOND)
}

/// A pool with a running call and a full queue.
async fn full_pool() -> (PoolHarness, crate::puppet::Call, Vec<crate::puppet::PuppetWorker>) {
    let (mut harness, workers) = PoolHarness::up(config(1).queue_limit(1)).await;
    let _running = harness.call_tool("running").await;
    let running = harness.next_call().await;
    let _queued = harness.call_tool("queued").await;
    (harness, running, workers)
}

/// Starts a call in a new task, and returns once the call waits for room.
async fn start_waiting(
    harness: &PoolHarness,
    call: ToolCall,
) -> tokio::task::JoinHandle<crate::puppet::Answer> {
    let tool = harness.tool();
    let task = tokio::spawn(async move { tool.call(call).await });
    harness.settle().await;
    task
}

#[tokio::test(start_paused = true)]
async fn calls_wait_for_room_in_order() {
    let (mut harness, running, _workers) = full_pool().await;
    let calls = [call_that_waits(), call_that_waits()];
    let ids = calls.each_ref().map(|call| call.id);
    let mut answers = Vec::new();
    for call in calls {
        answers.push(start_waiting(&harness, call).await);
    }
    assert!(harness.tool().call(ToolCall::new("t")).await.unwrap_err().is_overloaded(), "it does not wait");
    let status = harness.status();
    assert_eq!((status.queued, status.waiting_for_room), (1, 2), "the limit holds");
    running.succeed();
    harness.next_call().await.succeed();
    for (id, answer) in ids.into_iter().zip(answers) {
        let call = harness.next_call().await;
        assert_eq!(call.call.id, id);
        call.succeed();
        answer.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_wait_for_room_ends_at_its_limit_and_at_the_deadline() {
    let (harness, _running, _workers) = full_pool().await;
    let start = Instant::now();
    let late = harness.tool().call(call_that_waits().with_deadline(start + SECOND / 2)).await.unwrap_err();
    assert!(matches!(late, ToolError::DeadlineExceeded { stage: CallStage::Queued, .. }), "{late}");
    assert_eq!(start.elapsed(), SECOND / 2);
    let overloaded = harness.tool().call(call_that_waits()).await.unwrap_err();
    assert!(matches!(overloaded, ToolError::Overloaded { queued: 1, limit: 1, .. }), "{overloaded}");
    assert_eq!(start.elapsed(), SECOND * 3 / 2);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_or_cancelled_call_no_longer_waits_for_room() {
    let (mut harness, running, _workers) = full_pool().await;
    let dropped = start_waiting(&harness, call_that_waits()).await;
    let cancelled = call_that_waits();
    let id = cancelled.id;
    let cancelled = start_waiting(&harness, cancelled).await;
    let last = start_waiting(&harness, ToolCall::new("last").with_wait_for_room(SECOND)).await;
    dropped.abort();
    assert!(dropped.await.unwrap_err().is_cancelled());
    harness.tool().cancel(id).await.unwrap();
    assert!(matches!(cancelled.await.unwrap(), Err(ToolError::Cancelled { .. })));
    running.succeed();
    harness.next_call().await.succeed();
    let call = harness.next_call().await;
    assert_eq!(&*call.call.tool, "last");
    call.succeed();
    last.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_attempts_of_a_call_share_one_wait_for_room() {
    let call = call_that_waits();
    assert_eq!(call.remaining_wait_for_room(), Some(SECOND));
    let copy = call.clone();
    tokio::time::advance(SECOND / 4).await;
    assert_eq!(copy.remaining_wait_for_room(), Some(SECOND * 3 / 4), "a later attempt");
    assert_eq!(call.wait_for_room(), Some(SECOND), "the limit itself does not change");
    let endless = ToolCall::new("t").with_wait_for_room(Duration::MAX);
    assert_eq!(endless.remaining_wait_for_room(), Some(Duration::MAX));
    assert_eq!(ToolCall::new("t").remaining_wait_for_room(), None);

    let (harness, _running, _workers) = full_pool().await;
    let began = Instant::now();
    let rejected = harness.tool().call(copy).await.unwrap_err();
    assert!(rejected.is_overloaded(), "{rejected}");
    assert_eq!(began.elapsed(), SECOND * 3 / 4, "the attempt waits only for the rest");
    // A call whose wait has ended is rejected immediately.
    assert!(harness.tool().call(call).await.unwrap_err().is_overloaded());
    assert_eq!(began.elapsed(), SECOND * 3 / 4);
}
