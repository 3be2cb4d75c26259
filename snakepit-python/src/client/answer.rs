//! Converts the end of a client's call to a Python value or exception.

use pyo3::{
    prelude::*,
    types::{PyString, PyTuple},
};
use snakepit_proto::{
    pb,
    status::{Details, UNSUPPORTED, details_of},
};
use snakepit_wire::failure_from_wire;
use tonic::{Code, Status};

use crate::errors::{
    DeadlineExceededError, HostError, InvalidArgumentError, UnsupportedError, tool_failed, with_may_have_run,
};

/// Options that users may pass as arguments by mistake, and the code that sets them.
const MISPLACED_OPTIONS: [(&str, &str); 4] = [
    ("timeout", "`.options(timeout=..).call(..)`"),
    ("idempotent", "`.options(idempotent=..).call(..)`"),
    ("session", "`client.session(..).call(..)`"),
    ("session_id", "`client.session(..).call(..)`"),
];

/// The way in which the Python caller waits.
#[derive(Debug, Clone, Copy)]
pub(super) enum WaitMode {
    Blocking,
    Async,
}

/// Returns the exception for a call without an answer.
pub(super) fn exception(tool: &Bound<'_, PyString>, error: HostError) -> PyErr {
    match error {
        HostError::Unanswered { may_have_run } => {
            let message = format!(
                "the deadline of tool `{tool}` passed and the host did not answer; is it still running?"
            );
            with_may_have_run(DeadlineExceededError::new_err(message), may_have_run)
        }
        error => error.into(),
    }
}

/// Converts the host's reply. Returns `None` at the end of a stream.
pub(super) fn read_reply(
    tool: &Bound<'_, PyString>,
    reply: pb::CallReply,
    classes: Option<&Py<PyTuple>>,
    is_streaming: bool,
    wait_mode: WaitMode,
) -> PyResult<Option<pb::CallValue>> {
    if let Some(failure) = reply.failure {
        return Err(tool_failed(tool.py(), &failure_from_wire(*failure), classes));
    }
    match reply.status {
        Some(status) => Err(status_exception(tool, Status::from(*status), is_streaming, wait_mode)),
        None => Ok(reply.value),
    }
}

fn status_exception(
    tool: &Bound<'_, PyString>,
    status: Status,
    is_streaming: bool,
    wait_mode: WaitMode,
) -> PyErr {
    let Details { reason, violations, .. } = details_of(&status);
    match (status.code(), reason.as_deref()) {
        (Code::Unimplemented, Some(UNSUPPORTED)) => {
            let (problem, method) = match (is_streaming, wait_mode) {
                (false, WaitMode::Blocking) => ("streams its results", "stream"),
                (false, WaitMode::Async) => ("streams its results", "stream_async"),
                (true, WaitMode::Blocking) => ("does not stream", "call"),
                (true, WaitMode::Async) => ("does not stream", "call_async"),
            };
            UnsupportedError::new_err(format!("tool `{tool}` {problem}; call it with `{method}()`"))
        }
        (Code::InvalidArgument, _) => {
            let mut violations = violations.into_iter();
            let unknown = violations.find(|violation| violation.description.starts_with("is unknown"));
            let option =
                unknown.and_then(|unknown| MISPLACED_OPTIONS.iter().find(|(name, _)| *name == unknown.field));
            match option {
                Some((_, usage)) => {
                    InvalidArgumentError::new_err(format!("{}; did you mean {usage}?", status.message()))
                }
                None => HostError::Status(status).into(),
            }
        }
        _ => HostError::Status(status).into(),
    }
}
