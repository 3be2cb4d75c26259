//! The options of `snakepit serve`. Each is automatically an environment variable and a key of `snakepit.toml` too (see
//! [`config`](crate::config)).

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use bytesize::ByteSize;
use snakepit_pool::PoolConfig;
use snakepit_proto::{address, launch};
use snakepit_server::TelemetryFilter;
use snakepit_server::TracebackPolicy;

use super::{adapter_arg::AdapterArg, session_limits::SessionLimitArgs};
use crate::{
    duration,
    size::{self, bytes},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Read defaults for these options from a TOML file [default: snakepit.toml, if it exists].
    #[arg(long, value_name = "FILE", env = "SNAKEPIT_CONFIG", hide_env_values = true)]
    pub(crate) config: Option<PathBuf>,

    /// Print the error of a failed start as one JSON object, on the last line of stderr.
    #[arg(long)]
    pub(crate) json: bool,

    /// Stop when standard input ends. A program that starts the daemon keeps a pipe to it open, so the daemon stops even if
    /// that program is killed.
    #[arg(long)]
    pub(super) stop_with_stdin: bool,

    #[command(flatten)]
    pub(super) workers: WorkerOptions,

    #[command(flatten)]
    recycling: RecyclingOptions,

    #[command(flatten)]
    pub(super) calls: CallOptions,

    #[command(flatten)]
    pub(super) network: NetworkOptions,

    #[command(flatten)]
    pub(super) storage: StorageOptions,

    #[command(flatten)]
    pub(super) limits: SessionLimitArgs,
}

impl Args {
    /// The adapter to serve.
    pub(crate) fn adapter(&self) -> Option<&str> {
        self.workers.served.as_deref().or(self.workers.adapter.as_deref())
    }

    /// Sets the adapter to serve.
    pub(crate) fn set_adapter(&mut self, adapter: String) {
        self.workers.served = Some(adapter);
    }

    /// Forgets the adapter on the command line.
    pub(crate) fn clear_served(&mut self) {
        self.workers.served = None;
    }

    /// The adapter on the command line.
    pub(crate) fn served(&self) -> Option<&str> {
        self.workers.served.as_deref()
    }

    /// Whether the workers are not of this project.
    pub(crate) const fn has_worker_command(&self) -> bool {
        self.workers.worker_command.is_some()
    }

    /// The Python interpreter that the user named.
    pub(crate) fn python(&self) -> Option<&Path> {
        self.workers.python.as_deref()
    }

    /// The number of workers.
    pub(crate) fn worker_count(&self) -> usize {
        self.workers.workers.into()
    }

    /// The address of the gRPC port.
    pub(crate) fn listen(&self) -> &str {
        &self.network.listen
    }

    /// The environment variables from which a worker learns the arguments and the numbers of its adapter.
    pub(crate) fn worker_environment(&self) -> Vec<(&'static str, String)> {
        let WorkerOptions { adapter_arg, concurrency, threads, .. } = &self.workers;
        let given = adapter_arg.iter().cloned().map(|AdapterArg { name, value }| (name, value));
        let given: serde_json::Map<_, _> = given.collect();
        let given = (!given.is_empty()).then(|| serde_json::Value::Object(given).to_string());
        let number = |number: Option<u16>| number.map(|number| number.to_string());
        let variables = [
            (launch::ENV_ADAPTER_ARGS, given),
            (launch::ENV_CONCURRENCY, number(*concurrency)),
            (launch::ENV_THREADS, number(*threads)),
        ];
        variables.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }

    /// The parent of the run directory.
    pub(crate) fn run_dir(&self) -> Option<&Path> {
        self.storage.run_dir.as_deref()
    }

    /// The configuration of the pool.
    pub(super) fn pool(&self) -> PoolConfig {
        PoolConfig::default()
            .workers(self.workers.workers.into())
            .stop_grace(self.workers.stop_grace)
            .queue_limit(self.calls.queue_limit)
            .queue_bytes(bytes(self.calls.queue_bytes))
            .default_timeout(self.calls.default_timeout)
            .max_worker_calls(self.recycling.max_worker_calls)
            .max_worker_age(self.recycling.max_worker_age)
            .max_worker_idle(self.recycling.max_worker_idle)
            .max_worker_memory(self.recycling.max_worker_memory.map(|size| size.as_u64()))
            .max_worker_memory_hard(self.recycling.max_worker_memory_hard.map(|size| size.as_u64()))
    }
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Workers")]
pub(super) struct WorkerOptions {
    /// Serve this adapter. Overrides --adapter.
    #[arg(value_name = "ADAPTER", help_heading = "Arguments")]
    pub(super) served: Option<String>,

    /// Serve this adapter: `module.path:Class`, `module.path:function`, `module.path:` for the functions of a module, or a file
    /// such as `app.py`. With --worker-command, pass it to that command.
    #[arg(long, value_name = "ADAPTER")]
    pub(super) adapter: Option<String>,

    /// Pass this argument to the adapter: NAME=TEXT, or NAME:=JSON. Can be repeated. The configuration file has a table of this
    /// name instead.
    #[arg(long, value_name = "NAME=VALUE", value_parser = AdapterArg::parse)]
    pub(super) adapter_arg: Vec<AdapterArg>,

    /// Run this command as the worker instead of the bundled Python runtime. The host appends the arguments of the protocol. The
    /// command is split at spaces; quote parts as in a shell.
    #[arg(long, value_name = "COMMAND")]
    pub(super) worker_command: Option<String>,

    /// Run this many workers, 1 to 1024.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1024))]
    workers: u16,

    /// Assign each worker one of these GPUs, a list such as `0,1`, in CUDA_VISIBLE_DEVICES.
    #[arg(long, value_name = "LIST")]
    pub(super) gpus: Option<String>,

    /// Let numeric libraries such as OpenBLAS use this many threads in each worker; 0 leaves them their own defaults [default:
    /// the processors divided by the workers].
    #[arg(long, value_name = "N")]
    pub(super) library_threads: Option<usize>,

    /// Run this many calls of each worker concurrently, 1 to 256 [default: the adapter's, else 1].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(super) concurrency: Option<u16>,

    /// Run synchronous functions in this many threads of each worker, 0 to 256 [default: the adapter's, else 0].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=256))]
    pub(super) threads: Option<u16>,

    /// Let workers send only these events of telemetry to subscribers: a list of patterns such as `model.*`, `-PATTERN` to deny,
    /// a sampling rate from 0 to 1, or `off`.
    #[arg(long, value_name = "RULES")]
    pub(super) worker_telemetry: Option<TelemetryFilter>,

    /// Use this Python interpreter [default: that of $VIRTUAL_ENV, else of the nearest .venv, else the one next to this program,
    /// else python3].
    #[arg(long, value_name = "PATH", env = "SNAKEPIT_PYTHON", hide_env_values = true)]
    pub(super) python: Option<PathBuf>,

    /// Give each worker this long to become ready [default: 60s].
    #[arg(long, value_name = "DURATION", value_parser = duration::parse_positive)]
    pub(super) start_timeout: Option<Duration>,

    /// Give a worker this long to exit after a stop request, including its `atexit` functions, before it is killed.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration::parse)]
    stop_grace: Duration,

    /// Send each call to a worker as a separate RPC instead of on one shared stream. This is slower; use it to investigate
    /// faults.
    #[arg(long)]
    pub(super) no_multiplex: bool,
}

/// The limits at which workers are replaced.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Recycling")]
struct RecyclingOptions {
    /// Replace each worker after this many calls, reduced by a random share of up to a tenth. Running calls finish.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_worker_calls: Option<u64>,

    /// Replace each worker at this age, reduced by a random share of up to a tenth.
    #[arg(long, value_name = "DURATION", value_parser = duration::parse_positive)]
    max_worker_age: Option<Duration>,

    /// Replace each worker that has run calls, and then none for this time.
    #[arg(long, value_name = "DURATION", value_parser = duration::parse_positive)]
    max_worker_idle: Option<Duration>,

    /// Replace each worker that uses more private memory than this. Running calls finish.
    #[arg(long, value_name = "SIZE", value_parser = size::parse_positive)]
    max_worker_memory: Option<ByteSize>,

    /// Kill each worker that uses more private memory than this.
    #[arg(long, value_name = "SIZE", value_parser = size::parse_positive)]
    max_worker_memory_hard: Option<ByteSize>,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Calls")]
pub(super) struct CallOptions {
    /// Let at most this many calls wait for a worker, and reject further calls.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    queue_limit: usize,

    /// Let the arguments of waiting calls use at most this much memory, and reject further calls.
    #[arg(long, value_name = "SIZE", default_value = "512MiB", value_parser = size::parse_positive)]
    queue_bytes: ByteSize,

    /// Apply this timeout to calls without a deadline.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration::parse_positive)]
    default_timeout: Duration,

    /// Give running calls this long to finish after a stop signal, before the workers stop. A second signal aborts the
    /// calls.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration::parse)]
    pub(super) drain: Duration,
}

/// The clients whose errors include tracebacks.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(super) enum TracebackReaders {
    Local,
    Always,
    Never,
}

impl From<TracebackReaders> for TracebackPolicy {
    fn from(readers: TracebackReaders) -> Self {
        match readers {
            TracebackReaders::Local => Self::Local,
            TracebackReaders::Always => Self::Always,
            TracebackReaders::Never => Self::Never,
        }
    }
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Network")]
pub(super) struct NetworkOptions {
    /// Serve gRPC on this address. Port 0 selects a free port.
    #[arg(
        long,
        value_name = "HOST:PORT",
        value_parser = host_and_port,
        default_value = "127.0.0.1:50051",
        env = "SNAKEPIT_LISTEN",
        hide_env_values = true
    )]
    pub(super) listen: String,

    /// Allow an address that other machines can reach. Traffic is not encrypted, so the network must be trusted.
    #[arg(long)]
    pub(super) allow_remote: bool,

    /// Include the tracebacks, notes and causes of tools' errors, and the output of workers, in the errors of these clients: on this
    /// machine, all, or none.
    #[arg(long, value_name = "CLIENTS", value_enum, default_value = "local")]
    pub(super) tracebacks: TracebackReaders,

    /// Accept at most this many client connections [default: depends on the limit of open files].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) max_connections: Option<u32>,

    /// Let the requests of one connection use at most this much memory, and its unread responses as much again.
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = size::parse_positive, hide_short_help = true)]
    pub(super) connection_bytes: ByteSize,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Storage")]
pub(super) struct StorageOptions {
    /// Store sessions here: `memory`; `file:PATH`, which survives restarts; or `redis://HOST:PORT` or `redis+unix:///PATH`,
    /// which several daemons share.
    #[arg(
        long,
        value_name = "LOCATION",
        default_value = "memory",
        env = "SNAKEPIT_SESSIONS",
        hide_env_values = true
    )]
    pub(super) sessions: String,

    /// Keep sockets and the ledger of worker processes in this directory [default: the first usable one of
    /// $XDG_RUNTIME_DIR/snakepit and snakepit-<uid> in $TMPDIR, /tmp and /var/tmp].
    #[arg(long, value_name = "DIR", env = "SNAKEPIT_RUN_DIR", hide_env_values = true)]
    pub(super) run_dir: Option<PathBuf>,
}

/// Checks the form of an address, without resolving its name.
fn host_and_port(value: &str) -> Result<String, String> {
    address::host_and_port(value).map_err(|problem| {
        format!("{problem}; it takes the form HOST:PORT, such as 127.0.0.1:50051, localhost:0 or [::1]:50051")
    })
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, FromArgMatches as _};

    use super::*;

    #[test]
    fn the_defaults_are_those_of_the_pool() {
        let command = Args::augment_args(clap::Command::new("serve"));
        let matches = command.try_get_matches_from(["serve"]).unwrap();
        assert_eq!(Args::from_arg_matches(&matches).unwrap().pool(), PoolConfig::default());
    }

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
