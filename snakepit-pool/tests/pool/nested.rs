//! Calls that are made from within other calls, and find every worker held by those.

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
async fn the_newest_call_of_a_deadlock_is_refused() {
    let (mut bench, _workers) = Bench::up(config(2)).await;
    let (first, second) = (bench.call_tool("outer").await, bench.call_tool("outer").await);
    let (one, two) = (bench.next_call().await, bench.next_call().await);
    let other = bench.call_tool("other").await;

    let nested = bench.call(nested_in(&one)).await;
    assert_eq!(bench.status().queued, 2, "the second worker may still become free");
    let error = bench.call(nested_in(&two)).await.error().await;
    assert!(matches!(&error, ToolError::Deadlock { tool } if tool == "nested"), "{error}");

    // The tool whose call was refused ends, and those that wait get its worker in their order.
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
async fn a_chain_on_one_worker_is_refused_and_a_chain_beside_a_free_one_is_not() {
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
async fn a_slot_whose_workers_do_not_start_does_not_hide_a_deadlock() {
    let mut bench = Bench::start(config(2));
    let _worker = bench.launch().await.succeed();
    // Backing off after a single failure may be over soon, so the call waits.
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
async fn a_nested_call_takes_the_place_of_a_worker_that_died() {
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
