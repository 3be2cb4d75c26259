//! Tests that a slot recovers from a panic in a launcher, a worker or a log subscriber.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use snakepit_pool::{Pool, PoolConfig, WorkerState};
use snakepit_registry::{CallId, ToolCall, ToolError, ToolHandler, ToolReply};
use snakepit_session::Payload;
use snakepit_worker::{
    ExitReason, LaunchRequest, Worker, WorkerCommand, WorkerError, WorkerExit, WorkerLauncher, error_chain,
};
use tokio::task::JoinSet;

/// Flags that each make one operation panic once, with the number of launches and the tasks of the workers.
#[derive(Debug, Default)]
struct PanicPoints {
    in_launch: AtomicBool,
    in_driver: AtomicBool,
    in_cancel: AtomicBool,
    in_recall: AtomicBool,
    launches: AtomicUsize,
    drivers: std::sync::Mutex<JoinSet<()>>,
}

#[derive(Debug)]
struct Launcher(Arc<PanicPoints>);

#[derive(Debug)]
struct Handler(Arc<PanicPoints>);

fn panic_once(flag: &AtomicBool) {
    assert!(!flag.swap(false, Ordering::SeqCst), "injected panic");
}

#[async_trait]
impl WorkerLauncher for Launcher {
    async fn launch(&self, request: LaunchRequest) -> Result<Worker, WorkerError> {
        self.0.launches.fetch_add(1, Ordering::SeqCst);
        panic_once(&self.0.in_launch);
        let (worker, mut launcher_end) =
            Worker::new(request.id, None, "in-process", Arc::new(Handler(Arc::clone(&self.0))));
        let points = Arc::clone(&self.0);
        self.0.drivers.lock().unwrap().spawn(async move {
            let reason = match launcher_end.command().await {
                WorkerCommand::Stop { .. } => ExitReason::Stopped,
                WorkerCommand::Kill { reason } => ExitReason::Killed { reason },
            };
            panic_once(&points.in_driver);
            launcher_end.exited(WorkerExit::new(reason));
        });
        // The pool recalls only calls that it dispatched ahead, so this worker must accept them.
        Ok(worker.with_call_queue(true))
    }
}

#[async_trait]
impl ToolHandler for Handler {
    async fn call(&self, call: ToolCall) -> Result<ToolReply, ToolError> {
        match &*call.tool {
            "hang" => std::future::pending().await,
            _ => Ok(ToolReply::value(Payload::null())),
        }
    }

    async fn cancel(&self, _: CallId) -> Result<(), ToolError> {
        panic_once(&self.0.in_cancel);
        Ok(())
    }

    fn recall(&self, _: CallId) {
        panic_once(&self.0.in_recall);
    }
}

async fn pool(points: &Arc<PanicPoints>) -> Pool {
    let config = PoolConfig::default().workers(1);
    Pool::start(config, Arc::new(Launcher(Arc::clone(points)))).unwrap()
}

/// Waits until the worker is idle, and makes a call.
async fn wait_until_idle(pool: &Pool) {
    let idle = async {
        while pool.status().workers[0].state != WorkerState::Idle {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), idle).await.expect("the slot recovers");
    pool.tool().call(ToolCall::new("answer")).await.unwrap();
}

/// Begins a call that never ends, and drops it.
async fn abandon(pool: &Pool) {
    let call = pool.tool();
    let call = call.call(ToolCall::new("hang"));
    assert!(tokio::time::timeout(Duration::from_millis(50), call).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_launch_that_panics_is_retried() {
    let points = Arc::new(PanicPoints::default());
    points.in_launch.store(true, Ordering::SeqCst);
    let pool = pool(&points).await;
    let error = error_chain(&pool.ready().await.unwrap_err()).to_string();
    assert!(error.contains("its launch panicked"), "{error}");
    wait_until_idle(&pool).await;
    assert_eq!(points.launches.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn a_worker_whose_cancel_or_driver_panics_is_replaced() {
    for in_driver in [false, true] {
        let points = Arc::new(PanicPoints::default());
        let pool = pool(&points).await;
        pool.ready().await.unwrap();
        points.in_cancel.store(true, Ordering::SeqCst);
        points.in_driver.store(in_driver, Ordering::SeqCst);
        abandon(&pool).await;
        wait_until_idle(&pool).await;
        assert_eq!(points.launches.load(Ordering::SeqCst), 2, "a worker that cannot cancel is killed");
        pool.shutdown(Duration::ZERO).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_recall_that_panics_affects_no_call() {
    let points = Arc::new(PanicPoints::default());
    let pool = pool(&points).await;
    pool.ready().await.unwrap();
    points.in_recall.store(true, Ordering::SeqCst);
    for _ in 0..100 {
        pool.tool().call(ToolCall::new("answer")).await.unwrap();
    }
    abandon(&pool).await;
    wait_until_idle(&pool).await;
}

/// A subscriber that panics on events of the driver, like one that prints to a closed pipe.
struct PanickingLog;

impl tracing::Subscriber for PanickingLog {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.is_event() && metadata.target().starts_with("snakepit_pool::driver")
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {
        panic!("failed printing to stderr");
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test(start_paused = true)]
async fn a_slot_recovers_from_a_log_subscriber_that_panics() {
    let _log = tracing::subscriber::set_default(PanickingLog);
    let points = Arc::new(PanicPoints::default());
    let pool = pool(&points).await;
    pool.ready().await.unwrap();
    for round in 2..5 {
        points.in_cancel.store(true, Ordering::SeqCst);
        abandon(&pool).await;
        wait_until_idle(&pool).await;
        assert_eq!(points.launches.load(Ordering::SeqCst), round);
    }
    pool.shutdown(Duration::from_secs(1)).await;
}
