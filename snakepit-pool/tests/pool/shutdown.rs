//! Tests of graceful shutdown, and of dropping a pool.

use std::time::Duration;

use snakepit_pool::{PoolError, WorkerState};
use snakepit_registry::{ToolCall, ToolError, ToolHandler};
use snakepit_worker::{ExitReason, WorkerCommand};
use tokio::time::Instant;

use crate::puppet::{PoolHarness, chunk, config, is_pending, next};

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(start_paused = true)]
async fn a_drain_finishes_calls_then_stops_workers_and_waits_for_their_exit() {
    let (mut harness, mut workers) = PoolHarness::up(config(1)).await;
    let running = harness.call_tool("a").await;
    let queued = harness.call_tool("b").await;
    let pool = harness.pool.clone();
    let shutdown = pool.shutdown(MINUTE);
    tokio::pin!(shutdown);
    assert!(is_pending(shutdown.as_mut()).await);
    assert!(!pool.is_ready());

    let rejected = harness.tool().call(ToolCall::new("late")).await.unwrap_err();
    assert!(matches!(rejected, ToolError::ShuttingDown { may_have_run: false, .. }), "{rejected}");
    harness.next_call().await.succeed();
    running.answer().await.unwrap();
    harness.next_call().await.succeed();
    queued.answer().await.unwrap();

    let mut worker = workers.remove(0);
    assert_eq!(worker.command().await, WorkerCommand::Stop { grace: Duration::from_secs(5) });
    assert_eq!(harness.state(0), WorkerState::Stopping);
    harness.settle().await;
    assert!(is_pending(shutdown.as_mut()).await, "the worker has not ended yet");
    worker.exit(ExitReason::Stopped);
    shutdown.await;
    assert_eq!(harness.state(0), WorkerState::Dead);
    assert!(harness.launches.is_empty(), "a stopped worker is not replaced");
    assert!(matches!(pool.ready().await, Err(PoolError::ShutDown)));
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_after_its_duration() {
    let (mut harness, mut workers) = PoolHarness::up(config(1)).await;
    let start = Instant::now();
    let running = harness.call_tool("a").await;
    let _call = harness.next_call().await;
    let queued = harness.call_tool("b").await;
    let ((), command) =
        tokio::join!(harness.pool.shutdown(Duration::from_secs(5)), workers.remove(0).exit_on_command());
    assert!(matches!(command, WorkerCommand::Stop { .. }));
    assert!(start.elapsed() < Duration::from_millis(5010));
    assert!(matches!(queued.error().await, ToolError::ShuttingDown { may_have_run: false, .. }));
    assert!(matches!(running.error().await, ToolError::ShuttingDown { may_have_run: true, .. }));
}

#[tokio::test(start_paused = true)]
async fn the_shorter_drain_of_two_shutdowns_applies() {
    let (mut harness, mut workers) = PoolHarness::up(config(1)).await;
    let _running = harness.call_tool("a").await;
    let _call = harness.next_call().await;
    let start = Instant::now();
    let (pool, other) = (harness.pool.clone(), harness.pool.clone());
    let ((), (), command) = tokio::join!(
        pool.shutdown(Duration::MAX),
        other.shutdown(Duration::from_secs(1)),
        workers.remove(0).exit_on_command()
    );
    assert!(matches!(command, WorkerCommand::Stop { .. }));
    assert!(start.elapsed() < Duration::from_millis(1010));
    pool.shutdown(MINUTE).await;
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_continues_when_its_future_is_dropped() {
    let (harness, mut workers) = PoolHarness::up(config(1)).await;
    assert!(is_pending(std::pin::pin!(harness.pool.shutdown(MINUTE))).await);
    let command = workers.remove(0).exit_on_command().await;
    assert!(matches!(command, WorkerCommand::Stop { .. }));
    harness.pool.shutdown(MINUTE).await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_exits_during_the_drain_is_replaced_if_calls_wait() {
    let (mut harness, mut workers) = PoolHarness::up(config(1)).await;
    let _lost = harness.call_tool("a").await;
    let _call = harness.next_call().await;
    let queued = harness.call_tool("b").await;
    let pool = harness.pool.clone();
    let shutdown = pool.shutdown(MINUTE);
    let rest = async {
        harness.settle().await;
        workers.remove(0).exit(ExitReason::Code(1));
        let worker = harness.launch().await.succeed();
        harness.next_call().await.succeed();
        queued.answer().await.unwrap();
        worker.exit_on_command().await
    };
    let ((), command) = tokio::join!(shutdown, rest);
    assert!(matches!(command, WorkerCommand::Stop { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_aborts_launches() {
    let mut harness = PoolHarness::start(config(1));
    let launch = harness.launch().await;
    let pool = harness.pool.clone();
    let (ready, (), ()) =
        tokio::join!(pool.ready(), pool.shutdown(Duration::ZERO), launch.wait_until_aborted());
    assert!(ready.is_err());
}

#[tokio::test(start_paused = true)]
async fn dropping_the_last_handle_kills_the_workers_and_fails_all_calls() {
    let (mut harness, mut workers) = PoolHarness::up(config(1)).await;
    let tool = harness.tool();
    let running = harness.call_tool("a").await;
    let _call = harness.next_call().await;
    let queued = harness.call_tool("b").await;
    let PoolHarness { pool, launches, calls, cancels, .. } = harness;
    drop(pool.clone());
    let mut worker = workers.remove(0);
    drop(pool);
    // The pool asks the worker to stop before it kills it.
    let mut command = worker.command().await;
    while !matches!(command, WorkerCommand::Kill { .. }) {
        command = worker.command().await;
    }
    assert!(matches!(queued.error().await, ToolError::ShuttingDown { may_have_run: false, .. }));
    assert!(matches!(running.error().await, ToolError::ShuttingDown { may_have_run: true, .. }));
    let late = tool.call(ToolCall::new("late")).await.unwrap_err();
    assert!(matches!(late, ToolError::ShuttingDown { may_have_run: false, .. }), "{late}");
    drop((launches, calls, cancels));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_outlasts_the_drain_fails() {
    let (mut harness, mut workers) = PoolHarness::up(config(1)).await;
    let running = harness.call(ToolCall::new("s").streaming()).await;
    let chunk_sender = harness.next_call().await.stream();
    let mut reply = running.answer().await.unwrap();
    chunk_sender.send(chunk()).unwrap();
    assert!(matches!(next(&mut reply).await, Some(Ok(_))));
    let ((), _) =
        tokio::join!(harness.pool.shutdown(Duration::from_secs(1)), workers.remove(0).exit_on_command());
    assert!(matches!(next(&mut reply).await, Some(Err(ToolError::ShuttingDown { may_have_run: true, .. }))));
    assert!(next(&mut reply).await.is_none());
    assert_eq!(harness.status().calls.cancelled, 1);
}

/// A second runtime, which a test can shut down while another one runs.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

#[test]
fn a_pool_whose_runtime_has_shut_down_fails_every_call() {
    let (first, second) = (runtime(), runtime());
    let (mut harness, workers) = first.block_on(PoolHarness::up(config(1)));
    let tool = harness.tool();
    let running = first.block_on(harness.call_tool("a"));
    let call = first.block_on(harness.next_call());
    let other = harness.tool();
    let queued = second.spawn(async move { other.call(ToolCall::new("b")).await });
    while harness.status().queued == 0 {
        std::thread::yield_now();
    }
    drop(first);
    second.block_on(async {
        let in_time = |future| tokio::time::timeout(MINUTE, future);
        for error in [
            in_time(tool.call(ToolCall::new("late"))).await.unwrap().unwrap_err(),
            queued.await.unwrap().unwrap_err(),
        ] {
            assert!(
                error.to_string().contains("the tokio runtime that started this host has shut down"),
                "{error}"
            );
        }
        tokio::time::timeout(MINUTE, harness.pool.shutdown(MINUTE)).await.unwrap();
    });
    assert!(harness.pool.runtime_has_ended() && !harness.pool.is_ready());
    drop((running, call, workers));
}
