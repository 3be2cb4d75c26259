//! Tests that the pool wakes tasks without holding its lock, because wakers are foreign code and may use the pool.
#![allow(clippy::disallowed_methods, reason = "tests may detach tasks and threads")]

use std::{
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
use snakepit_registry::{ToolCall, ToolHandler};
use snakepit_worker::ExitReason;

use crate::puppet::{PoolHarness, config};

/// A waker that needs the lock of the pool, on another thread so that the test fails instead of blocking.
struct LockingWaker {
    pool: Pool,
    was_woken: AtomicBool,
}

impl Wake for LockingWaker {
    fn wake(self: Arc<Self>) {
        let (pool, (sender, receiver)) = (self.pool.clone(), mpsc::channel());
        std::thread::spawn(move || {
            drop(pool.status());
            let _ = sender.send(());
        });
        receiver.recv_timeout(Duration::from_secs(10)).expect("the lock is free");
        self.was_woken.store(true, Ordering::SeqCst);
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
