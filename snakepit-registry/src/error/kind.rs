//! The kinds of errors, and their reasons.

use snakepit_reason::Reason;
use snakepit_session::SessionErrorKind;

/// The kind of a call or session error, without its data. Several errors can have the same kind.
///
/// Match on the kind to branch, and on the error to read its data.
///
/// ```
/// use snakepit_registry::{ErrorKind, ToolError};
///
/// let error = ToolError::not_found("ad").with_suggestion("add".to_owned());
/// assert_eq!(error.kind(), ErrorKind::ToolNotFound);
/// assert_eq!(error.http_status(), 404);
/// assert!(!error.is_retryable() && !error.may_have_run());
/// ```
///
/// [`Reason`] has the codes of each kind: gRPC code, HTTP status, JSON-RPC code, and exit code. The page
/// [errors.md](https://github.com/snakepit-rs/snakepit/blob/main/docs/errors.md) lists them.
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
    /// Too many calls, or too many bytes of calls, are waiting, or all connections are in use.
    Overloaded,
    /// The tool ran, but the host dropped its answer because the caller left too many answers unread.
    AnswerDropped,
    /// The tool ran, but its answer, or a chunk of it, is too large for one message.
    AnswerTooLarge,
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
    /// The host is shutting down, or its tokio runtime has ended.
    ShuttingDown,
    /// The call would deadlock, because it would wait for itself.
    Deadlock,
    /// A bug in the host or in the worker.
    Internal,
    /// A call with a deadline, or a client, was created outside of a tokio runtime.
    NoRuntime,
    /// A client could not connect to a host.
    NotConnected,
    /// The host rejected a request for a reason that no other kind covers.
    Rejected,
    /// The host or a proxy denied access: a token or certificate is missing, invalid or not sufficient.
    AccessDenied,
    /// The client was closed.
    ClientClosed,
    /// A value does not serialize, or does not fit the requested type.
    InvalidPayload,
    /// A host did not start.
    NotStarted,
    /// The session of the call, or an operation on a session, caused the error.
    Session(SessionErrorKind),
}

impl ErrorKind {
    /// The machine-readable reason, such as `OVERLOADED`: a row in the table of reasons, with the codes for every protocol. Remote
    /// clients receive its [text](Reason::as_str) in the details of a gRPC status.
    ///
    /// ```
    /// use snakepit_registry::{ErrorKind, Reason};
    ///
    /// let reason = ErrorKind::Overloaded.reason();
    /// assert_eq!((reason, reason.as_str(), reason.http_status()), (Reason::Overloaded, "OVERLOADED", 429));
    /// ```
    #[must_use]
    pub const fn reason(self) -> Reason {
        match self {
            Self::ToolNotFound => Reason::ToolNotFound,
            Self::InvalidArgument => Reason::InvalidArgument,
            Self::Unsupported => Reason::Unsupported,
            Self::ToolFailed => Reason::ToolFailed,
            Self::Overloaded => Reason::Overloaded,
            Self::AnswerDropped => Reason::AnswerDropped,
            Self::AnswerTooLarge => Reason::AnswerTooLarge,
            Self::DeadlineExceeded => Reason::DeadlineExceeded,
            Self::Cancelled => Reason::Cancelled,
            Self::WorkerLost => Reason::WorkerLost,
            Self::ConnectionLost => Reason::ConnectionLost,
            Self::NoWorker => Reason::NoWorker,
            Self::ShuttingDown => Reason::ShuttingDown,
            Self::Deadlock => Reason::Deadlock,
            Self::Internal => Reason::Internal,
            Self::NoRuntime => Reason::NoRuntime,
            Self::NotConnected => Reason::NotConnected,
            Self::Rejected => Reason::Rejected,
            Self::AccessDenied => Reason::AccessDenied,
            Self::ClientClosed => Reason::ClientClosed,
            Self::InvalidPayload => Reason::InvalidPayload,
            Self::NotStarted => Reason::NotStarted,
            Self::Session(kind) => kind.reason(),
        }
    }

    /// The HTTP status for a service that answers its request with this error, such as 429. A gateway error (502) means that
    /// a worker or a host behind the service was lost.
    #[must_use]
    pub const fn http_status(self) -> u16 {
        self.reason().http_status()
    }

    /// Whether the same call may succeed later without a change by the caller. A retry may run the tool twice. It is safe if
    /// [`ToolError::is_retryable`](crate::ToolError::is_retryable) returns `true` or the tool is idempotent.
    #[must_use]
    pub const fn is_transient(self) -> bool {
        self.reason().is_transient()
    }
}
