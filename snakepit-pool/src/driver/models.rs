//! Model checks of the hand-over of workers: loom runs each of these in every order in which the threads can take the
//! driver's lock. A wakeup that gets lost leaves a thread waiting forever, which loom reports as a deadlock.

use std::{future::poll_fn, task::Poll};

use loom::{future::block_on, thread};
use snakepit_registry::{FnTool, ToolCall};
use snakepit_worker::WorkerDriver;
use tokio::sync::mpsc::UnboundedReceiver;

use super::*;

/// A pool without a supervisor, whose only worker is up.
struct Model {
    shared: Arc<Shared>,
    worker: WorkerKey,
    _orders: UnboundedReceiver<Order>,
    _process: WorkerDriver,
}

impl Model {
    fn new() -> Self {
        let (sender, mut orders) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared::new(PoolConfig { workers: 1, ..PoolConfig::default() }, sender));
        shared.tick(Instant::now());
        let launch = std::iter::from_fn(|| orders.try_recv().ok()).find_map(|order| match order {
            Order::Launch(worker, id) => Some((worker, id)),
            _ => None,
        });
        let (key, id) = launch.expect("the first tick launches the worker");
        let handler = FnTool::typed("add", |(): ()| async { Ok::<_, std::convert::Infallible>(()) });
        let (worker, process) = Worker::new(id, None, "model", Arc::new(handler));
        shared.launched(key, worker);
        Self { shared, worker: key, _orders: orders, _process: process }
    }

    fn acquire(&self) -> Acquire {
        Acquire::new(Arc::clone(&self.shared), &ToolCall::new("add"))
    }

    fn lease(&self) -> Lease {
        block_on(self.acquire()).expect("the worker is idle")
    }
}

#[test]
fn loom_a_finished_call_hands_its_worker_to_the_next() {
    loom::model(|| {
        let model = Model::new();
        let (lease, next) = (model.lease(), model.acquire());
        let other = thread::spawn(move || lease.finish(None));
        block_on(next).unwrap().finish(None);
        other.join().unwrap();
    });
}

#[test]
fn loom_a_call_that_stops_waiting_passes_its_worker_on() {
    loom::model(|| {
        let model = Model::new();
        let (lease, dropped, next) = (model.lease(), model.acquire(), model.acquire());
        let finishes = thread::spawn(move || lease.finish(None));
        let drops = thread::spawn(move || drop(dropped));
        block_on(next).unwrap().finish(None);
        finishes.join().unwrap();
        drops.join().unwrap();
    });
}

#[test]
fn loom_a_running_call_learns_that_its_worker_exited() {
    loom::model(|| {
        let model = Model::new();
        let lease = model.lease();
        let (shared, worker) = (Arc::clone(&model.shared), model.worker);
        let exits = thread::spawn(move || shared.exited(worker, &WorkerId::new("w"), "code 1".to_owned()));
        let signal = block_on(poll_fn(|cx| lease.signal(cx).map_or(Poll::Pending, Poll::Ready)));
        assert_eq!(signal, Signal::WorkerGone);
        exits.join().unwrap();
    });
}

#[test]
fn loom_every_waiting_call_is_refused_when_the_pool_stops() {
    loom::model(|| {
        let model = Model::new();
        let (_lease, next) = (model.lease(), model.acquire());
        let shared = Arc::clone(&model.shared);
        let stops = thread::spawn(move || shared.abort());
        assert!(block_on(next).is_err());
        stops.join().unwrap();
    });
}
