//! `cargo xtask <verb>`: the project's chores. One file per verb; CI, README and hooks all call these.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool talks on stdout and stderr"
)]
#![allow(clippy::disallowed_methods, reason = "xtask runs tools, not workers")]

use anyhow::Result;
use clap::{Parser, Subcommand};

mod codegen;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "The project's chores", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Generate the Rust code of the wire protocol (needs no protoc).
    Codegen(codegen::Args),
}

fn main() -> Result<()> {
    match Cli::parse().verb {
        Verb::Codegen(args) => codegen::run(&args),
    }
}
