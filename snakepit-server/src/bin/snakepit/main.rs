//! `snakepit`: the daemon and its command line.
#![allow(clippy::print_stderr, reason = "a command line tool says on stderr what went wrong")]

mod call;
mod client;
mod list;
mod output;
mod serve;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Run Python tools in a pool of worker processes, and call them.
///
/// `snakepit serve` is the daemon; the other commands talk to it.
#[derive(Debug, Parser)]
#[command(name = "snakepit", version, propagate_version = true, arg_required_else_help = true)]
#[command(after_help = "\
Exit codes: 0 success, 1 the tool failed, 2 wrong usage, 3 the server refused, 4 the server cannot be reached,
5 the server cannot start.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon: a pool of workers behind gRPC.
    Serve(serve::Args),
    /// Call a tool and print its result as JSON.
    Call(call::Args),
    /// Call a tool and print its chunks as JSON, one line each.
    Stream(call::Args),
    /// List the tools that can be called.
    Tools(list::Args),
    /// List the workers.
    Workers(list::Args),
    /// List the sessions.
    Sessions(list::Args),
}

/// A failure for the user to read: one clear line, and an exit code for scripts.
#[derive(Debug)]
struct Failure {
    code: u8,
    message: String,
}

/// The exit codes, by who is at fault.
mod exit {
    pub(crate) const TOOL_FAILED: u8 = 1;
    pub(crate) const USAGE: u8 = 2;
    pub(crate) const REFUSED: u8 = 3;
    pub(crate) const UNREACHABLE: u8 = 4;
    pub(crate) const CANNOT_START: u8 = 5;
}

impl Failure {
    fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    let result = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Err(error) => {
            Err(Failure::new(exit::CANNOT_START, format!("cannot start the async runtime: {error}")))
        }
        Ok(runtime) => runtime.block_on(run(command)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("snakepit: {}", failure.message);
            ExitCode::from(failure.code)
        }
    }
}

async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Serve(args) => serve::run(args).await,
        Command::Call(args) => call::unary(args).await,
        Command::Stream(args) => call::stream(args).await,
        Command::Tools(args) => list::tools(args).await,
        Command::Workers(args) => list::workers(args).await,
        Command::Sessions(args) => list::sessions(args).await,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_texts_are_as_reviewed() {
        let mut cli = Cli::command();
        cli.build();
        let mut help = cli.render_help().to_string();
        for command in cli.get_subcommands_mut().filter(|command| command.get_name() != "help") {
            help.push_str(&format!("\n----\n{}", command.render_help()));
        }
        insta::assert_snapshot!(help);
    }
}
