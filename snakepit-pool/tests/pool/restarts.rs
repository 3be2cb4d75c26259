//! Tests of restarts: the replacement of all workers.
#![allow(clippy::disallowed_methods, reason = "tests may panic and detach tasks")]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

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
    harness.settle().await;
    let pool = harness.pool.clone();
    let retired = || {
        let retired = pool.status().retired_workers.into_iter();
        retired.map(|worker| (worker.id.to_string(), worker.pid, worker.state)).collect::<Vec<_>>()
    };
    assert_eq!(retired(), [("p-0-1".to_owned(), Some(42), WorkerState::Busy)]);
    // The call of the old worker outlives the restart.
    let other = harness.call_tool("t").await;
    let new_call = harness.next_call().await;
    assert!(new_call.worker.as_str().ends_with("-2"), "{}", new_call.worker);
    new_call.succeed();
    other.answer().await.unwrap();
    tokio::time::sleep(Duration::from_secs(30)).await;
    running.succeed();
    assert_eq!(caller.answer().await.unwrap().worker.as_deref(), Some("p-0-1"));
    harness.settle().await;
    assert_eq!(retired(), [("p-0-1".to_owned(), Some(42), WorkerState::Stopping)]);
    workers.pop().unwrap().exit_on_command().await;
    harness.settle().await;
    assert_eq!(retired(), []);
    assert!(harness.pool.is_ready());
}

#[tokio::test(start_paused = true)]
async fn a_restart_that_fails_after_the_first_slot_reports_the_replaced_workers() {
    let (mut harness, _workers) = PoolHarness::up(config(2)).await;
    let restart = begin(&harness);
    let _first = harness.launch().await.succeed();
    harness.launch().await.fail();
    let error = restart.await.unwrap().unwrap_err();
    assert!(matches!(error, PoolError::Start { replaced: 1, .. }), "{error:?}");
    let expected = "worker `p-1-2` did not start, after the restart had replaced 1 worker: worker cannot start: no such adapter";
    assert_eq!(error_chain(&error).to_string(), expected);
    let ids: Vec<String> = harness.status().workers.iter().map(|worker| worker.id.to_string()).collect();
    assert_eq!(ids, ["p-0-2", "p-1-1"]);
}

#[tokio::test(start_paused = true)]
async fn a_restart_logs_the_calls_for_which_it_waits() {
    let log = WaitLog::default();
    let _log = tracing::subscriber::set_default(log.clone());
    let (mut harness, mut workers) = PoolHarness::up(config(1)).await;
    let mut running = Vec::new();
    for _ in 0..4 {
        let caller = harness.call_tool("long").await;
        running.push((caller, harness.next_call().await));
        let restart = begin(&harness);
        workers.push(harness.launch().await.succeed());
        restart.await.unwrap().unwrap();
    }
    assert!(log.lines().is_empty(), "{:?}", log.lines());
    let restart = begin(&harness);
    harness.settle().await;
    let mut lines = log.lines();
    lines.sort();
    assert_eq!(lines.len(), 4, "{lines:?}");
    for (line, (_, call)) in lines.iter().zip(&running) {
        assert!(line.contains(call.worker.as_str()) && line.contains(&call.call.id.to_string()), "{line}");
    }
    let (caller, call) = running.remove(0);
    call.succeed();
    caller.answer().await.unwrap();
    workers.remove(0).exit_on_command().await;
    let _last = harness.launch().await.succeed();
    restart.await.unwrap().unwrap();
    assert_eq!(log.lines().len(), 4, "each wait is logged once");
}

/// The events of waiting restarts, with their fields.
#[derive(Debug, Clone, Default)]
struct WaitLog(Arc<Mutex<Vec<String>>>);

impl WaitLog {
    fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

/// Collects the fields of an event.
struct Fields(String);

impl tracing::field::Visit for Fields {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        self.0 += &format!("{field}={value:?} ");
    }
}

impl tracing::Subscriber for WaitLog {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() == tracing::Level::WARN
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        let mut fields = Fields(String::new());
        event.record(&mut fields);
        if fields.0.contains("the restart waits") {
            self.0.lock().unwrap().push(fields.0);
        }
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
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
