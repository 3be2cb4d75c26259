//! `cargo xtask <verb>`: the development tasks, one file per verb. CI runs the same verbs as developers.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool prints to stdout and stderr"
)]
#![allow(clippy::disallowed_methods, reason = "xtask runs build tools, not workers, and has no async clock")]

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod api;
mod bench;
mod check;
mod codegen;
mod demo;
mod deny;
mod docs;
mod fuzz;
mod layers;
mod lock;
mod loom;
mod manifests;
mod miri;
mod msrv;
mod package;
mod semver;
mod setup;
mod shell;
mod soak;
mod test;
mod tidy;
mod tools;
mod wheel;
#[cfg(test)]
mod workflows;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Development tasks of this repository", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Create `.venv` with the Python packages and the native runtime, or update it.
    Setup(setup::Args),
    /// Train a model in one worker, kill that worker, and predict from the others (installs scikit-learn).
    Demo(demo::Args),
    /// Run every check and every test, as CI does.
    Test(test::Args),
    /// Run the benchmarks and compare the product with its baselines.
    Bench(bench::Args),
    /// Inject faults into a daemon under load, and check that it loses and leaves nothing.
    Soak(soak::Args),
    /// Run all static checks that need no network, or the given ones.
    Check(check::Args),
    /// Fuzz the decoding of values from the wire (needs a nightly toolchain).
    Fuzz(fuzz::Args),
    /// Run the tests of unsafe code in Miri (needs a nightly toolchain).
    Miri,
    /// Check that crates depend on each other only as ARCHITECTURE.md allows.
    Layers,
    /// Build the packages of the published crates, and check their contents.
    Package(package::Args),
    /// Build a wheel of the Python package with the daemon, and use it in an empty environment without Rust.
    Wheel(wheel::Args),
    /// Compare the public API with that of an earlier commit (builds cargo-semver-checks once).
    Semver(semver::Args),
    /// Generate the Rust code of the wire protocol, without protoc.
    Codegen(codegen::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().verb {
        Verb::Setup(args) => setup::run(&args),
        Verb::Demo(args) => demo::run(args),
        Verb::Test(args) => test::run(&args),
        Verb::Bench(args) => bench::run(args),
        Verb::Soak(args) => soak::run(&args),
        Verb::Check(args) => check::run(&args),
        Verb::Fuzz(args) => fuzz::run(&args),
        Verb::Miri => miri::run(),
        Verb::Layers => layers::run(),
        Verb::Package(args) => package::run(&args),
        Verb::Wheel(args) => wheel::run(&args),
        Verb::Semver(args) => semver::run(&args),
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
