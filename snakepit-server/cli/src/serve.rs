//! `snakepit serve`: the daemon.

use std::{
    io::{IsTerminal, Write},
    path::PathBuf,
    time::Duration,
};

use bytesize::ByteSize;
use snakepit_pool::PoolError;
use snakepit_proto::address;
use snakepit_server::{Snakepit, StartError, raise_descriptor_limit};
use snakepit_worker::WorkerError;
use tracing_subscriber::EnvFilter;

use crate::{Failure, duration, exit, log, memory, session_storage::SessionStorage};

mod session_limits;
mod signals;

use session_limits::SessionLimitArgs;
use signals::Signals;

pub(crate) const HELP: &str = "\
Durations are 700ms, 0.7s, 2m; sizes 4096, 64KiB, 10MiB. Workers inherit the environment: PYTHONPATH leads to adapters that
are not installed.

Every flag but --config can stand in a configuration file, as in `workers = 4` and `sessions = \"file:sessions.redb\"`, where paths
are relative to the working directory too; and in the environment, as SNAKEPIT_WORKERS and SNAKEPIT_SESSION_TTL. The command line
goes before the environment, and that before the file.

SNAKEPIT_LOG says what is logged to stderr: `info` by default, `info,snakepit=debug` for every call and every failure of a
tool or a deadline, which are the caller's to see and so not logged otherwise. TOKIO_WORKER_THREADS is the number of threads,
half of the processors by default.

SIGTERM, SIGINT, SIGQUIT and SIGHUP stop the server: there is nothing to reload, and a terminal that hangs up takes its server along.
Under nohup SIGHUP stays ignored.

Exit codes: 0 stopped by a signal, 2 wrong usage, 5 cannot start.";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A file in TOML that says what these flags are by default [default: snakepit.toml, if there is one].
    #[arg(long, value_name = "FILE", env = "SNAKEPIT_CONFIG", hide_env_values = true)]
    pub(crate) config: Option<PathBuf>,

    /// The adapter class that workers serve, as `module.path:Class`. With --worker-command, that command is told it.
    #[arg(long, value_name = "MODULE:CLASS")]
    adapter: Option<String>,

    /// Run this command as the worker instead of the bundled Python runtime; the protocol's arguments are appended.
    /// It is split at spaces; quote parts as in a shell.
    #[arg(long, value_name = "COMMAND")]
    worker_command: Option<String>,

    /// How many workers to run.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1024))]
    workers: u16,

    /// Where to serve gRPC; port 0 picks a free one.
    #[arg(
        long,
        value_name = "HOST:PORT",
        value_parser = host_and_port,
        default_value = "127.0.0.1:50051",
        env = "SNAKEPIT_LISTEN",
        hide_env_values = true
    )]
    listen: String,

    /// Permit an address that other machines can reach. There is no encryption: the network must be trusted.
    #[arg(long)]
    allow_remote: bool,

    /// The Python interpreter [default: that of $VIRTUAL_ENV, else of the nearest .venv, else python3].
    #[arg(long, value_name = "PATH", env = "SNAKEPIT_PYTHON", hide_env_values = true)]
    python: Option<PathBuf>,

    /// How many calls may wait for a worker; more are refused at once.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    queue_limit: usize,

    /// What the arguments of calls that wait may hold together; more are refused at once.
    #[arg(long, value_name = "SIZE", default_value = "512MiB")]
    queue_bytes: ByteSize,

    /// How many client connections there may be [default: by the limit of open files].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_connections: Option<u32>,

    /// What the requests of one connection may hold until they are answered.
    #[arg(long, value_name = "SIZE", default_value = "256MiB", hide_short_help = true)]
    connection_bytes: ByteSize,

    /// The deadline of calls that name none.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration::parse)]
    default_timeout: Duration,

    /// How long a worker may take to get ready.
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    start_timeout: Option<Duration>,

    /// Make each call to a worker an RPC of its own instead of sharing one stream: slower, for finding faults.
    #[arg(long)]
    no_multiplex: bool,

    /// How long calls in flight may take to finish after SIGTERM, SIGINT, SIGQUIT or SIGHUP; then workers stop, see
    /// --stop-grace. A second signal cuts the calls off.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration::parse)]
    drain: Duration,

    /// How long a worker that is asked to stop may take to exit, with what Python runs then, before it is killed.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration::parse)]
    stop_grace: Duration,

    /// Where sessions live: `memory`; `file:PATH`, which survives this process; or `redis://HOST:PORT` or
    /// `redis+unix:///PATH`, which several servers share.
    #[arg(
        long,
        value_name = "WHERE",
        default_value = "memory",
        env = "SNAKEPIT_SESSIONS",
        hide_env_values = true
    )]
    sessions: String,

    /// The directory for sockets and the ledger of worker processes [default: the first usable one of $XDG_RUNTIME_DIR/snakepit and
    /// snakepit-<uid> in $TMPDIR, /tmp and /var/tmp].
    #[arg(long, value_name = "DIR", env = "SNAKEPIT_RUN_DIR", hide_env_values = true)]
    run_dir: Option<PathBuf>,

    #[command(flatten)]
    limits: SessionLimitArgs,
}

pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    log::start(log_filter()?, std::io::stderr().is_terminal());
    // From the start, so that a signal during the launch of the workers leaves nothing behind.
    let mut signals = Signals::catch()
        .map_err(|error| Failure::new(exit::CANNOT_START, format!("cannot catch signals: {error}")))?;

    if args.adapter.is_none() && args.worker_command.is_none() {
        let problem =
            "nothing says what workers serve: give --adapter MODULE:CLASS, or --worker-command COMMAND";
        return Err(Failure::new(exit::USAGE, problem));
    }
    // Read here and not by the parser of the command line, which shows what it refuses: a password may be in it.
    let unusable = |problem: String| format!("the place of --sessions cannot be used: {problem}");
    let sessions: SessionStorage =
        args.sessions.parse().map_err(|problem| Failure::new(exit::USAGE, unusable(problem)))?;
    if let Some(file) = &args.config {
        tracing::info!(file = %file.display(), "configured");
    }
    let refused = |problem: String| Failure::new(exit::CANNOT_START, problem);

    // Before the limit of connections is derived from it.
    if let Err(error) = raise_descriptor_limit() {
        tracing::warn!(%error, "failed to raise the limit of open files");
    }
    let mut builder = Snakepit::builder()
        .workers(args.workers.into())
        .listen_on(args.listen)
        .allow_remote(args.allow_remote)
        .queue_limit(args.queue_limit)
        .queue_bytes(bytes(args.queue_bytes))
        .connection_bytes(bytes(args.connection_bytes))
        .multiplex(!args.no_multiplex)
        .stop_grace(args.stop_grace)
        .reap_orphans(snakepit_worker::process::inherits_orphans())
        .default_timeout(Some(args.default_timeout));
    if let Some(connections) = args.max_connections {
        builder = builder.max_connections(usize::try_from(connections).unwrap_or(usize::MAX));
    }
    if let Some(adapter) = args.adapter {
        builder = builder.adapter(adapter);
    }
    if let Some(command) = args.worker_command {
        let argv = shell_words::split(&command)
            .map_err(|e| Failure::new(exit::USAGE, format!("--worker-command cannot be split: {e}")))?;
        if argv.is_empty() {
            return Err(Failure::new(
                exit::USAGE,
                "--worker-command is empty; give a program and its arguments",
            ));
        }
        builder = builder.worker_command(argv);
    }
    if let Some(python) = args.python {
        builder = builder.python(python);
    }
    if let Some(timeout) = args.start_timeout {
        builder = builder.start_timeout(timeout);
    }
    if let Some(dir) = args.run_dir {
        builder = builder.run_dir(dir);
    }

    let called_off = |name: &str| {
        tracing::info!(signal = %name, "stopped before the workers were ready; nothing is left");
    };
    let sessions = tokio::select! {
        opened = sessions.open(args.limits.into()) => opened.map_err(|e| refused(unusable(e.to_string())))?,
        name = signals.next() => {
            called_off(name);
            return Ok(());
        }
    };
    builder = builder.sessions(sessions);

    let mut name = "";
    let snakepit = match builder.start_unless(async { name = signals.next().await }).await {
        Ok(snakepit) => snakepit,
        Err(StartError::Cancelled) => {
            called_off(name);
            return Ok(());
        }
        Err(error) => return Err(refused(error.to_string()).traceback(traceback_of(&error))),
    };
    memory::give_back();
    announce(&snakepit);

    let name = signals.next().await;
    tracing::info!(signal = name, drain = ?args.drain, "draining; a second signal cuts off calls in flight");
    let stopped = tokio::select! {
        stopped = snakepit.shutdown_within(args.drain) => stopped,
        name = signals.next() => {
            tracing::warn!(signal = name, "cutting off calls in flight and stopping the workers");
            snakepit.shutdown_within(Duration::ZERO).await
        }
    };
    if let Err(error) = stopped {
        tracing::error!(%error, "stopped, but not gracefully");
    }
    Ok(())
}

fn bytes(size: ByteSize) -> usize {
    usize::try_from(size.as_u64()).unwrap_or(usize::MAX)
}

/// The traceback of a worker that cannot start, such as one whose adapter does not import.
fn traceback_of(error: &StartError) -> &str {
    match error {
        StartError::Pool(PoolError::Start { error: WorkerError::StartFailed { traceback, .. }, .. }) => {
            traceback.as_deref().unwrap_or_default()
        }
        _ => "",
    }
}

/// What to log: `$SNAKEPIT_LOG`, else everything but details.
fn log_filter() -> Result<EnvFilter, Failure> {
    const VARIABLE: &str = "SNAKEPIT_LOG";
    let directives = std::env::var_os(VARIABLE).unwrap_or_default();
    let directives = directives.to_string_lossy();
    if directives.trim().is_empty() {
        return Ok(EnvFilter::new("info"));
    }
    EnvFilter::try_new(&directives).map_err(|error| {
        let problem = format!(
            "{VARIABLE} is malformed: {error}: `{directives}`; it looks like `info` or `info,snakepit=debug`"
        );
        Failure::new(exit::USAGE, problem)
    })
}

/// Checks the form of an address; whether its name means something shows when it is resolved.
pub(crate) fn host_and_port(value: &str) -> Result<String, String> {
    address::host_and_port(value).map_err(|problem| {
        format!("{problem}; it takes the form HOST:PORT, such as 127.0.0.1:50051, localhost:0 or [::1]:50051")
    })
}

/// Prints one line of JSON on stdout, for scripts that wait until the server is ready. A thread writes it, because a pipe that
/// nobody reads or a terminal that is stopped must not stop the server.
fn announce(snakepit: &Snakepit) {
    let status = snakepit.status();
    let line = serde_json::json!({
        "grpc": snakepit.address().map(|address| format!("http://{address}")),
        "socket": snakepit.socket(),
        "pid": std::process::id(),
        "workers": status.workers.len(),
    });
    let write = move || {
        let mut stdout = std::io::stdout().lock();
        // The server also serves when its stdout is closed.
        let _ = log::write_blocking(&mut stdout, format!("{line}\n").as_bytes());
        let _ = stdout.flush();
    };
    if let Err(error) = std::thread::Builder::new().name("snakepit-ready".to_owned()).spawn(write) {
        tracing::warn!(%error, "cannot print the ready line");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_host_and_a_port() {
        for good in ["127.0.0.1:0", "localhost:50051", "[::1]:50051", "0.0.0.0:80"] {
            assert_eq!(host_and_port(good).as_deref(), Ok(good));
        }
        assert!(host_and_port("unix:/run/s").unwrap_err().contains("Unix socket"));
        for bad in ["localhost", ":50051", "localhost:", "localhost:http", "127.0.0.1:65536", "::1:50051", ""]
        {
            assert!(host_and_port(bad).unwrap_err().contains("HOST:PORT"), "{bad}");
        }
    }
}
