//! `cargo xtask bench`: builds the daemon and the benchmarks for release, and runs the benchmarks.

pub(crate) mod instructions;

use anyhow::Result;

use crate::{
    setup,
    shell::{self, cargo, step},
};

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    measurement: Option<Measurement>,

    /// Measure for about one minute instead of five.
    #[arg(long)]
    quick: bool,

    /// Write the table and the samples to docs/bench.
    #[arg(long)]
    save: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Measurement {
    /// Measure how the cost of a call grows with workers, calls in flight, sessions and payloads.
    Growth(BenchArgs),
    /// Measure sessions, and compare them with a plain map and an empty RPC.
    Session(BenchArgs),
    /// Run one measurement, for use with a profiler; `one --help` lists them.
    #[command(disable_help_flag = true)]
    One(BenchArgs),
    /// Count the instructions of hot functions with callgrind.
    Instructions(instructions::Args),
}

#[derive(Debug, clap::Args)]
struct BenchArgs {
    /// Arguments for the benchmark program.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

pub(crate) fn run(args: Args) -> Result<()> {
    match args.measurement {
        Some(Measurement::Instructions(args)) => instructions::run(&args),
        Some(Measurement::Growth(BenchArgs { rest })) => benchmark("growth", rest),
        Some(Measurement::Session(BenchArgs { rest })) => {
            setup::install_system_programs(&[setup::REDIS])?;
            benchmark("session", rest)
        }
        Some(Measurement::One(BenchArgs { rest })) => benchmark("one", rest),
        None => {
            let flags = [("--quick", args.quick), ("--save", args.save)];
            let set = flags.into_iter().filter(|(_, is_set)| *is_set);
            benchmark("targets", set.map(|(flag, _)| flag.to_owned()).collect())
        }
    }
}

/// Runs a verb of `snakepit-bench`.
fn benchmark(verb: &str, rest: Vec<String>) -> Result<()> {
    let environment = setup::environment()?;
    step("build the daemon and the benchmarks for release", || {
        // Two builds, because one would unify the features: the daemon must have only its own.
        shell::run(cargo().args(["build", "--quiet", "--release", "-p", "snakepit-cli"]))?;
        shell::run(cargo().args([
            "build",
            "--quiet",
            "--release",
            "-p",
            "snakepit-tests",
            "--bin",
            "snakepit-bench",
        ]))
    })?;
    let mut bench = cargo();
    bench.args([
        "run",
        "--quiet",
        "--release",
        "-p",
        "snakepit-tests",
        "--bin",
        "snakepit-bench",
        "--",
        verb,
    ]);
    shell::run(bench.args(rest).env("SNAKEPIT_PYTHON", &environment.python))
}
