//! Tests of the assignment, the queueing, the rejection and the retries of calls.

use std::time::Duration;

use snakepit_pool::WorkerState;
use snakepit_registry::{CallStage, ToolCall, ToolError, ToolFailure, ToolReply};
use snakepit_session::Payload;
use snakepit_worker::ExitReason;
use tokio::time::Instant;

use crate::puppet::{PoolHarness, config};

#[tokio::test(start_paused = true)]
async fn calls_queue_in_order_and_replies_name_the_worker() {
    let (mut harness, _workers) = PoolHarness::up(config(1)).await;
    let mut callers = Vec::new();
    for name in ["a", "b", "c"] {
        callers.push(harness.call_tool(name).await);
    }
    assert_eq!((harness.status().queued, harness.status().in_flight), (2, 1));
    assert_eq!(harness.state(0), WorkerState::Busy);
    for (name, caller) in ["a", "b", "c"].into_iter().zip(callers) {
        let call = harness.next_call().await;
        assert_eq!(&*call.call.tool, name);
        assert!(harness.calls.is_empty(), "the worker runs one call at a time");
        call.succeed();
        assert_eq!(caller.answer().await.unwrap().worker.as_deref(), Some("p-0-1"));
    }
    let status = harness.status();
    assert_eq!((status.queued, status.in_flight, status.workers[0].calls), (0, 0, 3));
    assert_eq!(status.calls.succeeded, 3);
    assert_eq!(harness.state(0), WorkerState::Idle);
}

#[tokio::test(start_paused = true)]
async fn calls_wait_for_the_first_worker() {
    let mut harness = PoolHarness::start(config(2));
    let caller = harness.call_tool("t").await;
    let _launching = harness.launch().await;
    let _worker = harness.launch().await.succeed();
    harness.next_call().await.succeed();
    caller.answer().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_rejects_calls_immediately() {
    let (mut harness, _workers) = PoolHarness::up(config(1).queue_limit(1)).await;
    let running = harness.call_tool("a").await;
    let queued = harness.call_tool("b").await;
    let error = harness.call_tool("c").await.error().await;
    let ToolError::Overloaded { queued: 1, limit: 1, retry_after: Some(_), .. } = error else {
        panic!("{error}")
    };
    harness.next_call().await.succeed();
    harness.next_call().await.succeed();
    running.answer().await.unwrap();
    queued.answer().await.unwrap();
    assert_eq!(harness.status().calls.rejected, 1);
}

#[tokio::test(start_paused = true)]
async fn concurrency_lets_a_worker_run_several_calls() {
    let (mut harness, _workers) = PoolHarness::up(config(1).concurrency(3)).await;
    let mut callers = Vec::new();
    for _ in 0..4 {
        callers.push(harness.call_tool("t").await);
    }
    assert_eq!((harness.status().queued, harness.status().in_flight), (1, 3));
    for _ in 0..4 {
        harness.next_call().await.succeed();
    }
    for caller in callers {
        caller.answer().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_preferred_worker_runs_the_call_if_it_is_idle() {
    let (mut harness, _workers) = PoolHarness::up(config(3)).await;
    let prefers = |id: &str| ToolCall::new("t").with_preferred_worker(id);
    let first = harness.call(prefers("p-2-1")).await;
    let call = harness.next_call().await;
    assert_eq!(call.worker.as_str(), "p-2-1");
    for id in ["p-2-1", "q-1-1", "p-1-9", "p-9-1", "p", "", "p-x-y"] {
        let caller = harness.call(prefers(id)).await;
        let call = harness.next_call().await;
        assert_ne!(call.worker.as_str(), "p-2-1", "{id} is busy or unknown");
        call.succeed();
        caller.answer().await.unwrap();
    }
    call.succeed();
    first.answer().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_deadline_of_a_queued_call_reports_that_it_was_queued() {
    let (mut harness, _workers) = PoolHarness::up(config(1)).await;
    let _running = harness.call_tool("a").await;
    let start = Instant::now();
    let queued = harness.call(ToolCall::new("b").with_deadline(start + Duration::from_millis(300))).await;
    let error = queued.error().await;
    assert!(matches!(error, ToolError::DeadlineExceeded { stage: CallStage::Queued, .. }), "{error}");
    assert!(start.elapsed() < Duration::from_millis(310));
    assert_eq!(harness.status().queued, 0);
    assert_eq!(&*harness.next_call().await.call.tool, "a");
    assert!(harness.calls.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_call_without_a_deadline_gets_the_default_timeout() {
    let config = config(1).default_timeout(Duration::from_secs(5));
    let (mut harness, _workers) = PoolHarness::up(config).await;
    let start = Instant::now();
    let caller = harness.call_tool("t").await;
    let call = harness.next_call().await;
    assert_eq!(call.call.deadline, Some(start + Duration::from_secs(5)));
    let error = caller.error().await;
    assert!(matches!(error, ToolError::DeadlineExceeded { stage: CallStage::Running, .. }), "{error}");
    assert_eq!(harness.status().calls.timed_out, 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_cannot_have_run_is_retried_on_another_worker() {
    let (mut harness, workers) = PoolHarness::up(config(2)).await;
    let caller = harness.call_tool("t").await;
    let call = harness.next_call().await;
    let first = call.worker.clone();
    call.finish(Err(worker_lost(false)));
    let second = harness.next_call().await;
    assert_ne!(second.worker, first);
    second.succeed();
    caller.answer().await.unwrap();
    assert_eq!(harness.status().calls.retried, 1);
    // The pool replaces a worker that loses calls.
    let worker = workers.into_iter().find(|worker| worker.id == first).unwrap();
    worker.exit_on_command().await;
    assert!(harness.launch().await.id.as_str().ends_with("-2"));
}

fn worker_lost(may_have_run: bool) -> ToolError {
    ToolError::worker_lost("", "connection closed").with_may_have_run(may_have_run)
}

#[tokio::test(start_paused = true)]
async fn a_call_that_kills_its_workers_on_receipt_gets_five_attempts() {
    let (mut harness, mut workers) = PoolHarness::up(config(8)).await;
    let caller = harness.call_tool("deadly").await;
    for _ in 0..5 {
        let call = harness.next_call().await;
        let worker = workers.iter().position(|worker| worker.id == call.worker).unwrap();
        workers.remove(worker).exit(ExitReason::Signal { name: "SIGKILL".to_owned() });
        call.finish(Err(worker_lost(false)));
    }
    let error = caller.error().await;
    assert!(matches!(error, ToolError::WorkerLost { may_have_run: false, .. }), "{error}");
    assert_eq!(harness.status().calls.retried, 4);
    assert!(harness.calls.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_call_that_was_not_sent_has_no_part_in_the_loss_of_its_workers() {
    let (mut harness, mut workers) = PoolHarness::up(config(8)).await;
    let caller = harness.call_tool("innocent").await;
    for _ in 0..7 {
        let call = harness.next_call().await;
        let worker = workers.iter().position(|worker| worker.id == call.worker).unwrap();
        workers.remove(worker).exit(ExitReason::Signal { name: "SIGKILL".to_owned() });
        call.finish(Err(worker_lost(false).unsent()));
    }
    harness.next_call().await.succeed();
    caller.answer().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_call_that_did_not_run_is_retried_more_often_if_its_worker_had_other_calls() {
    const ROUNDS: usize = 8;
    let config = config(1).concurrency(2);
    let (mut harness, mut workers) = PoolHarness::up(config).await;
    let victim = harness.call_tool("victim").await;
    let mut victim_call = harness.next_call().await;
    for round in 0..ROUNDS {
        // The worker answers a call first, so the pool replaces it without backoff.
        let warm = harness.call_tool("warm").await;
        harness.next_call().await.succeed();
        warm.answer().await.unwrap();
        let killer = harness.call_tool("killer").await;
        let killer_call = harness.next_call().await;
        // The exit may reach the pool before or after the errors of the lost calls.
        let mut worker = Some(workers.remove(0));
        if round % 2 == 0
            && let Some(worker) = worker.take()
        {
            worker.exit(ExitReason::Code(1));
            harness.settle().await;
        }
        killer_call.finish(Err(worker_lost(true)));
        assert!(matches!(killer.error().await, ToolError::WorkerLost { may_have_run: true, .. }));
        victim_call.finish(Err(worker_lost(false)));
        if let Some(worker) = worker {
            worker.exit_on_command().await;
        }
        workers.push(harness.launch().await.succeed());
        victim_call = harness.next_call().await;
    }
    victim_call.succeed();
    victim.answer().await.unwrap();
    assert_eq!(harness.status().calls.retried, ROUNDS as u64);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_rejects_calls_is_stopped_and_the_call_is_retried() {
    let (mut harness, _workers) = PoolHarness::up(config(2)).await;
    let caller = harness.call_tool("t").await;
    let error = ToolError::unavailable("it is shutting down");
    harness.next_call().await.finish(Err(error));
    harness.next_call().await.succeed();
    caller.answer().await.unwrap();
    let states = [harness.state(0), harness.state(1)];
    assert!(states.contains(&WorkerState::Stopping) && states.contains(&WorkerState::Idle), "{states:?}");
}

#[tokio::test(start_paused = true)]
async fn a_tool_failure_keeps_the_worker_and_is_not_retried() {
    let (mut harness, _workers) = PoolHarness::up(config(1)).await;
    let caller = harness.call(ToolCall::new("t").idempotent()).await;
    let failure = ToolFailure::new("ValueError", "");
    harness.next_call().await.finish(Err(failure.into()));
    let error = caller.error().await;
    assert_eq!(error.to_string(), "tool `t` failed: ValueError", "the pool adds the name of the tool");
    assert_eq!(harness.state(0), WorkerState::Idle);
    assert!(harness.calls.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_reply_of_the_wrong_kind_is_an_internal_error() {
    let (mut harness, _workers) = PoolHarness::up(config(1)).await;
    let caller = harness.call(ToolCall::new("t").streaming()).await;
    harness.next_call().await.finish(Ok(ToolReply::value(Payload::null())));
    let error = caller.error().await;
    assert!(matches!(error, ToolError::Internal { .. }), "{error}");
    // Such a reply does not prove that the call has ended.
    assert_eq!(harness.state(0), WorkerState::Quarantined);
    harness.next_cancel().await.answer.send(Ok(())).unwrap();
    harness.settle().await;
    assert_eq!(harness.state(0), WorkerState::Idle);
}
