//! `cargo xtask bench`: measures the whole product beside its yardsticks, in one run.
//!
//! Every figure of the product stands next to what the same machine gives without it, measured in turns with it, because
//! on a shared machine only such ratios mean anything. Answers are checked while they are counted.

mod cpu;
mod load;
mod product;
mod yardstick;

use std::{path::PathBuf, time::Duration};

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// One measure, printed as it is: for work on the product with a profiler.
    One(One),
    /// The yardstick server; started by the others.
    Echo {
        /// The Unix socket to serve on.
        socket: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
struct One {
    /// Which: embedded, unary, multiplexed, chunks, echo-unary, echo-multiplexed.
    what: String,
    #[arg(long, default_value_t = 64)]
    in_flight: usize,
    #[arg(long, default_value_t = 4)]
    workers: usize,
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    #[arg(long, default_value_t = 1)]
    threads: usize,
    #[arg(long)]
    plain: bool,
}

fn main() {
    match Cli::parse().verb {
        Verb::Echo { socket } => yardstick::serve(&socket),
        Verb::One(one) => run_one(&one),
    }
}

fn run_one(one: &One) {
    let seconds = Duration::from_secs_f64(one.seconds);
    let runtime = load::runtime(one.threads);
    runtime.block_on(async {
        let report = match one.what.as_str() {
            "embedded" => {
                let host = product::embedded(one.workers, !one.plain).await;
                let report = product::calls(&host, one.in_flight, seconds).await;
                host.shutdown().await;
                report
            }
            "echo-unary" => yardstick::Echo::start().await.unary(one.in_flight, seconds).await,
            "echo-multiplexed" => yardstick::Echo::start().await.multiplexed(one.in_flight, seconds).await,
            other => panic!("no measure `{other}`"),
        };
        println!("{report}");
    });
}
