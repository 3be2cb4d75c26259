//! The contract between a host and a worker process before the first RPC: arguments, environment and readiness.
//!
//! A worker is started as `<command> --port <port> --adapter <adapter> --elixir-address <host address>
//! --snakepit-run-id <run id>`. It reports readiness in one of three ways:
//!
//! 1. a line that contains [`READY_PREFIX`]`<port>` on stdout or stderr (protocol v0.4);
//! 2. `<port>` in the file named by [`ENV_READY_FILE`], created by an atomic rename (protocol v0.13);
//! 3. a [`ControlMessage`] line on the control channel, if [`ENV_CONTROL`] is set (workers of this project).
//!
//! The control channel is a socket that the worker inherits as standard input. It is also the lifeline: end-of-file
//! means that the host has exited, and the worker exits too. Workers of this project read one line from it when they
//! start, a [`HostMessage`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub mod output;

/// The version of this crate, and of a host or worker that is built with it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The revision of the launch contract, of the forms of values, and of the other conventions that the `.proto` does not define.
/// Every incompatible change increments it. A host rejects workers of another revision.
///
/// The Python files of `snakepit_bridge` contain the same number. They reject a native runtime of another revision, so a change to
/// the interface between the two is incompatible, too.
///
/// | revision | change |
/// | --- | --- |
/// | 2 | values with buffers inside other values |
/// | 3 | the interface between the Python files and the native runtime: coroutines, output of subprocesses, the event loop's watchdog |
pub const PROTOCOL: u32 = 3;

/// Argument: the TCP port to listen on. With 0 the worker chooses a port and reports it.
pub const ARG_PORT: &str = "--port";
/// Argument: the adapter, such as `module.path:Class` or `module.path.Class`.
pub const ARG_ADAPTER: &str = "--adapter";
/// Argument: the address of the host, which is `host:port`, or `unix:/path/to/socket` for workers of this project.
pub const ARG_HOST_ADDRESS: &str = "--elixir-address";
/// Argument: the id of the host's run. After a crash, the next host recognizes the processes of that run by it.
pub const ARG_RUN_ID: &str = "--snakepit-run-id";

/// Environment: the file to which a v0.13 worker writes its port.
pub const ENV_READY_FILE: &str = "SNAKEPIT_READY_FILE";
/// Environment: the same as [`ARG_RUN_ID`]. Processes that the worker starts inherit it.
pub const ENV_RUN_ID: &str = "SNAKEPIT_RUN_ID";
/// Environment: the id of this worker in the pool, for `RegisterTools`.
pub const ENV_WORKER_ID: &str = "SNAKEPIT_WORKER_ID";
/// Environment: the name of the worker's pool.
pub const ENV_POOL: &str = "SNAKEPIT_POOL";
/// Environment: the index of the worker in its pool, from 0. The replacement of a lost worker has the same index.
pub const ENV_WORKER_INDEX: &str = "SNAKEPIT_WORKER_INDEX";
/// Environment: the number of workers in the pool.
pub const ENV_WORKER_COUNT: &str = "SNAKEPIT_WORKER_COUNT";
/// Environment: the GPU that the host assigned to the worker, in the form of `CUDA_VISIBLE_DEVICES`.
pub const ENV_GPU: &str = "SNAKEPIT_GPU";
/// Environment: the arguments of the adapter, as a JSON object.
pub const ENV_ADAPTER_ARGS: &str = "SNAKEPIT_ADAPTER_ARGS";
/// Environment: the number of calls that the worker runs concurrently, if the pool sets one.
pub const ENV_CONCURRENCY: &str = "SNAKEPIT_WORKER_CONCURRENCY";
/// Environment: the number of threads for tools that are synchronous functions, if the host sets one.
pub const ENV_THREADS: &str = "SNAKEPIT_WORKER_THREADS";
/// Environment: the path of the Unix socket on which the worker must serve.
pub const ENV_SOCKET: &str = "SNAKEPIT_SOCKET";
/// Environment: the path of the [`progress`] file, whose data outlives the worker.
pub const ENV_PROGRESS: &str = "SNAKEPIT_PROGRESS";
/// Environment: the time in milliseconds between SIGTERM and SIGKILL.
pub const ENV_STOP_GRACE: &str = "SNAKEPIT_STOP_GRACE_MS";
/// Environment: [`CONTROL_STDIN`] if standard input is the control channel.
pub const ENV_CONTROL: &str = "SNAKEPIT_CONTROL";
/// The only defined value of [`ENV_CONTROL`].
pub const CONTROL_STDIN: &str = "stdin";

/// Environment: the [`VERSION`] of the host. Hosts that do not set it do not send a [`HostMessage`] either.
pub const ENV_HOST_VERSION: &str = "SNAKEPIT_HOST_VERSION";

/// The prefix of the port in the readiness line of protocol v0.4.
pub const READY_PREFIX: &str = "GRPC_READY:";

/// The layout of the file named by [`ENV_PROGRESS`]. Numbers are unsigned, of 8 bytes, in native byte order. The worker
/// maps the file into memory, so a store needs no system call. The host reads it after the worker has ended.
pub mod progress {
    /// The offset at which the id of the last begun multiplexed call is stored. The worker stores it right before the call begins.
    pub const BEGUN: usize = 0;
    /// Offset of the call id of the latest output. For a multiplexed call, it is the id on the stream, combined with
    /// [`MULTIPLEXED`].
    pub const OUTPUT_CALL: usize = 8;
    /// Offset of the number of bytes that this call has printed.
    pub const OUTPUT_LENGTH: usize = 16;
    /// Offset of its output, a ring buffer of [`OUTPUT_BYTES`].
    pub const OUTPUT: usize = 64;
    /// The size of the ring buffer.
    pub const OUTPUT_BYTES: usize = 8 * 1024;
    /// Offsets of the fill levels, in bytes, of the two halves of [`ANSWERS`].
    pub const ANSWER_ENDS: [usize; 2] = [24, 32];
    /// Offset of the latest answers, in two halves of [`HALF_BYTES`]; see [`answers`](crate::answers).
    pub const ANSWERS: usize = OUTPUT + OUTPUT_BYTES;
    /// The size of a half.
    pub const HALF_BYTES: usize = 32 * 1024;
    /// The initial length of the file, which the host reserves on the disk and the worker maps.
    pub const RESERVED_BYTES: usize = ANSWERS + 2 * HALF_BYTES;
    /// Offset of the stacks that Python's fault handler appends after the reserved bytes.
    pub const STACKS: usize = RESERVED_BYTES;
    /// The bit that marks the id of a multiplexed call.
    pub const MULTIPLEXED: u64 = 1 << 62;
}

/// The line of JSON that a host writes to the control channel before the worker starts. Only workers of this project
/// receive it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum HostMessage {
    /// The host launched the worker.
    Launched {
        /// The one-time token with which the worker registers.
        token: String,
    },
}

impl std::fmt::Debug for HostMessage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Keeps the token out of logs.
        f.write_str("Launched { .. }")
    }
}

/// The error of a worker whose version is incompatible with the host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "snakepit_bridge {worker} (protocol {worker_protocol}) is incompatible with this host, snakepit {VERSION} (protocol \
     {PROTOCOL}); {}",
    fix(worker)
)]
pub struct Incompatible {
    /// The version of the worker.
    pub worker: String,
    /// Its protocol revision.
    pub worker_protocol: u32,
}

/// The fix for an incompatible worker of this version.
fn fix(worker: &str) -> &'static str {
    if worker == VERSION {
        "build both from the same commit (in a checkout, `cargo xtask setup` builds snakepit_bridge)"
    } else {
        "install the same version of both"
    }
}

/// Checks that the version of a worker is compatible with this host. Protocol revision, major and minor version must be equal.
///
/// # Errors
/// [`Incompatible`] with both versions.
pub fn check_version(version: &str, protocol: u32) -> Result<(), Incompatible> {
    if protocol == PROTOCOL && major_minor(version).is_some_and(|worker| Some(worker) == major_minor(VERSION))
    {
        return Ok(());
    }
    let version = if version.is_empty() { "of an unknown version" } else { version };
    Err(Incompatible { worker: version.chars().take(64).collect(), worker_protocol: protocol })
}

/// The major and minor version.
fn major_minor(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// The limits within which a worker begins calls together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallLimits {
    /// Limits the coroutines of all tools without a limit of their own together.
    pub shared: usize,
    /// The limit of each tool that has one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tools: BTreeMap<String, usize>,
    /// Limits the synchronous functions together.
    pub plain: usize,
    /// The tools that are synchronous functions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plain_tools: Vec<String>,
    /// The tools that share `shared`, if all tools that no list names are synchronous functions. `None` if those share it, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared_tools: Option<Vec<String>>,
}

/// One line of JSON that a worker writes to the control channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum ControlMessage {
    /// The worker listens, has registered, and accepts calls.
    Ready {
        /// `unix:/path` or `host:port`.
        address: String,
        /// The number of calls that the worker runs concurrently. `None` for 1.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        concurrency: Option<usize>,
        /// The limits of a worker that runs several calls.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        call_limits: Option<CallLimits>,
    },
    /// The worker cannot start and exits after this line.
    Failed {
        /// The problem and its fix, for people.
        error: String,
        /// The Python traceback, if the cause is an exception.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        traceback: Option<String>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_of_another_release_are_rejected_with_both_versions() {
        let (major, minor) = major_minor(VERSION).unwrap();
        check_version(VERSION, PROTOCOL).unwrap();
        check_version(&format!("{major}.{minor}.999"), PROTOCOL).unwrap();
        for (version, protocol) in [
            (format!("{}.{minor}.0", major + 1), PROTOCOL),
            (format!("{major}.{}.0", minor + 1), PROTOCOL),
            (VERSION.to_owned(), PROTOCOL + 1),
            (String::new(), 0),
            ("nightly".to_owned(), PROTOCOL),
            ("x".repeat(100_000), PROTOCOL),
        ] {
            let error = check_version(&version, protocol).unwrap_err().to_string();
            assert!(error.contains(VERSION) && error.len() < 300, "{error}");
            assert!(error.contains(version.get(..20).unwrap_or(&version)), "{error}");
            let fix = if version == VERSION {
                "build both from the same commit"
            } else {
                "install the same version of both"
            };
            assert!(error.contains(fix), "{error}");
        }
    }
}
