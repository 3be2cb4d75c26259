//! Everything that can go wrong for a program that embeds Snakepit.

use std::{path::PathBuf, time::Duration};

use snakepit_pool::PoolError;
use snakepit_registry::{RegistryError, ToolError};
use snakepit_session::{PayloadError, SessionError};
use snakepit_worker::WorkerError;

/// Why starting, calling or storing failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The builder lacks something, or was told something impossible.
    #[error("cannot start: {problem}")]
    Config {
        /// What is wrong and how to set it right.
        problem: String,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {problem}; choose another address, or port 0 for a free one")]
    Listen {
        /// The address asked for.
        address: String,
        /// What the operating system said.
        problem: String,
    },
    /// An address that other machines can reach was asked for without saying so.
    #[error(
        "refusing to listen on {address}: it is not a loopback address and there is no encryption; \
         pass --allow-remote, or call `Builder::allow_remote`, if the network is trusted"
    )]
    NotLoopback {
        /// The address asked for, and what its name stands for if it is one.
        address: String,
    },
    /// The start was called off: [`Builder::start_unless`](crate::Builder::start_unless).
    #[error("the start was called off before the workers were ready")]
    CalledOff,
    /// A server cannot be reached, or does not answer as one.
    #[error("cannot reach a server at {address}: {problem}; start one with `snakepit serve`")]
    Connect {
        /// The address asked for.
        address: String,
        /// What went wrong.
        problem: String,
    },
    /// The Python that workers run with lacks their package.
    #[error(
        "Python `{0}`, chosen {chosen}, has no package `snakepit_bridge`; install it with \
         `{0} -m pip install CHECKOUT/snakepit-python`, or choose another Python by --python, $SNAKEPIT_PYTHON or \
         `Builder::python`",
        python.display()
    )]
    NoBridge {
        /// The interpreter.
        python: PathBuf,
        /// Why this one, as the end of a sentence.
        chosen: &'static str,
    },
    /// The workers did not come up.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The directory or the launcher of worker processes cannot be set up.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// A host tool cannot be registered.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A host elsewhere cannot be reached, or was lost before it answered: whether it did what was asked is unknown.
    #[error("the host cannot be reached: {problem}")]
    Unreachable {
        /// What went wrong.
        problem: String,
    },
    /// A host elsewhere did not answer a request in time. Whether it did what was asked is unknown.
    #[error("the host did not answer {rpc} within {within:?}")]
    TimedOut {
        /// The RPC.
        rpc: &'static str,
        /// How long it had.
        within: Duration,
    },
    /// A client was made outside a tokio runtime.
    #[error("a client needs a tokio runtime; connect inside `Runtime::block_on` or an async main")]
    NoRuntime,
    /// A host elsewhere refused what was asked of a session, for a reason that is none of [`SessionError`].
    #[error("the host refused {rpc}: {problem}")]
    Refused {
        /// The RPC, or what it was about.
        rpc: &'static str,
        /// What the host said.
        problem: String,
    },
    /// A call failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// A session operation failed.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// Arguments do not serialize, or a result does not fit the type asked for.
    #[error(transparent)]
    Payload(#[from] PayloadError),
    /// Arguments of a call must be an object: a struct or a map with string keys.
    #[error(
        "arguments of tool `{tool}` are not an object; pass a struct or a map from parameter names to values"
    )]
    NotAnObject {
        /// The tool called.
        tool: String,
    },
}
