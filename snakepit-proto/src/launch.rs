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
//! worker exits as soon as it reads end-of-file, because then its host is gone.

use serde::{Deserialize, Serialize};

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
/// Environment: path of a file of 8 bytes, where the worker stores the id of each multiplexed call, as an unsigned number in
/// the machine's byte order, right before the call begins. What is stored outlives the worker.
pub const ENV_PROGRESS: &str = "SNAKEPIT_PROGRESS";
/// Environment: set to [`CONTROL_STDIN`] when standard input is the control channel.
pub const ENV_CONTROL: &str = "SNAKEPIT_CONTROL";
/// The one defined value of [`ENV_CONTROL`].
pub const CONTROL_STDIN: &str = "stdin";

/// What stands before the port in the readiness line of protocol v0.4.
pub const READY_PREFIX: &str = "GRPC_READY:";

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
