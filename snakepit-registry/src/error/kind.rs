//! The kinds of errors, and the table of their reasons and HTTP statuses.

use snakepit_session::SessionErrorKind;

/// The kind of an error of a call or session operation, without its data. Several errors can have the same kind.
///
/// Match on the kind to branch, and on the error to read its data.
///
/// ```
/// use snakepit_registry::{ErrorKind, ToolError};
///
/// let error = ToolError::NotFound { tool: "ad".into(), suggestion: Some("add".into()) };
/// assert_eq!(error.kind(), ErrorKind::ToolNotFound);
/// assert_eq!(error.http_status(), 404);
/// assert!(!error.is_retryable() && !error.may_have_run());
/// ```
///
/// | kind | reason | HTTP status | transient |
/// | --- | --- | --- | --- |
/// | `ToolNotFound` | `TOOL_NOT_FOUND` | 404 | |
/// | `InvalidArgument` | `INVALID_ARGUMENT` | 422 | |
/// | `Unsupported` | `UNSUPPORTED` | 501 | |
/// | `ToolFailed` | `TOOL_FAILED` | 500 | |
/// | `Overloaded` | `OVERLOADED` | 429 | yes |
/// | `AnswerDropped` | `ANSWER_DROPPED` | 507 | |
/// | `DeadlineExceeded` | `DEADLINE_EXCEEDED` | 504 | yes |
/// | `Cancelled` | `CANCELLED` | 499 | |
/// | `WorkerLost` | `WORKER_LOST` | 502 | yes |
/// | `ConnectionLost` | `CONNECTION_LOST` | 502 | yes |
/// | `NoWorker` | `NO_WORKER` | 503 | yes |
/// | `ShuttingDown` | `SHUTTING_DOWN` | 503 | yes |
/// | `Deadlock` | `DEADLOCK` | 500 | |
/// | `Internal` | `INTERNAL` | 500 | |
/// | `NoRuntime` | `NO_RUNTIME` | 503 | |
/// | `NotConnected` | `NOT_CONNECTED` | 502 | yes |
/// | `Rejected` | `REJECTED` | 502 | |
/// | `InvalidPayload` | `INVALID_PAYLOAD` | 500 | |
/// | `NotStarted` | `NOT_STARTED` | 500 | |
/// | `Session(..)` | as [`SessionErrorKind::reason`] | as [`SessionErrorKind::http_status`] | as [`SessionErrorKind::is_transient`] |
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The tool does not exist.
    ToolNotFound,
    /// An argument is missing, unknown or of the wrong type.
    InvalidArgument,
    /// The tool does not support this kind of call.
    Unsupported,
    /// The tool raised an exception.
    ToolFailed,
    /// Too many calls, or too many bytes of calls, are waiting.
    Overloaded,
    /// The tool ran, but the host dropped its answer because the caller left too many answers unread.
    AnswerDropped,
    /// The deadline passed.
    DeadlineExceeded,
    /// The call was cancelled.
    Cancelled,
    /// The worker was lost before the call ended.
    WorkerLost,
    /// The connection was lost before the call ended.
    ConnectionLost,
    /// No worker can run calls now, or the host cannot be reached.
    NoWorker,
    /// The host is shutting down.
    ShuttingDown,
    /// The call would deadlock, because it would wait for itself.
    Deadlock,
    /// A bug in the host or in the worker.
    Internal,
    /// The call was made outside a tokio runtime, or the runtime of the host has shut down.
    NoRuntime,
    /// A client could not connect to a host.
    NotConnected,
    /// The host rejected a request for a reason that no other kind covers.
    Rejected,
    /// A value does not serialize, or does not fit the requested type.
    InvalidPayload,
    /// A host did not start.
    NotStarted,
    /// The session of the call, or an operation on a session, caused the error.
    Session(SessionErrorKind),
}

/// A row of the table in the documentation of [`ErrorKind`].
struct Row {
    reason: &'static str,
    http_status: u16,
    is_transient: bool,
}

impl ErrorKind {
    /// The machine-readable reason, such as `OVERLOADED`. Remote clients receive the same text in the details of a gRPC status.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        self.row().reason
    }

    /// The HTTP status for a service that answers its request with this error, such as 429. A gateway error (502) means that
    /// a worker or a host behind the service was lost.
    #[must_use]
    pub const fn http_status(self) -> u16 {
        self.row().http_status
    }

    /// Whether the same call may succeed later without a change by the caller. A retry may run the tool twice. It is safe if
    /// [`ToolError::is_retryable`](crate::ToolError::is_retryable) returns `true` or the tool is idempotent.
    #[must_use]
    pub const fn is_transient(self) -> bool {
        self.row().is_transient
    }

    const fn row(self) -> Row {
        const fn permanent(reason: &'static str, http_status: u16) -> Row {
            Row { reason, http_status, is_transient: false }
        }
        const fn transient(reason: &'static str, http_status: u16) -> Row {
            Row { reason, http_status, is_transient: true }
        }
        match self {
            Self::ToolNotFound => permanent("TOOL_NOT_FOUND", 404),
            Self::InvalidArgument => permanent("INVALID_ARGUMENT", 422),
            Self::Unsupported => permanent("UNSUPPORTED", 501),
            Self::ToolFailed => permanent("TOOL_FAILED", 500),
            Self::Overloaded => transient("OVERLOADED", 429),
            Self::AnswerDropped => permanent("ANSWER_DROPPED", 507),
            Self::DeadlineExceeded => transient("DEADLINE_EXCEEDED", 504),
            Self::Cancelled => permanent("CANCELLED", 499),
            Self::WorkerLost => transient("WORKER_LOST", 502),
            Self::ConnectionLost => transient("CONNECTION_LOST", 502),
            Self::NoWorker => transient("NO_WORKER", 503),
            Self::ShuttingDown => transient("SHUTTING_DOWN", 503),
            Self::Deadlock => permanent("DEADLOCK", 500),
            Self::Internal => permanent("INTERNAL", 500),
            Self::NoRuntime => permanent("NO_RUNTIME", 503),
            Self::NotConnected => transient("NOT_CONNECTED", 502),
            Self::Rejected => permanent("REJECTED", 502),
            Self::InvalidPayload => permanent("INVALID_PAYLOAD", 500),
            Self::NotStarted => permanent("NOT_STARTED", 500),
            Self::Session(kind) => Row {
                reason: kind.reason(),
                http_status: kind.http_status(),
                is_transient: kind.is_transient(),
            },
        }
    }
}
