//! The load generators: callers in a closed loop, and arrivals at a fixed rate. Every answer is checked, every call is
//! timed from the moment it was due, and an error counts whenever it happens, also while warming up.

use std::{
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{runtime::Runtime, sync::Notify, task::JoinSet, time::timeout};

use crate::{
    cpu::{Processes, Used},
    sample::{Sample, Times},
};

/// How long the last calls of a load may take to end.
const LAST_CALLS: Duration = Duration::from_secs(70);

/// How long a load runs before anything is counted, and while it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spell {
    pub(crate) warm_up: Duration,
    pub(crate) counted: Duration,
}

/// A runtime of so many threads.
pub(crate) fn runtime(threads: usize) -> Runtime {
    let mut builder = match threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    builder.worker_threads(threads.max(2)).enable_all().build().expect("a runtime starts")
}

/// Whether a call was answered, and rightly. The first failures are told, for a count alone helps nobody.
pub(crate) fn right<T, E: fmt::Display>(answer: Result<T, E>, check: impl FnOnce(&T) -> bool) -> bool {
    const TOLD: u64 = 3;
    static FAILURES: AtomicU64 = AtomicU64::new(0);
    let problem = match answer {
        Ok(value) if check(&value) => return true,
        Ok(_) => "the answer is wrong".to_owned(),
        Err(error) => error.to_string(),
    };
    if FAILURES.fetch_add(1, Ordering::Relaxed) < TOLD {
        eprintln!("a call failed: {problem}");
    }
    false
}

/// Runs `in_flight` callers for a while. `call` makes one call with a number that varies, and says whether the answer was
/// right.
pub(crate) async fn closed_loop<F, Fut>(in_flight: usize, spell: Spell, others: &Processes, call: F) -> Sample
where
    F: Fn(u64) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = bool> + Send + 'static,
{
    let (counting, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let errors = Arc::new(AtomicU64::new(0));
    // One for all: a histogram takes a quarter of a megabyte, and there may be ten thousand callers.
    let times = Arc::new(Mutex::new(Times::new()));
    let mut callers = JoinSet::new();
    for caller in 0..in_flight as u64 {
        let (counting, stop, errors, call) = (counting.clone(), stop.clone(), errors.clone(), call.clone());
        let times = times.clone();
        callers.spawn(async move {
            let mut number = caller << 20;
            // A caller's next call is due when its last one has ended.
            let mut due = Instant::now();
            while !stop.load(Ordering::Relaxed) {
                number += 1;
                let right = call(number).await;
                let now = Instant::now();
                if !right {
                    errors.fetch_add(1, Ordering::Relaxed);
                    // A call that fails at once must not keep the others from running.
                    tokio::task::yield_now().await;
                } else if counting.load(Ordering::Relaxed) {
                    times.lock().expect("no caller panics").record(now - due);
                }
                due = now;
            }
        });
    }
    tokio::time::sleep(spell.warm_up).await;
    let (before, began) = (others.used(), Instant::now());
    counting.store(true, Ordering::Relaxed);
    tokio::time::sleep(spell.counted).await;
    counting.store(false, Ordering::Relaxed);
    let (after, took) = (others.used(), began.elapsed());
    stop.store(true, Ordering::Relaxed);
    let counted = std::mem::replace(&mut *times.lock().expect("no caller panics"), Times::new());
    while let Some(ended) = timeout(LAST_CALLS, callers.join_next()).await.expect("the last calls end") {
        ended.expect("no caller panics");
    }
    sample(&counted, took, errors.load(Ordering::Relaxed), before, after)
}

/// Starts calls at a fixed rate, whatever becomes of those before them, and times each from when it was due.
pub(crate) async fn open_loop<F, Fut>(rate: f64, spell: Spell, others: &Processes, call: F) -> Sample
where
    F: Fn(u64) -> Fut,
    Fut: Future<Output = bool> + Send + 'static,
{
    // tokio's timers go by the millisecond, in which dozens of calls are due.
    let clock = FineClock::start(Duration::from_micros(100));
    let calls = Arc::new(OpenCalls::default());
    let (began, whole) = (Instant::now(), spell.warm_up + spell.counted);
    let (mut number, mut before, mut due) = (0, None, Duration::ZERO);
    while due < whole {
        let now = began.elapsed();
        if now >= spell.warm_up && before.is_none() {
            before = Some(others.used());
        }
        while due <= now && due < whole {
            let (call, calls, counts) = (call(number), Arc::clone(&calls), due >= spell.warm_up);
            tokio::spawn(async move {
                let right = call.await;
                calls.ended(right, counts.then(|| began.elapsed() - due));
            });
            number += 1;
            due = Duration::from_secs_f64(number as f64 / rate);
        }
        clock.tick().await;
    }
    let after = others.used();
    timeout(LAST_CALLS, async {
        while calls.ended.load(Ordering::Relaxed) < number {
            clock.tick().await;
        }
    })
    .await
    .expect("the last calls end");
    let took = began.elapsed().saturating_sub(spell.warm_up).max(spell.counted);
    let times = calls.times.lock().expect("no call panics");
    sample(&times, took, calls.errors.load(Ordering::Relaxed), before.unwrap_or(after), after)
}

/// What became of the calls of an open loop. Their tasks are detached: to join each would cost as much as some calls.
struct OpenCalls {
    times: Mutex<Times>,
    ended: AtomicU64,
    errors: AtomicU64,
}

impl Default for OpenCalls {
    fn default() -> Self {
        Self { times: Mutex::new(Times::new()), ended: AtomicU64::new(0), errors: AtomicU64::new(0) }
    }
}

impl OpenCalls {
    /// A call has ended; `took` is there if it counts.
    fn ended(&self, right: bool, took: Option<Duration>) {
        match (right, took) {
            (true, Some(took)) => self.times.lock().expect("no call panics").record(took),
            (true, None) => {}
            (false, _) => drop(self.errors.fetch_add(1, Ordering::Relaxed)),
        }
        self.ended.fetch_add(1, Ordering::Relaxed);
    }
}

#[allow(clippy::cast_precision_loss, reason = "counts of a few seconds")]
fn sample(times: &Times, took: Duration, errors: u64, before: Used, after: Used) -> Sample {
    let per_call = |before: u64, after: u64| after.saturating_sub(before) as f64 / times.count().max(1.0);
    Sample::default()
        .with("per_second", times.count() / took.as_secs_f64())
        .with("errors", errors as f64)
        .with("here_cpu_us", per_call(before.here, after.here))
        .with("host_cpu_us", per_call(before.host, after.host))
        .with("workers_cpu_us", per_call(before.workers, after.workers))
        .with_times(times)
}

/// Ticks from a thread of its own.
struct FineClock {
    ticks: Arc<Notify>,
    stop: Arc<AtomicBool>,
}

impl FineClock {
    fn start(every: Duration) -> Self {
        let (ticks, stop) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(false)));
        let clock = Self { ticks: ticks.clone(), stop: stop.clone() };
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                std::thread::sleep(every);
                ticks.notify_one();
            }
        });
        clock
    }

    async fn tick(&self) {
        self.ticks.notified().await;
    }
}

impl Drop for FineClock {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
