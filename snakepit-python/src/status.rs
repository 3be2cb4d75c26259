//! gRPC statuses for the errors of this worker.

use snakepit_proto::status::{self, error_status, error_status_with, failure_status};
use snakepit_registry::{ToolError, ToolFailure};
use snakepit_session::error_chain;
use snakepit_wire::{failure_to_wire, fault_to_wire};
use tonic::{Code, Status};

/// Converts an error to a gRPC status. The reason in its details distinguishes errors of the worker from those of a
/// tool.
pub(crate) fn to_status(error: ToolError, session_id: String) -> Status {
    let message = error.to_string();
    match error {
        ToolError::Failed(failure) => {
            failure_status(Code::Internal, one_line(&failure), &failure_to_wire(*failure, session_id))
        }
        ToolError::NotFound { .. } => error_status(Code::NotFound, status::TOOL_NOT_FOUND, message),
        error @ ToolError::InvalidArguments { .. } => fault_to_wire(error.into()),
        // The host adds the name of the tool in front.
        ToolError::Unsupported { problem, may_have_run, .. } => {
            let may_have_run = may_have_run.then(|| (status::DELIVERED, true.to_string()));
            error_status_with(Code::Unimplemented, status::UNSUPPORTED, problem, may_have_run)
        }
        ToolError::AnswerTooLarge { size, limit, .. } => status::answer_too_large(message, size, limit),
        ToolError::Cancelled { .. } => error_status(Code::Cancelled, status::CANCELLED, message),
        ToolError::Unavailable { reason, .. } => error_status(Code::Unavailable, status::STOPPING, reason),
        error @ ToolError::Internal { .. } => {
            let message = error_chain(&error).to_string();
            let problem = message.strip_prefix("internal error: ").unwrap_or(&message);
            error_status(Code::Internal, status::INTERNAL, problem)
        }
        _ => error_status(Code::Internal, status::INTERNAL, message),
    }
}

/// Formats a failure as `Type: message`, on one line.
pub(crate) fn one_line(failure: &ToolFailure) -> String {
    let text = failure.to_string();
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_several_lines_becomes_one() {
        let failure = ToolFailure::new("E", "a\n  b\n");
        assert_eq!(one_line(&failure), "E: a b");
    }

    #[test]
    fn statuses_have_their_reason() {
        let tool = || "echo".to_owned();
        let bad = ToolError::invalid_argument(tool(), "x", "is missing");
        let errors = [
            (ToolError::not_found(tool()), Code::NotFound, status::TOOL_NOT_FOUND),
            (bad.clone(), Code::InvalidArgument, status::INVALID_ARGUMENT),
            (ToolError::unsupported(tool(), "streams"), Code::Unimplemented, status::UNSUPPORTED),
            (ToolError::cancelled(tool()), Code::Cancelled, status::CANCELLED),
            (ToolError::unavailable("it stops"), Code::Unavailable, status::STOPPING),
            (ToolError::internal("bug"), Code::Internal, status::INTERNAL),
            (ToolError::Failed(Box::default()), Code::Internal, status::TOOL_FAILED),
        ];
        for (error, code, reason) in errors {
            let status = to_status(error, String::new());
            let sent = status::details_of(&status).reason;
            assert_eq!((status.code(), sent.as_deref()), (code, Some(reason)), "{status:?}");
        }
        let violation = status::details_of(&to_status(bad, String::new())).violations.remove(0);
        assert_eq!((violation.field.as_str(), violation.description.as_str()), ("x", "is missing"));
    }
}
