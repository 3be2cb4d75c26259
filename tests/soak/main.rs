//! `cargo xtask soak`: injects faults into a daemon under load. Checks that every call ends in time with the right result, or
//! fails for a reason that a fault explains. Also checks that no write, update, process, file or memory is lost.

mod bad_clients;
mod callers;
mod checks;
mod daemon;
mod faults;
mod python;
mod report;
mod state;
mod tally;
mod windows;

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use clap::Parser;
use snakepit_tests::Redis;
use tokio::time::sleep;

use crate::{daemon::Daemon, faults::Faults, tally::Tally};

#[derive(Debug, Parser)]
#[command(name = "snakepit-soak")]
struct Args {
    /// Minutes of load and faults.
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,

    /// Seed for the order of faults and their victims.
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Inject only faults whose name contains this text.
    #[arg(long)]
    fault: Option<String>,

    /// Also write the tables to this file.
    #[arg(long)]
    save: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(2).build();
    let violations = runtime.expect("a runtime").block_on(run(&args));
    ExitCode::from(u8::from(violations > 0))
}

/// The time of load before the first fault.
const WARM_UP: Duration = Duration::from_secs(3);

async fn run(args: &Args) -> usize {
    let redis = Redis::durable().await;
    let daemon = Arc::new(Daemon::start(&redis).await);
    let initial = checks::InitialResources::measure(&daemon).await;
    let tally = Arc::new(Tally::default());

    let callers = callers::start(&daemon, &tally).await;
    let writers = state::start(&daemon, &tally).await;
    let python = python::PythonClient::start(&daemon, &tally).await;
    let mut faults = Faults::new(Arc::clone(&daemon), redis, python, Arc::clone(&tally), args.seed).await;

    sleep(WARM_UP).await;
    faults.inject_for(Duration::from_secs_f64(args.minutes * 60.0), args.fault.as_deref()).await;

    tally.stop();
    let (results, _redis) = faults.finish().await;
    callers.join().await;
    writers.finish().await;
    checks::at_rest(&daemon, &initial, &results.resident_kib, &tally).await;
    let daemon = Arc::into_inner(daemon).expect("every caller has ended");
    let runs = checks::after_stop(daemon, &tally).await;

    let report = report::render(args.minutes, &results.recoveries, &tally, &runs);
    println!("{report}");
    if let Some(path) = &args.save {
        std::fs::write(path, report::page(&report)).expect("the tables can be saved");
    }
    tally.violations().len()
}
