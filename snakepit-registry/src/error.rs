//! [`ToolError`], the error of a call. `snakepit-server` maps it to gRPC statuses in one place.

use std::{fmt, time::Duration};

use snakepit_session::{SessionError, SharedError};

use crate::Violation;

mod classification;
mod construct;
mod failure;
mod kind;
mod layer;
mod message;

pub(crate) use failure::PANIC;
pub use failure::{ChainedException, ToolFailure};
pub use kind::ErrorKind;
use message::{
    describe_deadline, describe_failure, describe_queue, describe_violations, output_tail, rounded,
};

/// The stage that a call had reached when its deadline passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallStage {
    /// The call waited for a worker. Its tool did not run.
    Queued,
    /// The call was handed to a worker, and may have run.
    Running,
}

impl fmt::Display for CallStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Queued => "while queued",
            Self::Running => "while running",
        })
    }
}

/// The time limit of a call, and its origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TimeLimit {
    /// The caller set a timeout or a deadline for this call.
    Caller(Duration),
    /// The caller set none, so the default timeout of the host applied.
    Host(Duration),
}

impl fmt::Display for TimeLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Caller(time) => write!(f, "the caller's timeout of {:?}", rounded(*time)),
            Self::Host(time) => write!(f, "the host's default timeout of {:?}", rounded(*time)),
        }
    }
}

/// The error of a call.
///
/// Variants can get more fields, so patterns need `..`, and handlers, layers and launchers create errors with constructors:
///
/// ```
/// use std::time::Duration;
///
/// use snakepit_registry::ToolError;
///
/// let error = ToolError::worker_lost("gpu-0-1", "its thread ended")
///     .with_may_have_run(false)
///     .with_retry_after(Duration::from_millis(100));
/// assert_eq!(error.to_string(), "worker `gpu-0-1` was lost: its thread ended");
/// assert!(error.is_retryable());
/// ```
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ToolError {
    /// There is no tool with this name.
    #[error("tool `{tool}` not found{}", suggestion.as_ref().map(|s| format!("; did you mean `{s}`?")).unwrap_or_default())]
    #[non_exhaustive]
    NotFound {
        /// The name in the call.
        tool: String,
        /// A similar registered name, if any.
        suggestion: Option<String>,
    },
    /// Arguments are missing, unknown or of the wrong type. See [`invalid_argument`](Self::invalid_argument).
    #[error("{}", describe_violations(tool, violations))]
    #[non_exhaustive]
    InvalidArguments {
        /// The tool's name.
        tool: String,
        /// The problems, at least one. The field is an argument name, or the path to a nested value, such as
        /// `items[3].price`. The description is the end of a sentence: "is missing; ...".
        violations: Vec<Violation>,
    },
    /// The tool does not support this kind of call.
    #[error("tool `{tool}` {problem}")]
    #[non_exhaustive]
    Unsupported {
        /// The tool's name.
        tool: String,
        /// The problem, as the end of a sentence.
        problem: String,
        /// Whether the tool ran before its answer showed the mismatch.
        may_have_run: bool,
    },
    /// The tool ran and raised an exception.
    #[error("{}", describe_failure(_0))]
    ///
    /// A handler can return a [`ToolFailure`] or a `HostError` with `?` or [`into`](Into::into). The host adds
    /// the name of the tool.
    ///
    /// ```
    /// use snakepit_registry::{HostError, ToolError};
    ///
    /// fn find(key: &str) -> Result<u32, ToolError> {
    ///     if key.is_empty() {
    ///         return Err(HostError::new("no such entry").code("not_found").into());
    ///     }
    ///     let number: u32 = key.parse().map_err(HostError::from)?; // any error
    ///     Ok(number)
    /// }
    ///
    /// assert_eq!(find("").unwrap_err().failure().unwrap().code, "not_found");
    /// assert_eq!(find("x").unwrap_err().error_type(), Some("ParseIntError"));
    /// ```
    Failed(Box<ToolFailure>),
    /// The queue is full, so the pool rejected the call immediately.
    #[error("pool is overloaded: {}; retry later or add workers", describe_queue(*queued, *limit))]
    #[non_exhaustive]
    Overloaded {
        /// The number of queued calls.
        queued: usize,
        /// The maximum number of queued calls.
        limit: usize,
        /// The time after which a retry may succeed.
        retry_after: Option<Duration>,
    },
    /// Other calls or requests occupy too many bytes, so the host rejected the call immediately.
    #[error("{holders} hold {used} bytes already, the limit is {limit}; retry later or send less at once")]
    #[non_exhaustive]
    TooManyBytes {
        /// The calls or requests that occupy the bytes, such as "calls that wait for a worker".
        holders: String,
        /// The number of bytes that they occupy.
        used: usize,
        /// The maximum number of bytes that they may occupy.
        limit: usize,
        /// The time after which a retry may succeed.
        retry_after: Option<Duration>,
    },
    /// All connections of the host are in use, so it rejected the connection of the call.
    #[error("all {limit} connections of the host are in use; retry later or raise its limit of connections")]
    #[non_exhaustive]
    TooManyConnections {
        /// The maximum number of connections.
        limit: usize,
        /// The time after which a retry may succeed.
        retry_after: Option<Duration>,
    },
    /// The tool ran, but the host dropped its answer, because answers that the caller has not read occupy too many bytes.
    #[error(
        "the answer was dropped: unread answers already occupy {used} bytes, the limit is {limit}; read them first"
    )]
    #[non_exhaustive]
    AnswerDropped {
        /// The number of bytes that unread answers occupy.
        used: usize,
        /// The maximum number of bytes that unread answers may occupy.
        limit: usize,
    },
    /// The tool ran, but its answer, or a chunk of it, is too large for one message.
    #[error(
        "the answer, or a chunk of it, has {}{size} bytes, the limit is {limit}; stream it in smaller chunks, or return \
         the path of a file",
        if *size > limit.saturating_mul(2) { "at least " } else { "" }
    )]
    #[non_exhaustive]
    AnswerTooLarge {
        /// The size of the answer or chunk, in bytes. Above twice the limit, the size of the part that was written.
        size: usize,
        /// The maximum size, in bytes.
        limit: usize,
    },
    /// The call's deadline passed.
    #[error("deadline of tool `{tool}` {}", describe_deadline(*stage, *limit, *is_unanswered))]
    #[non_exhaustive]
    DeadlineExceeded {
        /// The tool's name.
        tool: String,
        /// The stage of the call at the deadline.
        stage: CallStage,
        /// The time limit from which the deadline follows, if it is known.
        limit: Option<TimeLimit>,
        /// Whether a client ended the call itself, because the host did not report the deadline. The host may not be running, or
        /// may be unreachable.
        is_unanswered: bool,
    },
    /// The call was cancelled, by its caller or by its id.
    #[error("call of tool `{tool}` was cancelled")]
    #[non_exhaustive]
    Cancelled {
        /// The tool's name.
        tool: String,
    },
    /// The worker was lost before the call ended.
    #[error("worker `{worker}` was lost: {reason}{}", output_tail(output_lines))]
    #[non_exhaustive]
    WorkerLost {
        /// The worker's id.
        worker: String,
        /// The reason for the loss.
        reason: String,
        /// Whether the call may have begun to run.
        may_have_run: bool,
        /// Whether the call may have reached the worker. If not, it has not run, and did not cause the loss.
        was_sent: bool,
        /// The last lines that the worker wrote to stdout and stderr, oldest first.
        output_lines: Vec<String>,
        /// The time after which a retry may succeed, if a later attempt of the call was rejected with it.
        retry_after: Option<Duration>,
        /// The error of the connection to the worker, if this process observed it.
        source: Option<SharedError>,
    },
    /// The connection to the host or worker that ran the call was lost. The outcome of the call is unknown.
    #[error("connection to {peer} was lost: {problem}; the call may have run")]
    #[non_exhaustive]
    ConnectionLost {
        /// The other end of the connection, such as "the host".
        peer: String,
        /// The error of the connection, in short.
        problem: String,
        /// The error of the connection, if this process observed it.
        source: Option<SharedError>,
        /// The time after which a retry may succeed, if a later attempt of the call was rejected with it.
        retry_after: Option<Duration>,
    },
    /// The worker returned the call before it began, because the call was recalled with `ToolHandler::recall`. The
    /// pool handles this error and assigns the call to another worker.
    #[error("call of tool `{tool}` was returned by its worker before it began")]
    #[non_exhaustive]
    Recalled {
        /// The tool's name.
        tool: String,
    },
    /// No worker can run calls now. See [`unavailable`](Self::unavailable).
    #[error(
        "no worker is available: {reason}{}",
        if last_error.is_empty() { String::new() } else { format!("; the last error: {last_error}") }
    )]
    #[non_exhaustive]
    Unavailable {
        /// The reason.
        reason: String,
        /// The error of the last launch of a worker, with the last output of that worker. Empty if there is none, and for readers
        /// that are not local (`Principal::is_local`).
        last_error: String,
        /// The time after which a retry may succeed.
        retry_after: Option<Duration>,
    },
    /// The host is shutting down. It rejected the call, or its drain ended before the call did. Calls of all kinds get
    /// this error.
    ///
    /// [`is_retryable`](Self::is_retryable) is false for a host in this process, because it does not start again.
    #[error("the host is shutting down{}", if *may_have_run { "; the call was cut off and may have run" } else { "" })]
    #[non_exhaustive]
    ShuttingDown {
        /// Whether the call may have begun to run.
        may_have_run: bool,
        /// Whether the host is another process. It may start again, or another host may run the call.
        is_remote: bool,
    },
    /// The call would deadlock: every worker runs a call that waits for a queued call, either directly or through a host tool.
    #[error(
        "call of tool `{tool}` would wait for itself: every worker runs a call that waits for this one; add workers, or do not \
         call tools of workers from tools that workers call"
    )]
    #[non_exhaustive]
    Deadlock {
        /// The tool's name.
        tool: String,
    },
    /// Another server answered instead of the host, such as a proxy. A retry would get the same answer.
    #[error("the call was rejected: {problem}")]
    #[non_exhaustive]
    Rejected {
        /// The answer of the other server.
        problem: String,
    },
    /// The host, or a proxy between the client and the host, denied access: the token or the certificate of the client is missing
    /// or invalid, or does not permit the call. A retry would get the same answer.
    #[error("access denied: {problem}")]
    #[non_exhaustive]
    AccessDenied {
        /// The answer of the host or the proxy.
        problem: String,
    },
    /// The client was closed.
    #[error("the client is closed{}", if *may_have_run { "; the call was cut off and may have run" } else { "" })]
    #[non_exhaustive]
    ClientClosed {
        /// Whether the call may have begun to run.
        may_have_run: bool,
    },
    /// The tokio runtime that started the host has shut down, and its workers with it. Clients receive
    /// [`ShuttingDown`](Self::ShuttingDown), because the host cannot serve them again.
    #[error(
        "the tokio runtime that started this host has shut down, and its workers with it; start the host in a runtime that \
         lives as long as the host is used (each `#[tokio::test]` has a separate runtime)"
    )]
    #[non_exhaustive]
    RuntimeEnded {
        /// Whether the call may have begun to run.
        may_have_run: bool,
    },
    /// A call with a deadline was made outside of a tokio runtime, which provides the clock.
    #[error(
        "a call with a deadline needs a tokio runtime; await it inside `Runtime::block_on` or an async main"
    )]
    #[non_exhaustive]
    NoRuntime {
        /// Whether the call may have begun to run.
        may_have_run: bool,
    },
    /// A layer ended the call with an error that is not a `ToolError`, such as tower's timeout.
    #[error("a layer of the host ended the call: {problem}")]
    #[non_exhaustive]
    Layer {
        /// The kind of the error: [`Overloaded`](ErrorKind::Overloaded), [`DeadlineExceeded`](ErrorKind::DeadlineExceeded) or
        /// [`Rejected`](ErrorKind::Rejected).
        kind: ErrorKind,
        /// Whether the call may have begun to run.
        may_have_run: bool,
        /// The message of the layer's error.
        problem: String,
        /// The layer's error, if the layer is in this process.
        source: Option<SharedError>,
    },
    /// The session of the call caused an error, for example because it does not exist.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// A bug in the host or in the worker, such as a violation of the protocol.
    #[error("internal error: {problem}")]
    #[non_exhaustive]
    Internal {
        /// The problem.
        problem: String,
        /// The cause, if there is one. For an error from a remote host, `problem` contains its text instead.
        source: Option<SharedError>,
    },
}
