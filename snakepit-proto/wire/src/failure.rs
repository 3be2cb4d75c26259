//! Conversions of failures of tools, and statuses of invalid requests.

use snakepit_proto::{
    pb,
    status::{bounded, field_error_status},
};
use snakepit_registry::ToolFailure;
use tonic::Status;

/// Converts the failure of a tool from its message.
#[must_use]
pub fn failure_from_wire(failure: pb::ToolFailure) -> ToolFailure {
    let pb::ToolFailure { r#type, message, traceback, tool_name, worker_id, session_id: _, output_lines } =
        failure;
    ToolFailure { tool: tool_name, error_type: r#type, message, traceback, worker: worker_id, output_lines }
}

/// Converts the failure of a tool to a message, within the size limits of [`bounded`].
#[must_use]
pub fn failure_to_wire(failure: ToolFailure, session_id: String) -> pb::ToolFailure {
    let ToolFailure { tool, error_type, message, traceback, worker, output_lines } = failure;
    bounded(pb::ToolFailure {
        r#type: error_type,
        message,
        traceback,
        tool_name: tool,
        worker_id: worker,
        session_id,
        output_lines,
    })
}

/// The status of a call with an invalid argument.
#[must_use]
pub fn bad_argument(tool: &str, argument: &str, problem: &str) -> Status {
    field_error_status(format!("argument `{argument}` of tool `{tool}` {problem}"), argument, problem)
}

/// The status of a request with an invalid field.
#[must_use]
pub fn bad_field(field: &str, problem: &str) -> Status {
    field_error_status(format!("`{field}` {problem}"), field, problem)
}
