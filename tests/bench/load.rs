//! Load generators: a closed loop of callers, and an open loop with a fixed rate. They check every result, measure each
//! call from the moment it was due, and also count errors of the warm-up.

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
    cpu::{CpuTime, Processes},
    sample::{Sample, Times},
};

/// The time limit for the last calls of a load.
const LAST_CALLS_TIMEOUT: Duration = Duration::from_secs(70);

/// The durations of a load before and during the measurement.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    pub(crate) warm_up: Duration,
    pub(crate) measured: Duration,
}

/// Creates a runtime with a number of threads.
pub(crate) fn runtime(threads: usize) -> Runtime {
    let mut builder = match threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    builder.worker_threads(threads.max(2)).enable_all().build().expect("a runtime starts")
}

/// Checks the result of a call. Returns whether it is correct. Prints the first failures, and counts all.
pub(crate) fn check_result<T, E: fmt::Display>(
    outcome: Result<T, E>,
    check: impl FnOnce(&T) -> bool,
) -> bool {
    const PRINTED: u64 = 3;
    static FAILURES: AtomicU64 = AtomicU64::new(0);
    let problem = match outcome {
        Ok(value) if check(&value) => return true,
        Ok(_) => "the result is wrong".to_owned(),
        Err(error) => error.to_string(),
    };
    if FAILURES.fetch_add(1, Ordering::Relaxed) < PRINTED {
        eprintln!("a call failed: {problem}");
    }
    false
}

/// Runs `in_flight` callers. `call` makes a call with the given number, and returns whether the result was right.
pub(crate) async fn closed_loop<F, Fut>(
    in_flight: usize,
    timing: Timing,
    processes: &Processes,
    call: F,
) -> Sample
where
    F: Fn(u64) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = bool> + Send + 'static,
{
    let (is_measuring, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let errors = Arc::new(AtomicU64::new(0));
    // All callers share one histogram, because it takes a quarter of a megabyte and there may be ten thousand callers.
    let times = Arc::new(Mutex::new(Times::new()));
    let mut callers = JoinSet::new();
    for caller in 0..in_flight as u64 {
        let (is_measuring, stop, errors, call) =
            (is_measuring.clone(), stop.clone(), errors.clone(), call.clone());
        let times = times.clone();
        callers.spawn(async move {
            let mut number = caller << 20;
            // The next call of a caller is due when its last one has ended.
            let mut due = Instant::now();
            while !stop.load(Ordering::Relaxed) {
                number += 1;
                let is_correct = call(number).await;
                let now = Instant::now();
                if !is_correct {
                    errors.fetch_add(1, Ordering::Relaxed);
                    // If calls fail without waiting, the other tasks must still run.
                    tokio::task::yield_now().await;
                } else if is_measuring.load(Ordering::Relaxed) {
                    times.lock().expect("no caller panics").record(now - due);
                }
                due = now;
            }
        });
    }
    tokio::time::sleep(timing.warm_up).await;
    let (before, began) = (processes.cpu_time(), Instant::now());
    is_measuring.store(true, Ordering::Relaxed);
    tokio::time::sleep(timing.measured).await;
    is_measuring.store(false, Ordering::Relaxed);
    let (after, took) = (processes.cpu_time(), began.elapsed());
    stop.store(true, Ordering::Relaxed);
    let recorded = std::mem::replace(&mut *times.lock().expect("no caller panics"), Times::new());
    while let Some(ended) =
        timeout(LAST_CALLS_TIMEOUT, callers.join_next()).await.expect("the last calls end")
    {
        ended.expect("no caller panics");
    }
    sample(&recorded, took, errors.load(Ordering::Relaxed), before, after)
}

/// Starts calls at a fixed rate, independent of earlier calls, and measures each from the moment it was due.
pub(crate) async fn open_loop<F, Fut>(rate: f64, timing: Timing, processes: &Processes, call: F) -> Sample
where
    F: Fn(u64) -> Fut,
    Fut: Future<Output = bool> + Send + 'static,
{
    // tokio's timers have a resolution of one millisecond, in which dozens of calls are due.
    let clock = FineClock::start(Duration::from_micros(100));
    let calls = Arc::new(OpenCalls::default());
    let (began, total) = (Instant::now(), timing.warm_up + timing.measured);
    let (mut number, mut before, mut due) = (0, None, Duration::ZERO);
    while due < total {
        let now = began.elapsed();
        if now >= timing.warm_up && before.is_none() {
            before = Some(processes.cpu_time());
        }
        while due <= now && due < total {
            let (call, calls, is_measured) = (call(number), Arc::clone(&calls), due >= timing.warm_up);
            tokio::spawn(async move {
                let is_correct = call.await;
                calls.record_end(is_correct, is_measured.then(|| began.elapsed() - due));
            });
            number += 1;
            due = Duration::from_secs_f64(number as f64 / rate);
        }
        clock.tick().await;
    }
    let after = processes.cpu_time();
    timeout(LAST_CALLS_TIMEOUT, async {
        while calls.ended.load(Ordering::Relaxed) < number {
            clock.tick().await;
        }
    })
    .await
    .expect("the last calls end");
    let took = began.elapsed().saturating_sub(timing.warm_up).max(timing.measured);
    let times = calls.times.lock().expect("no call panics");
    sample(&times, took, calls.errors.load(Ordering::Relaxed), before.unwrap_or(after), after)
}

/// The call outcomes of an open loop. Their tasks are detached, because joining them would cost as much as a call.
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
    /// Records the end of a call. `took` is `None` during the warm-up.
    fn record_end(&self, is_correct: bool, took: Option<Duration>) {
        match (is_correct, took) {
            (true, Some(took)) => self.times.lock().expect("no call panics").record(took),
            (true, None) => {}
            (false, _) => drop(self.errors.fetch_add(1, Ordering::Relaxed)),
        }
        self.ended.fetch_add(1, Ordering::Relaxed);
    }
}

#[allow(clippy::cast_precision_loss, reason = "counts of a few seconds")]
fn sample(times: &Times, took: Duration, errors: u64, before: CpuTime, after: CpuTime) -> Sample {
    let per_call = |before: u64, after: u64| after.saturating_sub(before) as f64 / times.count().max(1.0);
    Sample::default()
        .with("per_second", times.count() / took.as_secs_f64())
        .with("errors", errors as f64)
        .with("client_cpu_us", per_call(before.client, after.client))
        .with("host_cpu_us", per_call(before.host, after.host))
        .with("workers_cpu_us", per_call(before.workers, after.workers))
        .with_times(times)
}

/// A clock that ticks more often than tokio's timers, driven by a thread.
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
