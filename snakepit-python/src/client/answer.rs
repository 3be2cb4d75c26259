//! Converts the end of a client's call to a Python value or exception.

use pyo3::{prelude::*, types::PyString};
use snakepit_proto::{
    pb,
    status::{Details, UNSUPPORTED, details_of},
};
use tonic::{Code, Status};

use crate::errors::{
    DeadlineExceededError, HostError, InvalidArgumentError, ToolFailed, UnsupportedError, ran,
};

/// Options that users pass as arguments by mistake, and where they belong.
const OPTIONS: [(&str, &str); 4] = [
    ("timeout", "`.options(timeout=..).call(..)`"),
    ("idempotent", "`.options(idempotent=..).call(..)`"),
    ("session", "`client.session(..).call(..)`"),
    ("session_id", "`client.session(..).call(..)`"),
];

/// How the Python caller waits.
#[derive(Debug, Clone, Copy)]
pub(super) enum Form {
    Blocking,
    Async,
}

/// Returns the exception for a call without an answer.
pub(super) fn failed(tool: &Bound<'_, PyString>, error: HostError) -> PyErr {
    match error {
        HostError::Late { may_have_run } => {
            let message = format!(
                "the deadline of tool `{tool}` passed and the host did not answer; is it still running?"
            );
            ran(DeadlineExceededError::new_err(message), may_have_run)
        }
        error => error.into(),
    }
}

/// Reads an answer. Returns `None` at the end of a stream.
pub(super) fn read(
    tool: &Bound<'_, PyString>,
    reply: pb::CallReply,
    streams: bool,
    form: Form,
) -> PyResult<Option<pb::CallValue>> {
    if let Some(failure) = reply.failure {
        let pb::ToolFailure { r#type, message, traceback, .. } = failure;
        return Err(ToolFailed::new_err((r#type, message, traceback)));
    }
    match reply.status {
        Some(status) => Err(refused(tool, Status::from(status), streams, form)),
        None => Ok(reply.value),
    }
}

fn refused(tool: &Bound<'_, PyString>, status: Status, streams: bool, form: Form) -> PyErr {
    let Details { reason, violation, .. } = details_of(&status);
    match (status.code(), reason.as_deref()) {
        (Code::Unimplemented, Some(UNSUPPORTED)) => {
            let (problem, other) = match (streams, form) {
                (false, Form::Blocking) => ("streams its results", "stream"),
                (false, Form::Async) => ("streams its results", "stream_async"),
                (true, Form::Blocking) => ("does not stream", "call"),
                (true, Form::Async) => ("does not stream", "call_async"),
            };
            UnsupportedError::new_err(format!("tool `{tool}` {problem}; call it with `{other}()`"))
        }
        (Code::InvalidArgument, _) => {
            let unknown = violation.filter(|violation| violation.description.starts_with("is unknown"));
            let option = unknown.and_then(|unknown| OPTIONS.iter().find(|(name, _)| *name == unknown.field));
            match option {
                Some((_, way)) => {
                    InvalidArgumentError::new_err(format!("{}; did you mean {way}?", status.message()))
                }
                None => HostError::Status(status).into(),
            }
        }
        _ => HostError::Status(status).into(),
    }
}
