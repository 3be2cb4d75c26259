//! Measures how the cost of a call grows with workers, calls in flight, sessions and payload sizes.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use snakepit_server::SessionId;
use snakepit_session::{MemoryBackend, NewSession, SessionBackend, SessionLimits};

use crate::{
    load::Timing,
    product,
    sample::{Sample, short},
};

/// A series of measurements over one growing parameter.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Curve {
    /// The name, which the plot's file has too.
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) x: &'static str,
    pub(crate) y: &'static str,
    /// The labels of the lines, and the names of their figures.
    pub(crate) lines: &'static [(&'static str, &'static str)],
    pub(crate) points: Vec<(f64, Sample)>,
}

/// The lines of curves that measure calls.
const PER_CALL: &[(&str, &str)] =
    &[("host", "client_cpu_us"), ("workers", "workers_cpu_us"), ("whole time", "each_us")];

impl Curve {
    /// Returns the rows of the table, starting with the header.
    pub(crate) fn rows(&self) -> Vec<Vec<String>> {
        let figures: BTreeMap<&str, ()> =
            self.points.iter().flat_map(|(_, sample)| sample.names()).map(|name| (name, ())).collect();
        let header = std::iter::once(self.x).chain(figures.keys().copied()).map(str::to_owned).collect();
        let row = |(x, sample): &(f64, Sample)| {
            let cells = figures.keys().map(|name| sample.get(name).map_or_else(String::new, short));
            std::iter::once(short(*x)).chain(cells).collect()
        };
        std::iter::once(header).chain(self.points.iter().map(row)).collect()
    }

    fn add(&mut self, x: usize, sample: Sample) {
        println!("  {:<13}{:>12}{sample}", self.name, short(x as f64));
        self.points.push((x as f64, sample));
    }
}

/// Measures all curves.
pub(crate) async fn run(quick: bool) -> Vec<Curve> {
    let measured = if quick { Duration::from_millis(500) } else { Duration::from_millis(2000) };
    let timing = Timing { warm_up: Duration::from_millis(400), measured };
    let title = "add, 64 in flight: time per call by the number of workers";
    let busy_title = "add, 32 in flight a worker: time per call by the number of workers";
    vec![
        workers("workers", title, timing, |_| 64).await,
        workers("workers-busy", busy_title, timing, |workers| 32 * workers).await,
        in_flight(timing).await,
        sessions().await,
        payloads(quick).await,
    ]
}

/// Measures calls by the number of workers.
async fn workers(
    name: &'static str,
    title: &'static str,
    timing: Timing,
    in_flight: fn(usize) -> usize,
) -> Curve {
    let mut curve =
        Curve { name, title, x: "workers", y: "us per call", lines: PER_CALL, points: Vec::new() };
    for workers in [1, 2, 4, 8, 16, 32, 64] {
        let host = product::native(workers).await;
        curve.add(workers, with_each(product::calls(&host, in_flight(workers), timing).await));
        host.shutdown().await.unwrap();
    }
    curve
}

/// Measures calls by the number of calls in flight.
async fn in_flight(timing: Timing) -> Curve {
    let mut curve = Curve {
        name: "in-flight",
        title: "add, four workers: time per call by the number of calls in flight",
        x: "calls in flight",
        y: "us per call",
        lines: PER_CALL,
        points: Vec::new(),
    };
    let host = product::native(4).await;
    for in_flight in [1, 4, 16, 64, 256, 1000, 4000, 10_000] {
        curve.add(in_flight, with_each(product::calls(&host, in_flight, timing).await));
    }
    host.shutdown().await.unwrap();
    curve
}

/// Adds the time of the run divided by the number of calls, which is the cost of a call when all processors are busy.
fn with_each(sample: Sample) -> Sample {
    let rate = sample.get("per_second").unwrap_or_default().max(1.0);
    sample.with("each_us", 1e6 / rate)
}

/// Measures the memory backend by the number of sessions. Each step creates sessions, and then reads random ones.
async fn sessions() -> Curve {
    const GETS: usize = 200_000;
    let mut curve = Curve {
        name: "sessions",
        title: "memory backend: time per operation by the number of sessions",
        x: "sessions",
        y: "us per operation",
        lines: &[("create", "create_us"), ("get", "get_us")],
        points: Vec::new(),
    };
    let backend = MemoryBackend::new(SessionLimits::default());
    let id = |number: usize| SessionId::try_new(format!("session-{number:012}")).expect("a valid id");
    // A first backend loads the code and the allocator, so the smallest steps do not include that cost.
    let warm_up_backend = MemoryBackend::new(SessionLimits::default());
    for id in (0..1000).map(id) {
        warm_up_backend.create(&id, NewSession::default()).await.expect("the session is created");
    }
    let mut created = 0;
    for count in [1, 10, 100, 1000, 10_000, 100_000, 1_000_000] {
        let ids: Vec<SessionId> = (created..count).map(id).collect();
        let began = Instant::now();
        for id in &ids {
            backend.create(id, NewSession::default()).await.expect("the session is created");
        }
        let create = began.elapsed();
        // Steps of a large prime spread the reads over the whole map, which defeats the cache.
        let ids: Vec<SessionId> = (0..GETS).map(|at| id(at.wrapping_mul(7_368_787) % count)).collect();
        let began = Instant::now();
        let mut errors = 0.0;
        for id in &ids {
            errors += f64::from(u8::from(!backend.get(id).await.is_ok_and(|session| session.id == *id)));
        }
        let get = began.elapsed();
        let each = |time: Duration, count: usize| time.as_secs_f64() * 1e6 / count as f64;
        curve.add(
            count,
            Sample::default()
                .with("create_us", each(create, count - created))
                .with("get_us", each(get, GETS))
                .with("errors", errors),
        );
        created = count;
    }
    curve
}

/// Measures echoes by the size of the payload.
async fn payloads(quick: bool) -> Curve {
    let mut curve = Curve {
        name: "payloads",
        title: "echo_bytes, one in flight: time per call by the size of the payload",
        x: "bytes",
        y: "us per call",
        lines: &[("median", "p50_us"), ("99th percentile", "p99_us")],
        points: Vec::new(),
    };
    let host = product::native(4).await;
    for bits in (0..=26).step_by(2) {
        let size = 1_usize << bits;
        let times = if quick { 5 } else { 20 }.max(if size <= 1 << 16 { 300 } else { 0 });
        curve.add(size, product::echo(&host, size, times).await);
    }
    host.shutdown().await.unwrap();
    curve
}
