//! [`ProcessConfig`]: the program of a worker, and its timeouts.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use snakepit_proto::launch;

/// The Python code that runs a worker. `python -m` would import more to find the module, which costs 1 to 3 ms of CPU. The import
/// creates no garbage, so garbage collections would only delay it. `gc.freeze` excludes its objects from later collections,
/// because they live as long as the process.
const WORKER_CODE: &str = "\
import gc
collects = gc.isenabled()
gc.disable()
from snakepit_bridge.worker import main
gc.freeze()
if collects:
    gc.enable()
del collects, gc
raise SystemExit(main())";

/// The program that a worker runs.
#[derive(Debug, Clone)]
pub enum WorkerProgram {
    /// This project's Python runtime, as `<python> -m snakepit_bridge.worker` runs it. It serves on a Unix socket.
    Python {
        /// The Python interpreter. Its environment must contain `snakepit_bridge`.
        python: PathBuf,
        /// The adapter, such as `module.path:Class` or `app.py`.
        adapter: String,
    },
    /// Any program that implements the wire contract. It serves on a TCP port of the loopback interface.
    Command {
        /// The program and its first arguments. The launcher appends the arguments of the contract.
        argv: Vec<String>,
        /// The value of `--adapter`, if any.
        adapter: Option<String>,
    },
}

/// The configuration of a [`ProcessLauncher`](super::ProcessLauncher).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ProcessConfig {
    /// The program that each worker runs.
    pub program: WorkerProgram,
    /// Additional environment variables.
    pub env: Vec<(String, String)>,
    /// The time from the launch until the worker must accept calls. 60 s by default, because imports can be slow.
    pub start_timeout: Duration,
    /// The grace period that the worker may assume when it is asked to stop. The pool enforces its own grace period, which should
    /// be the same. 5 s by default.
    pub stop_grace: Duration,
    /// Whether calls share one `Multiplex` stream, if the worker serves it. True by default. Otherwise each call is a separate
    /// RPC, which costs several times as much CPU.
    pub multiplex: bool,
    /// The number of a worker's last output lines that errors contain. 20 by default.
    pub output_lines: usize,
    /// The arguments of the adapter, by name. Workers receive them in [`ENV_ADAPTER_ARGS`](launch::ENV_ADAPTER_ARGS).
    pub adapter_args: serde_json::Map<String, serde_json::Value>,
    /// The GPUs of the workers. The worker with index `i` gets `gpus[i % gpus.len()]` in `CUDA_VISIBLE_DEVICES`. Empty by
    /// default, which leaves the variable unchanged.
    pub gpus: Vec<String>,
    /// The number of threads that numeric libraries such as OpenBLAS use in each worker. `None` divides the processors among the
    /// workers. 0 leaves the libraries their own defaults. Variables that this program or [`env`](Self::env) sets take
    /// precedence.
    pub library_threads: Option<usize>,
    /// The number of calls that a worker of this project runs concurrently. `None` leaves it to the adapter.
    pub concurrency: Option<usize>,
    /// The number of threads in which a worker of this project runs tools that are synchronous functions. `None` leaves it to the
    /// adapter.
    pub threads: Option<usize>,
}

impl ProcessConfig {
    /// Creates a configuration with the defaults.
    #[must_use]
    pub fn new(program: WorkerProgram) -> Self {
        Self {
            program,
            env: Vec::new(),
            start_timeout: Duration::from_secs(60),
            stop_grace: Duration::from_secs(5),
            multiplex: true,
            output_lines: 20,
            adapter_args: serde_json::Map::new(),
            gpus: Vec::new(),
            library_threads: None,
            concurrency: None,
            threads: None,
        }
    }

    /// The program's path, and its arguments without those of the contract.
    pub(super) fn command_line(&self) -> (OsString, Vec<OsString>) {
        match &self.program {
            WorkerProgram::Python { python, adapter } => {
                let args = ["-c", WORKER_CODE, launch::ARG_ADAPTER, adapter];
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

    /// Whether the program is this project's runtime, which serves on a Unix socket that the launcher names.
    pub(super) const fn is_native(&self) -> bool {
        matches!(self.program, WorkerProgram::Python { .. })
    }
}
