//! `cargo xtask <verb>`: the project's chores. One file per verb; CI, README and hooks all call these.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool talks on stdout and stderr"
)]
#![allow(clippy::disallowed_methods, reason = "xtask runs tools, not workers, and has no async clock")]

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod check;
mod codegen;
mod demo;
mod deny;
mod fuzz;
mod layers;
mod loom;
mod miri;
mod msrv;
mod setup;
mod shell;
mod soak;
mod test;
mod tidy;
mod tools;
#[cfg(test)]
mod workflows;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "The project's chores", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make `.venv` with the native runtime and all Python packages; quick when everything is there.
    Setup,
    /// The main job on real input: train in one worker, kill it, predict from the others.
    Demo(demo::Args),
    /// Every check and every test.
    Test(test::Args),
    /// Measure the product beside its yardsticks.
    Bench(bench::Args),
    /// Run calls of every kind while faults are injected, and check that nothing is lost or left behind.
    Soak(soak::Args),
    /// The static checks: all that need no network, or those named.
    Check(check::Args),
    /// Fuzz the decoding of values from the wire. Needs a nightly toolchain.
    Fuzz(fuzz::Args),
    /// Run the tests of unsafe code in Miri. Needs a nightly toolchain.
    Miri,
    /// Check that crates depend only in the direction the architecture allows.
    Layers,
    /// Generate the Rust code of the wire protocol (needs no protoc).
    Codegen(codegen::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().verb {
        Verb::Setup => setup::run().map(drop),
        Verb::Demo(args) => demo::run(args),
        Verb::Test(args) => test::run(&args),
        Verb::Bench(args) => bench::run(args),
        Verb::Soak(args) => soak::run(&args),
        Verb::Check(args) => check::run(&args),
        Verb::Fuzz(args) => fuzz::run(&args),
        Verb::Miri => miri::run(),
        Verb::Layers => layers::run(),
        Verb::Codegen(args) => codegen::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
