//! Tests that the pool neither wakes tasks nor drops values of the program while it holds its lock, because both run foreign code,
//! which may use the pool.
#![allow(clippy::disallowed_methods, reason = "tests may detach tasks and threads")]

use std::{
    convert::Infallible,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use snakepit_pool::Pool;
use snakepit_registry::{FnTool, ToolCall, ToolHandler};
use snakepit_worker::{ExitReason, Worker, WorkerExit};

use crate::puppet::{PoolHarness, config, next};

/// Whether the lock of the pool is free. Takes it on another thread, so that the test fails instead of blocking.
fn is_unlocked(pool: &Pool) -> bool {
    let (pool, (sender, receiver)) = (pool.clone(), mpsc::channel());
    std::thread::spawn(move || {
        drop(pool.status());
        let _ = sender.send(());
    });
    receiver.recv_timeout(Duration::from_secs(10)).is_ok()
}

/// A waker that needs the lock of the pool.
struct LockingWaker {
    pool: Pool,
    was_woken: AtomicBool,
}

impl Wake for LockingWaker {
    fn wake(self: Arc<Self>) {
        self.was_woken.store(is_unlocked(&self.pool), Ordering::SeqCst);
    }
}

/// A value of the program that needs the lock of the pool when it is dropped.
struct LockingValue {
    pool: Pool,
    was_dropped: Arc<AtomicBool>,
}

impl LockingValue {
    fn new(harness: &PoolHarness) -> (Self, Arc<AtomicBool>) {
        let was_dropped = Arc::default();
        (Self { pool: harness.pool.clone(), was_dropped: Arc::clone(&was_dropped) }, was_dropped)
    }
}

impl Drop for LockingValue {
    fn drop(&mut self) {
        self.was_dropped.store(is_unlocked(&self.pool), Ordering::SeqCst);
    }
}

/// A future that the test polls with a [`LockingWaker`].
struct Polled<'a, F> {
    future: Pin<&'a mut F>,
    waker: Arc<LockingWaker>,
}

impl<'a, F: Future> Polled<'a, F> {
    fn begin(future: Pin<&'a mut F>, harness: &PoolHarness) -> Self {
        let waker = LockingWaker { pool: harness.pool.clone(), was_woken: AtomicBool::new(false) };
        let mut polled = Self { future, waker: Arc::new(waker) };
        assert!(polled.poll().is_pending());
        polled
    }

    fn poll(&mut self) -> Poll<F::Output> {
        let waker = Waker::from(Arc::clone(&self.waker));
        self.future.as_mut().poll(&mut Context::from_waker(&waker))
    }

    /// Waits until the waker was called, and returns the output.
    async fn end(mut self, harness: &PoolHarness) -> F::Output {
        harness.settle().await;
        assert!(self.waker.was_woken.load(Ordering::SeqCst), "the lock is free and the task is woken");
        match self.poll() {
            Poll::Ready(output) => output,
            Poll::Pending => panic!("the future is not ready"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn no_task_is_woken_under_the_lock() {
    let (mut harness, mut workers) = PoolHarness::up(config(1)).await;
    let mut old = workers.remove(0);
    let mut restart = pin!({
        let pool = harness.pool.clone();
        async move { pool.restart().await }
    });
    let restart = Polled::begin(restart.as_mut(), &harness);
    let new = {
        let mut stop = pin!(old.command());
        let stop = Polled::begin(stop.as_mut(), &harness);
        let new = harness.launch().await.succeed();
        stop.end(&harness).await;
        new
    };
    old.exit(ExitReason::Stopped);
    restart.end(&harness).await.unwrap();

    let call = ToolCall::new("t");
    let id = call.id;
    let caller = harness.call(call).await;
    let running = harness.next_call().await;
    let tool = harness.tool();
    let mut cancel = pin!(async { tool.cancel(id).await });
    let cancel = Polled::begin(cancel.as_mut(), &harness);
    drop(running);
    caller.error().await;
    harness.next_cancel().await.answer.send(Ok(())).unwrap();
    cancel.end(&harness).await.unwrap();

    let pool = harness.pool.clone();
    let mut shutdown = pin!(pool.shutdown(Duration::ZERO));
    let shutdown = Polled::begin(shutdown.as_mut(), &harness);
    new.exit_on_command().await;
    shutdown.end(&harness).await;
}

#[tokio::test(start_paused = true)]
async fn the_receivers_of_reports_are_not_dropped_under_the_lock() {
    let (mut harness, _workers) = PoolHarness::up(config(1)).await;
    let (value, was_dropped) = LockingValue::new(&harness);
    let call = ToolCall::new("t").streaming().on_log(move |_| {
        let _ = &value;
    });
    let caller = harness.call(call).await;
    let chunks = harness.next_call().await.stream();
    let mut reply = caller.answer().await.unwrap();
    assert!(!was_dropped.load(Ordering::SeqCst), "nested calls of the stream may report");
    drop(chunks);
    assert!(next(&mut reply).await.is_none());
    assert!(was_dropped.load(Ordering::SeqCst));
}

#[tokio::test(start_paused = true)]
async fn the_handler_of_a_worker_is_not_dropped_under_the_lock() {
    let mut harness = PoolHarness::start(config(1));
    let (value, was_dropped) = LockingValue::new(&harness);
    let handler = FnTool::typed("t", move |(): ()| {
        let _ = &value;
        async { Ok::<_, Infallible>(()) }
    });
    let launch = harness.launch().await;
    let (worker, launcher_end) = Worker::new(launch.id.clone(), None, "guarded", Arc::new(handler));
    let _puppet = launch.succeed_with(|_| worker);
    harness.pool.ready().await.unwrap();
    launcher_end.exited(WorkerExit::new(ExitReason::Code(1)));
    harness.settle().await;
    assert!(was_dropped.load(Ordering::SeqCst));
}
