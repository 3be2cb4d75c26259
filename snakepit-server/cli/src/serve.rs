//! `snakepit serve`: the daemon.

use std::{
    io::{IsTerminal, Write},
    time::Duration,
};

use snakepit_server::{
    Builder, Reason, Snakepit, StartError, StartErrorKind, error_chain, raise_descriptor_limit,
};
use snakepit_worker::WorkerError;
use tokio::time::Instant;
use tracing_subscriber::EnvFilter;

use crate::{
    Failure,
    dev::DevMode,
    environment, log, memory,
    session_storage::{SessionStorage, without_credentials},
    size::bytes,
};

mod adapter_arg;
mod options;
mod session_limits;
#[cfg(test)]
mod settings_table;
mod signals;

pub(crate) use adapter_arg::AdapterArg;
pub(crate) use options::Args;
use signals::Signals;
pub(crate) use signals::is_hang_up_ignored;

pub(crate) const HELP: &str = "\
Values:
  Durations have a unit: 700ms, 0.7s, 2m, 1h 30m.
  Sizes are bytes or have a unit: 4096, 64KiB, 10MiB.

Configuration:
  Each option except --config, --json, --stop-with-stdin and --adapter-arg can also be set
  in two other ways:
    - by an environment variable, such as SNAKEPIT_WORKERS or SNAKEPIT_SESSION_TTL
    - in the configuration file, such as `workers = 4` or `sessions = \"file:sessions.redb\"`
  The command line takes precedence over the environment, and the environment over the
  file. Relative paths start at the working directory. The table `adapter-arg` of the file
  has the arguments of the adapter, such as `path = \"/data\"`, unless the command line
  has any.

Other environment variables:
  SNAKEPIT_LOG          The filter of the log on stderr [default: info]. The filter
                        `info,snakepit=debug` adds every call, tool failures and exceeded
                        deadlines
  TOKIO_WORKER_THREADS  The number of threads [default: half of the processors]
  PYTHONPATH            The directories of adapters that are not installed. Workers inherit
                        the environment of the daemon

Output:
  When the daemon is ready, it prints one line of JSON on stdout, with the keys `grpc` (the
  URL), `socket`, `pid` and `workers` (their number). The log goes to stderr.

Signals:
  SIGTERM, SIGINT, SIGQUIT and SIGHUP stop the daemon, and with --stop-with-stdin the end
  of standard input. Nothing reloads the configuration.
  Under nohup, the daemon ignores SIGHUP.

Exit codes:
  0  stopped by a signal
  2  wrong usage
  5  the daemon cannot start";

/// Runs the daemon until a signal stops it. `command` has all flags, with their environment variables. `dev` is present for
/// `snakepit dev`.
pub(crate) async fn run(
    args: Args,
    command: &clap::Command,
    mut dev: Option<DevMode>,
) -> Result<(), Failure> {
    // `snakepit dev` reports starts, restarts and calls itself.
    let default = match dev.is_some() {
        true => "warn,snakepit::worker::output=info,snakepit_server::host::restart=off",
        false => "info",
    };
    log::start(log_filter(default)?, std::io::stderr().is_terminal());
    environment::warn_of_unknown(command);
    // Signals are caught from the start, so that a signal during the launch of the workers does not leave processes behind.
    let mut signals = Signals::catch(args.stop_with_stdin)
        .map_err(|error| Failure::new(Reason::CannotStart, format!("cannot catch signals: {error}")))?;

    if args.adapter().is_none() && args.workers.worker_command.is_none() {
        let problem =
            "no adapter is set; give one, such as `app.py` or `module:Class`, or --worker-command COMMAND";
        return Err(Failure::new(Reason::Usage, problem));
    }
    if let Some(file) = &args.config {
        tracing::info!(file = %file.display(), "configured");
    }
    // The default number of connections depends on this limit.
    if let Err(error) = raise_descriptor_limit() {
        tracing::warn!(%error, "failed to raise the limit of open files");
    }
    let log_early_stop = |name: &str| {
        tracing::info!(signal = %name, "stopped before the workers were ready; no process is left");
    };
    let snakepit = loop {
        let builder = builder(&args, dev.as_ref())?;
        match (start(&args, builder, &mut signals).await, &mut dev) {
            (Ok(Ok(snakepit)), _) => break snakepit,
            (Ok(Err(NotStarted::Signal(name))), _) => {
                log_early_stop(name);
                return Ok(());
            }
            (Ok(Err(NotStarted::Code(failure))), Some(dev)) => {
                tokio::select! {
                    () = dev.wait_for_change_after(&failure) => {}
                    name = signals.next() => {
                        log_early_stop(name);
                        return Ok(());
                    }
                }
            }
            (Ok(Err(NotStarted::Code(failure))), None) | (Err(failure), _) => return Err(failure),
        }
    };
    memory::start_collector();
    if let Some(dev) = &dev {
        dev.print_ready(&snakepit, args.adapter().unwrap_or_default());
    }
    // People read the report above instead.
    if dev.is_none() || !std::io::stdout().is_terminal() {
        print_ready_line(&snakepit);
    }

    let name = tokio::select! {
        name = signals.next() => name,
        () = develop(dev.as_mut(), &snakepit) => "",
    };
    let received = Instant::now();
    tracing::info!(signal = name, drain = ?args.calls.drain, "draining; a second signal cuts off calls in flight");
    if let Some(dev) = &mut dev {
        dev.end_input();
    }
    // A call that stands still in a debugger does not end.
    let is_debugging = dev.as_ref().is_some_and(DevMode::is_debugging);
    let drain = if is_debugging { Duration::ZERO } else { args.calls.drain };
    let stopped = tokio::select! {
        stopped = snakepit.shutdown_within(drain) => stopped,
        name = signals.next_after(name, received) => {
            tracing::warn!(signal = name, "cutting off calls in flight and stopping the workers");
            snakepit.shutdown_within(Duration::ZERO).await
        }
    };
    if let Err(error) = stopped {
        tracing::error!(error = %error_chain(&error), "stopped, but not gracefully");
    }
    if let Some(dev) = dev {
        dev.finish().await;
    }
    Ok(())
}

/// Replaces the workers after changes of their code, for `snakepit dev`. Never returns.
async fn develop(dev: Option<&mut DevMode>, snakepit: &Snakepit) {
    match dev {
        Some(dev) => dev.run(snakepit).await,
        None => std::future::pending().await,
    }
}

/// Creates the builder of the host.
fn builder(args: &Args, dev: Option<&DevMode>) -> Result<Builder, Failure> {
    let (workers, network) = (&args.workers, &args.network);
    let pool = args.pool();
    let mut builder = Snakepit::builder()
        .pool(dev.map_or_else(|| pool.clone(), |dev| dev.pool(pool.clone())))
        .multiplex(!workers.no_multiplex)
        .listen_on(network.listen.clone())
        .allow_remote(network.allow_remote)
        .tracebacks(network.tracebacks.into())
        .connection_bytes(bytes(network.connection_bytes))
        .reap_orphans(snakepit_worker::process::inherits_orphans());
    if let Some(connections) = network.max_connections {
        builder = builder.max_connections(usize::try_from(connections).unwrap_or(usize::MAX));
    }
    if let Some(adapter) = args.adapter() {
        builder = builder.adapter(adapter);
    }
    for AdapterArg { name, value } in workers.adapter_arg.iter().cloned() {
        builder = builder.adapter_arg(name, value);
    }
    if let Some(gpus) = &workers.gpus {
        builder = builder.gpus(gpus.split(',').map(str::trim).filter(|gpu| !gpu.is_empty()));
    }
    if let Some(threads) = workers.library_threads {
        builder = builder.library_threads(threads);
    }
    if let Some(calls) = workers.concurrency {
        builder = builder.concurrency(usize::from(calls));
    }
    if let Some(threads) = workers.threads {
        builder = builder.threads(usize::from(threads));
    }
    if let Some(filter) = workers.worker_telemetry.clone() {
        builder = builder.worker_telemetry(filter);
    }
    if let Some(command) = &workers.worker_command {
        builder = builder.worker_command(split_command(command)?);
    }
    if let Some(python) = workers.python.clone() {
        builder = builder.python(python);
    }
    if let Some(timeout) = workers.start_timeout {
        builder = builder.start_timeout(timeout);
    }
    if let Some(dir) = args.storage.run_dir.clone() {
        builder = builder.run_dir(dir);
    }
    Ok(match dev {
        Some(dev) => dev.configure(builder),
        None => builder,
    })
}

/// The reason why the daemon is not running.
enum NotStarted {
    /// The signal with this name stopped it before it was ready.
    Signal(&'static str),
    /// A change to the adapter's code may repair this failure.
    Code(Failure),
}

/// Opens the sessions, and starts the host.
async fn start(
    args: &Args,
    builder: Builder,
    signals: &mut Signals,
) -> Result<Result<Snakepit, NotStarted>, Failure> {
    let cannot_start = |problem: String| Failure::new(Reason::CannotStart, problem);
    // clap does not parse this value, because its error messages would print a password in the URL.
    let location = without_credentials(&args.storage.sessions).into_owned();
    let unusable =
        |problem: String| format!("the location `{location}` of --sessions cannot be used: {problem}");
    let sessions: SessionStorage =
        args.storage.sessions.parse().map_err(|problem| Failure::new(Reason::Usage, unusable(problem)))?;
    let sessions = tokio::select! {
        opened = sessions.open(args.limits.clone().into()) => opened.map_err(|e| cannot_start(unusable(error_chain(&e).to_string())))?,
        name = signals.next() => return Ok(Err(NotStarted::Signal(name))),
    };
    let builder = builder.sessions(sessions);
    let mut name = "";
    match builder.start_unless(async { name = signals.next().await }).await {
        Ok(snakepit) => Ok(Ok(snakepit)),
        Err(StartError::Cancelled) => Ok(Err(NotStarted::Signal(name))),
        Err(error) => {
            let traceback = error.worker_error().and_then(WorkerError::traceback).unwrap_or_default();
            let failure = cannot_start(error_chain(&error).to_string()).traceback(traceback);
            match error.kind() {
                StartErrorKind::Adapter
                | StartErrorKind::Timeout
                | StartErrorKind::WorkerExited
                | StartErrorKind::Tools => Ok(Err(NotStarted::Code(failure))),
                _ => Err(failure),
            }
        }
    }
}

/// Splits `--worker-command` into a program and its arguments.
fn split_command(command: &str) -> Result<Vec<String>, Failure> {
    let argv = shell_words::split(command)
        .map_err(|e| Failure::new(Reason::Usage, format!("--worker-command cannot be split: {e}")))?;
    if argv.is_empty() {
        return Err(Failure::new(
            Reason::Usage,
            "--worker-command is empty; give a program and its arguments",
        ));
    }
    Ok(argv)
}

/// Reads the filter of the log from `$SNAKEPIT_LOG`.
fn log_filter(default: &str) -> Result<EnvFilter, Failure> {
    const VARIABLE: &str = "SNAKEPIT_LOG";
    let directives = std::env::var_os(VARIABLE).unwrap_or_default();
    let directives = directives.to_string_lossy();
    if directives.trim().is_empty() {
        return Ok(EnvFilter::new(default));
    }
    EnvFilter::try_new(&directives).map_err(|error| {
        let problem = format!(
            "{VARIABLE} is malformed: {error}: `{directives}`; it looks like `info` or `info,snakepit=debug`"
        );
        Failure::new(Reason::Usage, problem)
    })
}

/// Prints one line of JSON on stdout, for scripts that wait until the daemon is ready. A separate thread writes it, so that a
/// full pipe or a stopped terminal does not block the daemon.
fn print_ready_line(snakepit: &Snakepit) {
    let status = snakepit.status();
    let line = serde_json::json!({
        "grpc": snakepit.address().map(|address| format!("http://{address}")),
        "socket": snakepit.socket(),
        "pid": std::process::id(),
        "workers": status.workers.len(),
    });
    let write = move || {
        let mut stdout = std::io::stdout().lock();
        // The daemon runs even if its stdout is closed.
        let _ = log::write_blocking(&mut stdout, format!("{line}\n").as_bytes());
        let _ = stdout.flush();
    };
    if let Err(error) = std::thread::Builder::new().name("snakepit-ready".to_owned()).spawn(write) {
        tracing::warn!(%error, "cannot print the ready line");
    }
}
