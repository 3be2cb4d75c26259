//! Methods that classify an error of the client.

use std::time::Duration;

use snakepit_registry::{ErrorKind, Fault, ToolError, ToolFailure};
use snakepit_session::{PayloadError, SessionError, error_chain};

use super::Error;

impl Error {
    /// The kind of the error. A cause has the same kind on a host in this process and on a remote host, except that only a
    /// remote host can be unreachable.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            // No connection was attempted, because the address is invalid.
            Self::Connect { source: None, .. } => ErrorKind::InvalidArgument,
            Self::Connect { .. } => ErrorKind::NotConnected,
            Self::Unreachable { .. } => ErrorKind::ConnectionLost,
            Self::TimedOut { .. } => ErrorKind::DeadlineExceeded,
            Self::NoRuntime => ErrorKind::NoRuntime,
            Self::Rejected { .. } => ErrorKind::Rejected,
            Self::Tool(error) => error.kind(),
            Self::Session(error) => ErrorKind::Session(error.kind()),
            Self::Payload(_) | Self::WrongResult { .. } => ErrorKind::InvalidPayload,
            Self::InvalidOption { .. } | Self::NotAnObject { .. } => ErrorKind::InvalidArgument,
            Self::Start(_) => ErrorKind::NotStarted,
        }
    }

    /// Whether the tool may have begun to run, or the write to a session may have happened. If this is `false`, the request is
    /// always safe to retry. It is `false` for all requests that only read.
    #[must_use]
    pub const fn may_have_run(&self) -> bool {
        match self {
            Self::Tool(error) => error.may_have_run(),
            // A backend may have written before it lost its connection.
            Self::Session(error) => matches!(error, SessionError::Backend { .. }),
            // A result of the wrong type proves that the tool ran.
            Self::Payload(error) => !matches!(error, PayloadError::Serialize { .. }),
            Self::WrongResult { .. } => true,
            Self::Unreachable { is_read, .. } | Self::TimedOut { is_read, .. } => !*is_read,
            Self::Connect { .. }
            | Self::InvalidOption { .. }
            | Self::NoRuntime
            | Self::Rejected { .. }
            | Self::NotAnObject { .. }
            | Self::Start(_) => false,
        }
    }

    /// Marks this error as the error of a request that only reads, which cannot have changed anything.
    pub(crate) fn into_read_error(self) -> Self {
        match self {
            Self::Session(error) => Self::Session(error.into_read_error()),
            Self::Unreachable { problem, source, is_read: _ } => {
                Self::Unreachable { problem, source, is_read: true }
            }
            Self::TimedOut { rpc, within, is_read: _ } => Self::TimedOut { rpc, within, is_read: true },
            error => error,
        }
    }

    /// Whether a deadline or the client's [`request_timeout`](crate::ClientBuilder::request_timeout) passed.
    #[must_use]
    pub const fn is_timeout(&self) -> bool {
        matches!(self.kind(), ErrorKind::DeadlineExceeded)
    }

    /// Whether the host rejected the request because too many calls, or too many bytes of calls, were waiting.
    #[must_use]
    pub const fn is_overloaded(&self) -> bool {
        matches!(self.kind(), ErrorKind::Overloaded)
    }

    /// Whether a retry is safe and may succeed: the request [cannot have run](Self::may_have_run), and the cause is
    /// [transient](ErrorKind::is_transient). Wait for [`retry_after`](Self::retry_after) first.
    ///
    /// If the request is an idempotent call or write, you can retry it after every transient cause.
    ///
    /// A remote host that shuts down may start again, so the error is retryable. A host in the same process does not start again,
    /// so its [`ToolError::ShuttingDown`] and [`ToolError::RuntimeEnded`] are not.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Tool(error) => error.is_retryable(),
            _ => !self.may_have_run() && self.kind().is_transient(),
        }
    }

    /// The time after which a retry may succeed, if the host suggests one.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Tool(error) => error.retry_after(),
            _ => None,
        }
    }

    /// The error of the call, if a call failed.
    #[must_use]
    pub const fn tool_error(&self) -> Option<&ToolError> {
        match self {
            Self::Tool(error) => Some(error),
            _ => None,
        }
    }

    /// The exception, if the tool raised one.
    #[must_use]
    pub fn failure(&self) -> Option<&ToolFailure> {
        self.tool_error().and_then(ToolError::failure)
    }

    /// The type of the exception that the tool raised, such as `ValueError` or `shop.OutOfStock`. See
    /// [`ToolError::error_type`].
    #[must_use]
    pub fn error_type(&self) -> Option<&str> {
        self.tool_error().and_then(ToolError::error_type)
    }

    /// The HTTP status for a service that reports this error to its own client: [`ErrorKind::http_status`], or that of the
    /// [code of the tool](ToolError::http_status).
    #[must_use]
    pub fn http_status(&self) -> u16 {
        self.tool_error().map_or_else(|| self.kind().http_status(), ToolError::http_status)
    }
}

impl From<Error> for Fault {
    /// Converts the error to its neutral form, for a service that passes it on to its own clients in any protocol.
    fn from(error: Error) -> Self {
        match error {
            Error::Tool(error) => error.into(),
            // The operation may have been a write.
            Error::Session(error) => Self::of_write(&error),
            error => {
                let message = error_chain(&error).to_string();
                Self::new(error.kind().reason(), message).with_may_have_run(error.may_have_run())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use snakepit_session::{Payload, SessionId};

    use super::*;

    #[test]
    fn session_errors_have_the_same_kind_as_errors_of_calls() {
        let error = || SessionError::NotFound { id: SessionId::try_new("s").unwrap() };
        let (of_session, of_call) = (Error::Session(error()), Error::Tool(error().into()));
        assert_eq!(of_session.kind(), of_call.kind());
        assert_eq!((of_session.http_status(), of_session.is_retryable()), (404, false));
    }

    #[test]
    fn faults_keep_the_classification_of_errors() {
        let session = || SessionError::NotFound { id: SessionId::try_new("s").unwrap() };
        let written = || SessionError::backend("timed out");
        for error in [
            Error::TimedOut { rpc: "SetVariable", within: Duration::from_secs(1), is_read: false },
            Error::Tool(ToolError::shutting_down(true)),
            Error::Session(session()),
            Error::Session(written()),
            Error::NotAnObject { tool: "add".into() },
        ] {
            let (kind, may_have_run, shown) = (error.kind(), error.may_have_run(), error.to_string());
            let fault = Fault::from(error);
            assert_eq!((fault.reason, fault.may_have_run()), (kind.reason(), may_have_run), "{shown}");
            assert_eq!((fault.http_status(), fault.message), (kind.http_status(), shown));
        }
    }

    #[test]
    fn a_failed_write_may_have_happened() {
        let failed = Error::Session(SessionError::backend("timed out"));
        assert!(failed.may_have_run() && failed.kind().is_transient() && !failed.is_retryable());
        let full = Error::Session(SessionError::not_written("the disk is full"));
        assert!(full.is_retryable() && full.kind() == failed.kind());
        let connect = |source: Option<Box<dyn std::error::Error + Send + Sync>>| Error::Connect {
            address: "h:1".into(),
            problem: "refused".into(),
            source,
        };
        assert!(connect(Some("refused".into())).is_retryable());
        assert!(!connect(None).is_retryable(), "an invalid address stays invalid");
        let late = Error::TimedOut { rpc: "SetVariable", within: Duration::from_secs(1), is_read: false };
        assert!(late.is_timeout() && late.may_have_run() && !late.is_retryable());
    }

    #[test]
    fn a_failed_read_is_safe_to_retry() {
        let written = || SessionError::backend("timed out").with_source("reset");
        let lost = || Error::Unreachable { problem: "reset".into(), source: None, is_read: false };
        let late = || Error::TimedOut { rpc: "GetVariable", within: Duration::from_secs(1), is_read: false };
        for (write, read) in [
            (Error::Session(written()), Error::Session(written()).into_read_error()),
            (lost(), lost().into_read_error()),
            (late(), late().into_read_error()),
        ] {
            assert!(write.may_have_run() && !write.is_retryable(), "{write:?}");
            assert!(!read.may_have_run() && read.is_retryable(), "{read:?}");
            assert_eq!((read.kind(), read.to_string()), (write.kind(), write.to_string()));
            assert!(!Fault::from(read).may_have_run());
        }
        let missing = || SessionError::NotFound { id: SessionId::try_new("s").unwrap() };
        assert_eq!(missing().into_read_error(), missing());
    }

    #[test]
    fn only_values_that_arrived_prove_that_the_tool_ran() {
        let key_is_not_text = BTreeMap::from([((1, 2), 3)]);
        let unsent = Payload::try_from_serde(&key_is_not_text).unwrap_err();
        assert!(!Error::Payload(unsent).may_have_run());
        let arrived = Payload::null().to_serde::<u8>().unwrap_err();
        assert!(Error::Payload(arrived).may_have_run());
    }
}
