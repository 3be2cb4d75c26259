//! Model checks of leases. Loom runs each model in every order in which its threads can take the driver's lock. A lost
//! wakeup leaves a thread waiting forever, which loom reports as a deadlock.

use std::{future::poll_fn, task::Poll};

use loom::{future::block_on, thread};
use snakepit_registry::{FnTool, ToolCall};
use snakepit_worker::{LauncherEnd, Worker};
use tokio::sync::mpsc::UnboundedReceiver;

use super::*;

/// A pool without a supervisor, whose only worker is up.
struct Model {
    driver: Arc<Driver>,
    worker_key: WorkerKey,
    _commands: UnboundedReceiver<Command>,
    _launcher_end: LauncherEnd,
}

impl Model {
    fn new() -> Self {
        let (sender, mut commands) = mpsc::unbounded_channel();
        let driver = Arc::new(Driver::new(PoolConfig { workers: 1, ..PoolConfig::default() }, sender));
        driver.on_tick(Instant::now());
        let launch = std::iter::from_fn(|| commands.try_recv().ok()).find_map(|command| match command {
            Command::Launch(key, id) => Some((key, id)),
            _ => None,
        });
        let (key, id) = launch.expect("the first tick launches the worker");
        let handler = FnTool::typed("add", |(): ()| async { Ok::<_, std::convert::Infallible>(()) });
        let (worker, launcher_end) = Worker::new(id, None, "model", Arc::new(handler));
        driver.on_launched(key, worker);
        Self { driver, worker_key: key, _commands: commands, _launcher_end: launcher_end }
    }

    fn acquire(&self) -> Acquire {
        Acquire::new(Arc::clone(&self.driver), &ToolCall::new("add"))
    }

    fn lease(&self) -> Lease {
        block_on(self.acquire()).expect("the worker is idle")
    }
}

#[test]
fn loom_a_finished_call_frees_its_worker_for_the_next() {
    loom::model(|| {
        let model = Model::new();
        let (lease, next) = (model.lease(), model.acquire());
        let other = thread::spawn(move || lease.finish(None));
        block_on(next).unwrap().finish(None);
        other.join().unwrap();
    });
}

#[test]
fn loom_a_dropped_waiter_frees_its_worker() {
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
fn loom_a_running_call_is_woken_when_its_worker_exits() {
    loom::model(|| {
        let model = Model::new();
        let lease = model.lease();
        let (driver, key) = (Arc::clone(&model.driver), model.worker_key);
        let exits =
            thread::spawn(move || driver.on_exited(key, &WorkerId::new("w"), "code 1".to_owned(), false));
        let signal = block_on(poll_fn(|cx| lease.signal(cx).map_or(Poll::Pending, Poll::Ready)));
        assert_eq!(signal, LeaseSignal::WorkerExited);
        exits.join().unwrap();
    });
}

#[test]
fn loom_every_waiting_call_is_rejected_when_the_pool_stops() {
    loom::model(|| {
        let model = Model::new();
        let (_lease, next) = (model.lease(), model.acquire());
        let driver = Arc::clone(&model.driver);
        let stops = thread::spawn(move || driver.abort());
        assert!(block_on(next).is_err());
        stops.join().unwrap();
    });
}
