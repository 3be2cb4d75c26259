//! [`HostError`]: errors of requests to the host, and the Python exceptions that they become.

mod tool_failure;

use std::{collections::BTreeMap, error::Error, time::Duration};

use pyo3::{PyErr, PyResult, PyTypeInfo, Python, import_exception, intern, types::PyAnyMethods};

use snakepit_proto::{
    pb, proxy,
    status::{
        CONNECTION_LOST, DELIVERED, Details, OVERLOADED, REQUEST_TOO_LARGE, SHUTTING_DOWN, WORKER_LOST,
        details_of, root_cause,
    },
};
use snakepit_registry::CallStage;
use snakepit_session::SessionError;
use snakepit_wire::failure_from_wire;
use tonic::{Code, ConnectError, Status, TimeoutExpired};

pub(crate) use self::tool_failure::tool_failed;
use crate::value;

import_exception!(snakepit_bridge.errors, SnakepitError);
import_exception!(snakepit_bridge.errors, AccessDeniedError);
import_exception!(snakepit_bridge.errors, NotFoundError);
import_exception!(snakepit_bridge.errors, VariableNotFoundError);
import_exception!(snakepit_bridge.errors, ProgramNotFoundError);
import_exception!(snakepit_bridge.errors, AlreadyExistsError);
import_exception!(snakepit_bridge.errors, InvalidArgumentError);
import_exception!(snakepit_bridge.errors, InvalidTypeError);
import_exception!(snakepit_bridge.errors, ValidationError);
import_exception!(snakepit_bridge.errors, VersionConflictError);
import_exception!(snakepit_bridge.errors, LimitExceededError);
import_exception!(snakepit_bridge.errors, DeadlineExceededError);
import_exception!(snakepit_bridge.errors, DeadlockError);
import_exception!(snakepit_bridge.errors, HostUnavailableError);
import_exception!(snakepit_bridge.errors, OverloadedError);
import_exception!(snakepit_bridge.errors, WorkerLostError);
import_exception!(snakepit_bridge.errors, ShuttingDownError);
import_exception!(snakepit_bridge.errors, ConnectTimeoutError);
import_exception!(snakepit_bridge.errors, ClientClosedError);
import_exception!(snakepit_bridge.errors, CallCancelledError);
import_exception!(snakepit_bridge.errors, UnsupportedError);
import_exception!(snakepit_bridge.errors, HostToolError);
import_exception!(snakepit_bridge.errors, CallCancelled);
import_exception!(snakepit_bridge.errors, ToolFailed);
import_exception!(snakepit_bridge._failures, BrokenRuntimeError);

/// Imports all exception classes, so that a tool that removes their module cannot make a later import create different
/// ones.
pub(crate) fn preload(py: Python<'_>) {
    let classes = [
        SnakepitError::type_object,
        AccessDeniedError::type_object,
        NotFoundError::type_object,
        VariableNotFoundError::type_object,
        ProgramNotFoundError::type_object,
        AlreadyExistsError::type_object,
        InvalidArgumentError::type_object,
        InvalidTypeError::type_object,
        ValidationError::type_object,
        VersionConflictError::type_object,
        LimitExceededError::type_object,
        DeadlineExceededError::type_object,
        DeadlockError::type_object,
        HostUnavailableError::type_object,
        OverloadedError::type_object,
        WorkerLostError::type_object,
        ShuttingDownError::type_object,
        ConnectTimeoutError::type_object,
        ClientClosedError::type_object,
        CallCancelledError::type_object,
        UnsupportedError::type_object,
        HostToolError::type_object,
        CallCancelled::type_object,
        ToolFailed::type_object,
        BrokenRuntimeError::type_object,
    ];
    // `import_exception!` caches each class.
    for class in classes {
        class(py);
    }
}

/// The reason of a session backend that failed.
pub(crate) const BACKEND_FAILED: &str = "BACKEND_FAILED";

/// The reason why a request to the host failed.
#[derive(Debug)]
pub(crate) enum HostError {
    /// The call that the tool serves was cancelled.
    Cancelled,
    /// The deadline of the call that the tool serves, or of the request, passed.
    Deadline,
    /// The client is closed.
    Closed,
    /// The client was closed while the call ran.
    Aborted,
    /// The host cannot be reached, and nothing was sent. Holds the complete message.
    Unreachable(String),
    /// Connecting timed out, and nothing was sent. Holds the complete message.
    ConnectTimeout(String),
    /// The deadline of a client's call passed without an answer of the host.
    Unanswered { may_have_run: bool },
    /// The connection broke after the request was sent. Holds the cause.
    ConnectionLost(String),
    /// The host ended a watch, which it does only when it shuts down.
    WatchEnded,
    /// The host answered with an error status.
    Status(Status),
    /// The host rejected a new stream with this status, and nothing was sent.
    StreamRejected(Status),
    /// The host closed the connection of a call that it did not begin.
    NotBegun(Status),
    /// A host tool ran and failed. Hosts of the original Snakepit send only the message.
    ToolFailed { tool: String, message: String, failure: Option<Box<pb::ToolFailure>> },
    /// A tool that this tool called ran and failed. It belongs to the host or to a worker.
    CalledToolFailed(Box<pb::ToolFailure>),
    /// The request could not be created.
    Exception(PyErr),
    /// The session backend of a [`LocalSession`](crate::local::LocalSession) returned an error.
    Session(SessionError),
}

/// Returns whether the connection broke before the request was sent. Returns `false` if reconnecting failed, too.
pub(crate) fn is_unsent(status: &Status) -> bool {
    let cancelled = |error: &(dyn Error + 'static)| {
        // hyper reports a request as cancelled if it had not reached the connection when that broke.
        error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled)
    };
    causes(status).any(cancelled)
}

/// Returns whether the connection broke, before or after the request was sent. Returns `false` if reconnecting failed,
/// too.
pub(crate) fn is_connection_broken(status: &Status) -> bool {
    causes(status).next().is_some()
        && !causes(status).any(|cause| cause.is::<TimeoutExpired>() || cause.is::<ConnectError>())
}

/// Returns whether the host ended a stream because it rejected the first message: the message is too large, or the host
/// currently lacks the memory for it. Only large calls, which have separate streams, receive this status.
pub(crate) fn is_message_rejected(status: &Status) -> bool {
    let details = details_of(status);
    match details.reason.as_deref() {
        Some(REQUEST_TOO_LARGE) => true,
        Some(OVERLOADED) => details.cannot_have_run(),
        _ => false,
    }
}

/// Returns whether a reachable host rejects a new stream because it is overloaded or shutting down.
pub(crate) fn is_stream_rejected(status: &Status) -> bool {
    matches!(details_of(status).reason.as_deref(), Some(OVERLOADED | SHUTTING_DOWN))
}

/// Returns whether a host or a proxy denies access.
pub(crate) fn is_denied(status: &Status) -> bool {
    matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied)
}

/// Returns whether the host reports that a variable does not exist.
pub(crate) fn is_variable_not_found(status: &Status) -> bool {
    details_of(status).reason.as_deref() == Some("VARIABLE_NOT_FOUND")
}

/// Returns whether the host closed an idle connection and reports that it did not begin any of the stream's unanswered calls.
pub(crate) fn is_not_begun(status: &Status) -> bool {
    let details = details_of(status);
    details.reason.as_deref() == Some(CONNECTION_LOST) && details.cannot_have_run()
}

/// Returns the reason why no connection could be opened for a request.
pub(crate) fn connect_problem(status: &Status) -> Option<String> {
    let failed = causes(status).any(|cause| cause.is::<ConnectError>());
    failed.then(|| causes(status).last().map(ToString::to_string)).flatten()
}

fn causes(status: &Status) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(status.source(), |&error| error.source())
}

impl HostError {
    /// Converts the status of a broken stream to the error of a call on it. A host that shuts down or rejects a message
    /// sends its reason as the last status of the stream.
    pub(crate) fn from_broken_stream(status: Status) -> Self {
        if is_message_rejected(&status) || details_of(&status).reason.as_deref() == Some(SHUTTING_DOWN) {
            return Self::Status(status);
        }
        // The attempts to send the call again are exhausted, or the call is too large for one.
        if is_not_begun(&status) {
            return Self::NotBegun(status);
        }
        let problem = status
            .source()
            .map_or_else(|| status.message().to_owned(), |cause| root_cause(cause).to_string());
        Self::ConnectionLost(problem)
    }
}

impl From<Status> for HostError {
    /// Converts a status. tonic attaches a source to the statuses that it creates, but not to those that it receives
    /// from the host.
    fn from(status: Status) -> Self {
        let Some(cause) = status.source().map(root_cause) else { return Self::Status(status) };
        if cause.is::<TimeoutExpired>() {
            Self::Deadline
        } else if is_unsent(&status) || causes(&status).any(|cause| cause.is::<ConnectError>()) {
            Self::Unreachable(format!("the host cannot be reached: {cause}"))
        } else {
            Self::ConnectionLost(cause.to_string())
        }
    }
}

impl From<HostError> for PyErr {
    fn from(error: HostError) -> Self {
        match error {
            HostError::Cancelled => {
                CallCancelled::new_err("the call was cancelled while it waited for the host")
            }
            HostError::Deadline => {
                DeadlineExceededError::new_err("the deadline passed while the call waited for the host")
            }
            HostError::Closed => ClientClosedError::new_err("the client is closed"),
            HostError::Aborted => with_may_have_run(
                ClientClosedError::new_err("the client was closed while the call ran"),
                true,
            ),
            HostError::Unreachable(problem) => {
                with_may_have_run(HostUnavailableError::new_err(problem), false)
            }
            HostError::ConnectTimeout(problem) => ConnectTimeoutError::new_err(problem),
            HostError::Unanswered { may_have_run } => {
                let message = "the deadline passed and the host did not answer; is it still running?";
                with_may_have_run(DeadlineExceededError::new_err(message), may_have_run)
            }
            HostError::ConnectionLost(problem) => HostUnavailableError::new_err(format!(
                "the connection to the host broke: {problem}; is it still running?"
            )),
            HostError::WatchEnded => {
                ShuttingDownError::new_err("the host ended the watch: it is shutting down")
            }
            HostError::ToolFailed { tool, message, failure: None } => HostToolError::new_err((message, tool)),
            HostError::ToolFailed { tool, message, failure: Some(failure) } => {
                host_tool_exception(&tool, &message, *failure)
            }
            HostError::CalledToolFailed(failure) => {
                Python::attach(|py| tool_failed(py, &failure_from_wire(*failure), None))
            }
            HostError::Status(status) => from_status(&status),
            HostError::StreamRejected(status) | HostError::NotBegun(status) => {
                with_may_have_run(from_status(&status), false)
            }
            HostError::Exception(error) => error,
            HostError::Session(error) => from_session_error(&error),
        }
    }
}

/// Returns the exception for the failure of a host tool: of the class that the tool chose, or `HostToolError`.
fn host_tool_exception(tool: &str, text: &str, failure: pb::ToolFailure) -> PyErr {
    let failure = failure_from_wire(failure);
    Python::attach(|py| {
        let create = || -> PyResult<_> {
            let data = match &failure.data {
                Some(data) => value::json_to_python(py, data.to_string().as_bytes())?,
                None => py.None().into_bound(py),
            };
            let create = py.import("snakepit_bridge._host_errors")?.getattr("create")?;
            create.call1((
                text,
                tool,
                &failure.message,
                &failure.error_type,
                &failure.code,
                data,
                &failure.python_type,
            ))
        };
        match create() {
            Ok(exception) => PyErr::from_value(exception),
            Err(_) => HostToolError::new_err((text.to_owned(), tool.to_owned())),
        }
    })
}

/// Returns the exception for an error status of the host.
fn from_status(status: &Status) -> PyErr {
    let status = &proxy::clarify(status.clone());
    exception(status.message().to_owned(), status.code(), &details_of(status))
}

/// Returns the exception for a rejected write of a batch. Hosts of the original Snakepit do not send a reason.
pub(crate) fn from_batch(message: String, reason: Option<&pb::ErrorReason>) -> PyErr {
    match reason {
        Some(pb::ErrorReason { code, reason, metadata }) => {
            let (reason, metadata) = (Some(reason.clone()), metadata.clone());
            exception(message, (*code).into(), &Details { reason, metadata, ..Details::default() })
        }
        None => SnakepitError::new_err(message),
    }
}

fn exception(message: String, code: Code, details: &Details) -> PyErr {
    let reason = details.reason.as_deref().unwrap_or_default();
    let error = match (code, reason) {
        (Code::NotFound, "VARIABLE_NOT_FOUND") => VariableNotFoundError::new_err(message),
        (Code::NotFound, "PROGRAM_NOT_FOUND") => ProgramNotFoundError::new_err(message),
        (Code::NotFound, _) => NotFoundError::new_err(message),
        (Code::Unauthenticated | Code::PermissionDenied, _) => AccessDeniedError::new_err(message),
        (Code::AlreadyExists, _) => AlreadyExistsError::new_err(message),
        (Code::InvalidArgument, "INVALID_VALUE") => ValidationError::new_err(message),
        (Code::InvalidArgument, _) => {
            let violations = details.violations.iter();
            let violations = violations.map(|violation| (&*violation.field, &*violation.description));
            invalid_arguments(message, violations)
        }
        (Code::DeadlineExceeded, _) => DeadlineExceededError::new_err(message),
        (Code::Cancelled, _) => CallCancelledError::new_err(message),
        (Code::Unimplemented, _) => UnsupportedError::new_err(message),
        (Code::Unavailable, SHUTTING_DOWN) => ShuttingDownError::new_err(message),
        (Code::Unavailable, WORKER_LOST) => WorkerLostError::new_err(message),
        // Backends report writes with an unknown outcome under a code that no client library retries.
        (Code::Unavailable, _) | (_, BACKEND_FAILED) => HostUnavailableError::new_err(message),
        (Code::ResourceExhausted, OVERLOADED | "") => OverloadedError::new_err(message),
        (Code::ResourceExhausted, REQUEST_TOO_LARGE) => InvalidArgumentError::new_err(message),
        (Code::ResourceExhausted, _) => LimitExceededError::new_err(message),
        (Code::FailedPrecondition, "DEADLOCK") => DeadlockError::new_err(message),
        (Code::Aborted, "VERSION_CONFLICT") => version_conflict(message, &details.metadata),
        (code, _) => SnakepitError::new_err(format!("{code:?}: {message}")),
    };
    with_retry_attributes(error, may_have_run(reason, &details.metadata), details.retry_after)
}

/// Returns whether the call may have run according to the details of a status. `None` leaves it to the default of the
/// exception class.
fn may_have_run(reason: &str, metadata: &BTreeMap<String, String>) -> Option<bool> {
    match reason {
        "NO_WORKER" => Some(false),
        "ANSWER_DROPPED" => Some(true),
        // The status of a write with an unknown outcome says so. All others are of reads, or of calls whose session the
        // host could not read, so the tool did not run.
        BACKEND_FAILED => Some(metadata.get(DELIVERED).is_some_and(|may_have_run| may_have_run == "true")),
        "DEADLINE_EXCEEDED" => Some(metadata.get("stage")? != &CallStage::Queued.to_string()),
        _ => metadata.get(DELIVERED)?.parse().ok(),
    }
}

/// Returns the exception for invalid arguments, with the problem of each.
pub(crate) fn invalid_arguments<'a>(
    message: String,
    violations: impl Iterator<Item = (&'a str, &'a str)>,
) -> PyErr {
    let error = InvalidArgumentError::new_err(message);
    let violations: Vec<_> = violations.collect();
    // Without the attribute, the message still contains the problems.
    let _ = Python::attach(|py| error.value(py).setattr(intern!(py, "violations"), violations));
    error
}

/// Sets `may_have_run` on an exception.
pub(crate) fn with_may_have_run(error: PyErr, may_have_run: bool) -> PyErr {
    with_retry_attributes(error, Some(may_have_run), None)
}

fn with_retry_attributes(error: PyErr, may_have_run: Option<bool>, retry_after: Option<Duration>) -> PyErr {
    if may_have_run.is_none() && retry_after.is_none() {
        return error;
    }
    Python::attach(|py| {
        let exception = error.value(py);
        // The exceptions of this package accept these attributes. If setting one fails, the default of the class
        // applies.
        if let Some(may_have_run) = may_have_run {
            let _ = exception.setattr(intern!(py, "may_have_run"), may_have_run);
        }
        if let Some(retry_after) = retry_after {
            let _ = exception.setattr(intern!(py, "retry_after"), retry_after.as_secs_f64());
        }
    });
    error
}

fn version_conflict(message: String, metadata: &BTreeMap<String, String>) -> PyErr {
    let version = |key| metadata.get(key)?.parse::<i64>().ok();
    match (version("expected"), version("actual")) {
        (Some(expected), Some(actual)) => VersionConflictError::new_err((message, expected, actual)),
        _ => SnakepitError::new_err(message),
    }
}

/// Returns the exception that Python code would get if a host had answered with this error.
fn from_session_error(error: &SessionError) -> PyErr {
    let message = error.to_string();
    match error {
        SessionError::NotFound { .. } | SessionError::VersionNotKept { .. } => {
            NotFoundError::new_err(message)
        }
        SessionError::VariableNotFound { .. } => VariableNotFoundError::new_err(message),
        SessionError::VariableExists { .. } => AlreadyExistsError::new_err(message),
        SessionError::InvalidValue { .. } | SessionError::ValueTooLarge { .. } => {
            ValidationError::new_err(message)
        }
        SessionError::VersionConflict { expected, actual, .. } => {
            VersionConflictError::new_err((message, *expected, *actual))
        }
        SessionError::SessionTooLarge { .. }
        | SessionError::BackendFull { .. }
        | SessionError::TooManyVariables { .. }
        | SessionError::TooManyWatches { .. } => LimitExceededError::new_err(message),
        SessionError::InvalidVariableName { .. }
        | SessionError::InvalidType { .. }
        | SessionError::MetadataTooLarge { .. }
        | SessionError::TooManyNames { .. }
        | SessionError::WrittenTwice { .. } => InvalidArgumentError::new_err(message),
        _ => SnakepitError::new_err(message),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, io};

    use snakepit_proto::status::error_status_with;

    use super::*;

    #[test]
    fn details_of_a_status_determine_may_have_run() {
        let with = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
        let none = BTreeMap::new();
        for (reason, metadata, expected) in [
            ("NO_WORKER", &none, Some(false)),
            ("ANSWER_DROPPED", &none, Some(true)),
            ("DEADLINE_EXCEEDED", &with("stage", "while queued"), Some(false)),
            ("DEADLINE_EXCEEDED", &with("stage", "while running"), Some(true)),
            ("DEADLINE_EXCEEDED", &none, None),
            ("UNSUPPORTED", &with(DELIVERED, "true"), Some(true)),
            ("OVERLOADED", &with(DELIVERED, "false"), Some(false)),
            ("OVERLOADED", &none, None),
            ("BACKEND_FAILED", &with(DELIVERED, "true"), Some(true)),
            ("BACKEND_FAILED", &with(DELIVERED, "false"), Some(false)),
            ("BACKEND_FAILED", &none, Some(false)),
            ("ANSWER_TOO_LARGE", &with(DELIVERED, "true"), Some(true)),
        ] {
            assert_eq!(may_have_run(reason, metadata), expected, "{reason} {metadata:?}");
        }
    }

    #[test]
    fn a_call_that_the_host_did_not_begin_keeps_that_fact() {
        let status = |may_have_run: &str| {
            let metadata = [(DELIVERED, may_have_run.to_owned())];
            error_status_with(
                Code::Unavailable,
                CONNECTION_LOST,
                "closed to make room; repeat the call",
                metadata,
            )
        };
        let evicted = HostError::from_broken_stream(status("false"));
        assert!(matches!(&evicted, HostError::NotBegun(status) if is_not_begun(status)), "{evicted:?}");
        let lost = HostError::from_broken_stream(status("true"));
        assert!(matches!(lost, HostError::ConnectionLost(_)), "{lost:?}");
    }

    #[test]
    fn statuses_of_the_host_differ_from_connection_errors() {
        let status = HostError::from(Status::unavailable("no worker is ready"));
        assert!(
            matches!(&status, HostError::Status(status) if status.message() == "no worker is ready"),
            "{status:?}"
        );
        let reset = io::Error::new(io::ErrorKind::ConnectionReset, "reset");
        let lost = HostError::from(Status::from_error(Box::new(io::Error::other(reset))));
        assert!(matches!(&lost, HostError::ConnectionLost(problem) if problem == "reset"), "{lost:?}");
        let expired = HostError::from(Status::from_error(Box::new(TimeoutExpired(()))));
        assert!(matches!(expired, HostError::Deadline), "{expired:?}");
    }
}
