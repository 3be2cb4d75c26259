//! `cargo xtask bench`: measures the whole product and baselines in the same run.
//!
//! A baseline is a simpler program on the same machine, such as an echo server. The benchmark runs it shortly before or after
//! the product, because on a shared machine only their ratio is meaningful. It also checks every result.

mod baseline;
mod connect;
mod cpu;
mod daemon;
mod footprint;
mod growth;
mod load;
mod measurements;
mod plot;
mod product;
mod report;
mod sample;
mod session;
mod stored;
mod targets;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Parser, Subcommand};

use crate::{load::Timing, measurements::Extent, sample::Sample};

#[derive(Debug, Parser)]
#[command(name = "snakepit-bench")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Measure all targets and their baselines, and print a table.
    Targets {
        /// Measure for about one minute.
        #[arg(long)]
        quick: bool,
        /// Write the results to docs/bench.
        #[arg(long)]
        save: bool,
    },
    /// Measure sessions, and print a table.
    Session {
        /// Measure for about half a minute.
        #[arg(long)]
        quick: bool,
        /// Write the results to docs/bench.
        #[arg(long)]
        save: bool,
    },
    /// Measure how the cost of a call grows, and write tables and plots.
    Growth {
        /// Measure each point for a shorter time.
        #[arg(long)]
        quick: bool,
        /// Write the results to docs/bench.
        #[arg(long)]
        save: bool,
    },
    /// Run one measurement and print its figures, for use with a profiler.
    One(One),
    /// Run the echo server. Other verbs start it.
    #[command(hide = true)]
    Echo { socket: PathBuf },
    /// Run the ping-pong server. Other verbs start it.
    #[command(hide = true)]
    Pong { socket: PathBuf },
}

#[derive(Debug, clap::Args)]
struct One {
    #[arg(value_enum)]
    measurement: Measurement,
    #[arg(long, default_value_t = 64)]
    in_flight: usize,
    #[arg(long, default_value_t = 4)]
    workers: usize,
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Threads of the load generator and the embedded host.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Chunks of one stream.
    #[arg(long, default_value_t = 2_000_000)]
    chunks: u64,
    /// Bytes of an echoed payload.
    #[arg(long, default_value_t = 16 << 20)]
    bytes: usize,
    /// Calls per second of the open loop.
    #[arg(long, default_value_t = 20_000.0)]
    rate: f64,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Measurement {
    Embedded,
    EmbeddedOpen,
    EmbeddedChunks,
    EmbeddedEcho,
    EmbeddedMemory,
    DaemonUnary,
    DaemonMultiplexed,
    DaemonPing,
    DaemonGetSession,
    DaemonHeartbeat,
    DaemonChunks,
    DaemonChunksMultiplexed,
    DaemonMemory,
    Grpcio,
    GrpcioChunks,
    GrpcioEcho,
    EchoUnary,
    EchoMultiplexed,
    PingPong,
    Start,
    BareStart,
}

fn main() -> ExitCode {
    match Cli::parse().verb {
        Verb::Echo { socket } => baseline::serve(&socket),
        Verb::Pong { socket } => baseline::pong(&socket),
        Verb::One(one) => {
            discard_log();
            let sample = load::runtime(one.threads).block_on(run_one(&one));
            println!("{sample}");
            return exit_code(sample.errors() == 0.0);
        }
        Verb::Growth { quick, save } => {
            discard_log();
            let curves = load::runtime(1).block_on(growth::run(quick));
            report::write_growth(&curves, save);
            let samples = curves.iter().flat_map(|curve| &curve.points);
            return exit_code(samples.map(|(_, sample)| sample.errors()).sum::<f64>() == 0.0);
        }
        Verb::Targets { quick, save } => {
            discard_log();
            let extent = if quick { Extent::QUICK } else { Extent::FULL };
            let runs = load::runtime(1).block_on(measurements::run(extent));
            // A missed target is a valid measurement. A wrong result of a call makes all measurements invalid.
            return exit_code(report::write(&report::CALLS, &runs, save));
        }
        Verb::Session { quick, save } => {
            discard_log();
            let extent = if quick { Extent::QUICK } else { Extent::FULL };
            let runs = load::runtime(1).block_on(session::run(extent));
            return exit_code(report::write(&report::SESSIONS, &runs, save));
        }
    }
    ExitCode::SUCCESS
}

fn exit_code(is_valid: bool) -> ExitCode {
    if is_valid {
        return ExitCode::SUCCESS;
    }
    eprintln!("some calls failed or returned wrong results, so the measurements are invalid");
    ExitCode::FAILURE
}

/// Enables logging at level info, like the daemon, and discards the log. The measured cost includes the spans.
fn discard_log() {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new("info"))
        .with_ansi(false)
        .with_writer(std::io::sink)
        .init();
}

async fn run_one(one: &One) -> Sample {
    let measured = Duration::from_secs_f64(one.seconds);
    let timing = Timing { warm_up: Duration::from_millis(700), measured };
    let (in_flight, workers, chunks) = (one.in_flight, one.workers, one.chunks);
    match one.measurement {
        Measurement::EchoUnary => baseline::Echo::start().await.unary(in_flight, timing).await,
        Measurement::EchoMultiplexed => baseline::Echo::start().await.multiplexed(in_flight, timing).await,
        Measurement::PingPong => baseline::ping_pong(timing),
        Measurement::Start => footprint::start(workers).await,
        Measurement::BareStart => footprint::bare_start(workers),
        Measurement::Embedded
        | Measurement::EmbeddedOpen
        | Measurement::EmbeddedChunks
        | Measurement::EmbeddedEcho
        | Measurement::EmbeddedMemory => {
            let host = product::native(workers).await;
            let sample = match one.measurement {
                Measurement::EmbeddedOpen => product::calls_at(&host, one.rate, timing).await,
                Measurement::EmbeddedChunks => product::chunks(&host, chunks).await,
                Measurement::EmbeddedEcho => product::echo(&host, one.bytes, 10).await,
                Measurement::EmbeddedMemory => footprint::growth_embedded(&host, chunks).await,
                _ => product::calls(&host, in_flight, timing).await,
            };
            host.shutdown().await.unwrap();
            sample
        }
        Measurement::Grpcio | Measurement::GrpcioChunks | Measurement::GrpcioEcho => {
            let host = product::grpcio(workers).await;
            let sample = match one.measurement {
                Measurement::GrpcioChunks => product::chunks(&host, chunks.min(100_000)).await,
                Measurement::GrpcioEcho => product::echo(&host, one.bytes, 10).await,
                _ => product::calls(&host, in_flight, timing).await,
            };
            host.shutdown().await.unwrap();
            sample
        }
        _ => {
            let daemon = daemon::Daemon::start(workers).await;
            let sample = match one.measurement {
                Measurement::DaemonUnary => daemon.unary(in_flight, timing).await,
                Measurement::DaemonMultiplexed => daemon.multiplexed(in_flight, timing).await,
                Measurement::DaemonGetSession => daemon.get_session(in_flight, timing).await,
                Measurement::DaemonHeartbeat => daemon.heartbeat(in_flight, timing).await,
                Measurement::DaemonChunks => daemon.chunks(chunks, false).await,
                Measurement::DaemonMemory => footprint::growth_daemon(&daemon, chunks).await,
                Measurement::DaemonChunksMultiplexed => daemon.chunks(chunks, true).await,
                _ => daemon.ping(in_flight, timing).await,
            };
            daemon.stop().await;
            sample
        }
    }
}
