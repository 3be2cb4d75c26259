//! Why a call to the host failed, and the exception that Python receives for it.

use std::{collections::BTreeMap, error::Error, time::Duration};

use pyo3::{PyErr, PyTypeInfo, Python, import_exception, intern, types::PyAnyMethods};

use snakepit_proto::{
    pb, proxy,
    status::{
        CONNECTION_LOST, DELIVERED, Details, OVERLOADED, REQUEST_TOO_LARGE, SHUTTING_DOWN, WORKER_LOST,
        details_of,
    },
};
use snakepit_registry::CallStage;
use snakepit_session::SessionError;
use tonic::{Code, ConnectError, Status, TimeoutExpired};

import_exception!(snakepit_bridge.errors, SnakepitError);
import_exception!(snakepit_bridge.errors, NotFoundError);
import_exception!(snakepit_bridge.errors, VariableNotFoundError);
import_exception!(snakepit_bridge.errors, ProgramNotFoundError);
import_exception!(snakepit_bridge.errors, AlreadyExistsError);
import_exception!(snakepit_bridge.errors, InvalidArgumentError);
import_exception!(snakepit_bridge.errors, ValidationError);
import_exception!(snakepit_bridge.errors, VersionConflictError);
import_exception!(snakepit_bridge.errors, LimitExceededError);
import_exception!(snakepit_bridge.errors, DeadlineExceededError);
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

/// Looks up all of these classes, before a tool can remove the module that they are in: imported anew, it would have others.
pub(crate) fn preload(py: Python<'_>) {
    let classes = [
        SnakepitError::type_object,
        NotFoundError::type_object,
        VariableNotFoundError::type_object,
        ProgramNotFoundError::type_object,
        AlreadyExistsError::type_object,
        InvalidArgumentError::type_object,
        ValidationError::type_object,
        VersionConflictError::type_object,
        LimitExceededError::type_object,
        DeadlineExceededError::type_object,
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
    // What was looked up once stays.
    for class in classes {
        class(py);
    }
}

/// Why a call back to the host failed.
#[derive(Debug)]
pub(crate) enum HostError {
    /// The tool's own call was cancelled meanwhile.
    Cancelled,
    /// The tool's own call has no time left.
    Deadline,
    /// The client through which it was called is closed.
    Closed,
    /// The client through which it was called was closed while it ran.
    Cut,
    /// The host cannot be reached: nothing was sent. A whole message.
    Unreachable(String),
    /// The host does not answer who connects: nothing was sent. A whole message.
    ConnectTimeout(String),
    /// The call's own deadline passed, and the host did not say so.
    Late { may_have_run: bool },
    /// The connection broke, with the request on its way.
    Lost(String),
    /// The host ended a watch, which it does only when it stops.
    Stopped,
    /// The host refused.
    Status(Status),
    /// The host's tool ran and failed.
    ToolFailed { tool: String, message: String },
    /// The stand-in for a host refused.
    Session(SessionError),
}

/// Whether the connection broke before the request was sent. `false` if there is no new one to be had, either.
pub(super) fn unsent(status: &Status) -> bool {
    let cancelled = |error: &(dyn Error + 'static)| {
        // What hyper had not yet handed to the connection when that broke.
        error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled)
    };
    causes(status).any(cancelled)
}

/// Whether the connection broke with the request on its way. `false` if there is no new one to be had.
pub(crate) fn broke(status: &Status) -> bool {
    causes(status).next().is_some()
        && !causes(status).any(|cause| cause.is::<TimeoutExpired>() || cause.is::<ConnectError>())
}

/// Whether a host broke a stream because a message on it is too large. Only a call that has the stream to itself can make one.
pub(crate) fn is_refusal(status: &Status) -> bool {
    details_of(status).reason.as_deref() == Some(REQUEST_TOO_LARGE)
}

/// Whether a host that closed an idle connection says so: it began no call of the stream that it did not answer.
pub(crate) fn is_not_begun(status: &Status) -> bool {
    let Details { reason, metadata, .. } = details_of(status);
    reason.as_deref() == Some(CONNECTION_LOST) && metadata.get(DELIVERED).is_some_and(|flag| flag == "false")
}

fn causes(status: &Status) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(status.source(), |&error| error.source())
}

impl HostError {
    /// What it means for a call that its stream broke. A host that shuts down says so as the last thing, and so does one that
    /// refuses the message.
    pub(crate) fn from_broken_stream(status: Status) -> Self {
        if is_refusal(&status) || details_of(&status).reason.as_deref() == Some(SHUTTING_DOWN) {
            return Self::Status(status);
        }
        let problem = causes(&status).last().map_or_else(|| status.message().to_owned(), ToString::to_string);
        Self::Lost(problem)
    }
}

impl From<Status> for HostError {
    /// A status that the host did not send has what happened as its source.
    fn from(status: Status) -> Self {
        let Some(cause) = causes(&status).last() else { return Self::Status(status) };
        if cause.is::<TimeoutExpired>() {
            Self::Deadline
        } else if unsent(&status) || causes(&status).any(|cause| cause.is::<ConnectError>()) {
            Self::Unreachable(format!("the host cannot be reached: {cause}"))
        } else {
            Self::Lost(cause.to_string())
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
            HostError::Cut => {
                ran(ClientClosedError::new_err("the client was closed while the call ran"), true)
            }
            HostError::Unreachable(problem) => ran(HostUnavailableError::new_err(problem), false),
            HostError::ConnectTimeout(problem) => ConnectTimeoutError::new_err(problem),
            HostError::Late { may_have_run } => {
                let message = "the deadline passed and the host did not answer; is it still running?";
                ran(DeadlineExceededError::new_err(message), may_have_run)
            }
            HostError::Lost(problem) => HostUnavailableError::new_err(format!(
                "the connection to the host broke: {problem}; is it still running?"
            )),
            HostError::Stopped => ShuttingDownError::new_err("the host ended the watch: it is shutting down"),
            HostError::ToolFailed { tool, message } => HostToolError::new_err((message, tool)),
            HostError::Status(status) => from_status(&status),
            HostError::Session(error) => from_session_error(&error),
        }
    }
}

/// The exception for what the host answered.
fn from_status(status: &Status) -> PyErr {
    let status = &proxy::clarify(status.clone());
    exception(status.message().to_owned(), status.code(), &details_of(status))
}

/// The exception for why one write of a batch was refused. Hosts of the original tell no reason.
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
        (Code::AlreadyExists, _) => AlreadyExistsError::new_err(message),
        (Code::InvalidArgument, "INVALID_VALUE") => ValidationError::new_err(message),
        (Code::InvalidArgument, _) => InvalidArgumentError::new_err(message),
        (Code::DeadlineExceeded, _) => DeadlineExceededError::new_err(message),
        (Code::Cancelled, _) => CallCancelledError::new_err(message),
        (Code::Unimplemented, _) => UnsupportedError::new_err(message),
        (Code::Unavailable, SHUTTING_DOWN) => ShuttingDownError::new_err(message),
        (Code::Unavailable, WORKER_LOST) => WorkerLostError::new_err(message),
        // A write that may have been done comes with a code that no library repeats.
        (Code::Unavailable, _) | (_, "BACKEND_FAILED") => HostUnavailableError::new_err(message),
        (Code::ResourceExhausted, OVERLOADED | "") => OverloadedError::new_err(message),
        (Code::ResourceExhausted, REQUEST_TOO_LARGE) => InvalidArgumentError::new_err(message),
        (Code::ResourceExhausted, _) => LimitExceededError::new_err(message),
        (Code::Aborted, "VERSION_CONFLICT") => version_conflict(message, &details.metadata),
        (code, _) => SnakepitError::new_err(format!("{code:?}: {message}")),
    };
    advise(error, may_have_run(reason, &details.metadata), details.retry_after)
}

/// What the details of a status say about that. `None`: nothing beyond its code.
fn may_have_run(reason: &str, metadata: &BTreeMap<String, String>) -> Option<bool> {
    let is = |key: &str, value: &str| metadata.get(key).is_some_and(|told| told == value);
    let surely_not = match reason {
        "NO_WORKER" => true,
        "DEADLINE_EXCEEDED" => is("stage", &CallStage::Queued.to_string()),
        _ => is(DELIVERED, "false"),
    };
    surely_not.then_some(false)
}

/// Says on an exception whether the call may have run.
pub(crate) fn ran(error: PyErr, may_have_run: bool) -> PyErr {
    advise(error, Some(may_have_run), None)
}

fn advise(error: PyErr, may_have_run: Option<bool>, retry_after: Option<Duration>) -> PyErr {
    if may_have_run.is_none() && retry_after.is_none() {
        return error;
    }
    Python::attach(|py| {
        let exception = error.value(py);
        // Our own exceptions take these attributes; should one not, its class says what holds by default.
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

/// The exception that a host's answer would become.
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
    use std::io;

    use super::*;

    #[test]
    fn what_the_host_says_is_told_from_what_becomes_of_the_connection() {
        let said = HostError::from(Status::unavailable("no worker is ready"));
        assert!(
            matches!(&said, HostError::Status(status) if status.message() == "no worker is ready"),
            "{said:?}"
        );
        let reset = io::Error::new(io::ErrorKind::ConnectionReset, "reset");
        let lost = HostError::from(Status::from_error(Box::new(io::Error::other(reset))));
        assert!(matches!(&lost, HostError::Lost(problem) if problem == "reset"), "{lost:?}");
        let late = HostError::from(Status::from_error(Box::new(TimeoutExpired(()))));
        assert!(matches!(late, HostError::Deadline), "{late:?}");
    }
}
