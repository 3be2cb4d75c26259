//! `snakepit`: the daemon and its command line.

mod call;
mod client;
mod config;
mod duration;
mod environment;
mod list;
mod log;
mod memory;
mod output;
mod serve;
mod session_storage;

use std::{fmt, process::ExitCode, thread::available_parallelism};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use tokio::runtime::{Builder, Runtime};

use self::client::within;

/// A sixth less CPU for each call than with glibc's, see docs/performance.md. A program that embeds the library chooses its own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const EXIT_CODES: &str = "\
Exit codes: 0 success, 1 the tool failed, 2 wrong usage, 3 the call was refused, timed out or lost its worker,
4 the server cannot be reached or went away, 5 the server cannot start.";

/// For the commands that talk to a server.
const CLIENT_HELP: &str = "\
Exit codes: 0 success, 1 the tool failed, 2 wrong usage, 3 the call was refused, timed out or lost its worker,
4 the server cannot be reached or went away. With --json, an error is one JSON object on stderr with `code`,
`message`, and `traceback` where there is one.";

/// Run Python tools in a pool of worker processes, and call them.
///
/// `snakepit serve` is the daemon; the other commands talk to it.
#[derive(Debug, Parser)]
#[command(name = "snakepit", version, propagate_version = true, arg_required_else_help = true)]
#[command(after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon: a pool of workers behind gRPC.
    #[command(after_help = serve::HELP)]
    Serve(Box<serve::Args>),
    /// Call a tool and print its result as JSON.
    #[command(after_help = CLIENT_HELP)]
    Call(call::Args),
    /// Call a tool and print its chunks as JSON, one line each.
    #[command(after_help = CLIENT_HELP)]
    Stream(call::StreamArgs),
    /// List the tools that can be called.
    #[command(after_help = CLIENT_HELP)]
    Tools(list::Args),
    /// List the workers.
    #[command(after_help = CLIENT_HELP)]
    Workers(list::Args),
    /// List the sessions.
    #[command(after_help = CLIENT_HELP)]
    Sessions(list::SessionArgs),
    /// List the variables of a session.
    #[command(after_help = CLIENT_HELP)]
    Variables(list::VariableArgs),
}

impl Command {
    /// Whether the user asked for JSON, in which errors are told then too.
    const fn json(&self) -> bool {
        match self {
            Self::Serve(_) => false,
            Self::Call(args) => args.json,
            Self::Stream(args) => args.json,
            Self::Tools(args) | Self::Workers(args) => args.json,
            Self::Sessions(args) => args.list.json,
            Self::Variables(args) => args.list.json,
        }
    }
}

/// A failure for the user to read: one clear line, the tool's traceback if there is one, and an exit code for scripts.
#[derive(Debug)]
struct Failure {
    exit: u8,
    /// What kind of failure, for scripts: the reasons of the server's status table, or what `new` says.
    code: String,
    message: String,
    /// Empty when there is none.
    traceback: String,
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
    fn new(exit: u8, message: impl Into<String>) -> Self {
        let code = match exit {
            exit::TOOL_FAILED => "TOOL_FAILED",
            exit::USAGE => "USAGE",
            exit::UNREACHABLE => "UNREACHABLE",
            exit::CANNOT_START => "CANNOT_START",
            _ => "REFUSED",
        };
        Self { exit, code: code.to_owned(), message: message.into(), traceback: String::new() }
    }

    fn code(mut self, code: impl Into<String>) -> Self {
        self.code = code.into();
        self
    }

    fn traceback(mut self, traceback: impl Into<String>) -> Self {
        self.traceback = traceback.into();
        self
    }

    fn as_json(&self) -> serde_json::Value {
        let mut object = serde_json::json!({"code": self.code, "message": self.message});
        if !self.traceback.is_empty() {
            object["traceback"] = self.traceback.as_str().into();
        }
        object
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "snakepit: {}", self.message)?;
        match self.traceback.trim_end() {
            "" => Ok(()),
            traceback => write!(f, "\n{traceback}"),
        }
    }
}

fn main() -> ExitCode {
    // What is wrong with the command line alone is told here, whatever a file says.
    let matches = environment::matches(&command_line()).unwrap_or_else(|error| error.exit());
    let command = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit()).command;
    let json = command.json();
    let result = configured(command).and_then(|command| runtime()?.block_on(run(command)));
    let code = match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let text = if json { failure.as_json().to_string() } else { failure.to_string() };
            log::say(&text);
            ExitCode::from(failure.exit)
        }
    };
    log::flush();
    code
}

fn command_line() -> clap::Command {
    environment::without_empty(Cli::command().mut_subcommand("serve", config::with_environment))
}

/// The command with what its configuration file says, if there is one.
fn configured(command: Command) -> Result<Command, Failure> {
    let Command::Serve(args) = &command else { return Ok(command) };
    let Some(file) = config::File::find(args.config.as_deref())? else { return Ok(command) };
    let mut cli = command_line();
    if let Some(serve) = cli.find_subcommand("serve") {
        let serve = file.set_defaults(serve.clone())?;
        cli = cli.mut_subcommand("serve", |_| serve);
    }
    let mut command = Cli::from_arg_matches(&environment::matches(&cli).unwrap_or_else(|error| error.exit()))
        .unwrap_or_else(|error| error.exit())
        .command;
    if let Command::Serve(args) = &mut command {
        args.config = Some(file.path);
    }
    Ok(command)
}

/// More threads only cost memory, and a system refuses to start some tens of thousands.
const MAX_THREADS: usize = 1024;

/// A runtime with as many threads as `TOKIO_WORKER_THREADS` says, by default half as many as there are processors: the other
/// half is for Python, and on few processors more threads cost more than they give.
fn runtime() -> Result<Runtime, Failure> {
    let threads = match std::env::var("TOKIO_WORKER_THREADS") {
        Ok(text) if !text.is_empty() => {
            text.parse().ok().filter(|threads| (1..=MAX_THREADS).contains(threads)).ok_or_else(|| {
                let problem =
                    format!("TOKIO_WORKER_THREADS is `{text}`; it takes a number from 1 to {MAX_THREADS}");
                Failure::new(exit::USAGE, problem)
            })?
        }
        _ => available_parallelism().map_or(1, |processors| processors.get().div_ceil(2)),
    };
    let mut builder = match threads {
        1 => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    builder
        .worker_threads(threads)
        .enable_all()
        .build()
        .map_err(|error| Failure::new(exit::CANNOT_START, format!("cannot start the async runtime: {error}")))
}

async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Serve(args) => serve::run(*args).await,
        Command::Call(mut args) => within(args.begin(), call::unary(args)).await,
        Command::Stream(mut args) => within(args.begin(), call::stream(args)).await,
        Command::Tools(args) => within(Some(args.timeout), list::tools(args)).await,
        Command::Workers(args) => within(Some(args.timeout), list::workers(args)).await,
        Command::Sessions(args) => within(Some(args.list.timeout), list::sessions(args)).await,
        Command::Variables(args) => within(Some(args.list.timeout), list::variables(args)).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        command_line().debug_assert();
    }

    #[test]
    fn help_texts_are_as_reviewed() {
        let mut cli = command_line().term_width(100);
        cli.build();
        let mut help = cli.render_help().to_string();
        for command in cli.get_subcommands_mut().filter(|command| command.get_name() != "help") {
            help.push_str(&format!("\n----\n{}", command.render_help()));
        }
        insta::assert_snapshot!(help);
    }
}
