//! `snakepit`: the daemon and its command line.

mod call;
mod client;
mod config;
mod dev;
mod doctor;
mod duration;
mod entries;
mod environment;
mod failure;
mod list;
mod live_call;
mod live_reports;
mod log;
mod memory;
mod new;
mod output;
mod restart;
mod serve;
mod session_storage;
mod size;
mod stubs;
mod suggestion;
mod tool_changes;
mod tools;

use std::{ffi::OsString, process::ExitCode, thread::available_parallelism};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, builder::Resettable};
use nix::sys::signal::SigSet;
use snakepit_server::{Reason, settings::Setting};
use tokio::runtime::{Builder, Runtime};

use self::{client::with_timeout, failure::Failure};

/// Saves a sixth of the CPU time per call compared to glibc's allocator, see docs/performance.md. Programs that embed the library
/// choose their own allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const EXIT_CODES: &str = "\
Exit codes:
  0  success
  1  the tool failed
  2  wrong usage
  3  the call was rejected, timed out, or lost its worker
  4  the server cannot be reached, or the connection was lost
  5  the daemon, or a new worker, cannot start
  6  the result cannot be written";

/// Appended to the help of the commands that connect to a server.
const CLIENT_HELP: &str = "\
Exit codes:
  0  success
  1  the tool failed
  2  wrong usage
  3  the call was rejected, timed out, or lost its worker
  4  the server cannot be reached, or the connection was lost
  5  a new worker cannot start
  6  the result cannot be written

With --json, an error is one JSON object on stderr. It has the keys `code`, `message` and
`may_have_run` (whether the tool may have run), `retry_after` (seconds) if the server suggests
a pause, and `exception` and `traceback` if the tool raised an exception. docs/errors.md lists
the codes.";

/// Run Python tools in a pool of worker processes, and call them.
///
/// `snakepit serve` is the daemon. The other commands connect to it.
#[derive(Debug, Parser)]
#[command(name = "snakepit", version, propagate_version = true, arg_required_else_help = true)]
#[command(after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon, which serves the tools of a pool of workers over gRPC.
    #[command(after_help = serve::HELP)]
    Serve(Box<serve::Args>),
    /// Serve an adapter, and replace its workers when their code changes.
    #[command(after_help = dev::HELP)]
    Dev(Box<dev::Args>),
    /// Create a project with an adapter, its tests and its settings.
    New(new::Args),
    /// Examine the environment of the daemon and its workers, and show how to fix problems.
    #[command(after_help = doctor::HELP)]
    Doctor(Box<doctor::Args>),
    /// Call a tool and print its result as JSON.
    #[command(after_help = format!("{}\n\n{CLIENT_HELP}", call::HELP))]
    Call(call::Args),
    /// Call a streaming tool and print each chunk as one line of JSON.
    #[command(after_help = format!("{}\n\n{CLIENT_HELP}", call::HELP))]
    Stream(call::StreamArgs),
    /// List the tools of a server, or describe one of them.
    #[command(after_help = CLIENT_HELP)]
    Tools(tools::ToolArgs),
    /// Print a typed Python module with a function for each tool of a server.
    #[command(after_help = stubs::HELP)]
    Stubs(stubs::Args),
    /// Show the queue, workers and call counters of a server.
    #[command(after_help = format!("{}\n\n{CLIENT_HELP}", list::STATUS_COLUMNS))]
    Status(list::Args),
    /// List the workers of a server.
    #[command(after_help = format!("{}\n\n{CLIENT_HELP}", list::WORKER_COLUMNS))]
    Workers(list::Args),
    /// Restart the workers of a server without interrupting calls (rolling restart).
    #[command(after_help = format!("{}\n\n{CLIENT_HELP}", restart::HELP))]
    Restart(restart::Args),
    /// List the sessions of a server.
    #[command(after_help = CLIENT_HELP)]
    Sessions(list::SessionArgs),
    /// List the variables of a session.
    #[command(after_help = CLIENT_HELP)]
    Variables(list::VariableArgs),
}

impl Command {
    /// Whether the user requested JSON, which then applies to errors too.
    const fn is_json(&self) -> bool {
        match self {
            Self::Serve(args) => args.json,
            Self::Dev(args) => args.serve.json,
            Self::New(_) => false,
            Self::Doctor(args) => args.serve.json,
            Self::Call(args) => args.json,
            Self::Stream(args) => args.json,
            Self::Tools(args) => args.list.json,
            Self::Stubs(_) => false,
            Self::Status(args) | Self::Workers(args) => args.json,
            Self::Restart(args) => args.json,
            Self::Sessions(args) => args.list.json,
            Self::Variables(args) => args.list.json,
        }
    }
}

fn main() -> ExitCode {
    // Unblock all signals, because the daemon inherits the mask of a parent that waits for signals with `sigwait`, and SIGTERM would
    // then not stop it. This precedes the start of other threads, because they inherit the mask of this thread.
    if let Err(error) = SigSet::empty().thread_set_mask() {
        log::print_error(&format!("cannot unblock signals: {error}"));
    }
    // Error messages name flags, because users of the daemon set flags, not builder methods.
    Setting::name_flags();
    let words: Vec<OsString> = std::env::args_os().collect();
    // This reports errors of the command line before those of the configuration file.
    let matches = environment::matches(&without_checked_settings(command_line()), &words);
    let parsed = matches.and_then(|matches| Cli::from_arg_matches(&matches));
    let (is_json, result) = match parsed {
        Ok(Cli { command }) => (command.is_json(), execute(command, &words)),
        // The help or the version.
        Err(error) if !error.use_stderr() => {
            let printed = output::write(|_| error.print());
            (has_json_flag(&words), printed.map(|()| ExitCode::SUCCESS))
        }
        Err(error) if !has_json_flag(&words) => error.exit(),
        Err(error) => (true, Err(Failure::of_usage(&error))),
    };
    let code = match result {
        Ok(code) => code,
        Err(failure) => {
            let text = if is_json { failure.as_json().to_string() } else { failure.to_string() };
            log::print_error(&text);
            ExitCode::from(failure.exit_code())
        }
    };
    log::flush();
    code
}

/// Runs a command with its settings.
fn execute(command: Command, words: &[OsString]) -> Result<ExitCode, Failure> {
    // `dev` changes to the directory of its adapter before the settings are read, because `snakepit.toml` is in that directory.
    let directory = match &command {
        Command::Dev(args) => args.serve.served().map_or(Ok(None), dev::NamedDirectory::enter)?,
        _ => None,
    };
    let command = match command {
        // It reports the errors of its settings itself.
        Command::Doctor(_) => command,
        command => configured(command, words)?,
    };
    runtime()?.block_on(run(command, directory, words))
}

/// Whether the flag `--json` is among the words of a command line, which may be malformed.
fn has_json_flag(words: &[OsString]) -> bool {
    words.iter().take_while(|word| *word != "--").any(|word| word == "--json")
}

/// All commands, with the environment variables of their flags.
fn all_flags() -> clap::Command {
    let cli = Cli::command().mut_subcommand("serve", config::with_environment);
    let cli = cli.mut_subcommand("doctor", |doctor| {
        config::with_environment(doctor)
            .mut_arg("json", |arg| arg.help("Print one JSON object with all checks"))
            .mut_arg("served", |arg| arg.help("Examine this adapter. Overrides --adapter"))
            .mut_arg("stop_with_stdin", |arg| arg.hide(true))
    });
    cli.mut_subcommand("dev", |dev| {
        let dev = config::with_environment(dev);
        dev.mut_arg("workers", |arg| arg.default_value("1")).mut_arg("drain", |arg| arg.default_value("1s"))
    })
}

fn command_line() -> clap::Command {
    environment::without_empty(all_flags())
}

/// Detaches the environment variables of the settings that `snakepit doctor` checks, because their errors are a failed check.
fn without_checked_settings(cli: clap::Command) -> clap::Command {
    let is_checked = |arg: &clap::Arg| arg.get_id() != "server";
    cli.mut_subcommand("doctor", |doctor| {
        doctor.mut_args(|arg| if is_checked(&arg) { arg.env(Resettable::Reset) } else { arg })
    })
}

/// The settings that `snakepit doctor` checks.
fn checked_settings(words: &[OsString]) -> Result<serve::Args, Failure> {
    let matches = environment::matches(&command_line(), words);
    let parsed = matches.and_then(|matches| Cli::from_arg_matches(&matches));
    let Cli { command } = parsed.map_err(|error| Failure::of_usage(&error))?;
    match configured(command, words)? {
        Command::Doctor(args) => Ok(args.serve),
        _ => Err(Failure::new(Reason::Internal, "the settings of `snakepit doctor` cannot be read")),
    }
}

/// Applies the configuration file, if there is one, to the commands with the options of `snakepit serve`.
fn configured(command: Command, words: &[OsString]) -> Result<Command, Failure> {
    let (name, args) = match &command {
        Command::Serve(args) => ("serve", &**args),
        Command::Dev(args) => ("dev", &args.serve),
        Command::Doctor(args) => ("doctor", &args.serve),
        _ => return Ok(command),
    };
    let Some(file) = config::File::find(args.config.as_deref())? else { return Ok(command) };
    let mut cli = command_line();
    if let Some(found) = cli.find_subcommand(name) {
        let found = file.set_defaults(found.clone())?;
        cli = cli.mut_subcommand(name, |_| found);
    }
    let matches = environment::matches(&cli, words);
    let mut command = match matches.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(Cli { command }) => command,
        Err(error) if args.json || name == "doctor" => return Err(Failure::of_usage(&error)),
        Err(error) => error.exit(),
    };
    match &mut command {
        Command::Serve(args) => args.config = Some(file.path),
        Command::Dev(args) => args.serve.config = Some(file.path),
        Command::Doctor(args) => args.serve.config = Some(file.path),
        _ => {}
    }
    Ok(command)
}

/// The maximum number of threads. More threads would only cost memory, and systems cannot start tens of thousands of them.
const MAX_THREADS: usize = 1024;

/// Creates a runtime with the number of threads in `TOKIO_WORKER_THREADS`. The default is half of the processors: Python needs
/// the other half, and with few processors, more threads cost more than they gain.
fn runtime() -> Result<Runtime, Failure> {
    let threads = match std::env::var_os("TOKIO_WORKER_THREADS") {
        Some(text) if !text.is_empty() => {
            let threads = text.to_str().and_then(|text| text.parse().ok());
            threads.filter(|threads| (1..=MAX_THREADS).contains(threads)).ok_or_else(|| {
                let text = text.display();
                let problem =
                    format!("TOKIO_WORKER_THREADS is `{text}`; it takes a number from 1 to {MAX_THREADS}");
                Failure::new(Reason::Usage, problem)
            })?
        }
        _ => available_parallelism().map_or(1, |processors| processors.get().div_ceil(2)),
    };
    let mut builder = match threads {
        1 => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    builder.worker_threads(threads).enable_all().build().map_err(|error| {
        Failure::new(Reason::CannotStart, format!("cannot start the async runtime: {error}"))
    })
}

async fn run(
    command: Command,
    directory: Option<dev::NamedDirectory>,
    words: &[OsString],
) -> Result<ExitCode, Failure> {
    let result = match command {
        Command::Doctor(args) => return doctor::run(*args, checked_settings(words)).await,
        Command::New(args) => new::run(&args).await,
        Command::Serve(args) => serve::run(*args, &all_flags(), None).await,
        Command::Dev(args) => {
            let (serve, dev) = args.prepare(directory)?;
            serve::run(serve, &all_flags(), Some(dev)).await
        }
        Command::Call(mut args) => with_timeout(args.start_clock(), call::unary(args)).await,
        Command::Stream(mut args) => with_timeout(args.start_clock(), call::stream(args)).await,
        Command::Tools(mut args) => {
            no_tool_ran(with_timeout(args.list.start_clock(), tools::run(args)).await)
        }
        Command::Stubs(args) => stubs::run(args),
        Command::Status(mut args) => no_tool_ran(with_timeout(args.start_clock(), list::status(args)).await),
        Command::Workers(mut args) => {
            no_tool_ran(with_timeout(args.start_clock(), list::workers(args)).await)
        }
        Command::Restart(mut args) => no_tool_ran(with_timeout(args.start_clock(), restart::run(args)).await),
        Command::Sessions(mut args) => {
            no_tool_ran(with_timeout(args.list.start_clock(), list::sessions(args)).await)
        }
        Command::Variables(mut args) => {
            no_tool_ran(with_timeout(args.list.start_clock(), list::variables(args)).await)
        }
    };
    result.map(|()| ExitCode::SUCCESS)
}

/// Marks the error of a command as one after which no tool has run.
fn no_tool_ran(result: Result<(), Failure>) -> Result<(), Failure> {
    result.map_err(|failure| failure.may_have_run(false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_valid() {
        command_line().debug_assert();
    }

    #[test]
    fn the_settings_of_the_library_have_the_names_of_the_flags() {
        let cli = all_flags();
        let serve = cli.find_subcommand("serve").unwrap();
        let flags: Vec<&str> = serve.get_arguments().filter_map(clap::Arg::get_long).collect();
        let named: Vec<&str> = snakepit_server::settings::all().filter_map(Setting::flag).collect();
        for flag in &named {
            assert!(flags.contains(flag), "there is no flag --{flag}");
        }
        // These flags configure the daemon, not the host.
        let own = ["config", "json", "drain", "stop-with-stdin"];
        for flag in flags.iter().filter(|flag| !own.contains(flag)) {
            assert!(named.contains(flag), "no setting has the name of --{flag}");
        }
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
