//! What to launch, and how long to wait for it.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use snakepit_proto::launch;

/// Runs a worker. `-m` would do the same, but imports more to find the module: 1 to 3 ms of CPU.
const RUN_WORKER: &str = "from snakepit_bridge.worker import main; raise SystemExit(main())";

/// The program that a worker runs.
#[derive(Debug, Clone)]
pub enum WorkerProgram {
    /// This project's own runtime: what `<python> -m snakepit_bridge.worker` runs, on a Unix socket.
    Python {
        /// The interpreter whose environment has `snakepit_bridge`.
        python: PathBuf,
        /// The adapter class, as `module.path:Class`.
        adapter: String,
    },
    /// Any program that keeps the wire contract, on a TCP port of the loopback interface.
    Command {
        /// The program and its first arguments; those of the contract follow.
        argv: Vec<String>,
        /// Passed as `--adapter`, if given.
        adapter: Option<String>,
    },
}

/// How to launch workers.
#[derive(Debug, Clone)]
pub struct ProcessConfig {
    /// What to run.
    pub program: WorkerProgram,
    /// Further environment variables.
    pub env: Vec<(String, String)>,
    /// How long a worker may take from its launch until it takes calls. A minute by default: imports can be slow.
    pub start_timeout: Duration,
    /// How long a worker is given to exit once it is asked to; the pool decides, and the worker is told. 5 s by default.
    pub stop_grace: Duration,
    /// Whether calls share one `Multiplex` stream to a worker that serves one. True by default; without it, and for other
    /// workers, each call is an RPC of its own, which costs several times as much.
    pub multiplex: bool,
    /// How many of a worker's last output lines ride in errors. 20 by default.
    pub output_lines: usize,
}

impl ProcessConfig {
    /// The defaults, for this program.
    #[must_use]
    pub const fn new(program: WorkerProgram) -> Self {
        Self {
            program,
            env: Vec::new(),
            start_timeout: Duration::from_secs(60),
            stop_grace: Duration::from_secs(5),
            multiplex: true,
            output_lines: 20,
        }
    }

    /// The program's path, and its arguments up to those of the contract.
    pub(super) fn command_line(&self) -> (OsString, Vec<OsString>) {
        match &self.program {
            WorkerProgram::Python { python, adapter } => {
                let args = ["-c", RUN_WORKER, launch::ARG_ADAPTER, adapter];
                (python.into(), args.map(OsString::from).to_vec())
            }
            WorkerProgram::Command { argv, adapter } => {
                let mut args: Vec<OsString> = argv.iter().skip(1).map(OsString::from).collect();
                if let Some(adapter) = adapter {
                    args.extend([launch::ARG_ADAPTER, adapter].map(OsString::from));
                }
                (argv.first().map(OsString::from).unwrap_or_default(), args)
            }
        }
    }

    /// The program, as errors name it.
    pub(super) fn program_name(&self) -> String {
        self.command_line().0.to_string_lossy().into_owned()
    }

    /// Whether the worker serves on a Unix socket that this launcher names.
    pub(super) const fn is_native(&self) -> bool {
        matches!(self.program, WorkerProgram::Python { .. })
    }
}
