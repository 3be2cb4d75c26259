//! A run of the benchmark: rounds in which every measurement and its baseline run once, shortly after each other.

use std::{collections::BTreeMap, time::Duration};

use snakepit_server::Snakepit;

use crate::{
    baseline::{Echo, ping_pong},
    daemon::Daemon,
    footprint,
    load::Timing,
    product,
    sample::{Sample, median},
};

const IN_FLIGHT: usize = 64;
const WORKERS: usize = 4;
/// The rates of the open loops, as fractions of the rate of the closed loop.
const OPEN_SHARES: [(&str, f64); 2] = [("embedded-open-30", 0.3), ("embedded-open-60", 0.6)];

/// The amounts of a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    pub(crate) rounds: usize,
    pub(crate) timing: Timing,
    /// Chunks of one stream from a native worker.
    chunks: u64,
    /// Chunks of one stream from a grpc.aio worker, which is slower.
    grpcio_chunks: u64,
    /// Echoes of a large payload.
    echoes: usize,
    /// Chunks of the stream during which memory must not grow; 0 skips this measurement.
    long_stream: u64,
}

impl Extent {
    pub(crate) const QUICK: Self = Self {
        rounds: 3,
        timing: Timing { warm_up: Duration::from_millis(250), measured: Duration::from_millis(600) },
        chunks: 300_000,
        grpcio_chunks: 5_000,
        echoes: 5,
        long_stream: 0,
    };
    pub(crate) const FULL: Self = Self {
        rounds: 5,
        timing: Timing { warm_up: Duration::from_millis(500), measured: Duration::from_millis(2000) },
        chunks: 2_000_000,
        grpcio_chunks: 20_000,
        echoes: 10,
        long_stream: 10_000_000,
    };
}

/// The samples of every measurement, one per round.
#[derive(Debug, Default, serde::Serialize)]
#[serde(transparent)]
pub(crate) struct Runs(BTreeMap<&'static str, Vec<Sample>>);

impl Runs {
    /// Prints and stores a sample.
    pub(crate) fn add(&mut self, measurement: &'static str, sample: Sample) -> &Sample {
        println!("  {measurement:<26}{sample}");
        self.store(measurement, sample)
    }

    pub(crate) fn store(&mut self, measurement: &'static str, sample: Sample) -> &Sample {
        let samples = self.0.entry(measurement).or_default();
        samples.push(sample);
        &samples[samples.len() - 1]
    }

    /// Returns the median of a figure over all rounds.
    pub(crate) fn median(&self, (measurement, figure): (&str, &str)) -> Option<f64> {
        let samples = self.0.get(measurement)?;
        Some(median(samples.iter().filter_map(|sample| sample.get(figure))))
    }

    /// Combines two figures of each round with `combine`, and returns the median of the results.
    pub(crate) fn median_of_pairs(
        &self,
        (measurement, figure): (&str, &str),
        (baseline, baseline_figure): (&str, &str),
        combine: fn(f64, f64) -> f64,
    ) -> Option<f64> {
        let pairs = self.0.get(measurement)?.iter().zip(self.0.get(baseline)?);
        let combine_pair = |(product, baseline): (&Sample, &Sample)| {
            Some(combine(product.get(figure)?, baseline.get(baseline_figure)?))
        };
        Some(median(pairs.filter_map(combine_pair)))
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.0.keys().copied()
    }

    /// Counts the wrong results and failed calls of all measurements and baselines.
    pub(crate) fn errors(&self) -> f64 {
        self.0.values().flatten().map(Sample::errors).sum()
    }
}

/// Runs all measurements.
pub(crate) async fn run(extent: Extent) -> Runs {
    let mut runs = Runs::default();
    let daemon = Daemon::start(WORKERS).await;
    println!("before any load");
    runs.add("memory", footprint::memory_at_rest(&daemon).await);
    runs.add("bare-memory", footprint::bare_memory());
    let (native, grpcio) = (product::native(WORKERS).await, product::grpcio(WORKERS).await);
    let echo = Echo::start().await;
    for number in 1..=extent.rounds {
        println!("round {number} of {}", extent.rounds);
        round(&mut runs, extent, &native, &grpcio, &daemon, &echo).await;
    }
    if extent.long_stream > 0 {
        println!("long streams");
        runs.add("growth-embedded", footprint::growth_embedded(&native, extent.long_stream).await);
        runs.add("growth-daemon", footprint::growth_daemon(&daemon, extent.long_stream).await);
    }
    let errors = runs.errors();
    runs.add("errors", Sample::default().with("errors", errors));
    native.shutdown().await.unwrap();
    grpcio.shutdown().await.unwrap();
    daemon.stop().await;
    runs
}

async fn round(
    runs: &mut Runs,
    extent: Extent,
    native: &Snakepit,
    grpcio: &Snakepit,
    daemon: &Daemon,
    echo: &Echo,
) {
    let Extent { timing, .. } = extent;
    runs.add("grpcio-64", product::calls(grpcio, IN_FLIGHT, timing).await);
    runs.add("echo-multiplexed", echo.multiplexed(IN_FLIGHT, timing).await);
    let closed = runs.add("embedded-64", product::calls(native, IN_FLIGHT, timing).await);
    let rate = closed.get("per_second").unwrap_or_default();
    runs.add("daemon-multiplexed", daemon.multiplexed(IN_FLIGHT, timing).await);
    for (measurement, share) in OPEN_SHARES {
        runs.add(measurement, product::calls_at(native, (rate * share).max(1.0), timing).await);
    }
    runs.add("echo-unary", echo.unary(IN_FLIGHT, timing).await);
    runs.add("daemon-unary", daemon.unary(IN_FLIGHT, timing).await);
    runs.add("daemon-ping", daemon.ping(IN_FLIGHT, timing).await);
    runs.add("daemon-get-session", daemon.get_session(IN_FLIGHT, timing).await);
    runs.add("daemon-heartbeat", daemon.heartbeat(IN_FLIGHT, timing).await);
    runs.add("ping-pong", ping_pong(timing));
    runs.add("embedded-1", product::calls(native, 1, timing).await);
    runs.add("grpcio-chunks", product::chunks(grpcio, extent.grpcio_chunks).await);
    runs.add("embedded-chunks", product::chunks(native, extent.chunks).await);
    runs.add("daemon-chunks", daemon.chunks(extent.chunks, false).await);
    runs.add("daemon-chunks-multiplexed", daemon.chunks(extent.chunks, true).await);
    runs.add("grpcio-16mib", product::echo(grpcio, 16 << 20, extent.echoes).await);
    runs.add("embedded-16mib", product::echo(native, 16 << 20, extent.echoes).await);
    runs.add("bare-start", footprint::bare_start(WORKERS));
    runs.add("start", footprint::start(WORKERS).await);
}
