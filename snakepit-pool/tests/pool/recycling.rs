//! Tests of recycling: the replacement of single workers.
#![allow(clippy::disallowed_methods, reason = "tests may panic and detach tasks")]

use snakepit_pool::PoolError;
use snakepit_worker::{WorkerCommand, error_chain};

use crate::puppet::{PoolHarness, config};

#[tokio::test(start_paused = true)]
async fn a_worker_is_replaced_after_its_calls_and_the_status_names_the_reason() {
    let (mut harness, mut workers) = PoolHarness::up(config(1).max_worker_calls(2)).await;
    for _ in 0..2 {
        let caller = harness.call_tool("t").await;
        harness.next_call().await.succeed();
        caller.answer().await.unwrap();
    }
    let second = harness.launch().await;
    assert_eq!(second.id.as_str(), "p-0-2");
    let _second = second.succeed();
    let command = workers.pop().unwrap().exit_on_command().await;
    assert!(matches!(command, WorkerCommand::Stop { .. }), "{command:?}");
    harness.settle().await;
    let worker = harness.status().workers.remove(0);
    assert_eq!((worker.id.as_str(), worker.restarts), ("p-0-2", 1));
    let reason = "p-0-1: it was recycled because it has run 2 calls (`max_worker_calls`)";
    assert_eq!(worker.last_end.as_deref(), Some(reason));
}

#[tokio::test(start_paused = true)]
async fn one_worker_is_replaced_on_request() {
    let (mut harness, mut workers) = PoolHarness::up(config(2)).await;
    let pool = harness.pool.clone();
    let restart = tokio::spawn(async move { pool.restart_worker("p-1-1").await });
    let new = harness.launch().await;
    assert_eq!(new.id.as_str(), "p-1-2");
    assert!(!restart.is_finished());
    let _new = new.succeed();
    restart.await.unwrap().unwrap();
    workers.pop().unwrap().exit_on_command().await;
    harness.settle().await;
    let ids: Vec<String> = harness.status().workers.iter().map(|worker| worker.id.to_string()).collect();
    assert_eq!(ids, ["p-0-1", "p-1-2"]);

    for unknown in ["p-1-1", "p-9-1", "q-0-1", ""] {
        let error = harness.pool.restart_worker(unknown).await.unwrap_err();
        assert!(matches!(&error, PoolError::NoSuchWorker { id, .. } if id == unknown), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_stays_if_its_requested_replacement_does_not_start() {
    let (mut harness, _workers) = PoolHarness::up(config(1)).await;
    let pool = harness.pool.clone();
    let restart = tokio::spawn(async move { pool.restart_worker("p-0-1").await });
    harness.launch().await.fail();
    let error = restart.await.unwrap().unwrap_err();
    let text = error_chain(&error).to_string();
    assert_eq!(text, "worker `p-0-2` did not start: worker cannot start: no such adapter");
    let caller = harness.call_tool("t").await;
    harness.next_call().await.succeed();
    assert_eq!(caller.answer().await.unwrap().worker.as_deref(), Some("p-0-1"));
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_ends_the_wait_for_a_replacement() {
    let (mut harness, mut workers) = PoolHarness::up(config(1)).await;
    let pool = harness.pool.clone();
    let restart = tokio::spawn(async move { pool.restart_worker("p-0-1").await });
    let _launch = harness.launch().await;
    let pool = harness.pool.clone();
    let shutdown = tokio::spawn(async move { pool.shutdown(std::time::Duration::ZERO).await });
    assert!(matches!(restart.await.unwrap(), Err(PoolError::ShutDown)));
    workers.pop().unwrap().exit_on_command().await;
    drop(_launch);
    shutdown.await.unwrap();
}
