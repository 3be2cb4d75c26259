//! `cargo xtask bench`: measures the whole product beside its yardsticks, in one run.
//!
//! Every figure of the product stands next to what the same machine gives without it, measured in turns with it, because
//! on a shared machine only such ratios mean anything. Answers are checked while they are counted.

mod connect;
mod cpu;
mod daemon;
mod footprint;
mod growth;
mod load;
mod measures;
mod plot;
mod product;
mod report;
mod sample;
mod session;
mod stored;
mod targets;
mod yardstick;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Parser, Subcommand};

use crate::{load::Spell, measures::Extent, sample::Sample};

#[derive(Debug, Parser)]
#[command(name = "snakepit-bench")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// All targets with their yardsticks, as a table.
    Targets {
        /// A run of about a minute.
        #[arg(long)]
        quick: bool,
        /// Keep the results in docs/bench.
        #[arg(long)]
        save: bool,
    },
    /// What sessions cost, as a table.
    Session {
        /// A run of about half a minute.
        #[arg(long)]
        quick: bool,
        /// Keep the results in docs/bench.
        #[arg(long)]
        save: bool,
    },
    /// How the cost of a call grows, as tables and plots.
    Growth {
        /// Measure each point for a shorter time.
        #[arg(long)]
        quick: bool,
        /// Keep the results in docs/bench.
        #[arg(long)]
        save: bool,
    },
    /// One measure, printed as it is: for work on the product with a profiler.
    One(One),
    /// A yardstick server; started by the others.
    #[command(hide = true)]
    Echo { socket: PathBuf },
    /// Likewise.
    #[command(hide = true)]
    Pong { socket: PathBuf },
}

#[derive(Debug, clap::Args)]
struct One {
    #[arg(value_enum)]
    what: What,
    #[arg(long, default_value_t = 64)]
    in_flight: usize,
    #[arg(long, default_value_t = 4)]
    workers: usize,
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Threads of the load generator, and with it of the embedded host.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Chunks of a stream.
    #[arg(long, default_value_t = 2_000_000)]
    chunks: u64,
    /// Bytes of an echoed payload.
    #[arg(long, default_value_t = 16 << 20)]
    bytes: usize,
    /// Calls a second of the open loop.
    #[arg(long, default_value_t = 20_000.0)]
    rate: f64,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum What {
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
        Verb::Echo { socket } => yardstick::serve(&socket),
        Verb::Pong { socket } => yardstick::pong(&socket),
        Verb::One(one) => {
            log_to_nowhere();
            let sample = load::runtime(one.threads).block_on(run_one(&one));
            println!("{sample}");
            return exit_code(sample.errors() == 0.0);
        }
        Verb::Growth { quick, save } => {
            log_to_nowhere();
            let curves = load::runtime(1).block_on(growth::run(quick));
            report::write_growth(&curves, save);
            let samples = curves.iter().flat_map(|curve| &curve.points);
            return exit_code(samples.map(|(_, sample)| sample.errors()).sum::<f64>() == 0.0);
        }
        Verb::Targets { quick, save } => {
            log_to_nowhere();
            let extent = if quick { Extent::QUICK } else { Extent::FULL };
            let runs = load::runtime(1).block_on(measures::run(extent));
            // A missed target is a result; a wrong answer makes the others worthless.
            return exit_code(report::write(&report::CALLS, &runs, save));
        }
        Verb::Session { quick, save } => {
            log_to_nowhere();
            let extent = if quick { Extent::QUICK } else { Extent::FULL };
            let runs = load::runtime(1).block_on(session::run(extent));
            return exit_code(report::write(&report::SESSIONS, &runs, save));
        }
    }
    ExitCode::SUCCESS
}

fn exit_code(right: bool) -> ExitCode {
    if right {
        return ExitCode::SUCCESS;
    }
    eprintln!("some calls failed or were answered wrongly, so no figure counts");
    ExitCode::FAILURE
}

/// Traces at info as the daemon does, so that the embedded host pays for its spans.
fn log_to_nowhere() {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new("info"))
        .with_ansi(false)
        .with_writer(std::io::sink)
        .init();
}

async fn run_one(one: &One) -> Sample {
    let counted = Duration::from_secs_f64(one.seconds);
    let spell = Spell { warm_up: Duration::from_millis(700), counted };
    let (in_flight, workers, chunks) = (one.in_flight, one.workers, one.chunks);
    match one.what {
        What::EchoUnary => yardstick::Echo::start().await.unary(in_flight, spell).await,
        What::EchoMultiplexed => yardstick::Echo::start().await.multiplexed(in_flight, spell).await,
        What::PingPong => yardstick::ping_pong(spell),
        What::Start => footprint::start(workers).await,
        What::BareStart => footprint::bare_start(workers),
        What::Embedded
        | What::EmbeddedOpen
        | What::EmbeddedChunks
        | What::EmbeddedEcho
        | What::EmbeddedMemory => {
            let host = product::native(workers).await;
            let sample = match one.what {
                What::EmbeddedOpen => product::calls_at(&host, one.rate, spell).await,
                What::EmbeddedChunks => product::chunks(&host, chunks).await,
                What::EmbeddedEcho => product::echo(&host, one.bytes, 10).await,
                What::EmbeddedMemory => footprint::growth_embedded(&host, chunks).await,
                _ => product::calls(&host, in_flight, spell).await,
            };
            host.shutdown().await.unwrap();
            sample
        }
        What::Grpcio | What::GrpcioChunks | What::GrpcioEcho => {
            let host = product::grpcio(workers).await;
            let sample = match one.what {
                What::GrpcioChunks => product::chunks(&host, chunks.min(100_000)).await,
                What::GrpcioEcho => product::echo(&host, one.bytes, 10).await,
                _ => product::calls(&host, in_flight, spell).await,
            };
            host.shutdown().await.unwrap();
            sample
        }
        _ => {
            let daemon = daemon::Daemon::start(workers).await;
            let sample = match one.what {
                What::DaemonUnary => daemon.unary(in_flight, spell).await,
                What::DaemonMultiplexed => daemon.multiplexed(in_flight, spell).await,
                What::DaemonGetSession => daemon.get_session(in_flight, spell).await,
                What::DaemonHeartbeat => daemon.heartbeat(in_flight, spell).await,
                What::DaemonChunks => daemon.chunks(chunks, false).await,
                What::DaemonMemory => footprint::growth_daemon(&daemon, chunks).await,
                What::DaemonChunksMultiplexed => daemon.chunks(chunks, true).await,
                _ => daemon.ping(in_flight, spell).await,
            };
            daemon.stop().await;
            sample
        }
    }
}
