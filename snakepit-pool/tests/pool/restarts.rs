//! Tests of restarts: the replacement of all workers.
#![allow(clippy::disallowed_methods, reason = "tests may panic and detach tasks")]

use std::time::Duration;

use snakepit_pool::{PoolError, WorkerState};
use snakepit_worker::{ExitReason, WorkerCommand, error_chain};

use crate::puppet::{PoolHarness, config};

/// Begins a restart in a new task.
fn begin(harness: &PoolHarness) -> tokio::task::JoinHandle<Result<(), PoolError>> {
    let pool = harness.pool.clone();
    tokio::spawn(async move { pool.restart().await })
}

#[tokio::test(start_paused = true)]
async fn new_workers_are_up_before_old_ones_stop_and_calls_finish() {
    let (mut harness, mut workers) = PoolHarness::up(config(2)).await;
    let caller = harness.call_tool("t").await;
    let running = harness.next_call().await;
    assert_eq!(running.worker.as_str(), "p-0-1");
    let restart = begin(&harness);
    let first = harness.launch().await;
    assert_eq!(first.id.as_str(), "p-0-2");
    assert_eq!(harness.state(0), WorkerState::Busy, "the old worker serves during the launch");
    let _first = first.succeed();
    let second = harness.launch().await;
    assert_eq!(second.id.as_str(), "p-1-2");
    let idle = workers.pop().unwrap();
    let _second = second.succeed();
    let command = idle.exit_on_command().await;
    assert!(matches!(command, WorkerCommand::Stop { .. }), "{command:?}");
    restart.await.unwrap().unwrap();
    let ids: Vec<String> = harness.status().workers.iter().map(|worker| worker.id.to_string()).collect();
    assert_eq!(ids, ["p-0-2", "p-1-2"]);
    // The call of the old worker outlives the restart.
    let other = harness.call_tool("t").await;
    let new_call = harness.next_call().await;
    assert!(new_call.worker.as_str().ends_with("-2"), "{}", new_call.worker);
    new_call.succeed();
    other.answer().await.unwrap();
    tokio::time::sleep(Duration::from_secs(30)).await;
    running.succeed();
    assert_eq!(caller.answer().await.unwrap().worker.as_deref(), Some("p-0-1"));
    workers.pop().unwrap().exit_on_command().await;
    assert!(harness.pool.is_ready());
}

#[tokio::test(start_paused = true)]
async fn a_restart_returns_the_error_of_the_worker_that_does_not_start() {
    let (mut harness, _workers) = PoolHarness::up(config(2)).await;
    let restart = begin(&harness);
    harness.launch().await.fail();
    let error = restart.await.unwrap().unwrap_err();
    let expected = "worker `p-0-2` did not start: worker cannot start: no such adapter";
    assert_eq!(error_chain(&error).to_string(), expected);
    let caller = harness.call_tool("t").await;
    let call = harness.next_call().await;
    assert_eq!(call.worker.as_str(), "p-0-1");
    call.succeed();
    caller.answer().await.unwrap();
    // The next restart begins anew.
    let restart = begin(&harness);
    let _first = harness.launch().await.succeed();
    let _second = harness.launch().await.succeed();
    restart.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn restarts_that_overlap_end_together_and_a_dropped_one_continues() {
    let (mut harness, _workers) = PoolHarness::up(config(1)).await;
    let dropped = begin(&harness);
    let aborted = harness.launch().await;
    dropped.abort();
    let second = begin(&harness);
    aborted.wait_until_aborted().await;
    let aborted = harness.launch().await;
    let third = begin(&harness);
    aborted.wait_until_aborted().await;
    let last = harness.launch().await;
    assert_eq!(last.id.as_str(), "p-0-4");
    let _worker = last.succeed();
    second.await.unwrap().unwrap();
    third.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_ends_a_restart() {
    let (mut harness, mut workers) = PoolHarness::up(config(1)).await;
    let restart = begin(&harness);
    let launch = harness.launch().await;
    let pool = harness.pool.clone();
    let shutdown = tokio::spawn(async move { pool.shutdown(Duration::ZERO).await });
    launch.wait_until_aborted().await;
    assert!(matches!(restart.await.unwrap(), Err(PoolError::ShutDown)));
    workers.remove(0).exit_on_command().await;
    shutdown.await.unwrap();
    assert!(matches!(harness.pool.restart().await, Err(PoolError::ShutDown)));
}

#[tokio::test(start_paused = true)]
async fn an_old_worker_that_crashes_is_replaced_by_the_one_in_launch() {
    let (mut harness, mut workers) = PoolHarness::up(config(1)).await;
    let restart = begin(&harness);
    let launch = harness.launch().await;
    workers.remove(0).exit(ExitReason::Code(1));
    harness.settle().await;
    assert!(harness.launches.try_recv().is_err(), "no second launch");
    assert_eq!(harness.state(0), WorkerState::Starting);
    let _worker = launch.succeed();
    restart.await.unwrap().unwrap();
    assert!(harness.pool.is_ready());
}
