//! Tests of launching, losing and replacing workers.

use std::time::Duration;

use snakepit_pool::{PoolError, Readiness, WorkerState, settings};
use snakepit_registry::{ToolCall, ToolError, ToolHandler};
use snakepit_worker::{ExitReason, error_chain};
use tokio::{sync::watch, time::Instant};

use crate::puppet::{PoolHarness, config};

const MILLISECOND: Duration = Duration::from_millis(1);

#[tokio::test(start_paused = true)]
async fn all_workers_launch_concurrently_and_ready_waits_for_the_last() {
    let mut harness = PoolHarness::start(config(3));
    let mut launches = Vec::new();
    for _ in 0..3 {
        launches.push(harness.launch().await);
    }
    launches.sort_by(|a, b| a.id.cmp(&b.id));
    let ids: Vec<&str> = launches.iter().map(|launch| launch.id.as_str()).collect();
    assert_eq!(ids, ["p-0-1", "p-1-1", "p-2-1"]);
    assert_eq!(harness.state(0), WorkerState::Starting);

    let last = launches.pop().unwrap();
    let _workers: Vec<_> = launches.into_iter().map(|launch| launch.succeed()).collect();
    let waited = tokio::time::timeout(Duration::from_secs(3600), harness.pool.ready()).await;
    assert!(waited.is_err(), "one is missing");
    assert!(!harness.pool.is_ready());
    let _last = last.succeed();
    harness.pool.ready().await.unwrap();
    assert!(harness.pool.is_ready());
    let status = harness.status();
    assert_eq!((status.queued, status.in_flight), (0, 0));
    for worker in &status.workers {
        assert_eq!((worker.state, worker.pid, &*worker.address), (WorkerState::Idle, Some(42), "puppet"));
        assert!(worker.started_at.is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn ready_returns_the_first_failed_launch_and_the_pool_retries() {
    let mut harness = PoolHarness::start(config(1));
    harness.launch().await.fail();
    let error = harness.pool.ready().await.unwrap_err();
    assert_eq!(error.to_string(), "worker `p-0-1` did not start", "the cause is the source");
    let chain = error_chain(&error).to_string();
    assert_eq!(chain, "worker `p-0-1` did not start: worker cannot start: no such adapter");
    assert!(!harness.pool.is_ready());

    let _worker = harness.launch().await.succeed();
    harness.settle().await;
    assert!(harness.pool.is_ready());
    assert!(matches!(harness.pool.ready().await, Err(PoolError::Start { .. })), "the start phase had failed");
}

#[tokio::test(start_paused = true)]
async fn failed_launches_are_repeated_with_backoff() {
    let mut harness = PoolHarness::start(config(1));
    harness.launch().await.fail();
    for millis in [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000] {
        let start = Instant::now();
        let launch = harness.launch().await;
        let waited = start.elapsed();
        let expected = Duration::from_millis(millis);
        assert!(waited >= expected && waited <= expected + 2 * MILLISECOND, "{waited:?}, not {expected:?}");
        launch.fail();
    }
    harness.settle().await;
    let error = harness.tool().call(ToolCall::new("t")).await.unwrap_err();
    let ToolError::Unavailable { retry_after: Some(after), reason, last_error, .. } = error else {
        panic!("{error}")
    };
    assert_eq!(reason, "every worker failed to start several times in a row");
    assert!(
        last_error.starts_with("worker `p-0-1") && last_error.ends_with("no such adapter"),
        "{last_error}"
    );
    assert!(after > Duration::from_secs(25) && after <= Duration::from_secs(30), "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_exits_during_a_call_loses_it_and_is_replaced() {
    let (mut harness, mut workers) = PoolHarness::up(config(1)).await;
    let first = harness.call_tool("warm").await;
    harness.next_call().await.succeed();
    first.answer().await.unwrap();

    let caller = harness.call_tool("t").await;
    // The handler never answers, so the exit of the worker must end the call.
    let _silent = harness.next_call().await;
    let start = Instant::now();
    workers.remove(0).exit(ExitReason::Signal { name: "SIGSEGV".to_owned() });
    let error = caller.error().await;
    assert!(start.elapsed() < Duration::from_millis(100), "promptly");
    let ToolError::WorkerLost { worker, reason, may_have_run, output_lines, .. } = error else {
        panic!("{error}")
    };
    assert_eq!((&*worker, &*reason, may_have_run), ("p-0-1", "it was killed by SIGSEGV", true));
    assert!(output_lines.is_empty(), "the pool cannot attribute output: {output_lines:?}");

    let launch = harness.launch().await;
    assert_eq!(launch.id.as_str(), "p-0-2");
    assert!(start.elapsed() < Duration::from_millis(100), "a healthy worker is replaced immediately");
    let _worker = launch.succeed();
    let caller = harness.call_tool("t").await;
    harness.next_call().await.succeed();
    assert_eq!(caller.answer().await.unwrap().worker.as_deref(), Some("p-0-2"));
    assert_eq!(harness.status().workers[0].restarts, 1);
}

#[tokio::test(start_paused = true)]
async fn the_handlers_error_about_a_lost_worker_reaches_the_caller() {
    let (mut harness, mut workers) = PoolHarness::up(config(1)).await;
    let caller = harness.call_tool("t").await;
    let call = harness.next_call().await;
    workers.remove(0).exit(ExitReason::Code(1));
    harness.settle().await;
    let error = ToolError::worker_lost("p-0-1", "connection closed");
    call.finish(Err(error));
    let error = caller.error().await.to_string();
    assert!(error.contains("connection closed"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_pool_without_a_live_worker_is_not_ready() {
    let (mut harness, mut workers) = PoolHarness::up(config(2)).await;
    workers.remove(0).exit(ExitReason::Code(1));
    harness.settle().await;
    assert!(harness.pool.is_ready(), "one is left");
    assert_eq!(harness.state(0), WorkerState::Dead);
    workers.remove(0).exit(ExitReason::Code(1));
    harness.settle().await;
    assert!(!harness.pool.is_ready());
    let _worker = harness.launch().await.succeed();
    harness.settle().await;
    assert!(harness.pool.is_ready());
}

#[tokio::test(start_paused = true)]
async fn readiness_follows_the_workers_and_the_shutdown() {
    let mut harness = PoolHarness::start(config(2));
    let mut readiness = harness.pool.readiness();
    let now = |readiness: &mut watch::Receiver<Readiness>| readiness.borrow_and_update().to_string();
    assert_eq!(now(&mut readiness), "starting (0 of 2 workers up)");
    let first = harness.launch().await.succeed();
    readiness.changed().await.unwrap();
    assert_eq!(now(&mut readiness), "starting (1 of 2 workers up)");
    let second = harness.launch().await.succeed();
    readiness.changed().await.unwrap();
    assert_eq!(now(&mut readiness), "ready (2 of 2 workers up)");

    first.exit(ExitReason::Code(1));
    readiness.changed().await.unwrap();
    assert_eq!(now(&mut readiness), "degraded (1 of 2 workers up)");
    assert!(readiness.borrow().serves_calls());
    let replacement = harness.launch().await.succeed();
    readiness.changed().await.unwrap();
    assert_eq!(now(&mut readiness), "ready (2 of 2 workers up)");

    let stopping = harness.pool.shutdown(Duration::ZERO);
    tokio::join!(stopping, second.exit_on_command(), replacement.exit_on_command());
    assert_eq!(now(&mut readiness), "stopping");
    assert!(!harness.pool.is_ready());
}

#[test]
fn a_pool_needs_a_runtime_and_valid_settings() {
    #[derive(Debug)]
    struct UnusedLauncher;
    #[async_trait::async_trait]
    impl snakepit_worker::WorkerLauncher for UnusedLauncher {
        async fn launch(
            &self,
            request: snakepit_worker::LaunchRequest,
        ) -> Result<snakepit_worker::Worker, snakepit_worker::WorkerError> {
            panic!("{} must not be launched", request.id)
        }
    }
    let start = |workers| snakepit_pool::Pool::start(config(workers), std::sync::Arc::new(UnusedLauncher));
    assert!(matches!(start(0), Err(PoolError::InvalidConfig { setting: settings::WORKERS, .. })));
    assert!(matches!(start(1), Err(PoolError::NoRuntime)));
}

#[tokio::test(start_paused = true)]
async fn the_error_of_a_call_without_a_worker_names_the_tool_that_crashes_workers() {
    let (mut harness, mut workers) = PoolHarness::up(config(1)).await;
    for crash in 0..3 {
        let caller = harness.call_tool("crash").await;
        let _silent = harness.next_call().await;
        workers.remove(0).exit(ExitReason::Signal { name: "SIGSEGV".to_owned() });
        assert!(matches!(caller.error().await, ToolError::WorkerLost { .. }));
        if crash < 2 {
            workers.push(harness.launch().await.succeed());
            harness.settle().await;
        }
    }
    let error = harness.tool().call(ToolCall::new("innocent")).await.unwrap_err();
    let ToolError::Unavailable { reason, retry_after, .. } = &error else { panic!("{error}") };
    assert!(
        reason.ends_with("`p-0-3`, was lost during a call of tool `crash`: it was killed by SIGSEGV"),
        "{reason}"
    );
    assert!(!reason.contains("failed to start") && retry_after.is_some(), "{error:?}");
}
