//! Tests of deadlocks, in which nested calls wait for workers that other calls of the deadlock hold.

use std::sync::Arc;

use snakepit_registry::{Principal, ToolCall, ToolError};
use snakepit_worker::{CallLimits, ExitReason, Worker};

use crate::puppet::{Call, PoolHarness, PuppetWorker, config};

/// A call that the tool of `parent` makes and waits for.
fn nested_in(parent: &Call) -> ToolCall {
    let outer = parent.call.ancestors.as_deref().unwrap_or_default();
    let ancestors: Arc<[_]> = outer.iter().copied().chain([parent.call.id]).collect();
    ToolCall::new("nested").with_ancestors(ancestors)
}

#[tokio::test(start_paused = true)]
async fn the_newest_call_of_a_deadlock_is_rejected() {
    let (mut harness, _workers) = PoolHarness::up(config(2)).await;
    let (first, second) = (harness.call_tool("outer").await, harness.call_tool("outer").await);
    let (one, two) = (harness.next_call().await, harness.next_call().await);
    let other = harness.call_tool("other").await;

    let nested = harness.call(nested_in(&one)).await;
    assert_eq!(harness.status().queued, 2, "the second worker may still become free");
    let error = harness.call(nested_in(&two)).await.error().await;
    assert!(matches!(&error, ToolError::Deadlock { tool, .. } if tool == "nested"), "{error}");

    // When the tool whose nested call was rejected ends, the queued calls get its worker in order.
    two.succeed();
    second.answer().await.unwrap();
    harness.next_call().await.succeed();
    other.answer().await.unwrap();
    harness.next_call().await.succeed();
    nested.answer().await.unwrap();
    one.succeed();
    first.answer().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_worker_runs_for_the_principal_of_its_outermost_call() {
    let (mut harness, _workers) = PoolHarness::up(config(2)).await;
    let alice = Principal::new("alice", "test");
    let outer = harness.call(ToolCall::new("outer").with_principal(alice.clone())).await;
    let one = harness.next_call().await;
    // A nested call to a host tool has the principal of the program, which does not replace that of the outermost call.
    let inner = nested_in(&one).with_principal(Principal::program());
    let inner = harness.call(inner).await;
    let two = harness.next_call().await;
    let acting_principal = |call: &Call| harness.tool().acting_principal(call.worker.as_str(), None);
    assert_eq!([acting_principal(&one), acting_principal(&two)], [Some(alice.clone()), Some(alice)]);
    let idle = two.worker.clone();
    two.succeed();
    inner.answer().await.unwrap();
    assert_eq!(harness.tool().acting_principal(idle.as_str(), None), None);
    one.succeed();
    outer.answer().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_nested_call_is_rejected_only_if_its_ancestors_hold_every_worker() {
    let (mut harness, _workers) = PoolHarness::up(config(2)).await;
    let outer = harness.call_tool("outer").await;
    let one = harness.next_call().await;
    let middle = harness.call(nested_in(&one)).await;
    let two = harness.next_call().await;
    let error = harness.call(nested_in(&two)).await.error().await;
    assert!(matches!(error, ToolError::Deadlock { .. }), "{error}");
    two.succeed();
    middle.answer().await.unwrap();
    one.succeed();
    outer.answer().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_slot_without_a_worker_does_not_hide_a_deadlock() {
    let mut harness = PoolHarness::start(config(2));
    let _worker = harness.launch().await.succeed();
    // The nested call waits, because the slot may recover after a single failure.
    harness.launch().await.fail();
    let outer = harness.call_tool("outer").await;
    let one = harness.next_call().await;
    let nested = harness.call(nested_in(&one)).await;
    harness.settle().await;
    assert_eq!(harness.status().queued, 1);
    for _ in 0..2 {
        harness.launch().await.fail();
    }
    let error = nested.error().await;
    assert!(matches!(error, ToolError::Deadlock { .. }), "{error}");
    let error = harness.call(nested_in(&one)).await.error().await;
    assert!(matches!(error, ToolError::Deadlock { .. }), "{error}");
    one.succeed();
    outer.answer().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_nested_call_runs_on_the_replacement_of_a_lost_worker() {
    let (mut harness, mut workers) = PoolHarness::up(config(2)).await;
    let (first, _lost) = (harness.call_tool("outer").await, harness.call_tool("outer").await);
    let (one, two) = (harness.next_call().await, harness.next_call().await);
    let nested = harness.call(nested_in(&one)).await;
    let lost_index = workers.iter().position(|worker| worker.id == two.worker).unwrap();
    workers.remove(lost_index).exit(ExitReason::Signal { name: "SIGKILL".to_owned() });
    let _replacement = harness.launch().await.succeed();
    harness.next_call().await.succeed();
    nested.answer().await.unwrap();
    one.succeed();
    first.answer().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_nested_call_runs_on_the_worker_of_its_caller_while_a_place_is_free() {
    let (mut harness, _workers) = PoolHarness::up(config(1).concurrency(2)).await;
    let alice = Principal::new("alice", "test");
    let outer = harness.call(ToolCall::new("outer").with_principal(alice.clone())).await;
    let one = harness.next_call().await;
    let middle = harness.call(nested_in(&one)).await;
    let two = harness.next_call().await;
    assert_eq!(one.worker, two.worker);
    let worker = one.worker.as_str();
    let [first, second] = [&one, &two].map(|call| Some(call.call.id.as_u64()));
    assert_eq!(harness.tool().ancestors_on(worker, first).as_deref(), Some(&[one.call.id][..]));
    let both = harness.tool().ancestors_on(worker, second);
    assert_eq!(both.as_deref(), Some(&[one.call.id, two.call.id][..]));
    assert_eq!(harness.tool().ancestors_on(worker, None).as_deref(), Some(&[][..]), "it runs two calls");
    assert_eq!(harness.tool().acting_principal(worker, second), Some(alice));
    assert_eq!(harness.tool().acting_principal(worker, None), None);

    let error = harness.call(nested_in(&two)).await.error().await;
    assert!(matches!(error, ToolError::Deadlock { .. }), "{error}");
    two.succeed();
    middle.answer().await.unwrap();

    // A call that does not wait for another one ends, and so frees its place.
    let other = harness.call_tool("other").await;
    let three = harness.next_call().await;
    let nested = harness.call(nested_in(&one)).await;
    assert_eq!(harness.status().queued, 1);
    three.succeed();
    other.answer().await.unwrap();
    harness.next_call().await.succeed();
    nested.answer().await.unwrap();
    one.succeed();
    outer.answer().await.unwrap();
}

/// Starts a pool whose workers run `concurrency` calls and limit the calls to the tool `nested` to one.
async fn limited(workers: usize, concurrency: usize) -> (PoolHarness, Vec<PuppetWorker>) {
    let mut harness = PoolHarness::start(config(workers));
    let mut puppets = Vec::new();
    for _ in 0..workers {
        let limits = CallLimits::new(concurrency).with_tool("nested", 1);
        let configure = |worker: Worker| worker.with_concurrency(concurrency).with_call_limits(limits);
        puppets.push(harness.launch().await.succeed_with(configure));
    }
    harness.pool.ready().await.unwrap();
    (harness, puppets)
}

#[tokio::test(start_paused = true)]
async fn a_nested_call_that_waits_for_the_limit_of_its_tool_is_rejected_or_runs_elsewhere() {
    let (mut harness, _workers) = limited(1, 3).await;
    let outer = harness.call_tool("nested").await;
    let one = harness.next_call().await;
    let error = harness.call(nested_in(&one)).await.error().await;
    assert!(matches!(error, ToolError::Deadlock { .. }), "{error}");
    // Other tools are not affected.
    let other = harness.call_tool("other").await;
    harness.next_call().await.succeed();
    other.answer().await.unwrap();
    one.succeed();
    outer.answer().await.unwrap();

    let (mut harness, _workers) = limited(2, 3).await;
    let outer = harness.call_tool("nested").await;
    let one = harness.next_call().await;
    let inner = harness.call(nested_in(&one)).await;
    let two = harness.next_call().await;
    assert_ne!(two.worker, one.worker);
    let error = harness.call(nested_in(&two)).await.error().await;
    assert!(matches!(error, ToolError::Deadlock { .. }), "both workers run the tool for it: {error}");
    two.succeed();
    inner.answer().await.unwrap();
    one.succeed();
    outer.answer().await.unwrap();
}

/// A call to `tool` that the tool of `parent` makes and waits for.
fn nested_call(tool: &str, parent: &Call) -> ToolCall {
    let mut call = nested_in(parent);
    call.tool = tool.into();
    call
}

#[tokio::test(start_paused = true)]
async fn chains_that_hold_limits_of_each_other_are_a_deadlock() {
    for queued in [false, true] {
        let mut harness = PoolHarness::start(config(1));
        let limits = CallLimits::new(4).with_tool("a", 1).with_tool("b", 1);
        let _worker =
            harness.launch().await.succeed_with(|worker| worker.with_concurrency(4).with_call_limits(limits));
        harness.pool.ready().await.unwrap();
        let outer = [harness.call_tool("a").await, harness.call_tool("b").await];
        let (a, b) = (harness.next_call().await, harness.next_call().await);
        let mut fillers = Vec::new();
        if queued {
            // The first nested call waits for a place, and has no worker yet.
            fillers = vec![harness.call_tool("c").await, harness.call_tool("c").await];
        }
        let first = harness.call(nested_call("b", &a)).await;
        let error = harness.call(nested_call("a", &b)).await.error().await;
        assert!(matches!(&error, ToolError::Deadlock { tool, .. } if tool == "a"), "{error}");
        for filler in fillers {
            harness.next_call().await.succeed();
            filler.answer().await.unwrap();
        }
        // The tool that did not get its nested call ends, and the other chain continues.
        b.succeed();
        harness.next_call().await.succeed();
        first.answer().await.unwrap();
        a.succeed();
        for outer in outer {
            outer.answer().await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn chains_that_wait_for_calls_that_end_are_no_deadlock() {
    let mut harness = PoolHarness::start(config(1));
    let limits = CallLimits::new(8).with_tool("a", 1).with_tool("b", 1);
    let _worker =
        harness.launch().await.succeed_with(|worker| worker.with_concurrency(8).with_call_limits(limits));
    harness.pool.ready().await.unwrap();
    // `b` runs a nested call that can begin, so it ends, and then the nested call of `a` begins.
    let outer = [harness.call_tool("a").await, harness.call_tool("b").await];
    let (a, b) = (harness.next_call().await, harness.next_call().await);
    let first = harness.call(nested_call("b", &a)).await;
    let second = harness.call(nested_call("c", &b)).await;
    // Waits for the limit that `a` holds, which waits for `b`, which waits for `c`.
    let other = harness.call_tool("d").await;
    let mut calls = Vec::new();
    for _ in 0..3 {
        calls.push(harness.next_call().await);
    }
    let d = calls.iter().position(|call| &*call.call.tool == "d").unwrap();
    let d = calls.remove(d);
    let third = harness.call(nested_call("a", &d)).await;
    let last = harness.next_call().await;
    assert_eq!(&*last.call.tool, "a", "the worker begins it when the limit is free");
    for call in [b, a, d, last].into_iter().chain(calls) {
        call.succeed();
    }
    for caller in outer.into_iter().chain([first, second, third, other]) {
        caller.answer().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_nested_call_does_not_run_on_a_worker_that_its_ancestor_blocks() {
    let (mut harness, _workers) = limited(2, 2).await;
    let outer = harness.call_tool("outer").await;
    let one = harness.next_call().await;
    let (worker, id) = (one.worker.as_str(), one.call.id.as_u64());
    harness.tool().set_blocks_worker(worker, id, true);
    let first = harness.call(nested_in(&one)).await;
    let two = harness.next_call().await;
    assert_ne!(two.worker, one.worker);
    let others = [harness.call_tool("other").await, harness.call_tool("other").await];
    let mut fillers = [harness.next_call().await, harness.next_call().await];
    fillers.sort_by_key(|filler| filler.worker != one.worker);
    let [beside, elsewhere] = fillers;
    assert_eq!((&beside.worker, &elsewhere.worker), (&one.worker, &two.worker));
    let second = harness.call(nested_in(&one)).await;
    beside.succeed();
    harness.settle().await;
    assert_eq!(harness.status().queued, 1, "the blocked worker could not begin it");
    elsewhere.succeed();
    let three = harness.next_call().await;
    assert_eq!(three.worker, two.worker);
    for call in [two, three] {
        call.succeed();
    }
    for caller in others.into_iter().chain([first, second]) {
        caller.answer().await.unwrap();
    }

    harness.tool().set_blocks_worker(worker, id, false);
    let third = harness.call(nested_in(&one)).await;
    harness.next_call().await.succeed();
    third.answer().await.unwrap();
    one.succeed();
    outer.answer().await.unwrap();
}
