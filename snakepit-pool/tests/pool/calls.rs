//! Tests of how calls are assigned, queued, rejected and retried.

use std::time::Duration;

use snakepit_pool::{PoolConfig, WorkerState};
use snakepit_registry::{CallMode, CallStage, ToolCall, ToolError, ToolFailure, ToolReply};
use snakepit_session::Payload;
use snakepit_worker::ExitReason;
use tokio::time::Instant;

use crate::puppet::{Bench, config};

#[tokio::test(start_paused = true)]
async fn calls_queue_in_order_and_replies_name_the_worker() {
    let (mut bench, _workers) = Bench::up(config(1)).await;
    let mut callers = Vec::new();
    for name in ["a", "b", "c"] {
        callers.push(bench.call_tool(name).await);
    }
    assert_eq!((bench.status().queued, bench.status().in_flight), (2, 1));
    assert_eq!(bench.state(0), WorkerState::Busy);
    for (name, caller) in ["a", "b", "c"].into_iter().zip(callers) {
        let call = bench.next_call().await;
        assert_eq!(&*call.call.tool, name);
        assert!(bench.calls.is_empty(), "the worker runs one call at a time");
        call.succeed();
        assert_eq!(caller.answer().await.unwrap().worker.as_deref(), Some("p-0-1"));
    }
    let status = bench.status();
    assert_eq!((status.queued, status.in_flight, status.workers[0].calls), (0, 0, 3));
    assert_eq!(status.calls.succeeded, 3);
    assert_eq!(bench.state(0), WorkerState::Idle);
}

#[tokio::test(start_paused = true)]
async fn calls_wait_for_the_first_worker() {
    let mut bench = Bench::start(config(2));
    let caller = bench.call_tool("t").await;
    let _launching = bench.launch().await;
    let _worker = bench.launch().await.succeed();
    bench.next_call().await.succeed();
    caller.answer().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_rejects_calls_immediately() {
    let (mut bench, _workers) = Bench::up(PoolConfig { queue_limit: 1, ..config(1) }).await;
    let running = bench.call_tool("a").await;
    let queued = bench.call_tool("b").await;
    let error = bench.call_tool("c").await.error().await;
    let ToolError::Overloaded { queued: 1, limit: 1, retry_after: Some(_) } = error else {
        panic!("{error}")
    };
    bench.next_call().await.succeed();
    bench.next_call().await.succeed();
    running.answer().await.unwrap();
    queued.answer().await.unwrap();
    assert_eq!(bench.status().calls.refused, 1);
}

#[tokio::test(start_paused = true)]
async fn concurrency_lets_a_worker_run_several_calls() {
    let (mut bench, _workers) = Bench::up(PoolConfig { concurrency: 3, ..config(1) }).await;
    let mut callers = Vec::new();
    for _ in 0..4 {
        callers.push(bench.call_tool("t").await);
    }
    assert_eq!((bench.status().queued, bench.status().in_flight), (1, 3));
    for _ in 0..4 {
        bench.next_call().await.succeed();
    }
    for caller in callers {
        caller.answer().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_preferred_worker_runs_the_call_if_it_is_idle() {
    let (mut bench, _workers) = Bench::up(config(3)).await;
    let prefers = |id: &str| ToolCall { preferred_worker: Some(id.into()), ..ToolCall::new("t") };
    let first = bench.call(prefers("p-2-1")).await;
    let call = bench.next_call().await;
    assert_eq!(call.worker.as_str(), "p-2-1");
    for id in ["p-2-1", "q-1-1", "p-1-9", "p-9-1", "p", "", "p-x-y"] {
        let caller = bench.call(prefers(id)).await;
        let call = bench.next_call().await;
        assert_ne!(call.worker.as_str(), "p-2-1", "{id} is busy or unknown");
        call.succeed();
        caller.answer().await.unwrap();
    }
    call.succeed();
    first.answer().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_deadline_of_a_queued_call_reports_that_it_was_queued() {
    let (mut bench, _workers) = Bench::up(config(1)).await;
    let _running = bench.call_tool("a").await;
    let start = Instant::now();
    let queued = bench.call(ToolCall::new("b").with_deadline(start + Duration::from_millis(300))).await;
    let error = queued.error().await;
    assert!(matches!(error, ToolError::DeadlineExceeded { stage: CallStage::Queued, .. }), "{error}");
    assert!(start.elapsed() < Duration::from_millis(310));
    assert_eq!(bench.status().queued, 0);
    assert_eq!(&*bench.next_call().await.call.tool, "a");
    assert!(bench.calls.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_call_without_a_deadline_gets_the_default_timeout() {
    let config = PoolConfig { default_timeout: Some(Duration::from_secs(5)), ..config(1) };
    let (mut bench, _workers) = Bench::up(config).await;
    let start = Instant::now();
    let caller = bench.call_tool("t").await;
    let call = bench.next_call().await;
    assert_eq!(call.call.deadline, Some(start + Duration::from_secs(5)));
    let error = caller.error().await;
    assert!(matches!(error, ToolError::DeadlineExceeded { stage: CallStage::Running, .. }), "{error}");
    assert_eq!(bench.status().calls.timed_out, 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_was_not_delivered_is_retried_on_another_worker() {
    let (mut bench, workers) = Bench::up(config(2)).await;
    let caller = bench.call_tool("t").await;
    let call = bench.next_call().await;
    let first = call.worker.clone();
    call.finish(Err(lost(false)));
    let second = bench.next_call().await;
    assert_ne!(second.worker, first);
    second.succeed();
    caller.answer().await.unwrap();
    assert_eq!(bench.status().calls.retried, 1);
    // The pool replaces a worker that loses calls.
    let worker = workers.into_iter().find(|worker| worker.id == first).unwrap();
    worker.exit_on_command().await;
    assert!(bench.launch().await.id.as_str().ends_with("-2"));
}

fn lost(delivered: bool) -> ToolError {
    ToolError::WorkerLost {
        worker: String::new(),
        reason: "connection closed".to_owned(),
        delivered,
        output_lines: Vec::new(),
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_kills_its_workers_on_receipt_gets_five_attempts() {
    let (mut bench, mut workers) = Bench::up(config(8)).await;
    let caller = bench.call_tool("deadly").await;
    for _ in 0..5 {
        let call = bench.next_call().await;
        let worker = workers.iter().position(|worker| worker.id == call.worker).unwrap();
        workers.remove(worker).exit(ExitReason::Signal { name: "SIGKILL".to_owned() });
        call.finish(Err(lost(false)));
    }
    let error = caller.error().await;
    assert!(matches!(error, ToolError::WorkerLost { delivered: false, .. }), "{error}");
    assert_eq!(bench.status().calls.retried, 4);
    assert!(bench.calls.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_call_that_never_began_beside_another_is_retried_more_often() {
    const ROUNDS: usize = 8;
    let config = PoolConfig { concurrency: 2, ..config(1) };
    let (mut bench, mut workers) = Bench::up(config).await;
    let victim = bench.call_tool("victim").await;
    let mut victim_call = bench.next_call().await;
    for round in 0..ROUNDS {
        // The worker answers a call first, so the pool replaces it without backoff.
        let warm = bench.call_tool("warm").await;
        bench.next_call().await.succeed();
        warm.answer().await.unwrap();
        let killer = bench.call_tool("killer").await;
        let killer_call = bench.next_call().await;
        // The pool may notice the exit before or after the lost calls.
        let mut worker = Some(workers.remove(0));
        if round % 2 == 0
            && let Some(worker) = worker.take()
        {
            worker.exit(ExitReason::Code(1));
            bench.settle().await;
        }
        killer_call.finish(Err(lost(true)));
        assert!(matches!(killer.error().await, ToolError::WorkerLost { delivered: true, .. }));
        victim_call.finish(Err(lost(false)));
        if let Some(worker) = worker {
            worker.exit_on_command().await;
        }
        workers.push(bench.launch().await.succeed());
        victim_call = bench.next_call().await;
    }
    victim_call.succeed();
    victim.answer().await.unwrap();
    assert_eq!(bench.status().calls.retried, ROUNDS as u64);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_rejects_calls_is_stopped_and_the_call_is_retried() {
    let (mut bench, _workers) = Bench::up(config(2)).await;
    let caller = bench.call_tool("t").await;
    let error = ToolError::Unavailable { reason: "it is shutting down".to_owned(), retry_after: None };
    bench.next_call().await.finish(Err(error));
    bench.next_call().await.succeed();
    caller.answer().await.unwrap();
    let states = [bench.state(0), bench.state(1)];
    assert!(states.contains(&WorkerState::Stopping) && states.contains(&WorkerState::Idle), "{states:?}");
}

#[tokio::test(start_paused = true)]
async fn a_tool_failure_keeps_the_worker_and_is_not_retried() {
    let (mut bench, _workers) = Bench::up(config(1)).await;
    let caller = bench.call(ToolCall { idempotent: true, ..ToolCall::new("t") }).await;
    let failure = ToolFailure { error_type: "ValueError".to_owned(), ..ToolFailure::default() };
    bench.next_call().await.finish(Err(ToolError::Failed(Box::new(failure))));
    assert!(matches!(caller.error().await, ToolError::Failed(_)));
    assert_eq!(bench.state(0), WorkerState::Idle);
    assert!(bench.calls.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_the_wrong_kind_is_an_internal_error() {
    let (mut bench, _workers) = Bench::up(config(1)).await;
    let caller = bench.call(ToolCall { mode: CallMode::Streaming, ..ToolCall::new("t") }).await;
    bench.next_call().await.finish(Ok(ToolReply::value(Payload::null())));
    let error = caller.error().await;
    assert!(matches!(error, ToolError::Internal { .. }), "{error}");
    // Such an answer does not prove that the call has ended.
    assert_eq!(bench.state(0), WorkerState::Quarantined);
    bench.next_cancel().await.answer.send(Ok(())).unwrap();
    bench.settle().await;
    assert_eq!(bench.state(0), WorkerState::Idle);
}
