//! `cargo xtask bench`: sets up, builds the daemon and the benchmark for release, and runs the latter.

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
    what: Option<What>,

    /// Take about a minute instead of about five.
    #[arg(long)]
    quick: bool,

    /// Keep the table and the raw numbers in docs/bench.
    #[arg(long)]
    save: bool,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// How the cost of a call grows with workers, calls in flight, sessions and payloads.
    Growth(Rest),
    /// What sessions cost, beside the bare map and an empty RPC.
    Session(Rest),
    /// One measure, for work with a profiler; `one --help` names them.
    #[command(disable_help_flag = true)]
    One(Rest),
    /// Count the instructions of hot pieces with callgrind.
    Instructions(instructions::Args),
}

#[derive(Debug, clap::Args)]
struct Rest {
    /// Passed on to the benchmark.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

pub(crate) fn run(args: Args) -> Result<()> {
    match args.what {
        Some(What::Instructions(args)) => instructions::run(&args),
        Some(What::Growth(Rest { rest })) => benchmark("growth", rest),
        Some(What::Session(Rest { rest })) => {
            setup::system_programs(&[setup::REDIS])?;
            benchmark("session", rest)
        }
        Some(What::One(Rest { rest })) => benchmark("one", rest),
        None => {
            let flags = [("--quick", args.quick), ("--save", args.save)];
            let given = flags.into_iter().filter(|(_, given)| *given);
            benchmark("targets", given.map(|(flag, _)| flag.to_owned()).collect())
        }
    }
}

fn benchmark(verb: &str, rest: Vec<String>) -> Result<()> {
    let environment = setup::run()?;
    step("build the daemon and the benchmark for release", || {
        // Apart, so that the daemon gets its own features only, as it is shipped.
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
