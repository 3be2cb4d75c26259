//! The load generator: so many callers in a closed loop, each call checked and timed.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use tokio::{runtime::Runtime, task::JoinSet};

use crate::cpu;

/// How long the load runs before anything is counted.
const WARM_UP: Duration = Duration::from_millis(700);

/// A runtime of so many threads.
pub(crate) fn runtime(threads: usize) -> Runtime {
    let mut builder = match threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    builder.worker_threads(threads.max(2)).enable_all().build().expect("a runtime starts")
}

/// What a load came to.
#[derive(Debug, Clone)]
pub(crate) struct Report {
    pub(crate) per_second: f64,
    pub(crate) errors: u64,
    /// Microseconds.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    /// Microseconds of CPU per call: this process, and the others.
    pub(crate) cpu_here: f64,
    pub(crate) cpu_there: f64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { per_second, errors, p50, p99, cpu_here, cpu_there } = self;
        write!(
            f,
            "{per_second:>10.0}/s  p50 {p50:>7.0} us  p99 {p99:>7.0} us  cpu here {cpu_here:.1} us, there {cpu_there:.1} us"
        )?;
        if *errors > 0 {
            write!(f, "  {errors} ERRORS")?;
        }
        Ok(())
    }
}

/// Runs `in_flight` callers for a while. `call` makes one call with a number that varies, and says whether the answer was
/// right. `pids` are the processes on the other side.
#[allow(clippy::cast_precision_loss, reason = "counts of a few seconds")]
pub(crate) async fn closed_loop<F, Fut>(in_flight: usize, time: Duration, pids: &[u32], call: F) -> Report
where
    F: Fn(u64) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = bool> + Send + 'static,
{
    let (counting, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let errors = Arc::new(AtomicU64::new(0));
    let mut callers = JoinSet::new();
    for caller in 0..in_flight as u64 {
        let (counting, stop, errors, call) = (counting.clone(), stop.clone(), errors.clone(), call.clone());
        callers.spawn(async move {
            let mut times = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3).expect("sound bounds");
            let mut number = caller << 20;
            // A caller's next call is due when its last one has ended.
            let mut due = Instant::now();
            while !stop.load(Ordering::Relaxed) {
                number += 1;
                let right = call(number).await;
                let now = Instant::now();
                if counting.load(Ordering::Relaxed) {
                    if right {
                        times.saturating_record(u64::try_from((now - due).as_nanos()).unwrap_or(u64::MAX));
                    } else {
                        errors.fetch_add(1, Ordering::Relaxed);
                    }
                }
                due = now;
            }
            times
        });
    }
    tokio::time::sleep(WARM_UP).await;
    let (here, there, began) = (cpu::of_self(), cpu::of(pids), Instant::now());
    counting.store(true, Ordering::Relaxed);
    tokio::time::sleep(time).await;
    counting.store(false, Ordering::Relaxed);
    let (here, there, took) = (cpu::of_self() - here, cpu::of(pids) - there, began.elapsed());
    stop.store(true, Ordering::Relaxed);
    let mut all = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3).expect("sound bounds");
    while let Some(times) = callers.join_next().await {
        all.add(times.expect("no caller panics")).expect("the bounds are the same");
    }
    let count = all.len() as f64;
    Report {
        per_second: count / took.as_secs_f64(),
        errors: errors.load(Ordering::Relaxed),
        p50: all.value_at_quantile(0.5) as f64 / 1000.0,
        p99: all.value_at_quantile(0.99) as f64 / 1000.0,
        cpu_here: here as f64 / count,
        cpu_there: there as f64 / count,
    }
}
