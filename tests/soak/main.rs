//! `cargo xtask soak`: runs calls of every kind against one daemon while faults are injected, and checks that every call
//! ends once and in time, that no answer is wrong, and that nothing is lost or left behind.

mod callers;
mod checks;
mod daemon;
mod faults;
mod python;
mod report;
mod rude;
mod state;
mod tally;

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use clap::Parser;
use snakepit_tests::Redis;
use tokio::time::sleep;

use crate::{daemon::Daemon, faults::Faults, tally::Tally};

#[derive(Debug, Parser)]
#[command(name = "snakepit-soak")]
struct Args {
    /// How long calls and faults go on.
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,

    /// Chooses the order of faults.
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Inject only faults whose name contains this.
    #[arg(long)]
    fault: Option<String>,

    /// Write the table here too.
    #[arg(long)]
    save: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(2).build();
    let violations = runtime.expect("a runtime").block_on(run(&args));
    ExitCode::from(u8::from(violations > 0))
}

/// Load without faults, before the first one.
const WARM_UP: Duration = Duration::from_secs(3);

async fn run(args: &Args) -> usize {
    let redis = Redis::durable().await;
    let daemon = Arc::new(Daemon::start(&redis).await);
    let fresh = checks::Baseline::of(&daemon).await;
    let tally = Arc::new(Tally::default());

    let callers = callers::start(&daemon, &tally).await;
    let state = state::start(&daemon, &tally).await;
    let python = python::PythonClient::start(&daemon, &tally).await;
    let mut faults = Faults::new(Arc::clone(&daemon), redis, python, Arc::clone(&tally), args.seed).await;

    sleep(WARM_UP).await;
    faults.inject_for(Duration::from_secs_f64(args.minutes * 60.0), args.fault.as_deref()).await;

    tally.stop();
    let (outcome, _redis) = faults.finish().await;
    callers.join().await;
    state.finish().await;
    checks::at_rest(&daemon, &fresh, &outcome.resident_kib, &tally).await;
    let daemon = Arc::into_inner(daemon).expect("every caller has ended");
    let marks = checks::after_stop(daemon, &tally).await;

    let report = report::render(args.minutes, &outcome.recoveries, &tally, &marks);
    println!("{report}");
    if let Some(path) = &args.save {
        std::fs::write(path, report::page(&report)).expect("the table can be saved");
    }
    tally.violations().len()
}
