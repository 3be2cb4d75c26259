//! The way back: a status that a host sent, as the error that it was made of.

use std::{error::Error as _, time::Duration};

use snakepit_proto::status::{Details, caused_by, details_of, root_cause};
use snakepit_registry::{CallStage, ToolError, ToolFailure};
use snakepit_session::{SessionError, SessionId};
use snakepit_worker::wire::failure_from_wire;
use tonic::Status;
use tonic_types::StatusExt;

/// What is at the other end, as errors name it.
pub(crate) const HOST: &str = "the host";

/// Reads the status that a call of a tool got from a host. What a host of another kind sent, without reasons, is told by
/// its text.
#[must_use]
pub fn to_tool_error(tool: &str, status: &Status) -> ToolError {
    let tool_name = || tool.to_owned();
    if caused_by::<tonic::TimeoutExpired>(status) {
        return ToolError::DeadlineExceeded { tool: tool_name(), stage: CallStage::Running };
    }
    if let Some(source) = status.source() {
        let problem = root_cause(source).to_string();
        if caused_by::<tonic::ConnectError>(status) {
            // Without a connection the request cannot have reached the host.
            let reason = format!("{HOST} cannot be reached: {problem}");
            return ToolError::Unavailable { reason, retry_after: None };
        }
        return ToolError::ConnectionLost { peer: HOST.to_owned(), problem };
    }
    let details = status.get_error_details();
    let info = details.error_info();
    let entry = |key: &str| info.and_then(|info| info.metadata.get(key)).cloned();
    let number = |key: &str| entry(key).and_then(|text| text.parse().ok()).unwrap_or_default();
    let retry_after: Option<Duration> = details.retry_info().and_then(|info| info.retry_delay);
    let message = || status.message().to_owned();
    let after = |prefix: &str| status.message().strip_prefix(prefix).unwrap_or(status.message()).to_owned();
    let session = || SessionId::try_new(entry("session")?).ok();
    // A host that does not say enough says it in its message.
    let in_session = |error: Option<SessionError>| {
        ToolError::Session(error.unwrap_or_else(|| SessionError::Backend { problem: message() }))
    };
    let Details { failure, violation, .. } = details_of(status);
    match (info.map(|info| info.reason.as_str()).unwrap_or_default(), failure, violation) {
        ("TOOL_NOT_FOUND", ..) => ToolError::NotFound { tool: tool_name(), suggestion: entry("suggestion") },
        ("INVALID_ARGUMENT", _, Some(violation)) => ToolError::InvalidArgument {
            tool: tool_name(),
            argument: violation.field,
            problem: violation.description,
        },
        ("UNSUPPORTED", ..) => {
            ToolError::Unsupported { tool: tool_name(), problem: after(&format!("tool `{tool}` ")) }
        }
        ("TOOL_FAILED", Some(failure), _) => {
            let failure = failure_from_wire(failure);
            ToolError::Failed(Box::new(ToolFailure { tool: tool_name(), ..failure }))
        }
        ("OVERLOADED", ..) => {
            ToolError::Overloaded { queued: number("queued"), limit: number("limit"), retry_after }
        }
        ("DEADLINE_EXCEEDED", ..) => {
            let queued = entry("stage").is_some_and(|stage| stage == CallStage::Queued.to_string());
            let stage = if queued { CallStage::Queued } else { CallStage::Running };
            ToolError::DeadlineExceeded { tool: tool_name(), stage }
        }
        ("CANCELLED", ..) => ToolError::Cancelled { tool: tool_name() },
        ("WORKER_LOST", Some(lost), _) => ToolError::WorkerLost {
            worker: lost.worker_id,
            reason: lost.message,
            delivered: true,
            output_lines: lost.output_lines,
        },
        ("CONNECTION_LOST", ..) => ToolError::ConnectionLost {
            peer: entry("peer").unwrap_or_default(),
            problem: entry("problem").unwrap_or_default(),
        },
        ("NO_WORKER", ..) => {
            ToolError::Unavailable { reason: after("no worker is available: "), retry_after }
        }
        ("SESSION_NOT_FOUND", ..) => in_session(session().map(|id| SessionError::NotFound { id })),
        ("PROGRAM_NOT_FOUND", ..) => in_session(
            session()
                .and_then(|session| Some(SessionError::ProgramNotFound { session, name: entry("program")? })),
        ),
        ("TOO_MANY_SESSIONS", ..) => {
            in_session(Some(SessionError::TooManySessions { limit: number("limit") }))
        }
        ("SESSION_FULL", ..) => in_session(session().map(|session| {
            let limit = number("limit");
            match entry("size") {
                Some(_) => SessionError::SessionTooLarge { session, size: number("size"), limit },
                None => SessionError::TooManyPrograms { session, limit },
            }
        })),
        ("BACKEND_FULL", ..) => {
            in_session(Some(SessionError::BackendFull { size: number("size"), limit: number("limit") }))
        }
        ("BACKEND_FAILED", ..) => {
            in_session(entry("problem").map(|problem| SessionError::Backend { problem }))
        }
        ("INTERNAL", ..) => ToolError::Internal { problem: after("internal error: ") },
        _ => ToolError::Internal {
            problem: format!("the host answered {:?}: {}", status.code(), status.message()),
        },
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::status::from_tool_error;

    #[test]
    fn what_went_over_the_wire_comes_back_as_it_was() {
        let tool = || "add".to_owned();
        let session = || SessionId::try_new("s").unwrap();
        let errors = [
            ToolError::NotFound { tool: tool(), suggestion: Some("adds".into()) },
            ToolError::NotFound { tool: tool(), suggestion: None },
            ToolError::InvalidArgument { tool: tool(), argument: "a".into(), problem: "is missing".into() },
            ToolError::Unsupported { tool: tool(), problem: "streams".into() },
            ToolError::Failed(Box::new(ToolFailure {
                tool: tool(),
                error_type: "ValueError".into(),
                message: "no".into(),
                traceback: "Traceback".into(),
                worker: "default-1-1".into(),
                output_lines: vec!["oops".into()],
            })),
            ToolError::Overloaded { queued: 9, limit: 9, retry_after: Some(Duration::from_millis(50)) },
            ToolError::DeadlineExceeded { tool: tool(), stage: CallStage::Queued },
            ToolError::DeadlineExceeded { tool: tool(), stage: CallStage::Running },
            ToolError::Cancelled { tool: tool() },
            ToolError::WorkerLost {
                worker: "default-1-1".into(),
                reason: "it exited with code 1".into(),
                delivered: true,
                output_lines: vec!["oops".into()],
            },
            ToolError::ConnectionLost { peer: "the host".into(), problem: "broken pipe".into() },
            ToolError::Unavailable { reason: "the pool is draining".into(), retry_after: None },
            ToolError::Session(SessionError::NotFound { id: session() }),
            ToolError::Session(SessionError::ProgramNotFound { session: session(), name: "m".into() }),
            ToolError::Session(SessionError::TooManySessions { limit: 1 }),
            ToolError::Session(SessionError::TooManyPrograms { session: session(), limit: 9 }),
            ToolError::Session(SessionError::SessionTooLarge { session: session(), size: 10, limit: 9 }),
            ToolError::Session(SessionError::BackendFull { size: 10, limit: 9 }),
            ToolError::Session(SessionError::Backend { problem: "disk full".into() }),
            ToolError::Internal { problem: "bug".into() },
        ];
        for error in errors {
            let expected = format!("{error:?}");
            let back = to_tool_error("add", &from_tool_error(error));
            assert_eq!(format!("{back:?}"), expected);
        }
    }

    #[test]
    fn a_status_without_a_reason_is_told_by_its_text() {
        let error = to_tool_error("add", &Status::new(Code::Unauthenticated, "who are you?"));
        assert_eq!(error.to_string(), "internal error: the host answered Unauthenticated: who are you?");
    }
}
