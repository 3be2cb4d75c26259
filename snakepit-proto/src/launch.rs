//! What a host and a worker process agree on before the first gRPC byte: arguments, environment and readiness.
//!
//! A worker is started as `<command> --port <port> --adapter <adapter> --elixir-address <host address>
//! --snakepit-run-id <run id>`. It reports readiness in one of three ways:
//!
//! 1. a line that contains [`READY_PREFIX`]`<port>` on stdout or stderr (protocol v0.4);
//! 2. `<port>` in the file named by [`ENV_READY_FILE`], put there by an atomic rename (protocol v0.13);
//! 3. a [`ControlMessage`] line on the control channel, when [`ENV_CONTROL`] is set: this project's own workers.
//!
//! The control channel is a socket that the worker inherits as standard input. It is also the lifeline: the
//! worker exits as soon as it reads end-of-file, because then its host is gone. This project's own workers find one line on
//! it when they start, a [`HostMessage`].

use serde::{Deserialize, Serialize};

/// The version of this build of the protocol crate, and so of the host or worker that is made with it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The number of what a host and this project's own workers agree on beyond the .proto: a change that older ones cannot
/// work with raises it.
pub const PROTOCOL: u32 = 1;

/// Argument: the TCP port to listen on; 0 lets the worker choose one and report it.
pub const ARG_PORT: &str = "--port";
/// Argument: the adapter class, as `module.path:Class` or `module.path.Class`.
pub const ARG_ADAPTER: &str = "--adapter";
/// Argument: where the host serves: `host:port`, or `unix:/path/to/socket` for this project's own workers.
pub const ARG_HOST_ADDRESS: &str = "--elixir-address";
/// Argument: identifies the host's run, so that leftovers of a crashed host can be told from foreign processes.
pub const ARG_RUN_ID: &str = "--snakepit-run-id";

/// Environment: the file into which a v0.13 worker writes its port.
pub const ENV_READY_FILE: &str = "SNAKEPIT_READY_FILE";
/// Environment: the same as [`ARG_RUN_ID`]; inherited by whatever the worker starts.
pub const ENV_RUN_ID: &str = "SNAKEPIT_RUN_ID";
/// Environment: the pool's id of this worker, to be used in `RegisterTools`.
pub const ENV_WORKER_ID: &str = "SNAKEPIT_WORKER_ID";
/// Environment: path of the Unix socket that the worker shall bind and serve on.
pub const ENV_SOCKET: &str = "SNAKEPIT_SOCKET";
/// Environment: path of a file in which the worker leaves what must outlive it: see [`progress`].
pub const ENV_PROGRESS: &str = "SNAKEPIT_PROGRESS";
/// Environment: how many milliseconds after SIGTERM the host kills the worker.
pub const ENV_STOP_GRACE: &str = "SNAKEPIT_STOP_GRACE_MS";
/// Environment: set to [`CONTROL_STDIN`] when standard input is the control channel.
pub const ENV_CONTROL: &str = "SNAKEPIT_CONTROL";
/// The one defined value of [`ENV_CONTROL`].
pub const CONTROL_STDIN: &str = "stdin";

/// Environment: the host's [`VERSION`]. Hosts that do not set it are older than any that offers a [`HostMessage`].
pub const ENV_HOST_VERSION: &str = "SNAKEPIT_HOST_VERSION";

/// What stands before the port in the readiness line of protocol v0.4.
pub const READY_PREFIX: &str = "GRPC_READY:";

/// The layout of the file named by [`ENV_PROGRESS`]. Numbers are unsigned, of 8 bytes, in the machine's byte order. The worker
/// maps the file into its memory, so a store costs no system call, and the host reads it after the worker's death.
pub mod progress {
    /// Where the worker stores the id of each multiplexed call, right before the call begins.
    pub const BEGUN: usize = 0;
    /// Where it stores the call that printed last: the id that the host gave to a call by a plain RPC, or [`MULTIPLEXED`] and
    /// the id on the stream.
    pub const OUTPUT_CALL: usize = 8;
    /// How many bytes that call has printed.
    pub const OUTPUT_LENGTH: usize = 16;
    /// The bytes it printed, as a ring of [`OUTPUT_BYTES`].
    pub const OUTPUT: usize = 64;
    /// The size of that ring.
    pub const OUTPUT_BYTES: usize = 8 * 1024;
    /// Where it stores how far the two halves of the answers are filled, in bytes.
    pub const ANSWER_ENDS: [usize; 2] = [24, 32];
    /// The latest answers, in two halves of [`HALF_BYTES`]: see [`answers`](crate::answers).
    pub const ANSWERS: usize = OUTPUT + OUTPUT_BYTES;
    /// The size of one half.
    pub const HALF_BYTES: usize = 32 * 1024;
    /// Where Python's fault handler writes its stacks, up to the end of the file.
    pub const STACK: usize = ANSWERS + 2 * HALF_BYTES;
    /// Marks the id of a multiplexed call.
    pub const MULTIPLEXED: u64 = 1 << 62;
}

/// The one line of JSON that a host writes to the control channel, before the worker starts. Only this project's own
/// workers get it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum HostMessage {
    /// The worker was launched.
    Launched {
        /// Proves at the registration that this is that worker. It is good for one use.
        token: String,
    },
}

impl std::fmt::Debug for HostMessage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The token must not get into logs.
        f.write_str("Launched { .. }")
    }
}

/// A worker's version that its host cannot work with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "snakepit_bridge {worker} (protocol {worker_protocol}) does not fit this host, which is snakepit {VERSION} (protocol \
     {PROTOCOL}); install the same version of both"
)]
pub struct Incompatible {
    /// The version of the worker.
    pub worker: String,
    /// Its protocol number.
    pub worker_protocol: u32,
}

/// Checks that a worker of this version works for a host of this build: the protocol number is the same, and so are the
/// major and the minor version. Patch versions may differ.
///
/// # Errors
/// [`Incompatible`], with both versions.
pub fn check_version(version: &str, protocol: u32) -> Result<(), Incompatible> {
    if protocol == PROTOCOL && release(version).is_some_and(|worker| Some(worker) == release(VERSION)) {
        return Ok(());
    }
    let shown = if version.is_empty() { "of an unknown version" } else { version };
    Err(Incompatible { worker: shown.chars().take(64).collect(), worker_protocol: protocol })
}

/// Major and minor version.
fn release(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// One line of JSON that a worker writes to the control channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum ControlMessage {
    /// The worker is bound, listening and registered: calls may come.
    Ready {
        /// `unix:/path` or `host:port`.
        address: String,
    },
    /// The worker cannot start; it exits after this line.
    Failed {
        /// What went wrong and what to do about it, for a person to read.
        error: String,
        /// The Python traceback, when an exception was the cause.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        traceback: Option<String>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_of_another_release_are_refused_with_both_versions() {
        let (major, minor) = release(VERSION).unwrap();
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
        }
    }
}
