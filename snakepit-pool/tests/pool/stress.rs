//! A stress test with threads, cancelled calls and crashing workers, on the real clock. No worker runs more calls than
//! it may, each call ends once, and the pool is empty afterwards.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use snakepit_pool::{Pool, WorkerState};
use snakepit_registry::{CallMode, Chunk, ReplyBody, ToolCall, ToolError, ToolHandler, ToolReply};
use snakepit_session::Payload;
use snakepit_worker::{
    ExitReason, LaunchRequest, Worker, WorkerCommand, WorkerError, WorkerExit, WorkerLauncher,
};
use tokio::{
    sync::Notify,
    task::{JoinSet, yield_now},
};
use tokio_stream::Stream;

use crate::puppet::{chunk, config, next};

const CALLERS: u64 = 16;
const CALLS_EACH: u64 = 400;

/// Launches workers inside this process. The name of a call's tool is the number of times that the call yields. A call of
/// `crash` ends its worker.
#[derive(Debug, Default)]
struct StressLauncher {
    drivers: Mutex<JoinSet<()>>,
    violations: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Handler {
    crash: Arc<Notify>,
    running: Arc<AtomicUsize>,
    violations: Arc<AtomicUsize>,
}

/// Counts a call as running until it is dropped.
struct RunningGuard(Arc<AtomicUsize>);

impl Handler {
    fn begin_call(&self) -> RunningGuard {
        if self.running.fetch_add(1, Ordering::SeqCst) > 0 {
            self.violations.fetch_add(1, Ordering::SeqCst);
        }
        RunningGuard(Arc::clone(&self.running))
    }
}

impl Drop for RunningGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl ToolHandler for Handler {
    async fn call(&self, call: ToolCall) -> Result<ToolReply, ToolError> {
        let guard = self.begin_call();
        let Ok(yields) = call.tool.parse::<usize>() else {
            self.crash.notify_one();
            return std::future::pending().await;
        };
        for _ in 0..yields {
            yield_now().await;
        }
        Ok(match call.mode {
            CallMode::Unary => ToolReply::value(Payload::null()),
            CallMode::Streaming => ToolReply::stream(Box::pin(Chunks { remaining: yields, _guard: guard })),
        })
    }
}

struct Chunks {
    remaining: usize,
    _guard: RunningGuard,
}

impl Stream for Chunks {
    type Item = Result<Chunk, ToolError>;

    fn poll_next(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(remaining) = self.remaining.checked_sub(1) else { return Poll::Ready(None) };
        self.remaining = remaining;
        Poll::Ready(Some(chunk()))
    }
}

#[async_trait]
impl WorkerLauncher for StressLauncher {
    async fn launch(&self, LaunchRequest { id, .. }: LaunchRequest) -> Result<Worker, WorkerError> {
        let crash = Arc::new(Notify::new());
        let handler = Handler {
            crash: Arc::clone(&crash),
            running: Arc::default(),
            violations: Arc::clone(&self.violations),
        };
        let (worker, mut launcher_end) = Worker::new(id, None, "thread", Arc::new(handler));
        self.drivers.lock().unwrap().spawn(async move {
            let reason = tokio::select! {
                () = crash.notified() => ExitReason::Code(1),
                command = launcher_end.command() => match command {
                    WorkerCommand::Stop { .. } => ExitReason::Stopped,
                    WorkerCommand::Kill { reason } => ExitReason::Killed { reason },
                },
            };
            launcher_end.exited(WorkerExit::new(reason));
        });
        Ok(worker)
    }
}

/// A random number generator with a fixed seed.
struct Random(u64);

impl Random {
    /// Returns a number from 0 to `bound` - 1.
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

async fn caller(tool: Arc<impl ToolHandler>, mut random: Random) {
    for _ in 0..CALLS_EACH {
        let name = if random.below(50) == 0 { "crash".to_owned() } else { random.below(4).to_string() };
        let mut call = ToolCall::new(name);
        if random.below(3) == 0 {
            call.mode = CallMode::Streaming;
        }
        if random.below(4) == 0 {
            call.preferred_worker = Some(format!("p-{}-1", random.below(4)).into());
        }
        let (id, yields) = (call.id, random.below(12));
        let running_call = tool.call(call);
        let timeout = async {
            for _ in 0..yields {
                yield_now().await;
            }
        };
        match random.below(4) {
            0 => tokio::select! { biased; _ = running_call => {}, () = timeout => {} },
            1 => {
                // Drops a stream immediately, because a stream that is not polled holds its worker longer.
                let (_, cancelled) = tokio::join!(async { drop(running_call.await) }, async {
                    timeout.await;
                    tool.cancel(id).await
                });
                cancelled.unwrap();
            }
            _ => {
                if let Ok(mut reply) = running_call.await
                    && matches!(reply.body, ReplyBody::Stream(_))
                {
                    // Drops some streams before their end.
                    for _ in 0..random.below(6) {
                        if next(&mut reply).await.is_none() {
                            break;
                        }
                    }
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_call_ends_once_under_stress() {
    let launcher = Arc::new(StressLauncher::default());
    let violations = Arc::clone(&launcher.violations);
    let config = config(4).queue_limit(8).default_timeout(Duration::from_secs(30));
    let pool = Pool::start(config, launcher).unwrap();
    pool.ready().await.unwrap();
    let mut callers = JoinSet::new();
    for seed in 0..CALLERS {
        callers.spawn(caller(pool.tool(), Random(seed)));
    }
    callers.join_all().await;

    pool.shutdown(Duration::from_secs(30)).await;
    let status = pool.status();
    assert_eq!((status.queued, status.in_flight), (0, 0));
    assert!(status.workers.iter().all(|worker| worker.state == WorkerState::Dead), "{status:?}");
    assert_eq!(violations.load(Ordering::SeqCst), 0, "a worker ran two calls at a time");
    let totals = status.calls;
    let ended = totals.succeeded
        + totals.failed
        + totals.rejected
        + totals.timed_out
        + totals.cancelled
        + totals.lost;
    assert_eq!(ended, CALLERS * CALLS_EACH, "{totals:?}");
    for (outcome, count) in
        [("succeeded", totals.succeeded), ("cancelled", totals.cancelled), ("lost", totals.lost)]
    {
        assert!(count > 0, "no call {outcome}: {totals:?}");
    }
    assert_eq!(totals.timed_out, 0, "a call was stuck");
}
