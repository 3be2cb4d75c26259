//! How the cost of a call grows: with workers, with calls in flight, with sessions, with the size of a payload.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use snakepit_server::SessionId;
use snakepit_session::{MemoryBackend, NewSession, SessionBackend, SessionLimits};

use crate::{
    load::Spell,
    product,
    sample::{Sample, short},
};

/// One thing that grows.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Curve {
    /// Also the name of its plot.
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) x: &'static str,
    pub(crate) y: &'static str,
    /// What the lines are called, and which figures they show.
    pub(crate) lines: &'static [(&'static str, &'static str)],
    pub(crate) points: Vec<(f64, Sample)>,
}

/// The lines of whatever is measured by calls.
const PER_CALL: &[(&str, &str)] =
    &[("host", "here_cpu_us"), ("workers", "workers_cpu_us"), ("whole time", "each_us")];

impl Curve {
    /// The header and the rows of its table.
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
    let spell = if quick { Duration::from_millis(500) } else { Duration::from_millis(2000) };
    let spell = Spell { warm_up: Duration::from_millis(400), counted: spell };
    let few = "add, 64 in flight: time per call by the number of workers";
    let many = "add, 32 in flight a worker: time per call by the number of workers";
    vec![
        workers("workers", few, spell, |_| 64).await,
        workers("workers-busy", many, spell, |workers| 32 * workers).await,
        in_flight(spell).await,
        sessions().await,
        payloads(quick).await,
    ]
}

/// By the number of workers, with this many calls in flight.
async fn workers(
    name: &'static str,
    title: &'static str,
    spell: Spell,
    in_flight: fn(usize) -> usize,
) -> Curve {
    let mut curve =
        Curve { name, title, x: "workers", y: "us per call", lines: PER_CALL, points: Vec::new() };
    for workers in [1, 2, 4, 8, 16, 32, 64] {
        let host = product::native(workers).await;
        curve.add(workers, with_each(product::calls(&host, in_flight(workers), spell).await));
        host.shutdown().await.unwrap();
    }
    curve
}

async fn in_flight(spell: Spell) -> Curve {
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
        curve.add(in_flight, with_each(product::calls(&host, in_flight, spell).await));
    }
    host.shutdown().await.unwrap();
    curve
}

/// Adds what a call takes of the whole run, which is what it costs when everything is busy.
fn with_each(sample: Sample) -> Sample {
    let rate = sample.get("per_second").unwrap_or_default().max(1.0);
    sample.with("each_us", 1e6 / rate)
}

/// The memory backend, filled step by step; each step times its creations, then gets spread over all there are.
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
    let id = |number: usize| SessionId::try_new(format!("session-{number:012}")).expect("a sound id");
    // Another one first, so that the smallest steps do not pay for code and memory that nobody had touched before.
    let cold = MemoryBackend::new(SessionLimits::default());
    for id in (0..1000).map(id) {
        cold.create(&id, NewSession::default()).await.expect("there is room");
    }
    let mut made = 0;
    for count in [1, 10, 100, 1000, 10_000, 100_000, 1_000_000] {
        let ids: Vec<SessionId> = (made..count).map(id).collect();
        let began = Instant::now();
        for id in &ids {
            backend.create(id, NewSession::default()).await.expect("there is room");
        }
        let create = began.elapsed();
        // Steps of a large prime visit sessions all over the map, in no order that memory would like.
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
                .with("create_us", each(create, count - made))
                .with("get_us", each(get, GETS))
                .with("errors", errors),
        );
        made = count;
    }
    curve
}

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
