//! Tests of deadlocks, in which nested calls wait for workers that other calls of the deadlock hold.

use std::sync::Arc;

use snakepit_registry::{ToolCall, ToolError};
use snakepit_worker::ExitReason;

use crate::puppet::{Bench, Call, config};

/// A call that the tool of `parent` makes and waits for.
fn nested_in(parent: &Call) -> ToolCall {
    let before = parent.call.ancestors.as_deref().unwrap_or_default();
    let ancestors: Arc<[_]> = before.iter().copied().chain([parent.call.id]).collect();
    ToolCall { ancestors: Some(ancestors), ..ToolCall::new("nested") }
}

#[tokio::test(start_paused = true)]
async fn the_newest_call_of_a_deadlock_is_rejected() {
    let (mut bench, _workers) = Bench::up(config(2)).await;
    let (first, second) = (bench.call_tool("outer").await, bench.call_tool("outer").await);
    let (one, two) = (bench.next_call().await, bench.next_call().await);
    let other = bench.call_tool("other").await;

    let nested = bench.call(nested_in(&one)).await;
    assert_eq!(bench.status().queued, 2, "the second worker may still become free");
    let error = bench.call(nested_in(&two)).await.error().await;
    assert!(matches!(&error, ToolError::Deadlock { tool } if tool == "nested"), "{error}");

    // When the tool whose nested call was rejected ends, the queued calls get its worker in order.
    two.succeed();
    second.answer().await.unwrap();
    bench.next_call().await.succeed();
    other.answer().await.unwrap();
    bench.next_call().await.succeed();
    nested.answer().await.unwrap();
    one.succeed();
    first.answer().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_nested_call_is_rejected_only_if_its_ancestors_hold_every_worker() {
    let (mut bench, _workers) = Bench::up(config(2)).await;
    let outer = bench.call_tool("outer").await;
    let one = bench.next_call().await;
    let middle = bench.call(nested_in(&one)).await;
    let two = bench.next_call().await;
    let error = bench.call(nested_in(&two)).await.error().await;
    assert!(matches!(error, ToolError::Deadlock { .. }), "{error}");
    two.succeed();
    middle.answer().await.unwrap();
    one.succeed();
    outer.answer().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_slot_without_a_worker_does_not_hide_a_deadlock() {
    let mut bench = Bench::start(config(2));
    let _worker = bench.launch().await.succeed();
    // The nested call waits, because the slot may recover after a single failure.
    bench.launch().await.fail();
    let outer = bench.call_tool("outer").await;
    let one = bench.next_call().await;
    let nested = bench.call(nested_in(&one)).await;
    bench.settle().await;
    assert_eq!(bench.status().queued, 1);
    for _ in 0..2 {
        bench.launch().await.fail();
    }
    let error = nested.error().await;
    assert!(matches!(error, ToolError::Deadlock { .. }), "{error}");
    let error = bench.call(nested_in(&one)).await.error().await;
    assert!(matches!(error, ToolError::Deadlock { .. }), "{error}");
    one.succeed();
    outer.answer().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_nested_call_runs_on_the_replacement_of_a_lost_worker() {
    let (mut bench, mut workers) = Bench::up(config(2)).await;
    let (first, _lost) = (bench.call_tool("outer").await, bench.call_tool("outer").await);
    let (one, two) = (bench.next_call().await, bench.next_call().await);
    let nested = bench.call(nested_in(&one)).await;
    let died = workers.iter().position(|worker| worker.id == two.worker).unwrap();
    workers.remove(died).exit(ExitReason::Signal { name: "SIGKILL".to_owned() });
    let _replacement = bench.launch().await.succeed();
    bench.next_call().await.succeed();
    nested.answer().await.unwrap();
    one.succeed();
    first.answer().await.unwrap();
}
