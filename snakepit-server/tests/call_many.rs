//! Batches of calls and calls that wait for room, on a host in this process, on a remote host, and in a session.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests may panic and detach tasks")]

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, TryStreamExt};
use serde_json::Value;
use snakepit_server::{
    Builder, Caller, Client, Error, FnTool, HostHandle, Snakepit, testing::InProcessWorkers,
};
use tokio::sync::Semaphore;

const LONG: Duration = Duration::from_secs(30);

#[derive(serde::Deserialize)]
struct Args {
    n: u64,
    #[serde(default)]
    gated: bool,
}

/// A host whose worker echoes `n`. With `gated`, a call waits for a permit.
struct Fixture {
    snakepit: Snakepit,
    permits: Arc<Semaphore>,
    running: Arc<AtomicUsize>,
    most_running: Arc<AtomicUsize>,
    _run_dir: tempfile::TempDir,
}

/// Decrements the number of running calls when dropped.
struct RunningGuard(Arc<AtomicUsize>);

impl Drop for RunningGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Fixture {
    async fn start(configure: impl FnOnce(Builder) -> Builder) -> Self {
        let run_dir = tempfile::tempdir().unwrap();
        let permits = Arc::new(Semaphore::new(0));
        let (running, most_running) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let shared = (Arc::clone(&permits), Arc::clone(&running), Arc::clone(&most_running));
        let echo = FnTool::typed("echo", move |args: Args| {
            let (permits, running, most_running) = shared.clone();
            async move {
                most_running.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                let _running = RunningGuard(running);
                // Other calls can arrive before it ends.
                tokio::task::yield_now().await;
                if args.gated {
                    permits.acquire().await.map_err(|error| error.to_string())?.forget();
                }
                if args.n == 13 { Err("unlucky".to_owned()) } else { Ok(args.n) }
            }
        });
        let builder = Snakepit::builder()
            .launcher(Arc::new(InProcessWorkers::new().fn_tool(echo)))
            .run_dir(run_dir.path());
        let snakepit = configure(builder).start().await.unwrap();
        Self { snakepit, permits, running, most_running, _run_dir: run_dir }
    }

    async fn client(&self) -> Client {
        Client::connect(&format!("unix:{}", self.snakepit.socket().display())).await.unwrap()
    }
}

/// Echoes 100 to 199 with 5 calls in flight, in order and as completed.
async fn echo_hundred<H: HostHandle>(caller: &Caller<H>) {
    let batch = caller.call_many(0..100_u64, 5, |caller, n| caller.call("echo").arg("n", n + 100));
    let values: Vec<u64> = batch.in_order::<u64>().map_ok(|reply| reply.value).try_collect().await.unwrap();
    assert_eq!(values, (100..200).collect::<Vec<_>>());

    let numbers = futures_util::stream::iter(0..100_usize);
    let batch = caller.call_many_from(numbers, 5, |caller, n| caller.call("echo").arg("n", n + 100));
    let mut values: Vec<(usize, usize)> =
        batch.as_completed().map(|(index, reply)| (index, reply.unwrap().value)).collect().await;
    values.sort_unstable();
    assert_eq!(values, (0..100).map(|n| (n, n + 100)).collect::<Vec<_>>());
}

#[tokio::test]
async fn batches_work_on_hosts_clients_and_sessions() {
    let fixture = Fixture::start(|b| b.workers(8)).await;
    echo_hundred(&fixture.snakepit).await;
    assert!(fixture.most_running.load(Ordering::SeqCst) <= 5);
    let client = fixture.client().await;
    echo_hundred(&client).await;
    echo_hundred(&client.session("s").await.unwrap()).await;
    fixture.snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_failed_call_is_one_item_and_a_concurrency_of_0_counts_as_1() {
    let fixture = Fixture::start(|b| b.workers(2)).await;
    let batch = fixture.snakepit.call_many(12..15_u64, 0, |caller, n| caller.call("echo").arg("n", n));
    let replies: Vec<Result<_, Error>> = batch.in_order::<u64>().collect().await;
    assert_eq!(replies.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
    assert_eq!(fixture.most_running.load(Ordering::SeqCst), 1);
    fixture.snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_batch_takes_items_only_when_it_has_room_and_cancels_its_calls_when_dropped() {
    let fixture = Fixture::start(|b| b.workers(4)).await;
    let taken = AtomicUsize::new(0);
    let items = (0..100_u64).inspect(|_| {
        taken.fetch_add(1, Ordering::SeqCst);
    });
    {
        let batch = fixture
            .snakepit
            .call_many(items, 3, |caller, n| caller.call("echo").arg("n", n).arg("gated", true));
        let mut replies = pin!(batch.as_completed::<u64>());
        assert!(tokio::time::timeout(Duration::from_millis(100), replies.next()).await.is_err());
        assert_eq!((taken.load(Ordering::SeqCst), fixture.running.load(Ordering::SeqCst)), (3, 3));
        fixture.permits.add_permits(1);
        // Any of the three calls gets the permit.
        let (index, reply) = replies.next().await.unwrap();
        assert_eq!(reply.unwrap().value, index as u64);
        assert!(taken.load(Ordering::SeqCst) <= 4);
    }
    tokio::time::timeout(LONG, async {
        while fixture.running.load(Ordering::SeqCst) > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("dropping the batch cancels its calls");
    fixture.snakepit.shutdown().await.unwrap();
}

/// Makes more calls than the worker and the queue hold. Returns the numbers of rejected calls, first without and then with
/// `wait_for_room`.
async fn overload<H: HostHandle>(caller: &Caller<H>) -> (usize, usize) {
    let run = async |wait: Option<Duration>| {
        let batch = caller.call_many(0..20_u64, 20, |caller, n| {
            let call = caller.call("echo").arg("n", n + 100);
            if let Some(limit) = wait { call.wait_for_room(limit) } else { call }
        });
        let replies: Vec<_> = batch.as_completed::<Value>().map(|(_, reply)| reply).collect().await;
        replies.into_iter().filter(|reply| reply.as_ref().is_err_and(Error::is_overloaded)).count()
    };
    (run(None).await, run(Some(LONG)).await)
}

#[tokio::test]
async fn calls_wait_for_room_on_hosts_and_clients() {
    let fixture = Fixture::start(|b| b.workers(1).queue_limit(1)).await;
    // Without waiting, one call runs, one is queued, and the host rejects most others.
    let (rejected, rejected_waiting) = overload(&fixture.snakepit).await;
    assert!(rejected > 0, "{rejected}");
    assert_eq!(rejected_waiting, 0);
    let client = fixture.client().await;
    let (_, rejected_waiting) = overload(&client).await;
    assert_eq!(rejected_waiting, 0);
    fixture.snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_client_waits_for_room_no_longer_than_its_limit() {
    let fixture = Fixture::start(|b| b.workers(1).queue_limit(0)).await;
    let client = fixture.client().await;
    let blocker = {
        let snakepit = fixture.snakepit.clone();
        tokio::spawn(async move { snakepit.call("echo").arg("n", 1).arg("gated", true).unary::<u64>().await })
    };
    while fixture.running.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    let limit = Duration::from_millis(300);
    let start = tokio::time::Instant::now();
    let full = client.call("echo").arg("n", 2).wait_for_room(limit).unary::<u64>().await.unwrap_err();
    assert!(full.is_overloaded() && full.retry_after().is_some(), "{full:?}");
    assert!(
        (limit..LONG).contains(&start.elapsed()),
        "the last attempt is at the limit: {:?}",
        start.elapsed()
    );
    let late = client.call("echo").arg("n", 2).timeout(limit).wait_for_room(LONG).unary::<u64>().await;
    assert!(late.as_ref().is_err_and(Error::is_overloaded), "the wait ends before the deadline: {late:?}");
    let waiting = client.call("echo").arg("n", 2).wait_for_room(LONG).unary::<u64>();
    let free = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        fixture.permits.add_permits(1);
    };
    let (reply, ()) = tokio::join!(waiting, free);
    assert_eq!(reply.unwrap().value, 2);
    blocker.await.unwrap().unwrap();
    fixture.snakepit.shutdown().await.unwrap();
}
