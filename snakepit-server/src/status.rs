//! Converts errors to gRPC statuses. No other module constructs a status.
//!
//! | error | code | reason |
//! | --- | --- | --- |
//! | tool not found | `NOT_FOUND` | `TOOL_NOT_FOUND` |
//! | bad argument | `INVALID_ARGUMENT`, with a field violation | `INVALID_ARGUMENT` |
//! | tool does not support this kind of call, or RPC not offered | `UNIMPLEMENTED` | `UNSUPPORTED` |
//! | tool raised an exception (streams only; a unary call returns `success = false`) | `INTERNAL`, with a `ToolFailure` | `TOOL_FAILED` |
//! | queue full | `RESOURCE_EXHAUSTED`, with a retry delay | `OVERLOADED` |
//! | call would wait for itself | `FAILED_PRECONDITION` | `DEADLOCK` |
//! | deadline exceeded | `DEADLINE_EXCEEDED` | `DEADLINE_EXCEEDED` |
//! | cancelled | `CANCELLED` | `CANCELLED` |
//! | worker lost | `UNAVAILABLE`, with `delivered` (whether the call may have run), and the last output lines in a `ToolFailure` | `WORKER_LOST` |
//! | connection to another host lost | `UNAVAILABLE` | `CONNECTION_LOST` |
//! | idle connection evicted before the call began | `UNAVAILABLE`, with `delivered=false` | `CONNECTION_LOST` |
//! | no worker available | `UNAVAILABLE`, with a retry delay | `NO_WORKER` |
//! | rejected or cut off because the host shuts down | `UNAVAILABLE`, with `delivered` | `SHUTTING_DOWN` |
//! | the host cannot run calls, because its tokio runtime has ended | `UNAVAILABLE`, with `delivered` | `NO_RUNTIME` |
//! | another program than the host, such as a proxy, rejected the call | `FAILED_PRECONDITION` | `REJECTED` |
//! | timeout of a layer of the program | `DEADLINE_EXCEEDED`, with `layer` | `DEADLINE_EXCEEDED` |
//! | rejected by a layer of the program that is overloaded | `RESOURCE_EXHAUSTED`, with `layer` | `OVERLOADED` |
//! | any other error of a layer of the program | `FAILED_PRECONDITION`, or `UNKNOWN` if the call may have run, with `layer` | `REJECTED` |
//! | session, program or variable not found | `NOT_FOUND` | `SESSION_NOT_FOUND`, `PROGRAM_NOT_FOUND`, `VARIABLE_NOT_FOUND` |
//! | version no longer kept | `NOT_FOUND` | `VERSION_NOT_KEPT` |
//! | variable exists | `ALREADY_EXISTS` | `VARIABLE_EXISTS` |
//! | variable not at the expected version | `ABORTED`, with both versions | `VERSION_CONFLICT` |
//! | value outside its type, or too large | `INVALID_ARGUMENT`, with a field violation | `INVALID_VALUE` |
//! | too many sessions, variables, watches, global programs | `RESOURCE_EXHAUSTED` | `TOO_MANY_SESSIONS`, `_VARIABLES`, `_WATCHES`, `_PROGRAMS` |
//! | too many programs, or too many bytes, in a session | `RESOURCE_EXHAUSTED` | `SESSION_FULL` |
//! | too many bytes in all sessions | `RESOURCE_EXHAUSTED` | `BACKEND_FULL` |
//! | requested values too large for one message | `RESOURCE_EXHAUSTED` | `ANSWER_TOO_LARGE` |
//! | requests of one connection or of all connections use too much memory | `RESOURCE_EXHAUSTED`, with a retry delay | `OVERLOADED` |
//! | too many bytes of responses that the client has not read | `RESOURCE_EXHAUSTED` | `ANSWER_DROPPED` |
//! | message or headers of a request above their limit | `RESOURCE_EXHAUSTED` | `REQUEST_TOO_LARGE` |
//! | message of a request too slow or incomplete | `DEADLINE_EXCEEDED`, `CANCELLED` | `REQUEST_INCOMPLETE` |
//! | invalid names, types, sizes, metadata, page tokens | `INVALID_ARGUMENT`, with a field violation | `INVALID_ARGUMENT` |
//! | session backend failed during a read, or while opening a session | `UNAVAILABLE` | `BACKEND_FAILED` |
//! | session backend cannot write, and wrote nothing | `UNAVAILABLE`, with `delivered=false` | `BACKEND_FAILED` |
//! | session backend failed during a write | `INTERNAL`, with `delivered=true`, because gRPC libraries retry `UNAVAILABLE` automatically | `BACKEND_FAILED` |
//! | `RegisterTools` by a process that is not a worker of the host; an RPC for clients on the listener of a worker | `PERMISSION_DENIED` | `RESERVED` |
//! | incompatible version of `snakepit_bridge` | `FAILED_PRECONDITION` | `INCOMPATIBLE_VERSION` |
//! | anything else | `INTERNAL` | `INTERNAL` |
//!
//! [`fit`] truncates each status to the size of trailers that HTTP/2 peers accept.

use std::{collections::HashMap, time::Duration};

use snakepit_proto::{
    pb,
    status::{
        CONNECTION_LOST, DELIVERED, ERROR_DOMAIN, LAYER, SHUTTING_DOWN, attach_failure, brief, fit,
        request_too_large, worker_lost,
    },
};
use snakepit_registry::{CallStage, ErrorKind, ToolError};
use snakepit_session::{SessionError, error_chain};
use snakepit_wire::failure_to_wire;
use tonic::Code;
/// The gRPC status of the version of `tonic` that this crate uses.
pub use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt};

pub use snakepit_client::status::to_tool_error;

use crate::limits::{BudgetExhausted, MAX_FIELDS, MessageTooLarge};

/// The retry delay after a budget was exhausted. By then, other requests have usually released memory.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// Converts the error of a call to a gRPC status with details.
#[must_use]
pub fn from_tool_error(error: ToolError) -> Status {
    let message = match &error {
        // A client cannot follow the sources.
        ToolError::Layer { .. } => error_chain(&error).to_string(),
        error => error.to_string(),
    };
    match error {
        ToolError::NotFound { suggestion, .. } => {
            let suggestion = suggestion.map(|name| ("suggestion", brief(&name)));
            with_details(Code::NotFound, message, details_with("TOOL_NOT_FOUND", suggestion))
        }
        ToolError::InvalidArgument { argument, problem, .. } => {
            let mut details = details("INVALID_ARGUMENT");
            details.add_bad_request_violation(brief(&argument), brief(&problem));
            with_details(Code::InvalidArgument, message, details)
        }
        ToolError::Unsupported { delivered, .. } => {
            let details = details_with("UNSUPPORTED", delivered.then(|| (DELIVERED, true.to_string())));
            with_details(Code::Unimplemented, message, details)
        }
        ToolError::Failed(failure) => {
            attach_failure(Code::Internal, message, &failure_to_wire(*failure, String::new()))
        }
        ToolError::Overloaded { queued, limit, retry_after } => {
            let numbers = [("queued", queued.to_string()), ("limit", limit.to_string())];
            let mut details = details_with("OVERLOADED", numbers);
            details.set_retry_info(retry_after);
            with_details(Code::ResourceExhausted, message, details)
        }
        ToolError::TooManyBytes { holders, used, limit, retry_after } => {
            let entries =
                [("whose", brief(&holders)), ("used_bytes", used.to_string()), ("limit", limit.to_string())];
            let mut details = details_with("OVERLOADED", entries);
            details.set_retry_info(retry_after);
            with_details(Code::ResourceExhausted, message, details)
        }
        // No retry delay: the tool has run.
        ToolError::AnswerDropped { used, limit } => {
            let entries = [("used_bytes", used.to_string()), ("limit", limit.to_string())];
            with_details(Code::ResourceExhausted, message, details_with("ANSWER_DROPPED", entries))
        }
        ToolError::DeadlineExceeded { stage, .. } => {
            let details = details_with("DEADLINE_EXCEEDED", [("stage", stage.to_string())]);
            with_details(Code::DeadlineExceeded, message, details)
        }
        ToolError::Cancelled { .. } => status(Code::Cancelled, "CANCELLED", message),
        ToolError::WorkerLost { worker, reason, delivered, output_lines, retry_after } => {
            let worker_failure =
                pb::ToolFailure { message: reason, worker_id: worker, output_lines, ..Default::default() };
            worker_lost(message, delivered, &worker_failure, retry_after)
        }
        ToolError::ConnectionLost { peer, problem, retry_after, .. } => {
            let entries = [("peer", brief(&peer)), ("problem", brief(&problem))];
            let mut details = details_with(CONNECTION_LOST, entries);
            if retry_after.is_some() {
                details.set_retry_info(retry_after);
            }
            with_details(Code::Unavailable, message, details)
        }
        ToolError::Unavailable { retry_after, .. } => {
            let mut details = details("NO_WORKER");
            details.set_retry_info(retry_after);
            with_details(Code::Unavailable, message, details)
        }
        ToolError::Deadlock { .. } => status(Code::FailedPrecondition, "DEADLOCK", message),
        ToolError::ShuttingDown { delivered } => {
            let details = details_with(SHUTTING_DOWN, [(DELIVERED, delivered.to_string())]);
            with_details(Code::Unavailable, message, details)
        }
        ToolError::Rejected { .. } => status(Code::FailedPrecondition, "REJECTED", message),
        ToolError::NoRuntime { delivered, .. } => {
            let details = details_with("NO_RUNTIME", [(DELIVERED, delivered.to_string())]);
            with_details(Code::Unavailable, message, details)
        }
        ToolError::Layer { kind, delivered, .. } => layer_status(kind, delivered, message),
        ToolError::Session(error) => from_session_error(&error),
        _ => status(Code::Internal, "INTERNAL", message),
    }
}

/// The status for the error of a layer. The entry `layer` distinguishes it from the same error of the host.
fn layer_status(kind: ErrorKind, delivered: bool, message: String) -> Status {
    let code = match kind {
        ErrorKind::DeadlineExceeded => Code::DeadlineExceeded,
        ErrorKind::Overloaded => Code::ResourceExhausted,
        // gRPC libraries retry neither code.
        _ if delivered => Code::Unknown,
        _ => Code::FailedPrecondition,
    };
    let stage = if delivered { CallStage::Running } else { CallStage::Queued };
    let entries =
        [(LAYER, true.to_string()), (DELIVERED, delivered.to_string()), ("stage", stage.to_string())];
    with_details(code, message, details_with(kind.reason(), entries))
}

/// Converts a session error to a gRPC status with details.
#[must_use]
pub fn from_session_error(error: &SessionError) -> Status {
    session_status(error, false)
}

/// Converts the error of a write. If the backend failed, the write may have succeeded, so the code is not one that gRPC libraries retry
/// automatically.
#[must_use]
pub fn from_write_error(error: &SessionError) -> Status {
    session_status(error, matches!(error, SessionError::Backend { .. }))
}

fn session_status(error: &SessionError, may_have_succeeded: bool) -> Status {
    let (code, reason) = match error {
        SessionError::NotFound { .. } => (Code::NotFound, "SESSION_NOT_FOUND"),
        SessionError::ProgramNotFound { .. } | SessionError::GlobalProgramNotFound { .. } => {
            (Code::NotFound, "PROGRAM_NOT_FOUND")
        }
        SessionError::VariableNotFound { .. } => (Code::NotFound, "VARIABLE_NOT_FOUND"),
        SessionError::VersionNotKept { .. } => (Code::NotFound, "VERSION_NOT_KEPT"),
        SessionError::VariableExists { .. } => (Code::AlreadyExists, "VARIABLE_EXISTS"),
        SessionError::VersionConflict { .. } => (Code::Aborted, "VERSION_CONFLICT"),
        SessionError::TooManySessions { .. } => (Code::ResourceExhausted, "TOO_MANY_SESSIONS"),
        SessionError::TooManyVariables { .. } => (Code::ResourceExhausted, "TOO_MANY_VARIABLES"),
        SessionError::TooManyWatches { .. } => (Code::ResourceExhausted, "TOO_MANY_WATCHES"),
        SessionError::TooManyGlobalPrograms { .. } => (Code::ResourceExhausted, "TOO_MANY_PROGRAMS"),
        SessionError::TooManyPrograms { .. } | SessionError::SessionTooLarge { .. } => {
            (Code::ResourceExhausted, "SESSION_FULL")
        }
        SessionError::BackendFull { .. } => (Code::ResourceExhausted, "BACKEND_FULL"),
        SessionError::InvalidValue { .. } | SessionError::ValueTooLarge { .. } => {
            (Code::InvalidArgument, "INVALID_VALUE")
        }
        SessionError::InvalidId { .. }
        | SessionError::InvalidProgramName { .. }
        | SessionError::ProgramTooLarge { .. }
        | SessionError::MetadataTooLarge { .. }
        | SessionError::InvalidVariableName { .. }
        | SessionError::InvalidType { .. }
        | SessionError::WrittenTwice { .. }
        | SessionError::TooManyNames { .. }
        | SessionError::BatchRejected { .. }
        | SessionError::InvalidPageToken => (Code::InvalidArgument, "INVALID_ARGUMENT"),
        SessionError::Backend { .. } if may_have_succeeded => (Code::Internal, "BACKEND_FAILED"),
        SessionError::Backend { .. } | SessionError::NotWritten { .. } => {
            (Code::Unavailable, "BACKEND_FAILED")
        }
        _ => (Code::Internal, "INTERNAL"),
    };
    let mut entries = entries_of(error);
    if may_have_succeeded {
        entries.push((DELIVERED, true.to_string()));
    } else if matches!(error, SessionError::NotWritten { .. }) {
        entries.push((DELIVERED, false.to_string()));
    }
    let mut details = details_with(reason, entries);
    if let Some(field) = field_of(error) {
        details.add_bad_request_violation(field, brief(&error.to_string()));
    }
    // A client cannot follow the sources.
    with_details(code, error_chain(error).to_string(), details)
}

/// The field of a request that an error refers to.
const fn field_of(error: &SessionError) -> Option<&'static str> {
    Some(match error {
        SessionError::InvalidId { .. } => "session_id",
        SessionError::InvalidProgramName { .. } | SessionError::InvalidVariableName { .. } => "name",
        SessionError::ProgramTooLarge { .. } => "program",
        SessionError::MetadataTooLarge { .. } => "metadata",
        SessionError::InvalidType { .. } => "type",
        SessionError::InvalidValue { .. } | SessionError::ValueTooLarge { .. } => "value",
        SessionError::WrittenTwice { .. } | SessionError::BatchRejected { .. } => "updates",
        SessionError::TooManyNames { .. } => "variable_identifiers",
        SessionError::InvalidPageToken => "page_token",
        _ => return None,
    })
}

/// The metadata from which a client reconstructs the error.
fn entries_of(error: &SessionError) -> Vec<(&'static str, String)> {
    match error {
        SessionError::NotFound { id } => vec![("session", id.to_string())],
        SessionError::ProgramNotFound { session, name } => {
            vec![("session", session.to_string()), ("program", brief(name))]
        }
        SessionError::GlobalProgramNotFound { name } => vec![("program", brief(name))],
        SessionError::VariableNotFound { session, identifier } => {
            vec![("session", session.to_string()), ("variable", brief(identifier))]
        }
        SessionError::VariableExists { session, name } => {
            vec![("session", session.to_string()), ("variable", name.clone())]
        }
        SessionError::InvalidValue { variable, .. } => vec![("variable", variable.clone())],
        SessionError::ValueTooLarge { variable, size, limit } => {
            vec![("variable", variable.clone()), ("size", size.to_string()), ("limit", limit.to_string())]
        }
        SessionError::VersionConflict { variable, expected, actual } => vec![
            ("variable", variable.clone()),
            ("expected", expected.to_string()),
            ("actual", actual.to_string()),
        ],
        SessionError::VersionNotKept { variable, version, oldest, newest } => vec![
            ("variable", variable.clone()),
            ("version", version.to_string()),
            ("oldest", oldest.to_string()),
            ("newest", newest.to_string()),
        ],
        SessionError::WrittenTwice { variable } => vec![("variable", variable.clone())],
        SessionError::TooManyNames { given, limit } => {
            vec![("given", given.to_string()), ("limit", limit.to_string())]
        }
        SessionError::ProgramTooLarge { name, size, limit } => {
            vec![("program", brief(name)), ("size", size.to_string()), ("limit", limit.to_string())]
        }
        SessionError::MetadataTooLarge { entries, bytes, max_entries, max_bytes } => vec![
            ("entries", entries.to_string()),
            ("bytes", bytes.to_string()),
            ("max_entries", max_entries.to_string()),
            ("max_bytes", max_bytes.to_string()),
        ],
        SessionError::TooManySessions { limit }
        | SessionError::TooManyWatches { limit }
        | SessionError::TooManyGlobalPrograms { limit } => vec![("limit", limit.to_string())],
        SessionError::TooManyPrograms { session, limit }
        | SessionError::TooManyVariables { session, limit } => {
            vec![("session", session.to_string()), ("limit", limit.to_string())]
        }
        SessionError::SessionTooLarge { session, size, limit } => {
            vec![("session", session.to_string()), ("size", size.to_string()), ("limit", limit.to_string())]
        }
        SessionError::BackendFull { size, limit } => {
            vec![("size", size.to_string()), ("limit", limit.to_string())]
        }
        SessionError::Backend { problem, source } | SessionError::NotWritten { problem, source } => {
            let causes = source.as_ref().map(|source| format!(": {}", error_chain(&**source)));
            vec![("problem", brief(&(problem.clone() + &causes.unwrap_or_default())))]
        }
        _ => Vec::new(),
    }
}

/// The status for a request that violates the protocol. It names the field and the problem.
#[must_use]
pub fn invalid_field(field: &str, problem: impl std::fmt::Display) -> Status {
    let mut details = details("INVALID_ARGUMENT");
    details.add_bad_request_violation(brief(field), brief(&problem.to_string()));
    with_details(Code::InvalidArgument, format!("`{field}` {problem}"), details)
}

/// The status for an RPC that exceeded its deadline outside of a tool call.
pub(crate) fn rpc_deadline_exceeded() -> Status {
    let message = "the deadline passed before the host had an answer; raise the timeout".to_owned();
    status(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", message)
}

/// The status that ends open-ended streams when the host stops. `delivered` states whether calls of the stream may have run.
pub(crate) fn shutting_down(delivered: bool) -> Status {
    from_tool_error(ToolError::ShuttingDown { delivered })
}

/// The status that ends the `Multiplex` stream of an evicted connection. No call of the stream is running, and none has begun without
/// a reply.
pub(crate) fn connection_evicted() -> Status {
    let message =
        "the host closed this idle connection to make room for another; the call was not begun, repeat it";
    let details = details_with(CONNECTION_LOST, [(DELIVERED, false.to_string())]);
    with_details(Code::Unavailable, message.to_owned(), details)
}

/// The status for a response above the size limit of a message.
pub(crate) fn answer_too_large(what: &str, size: usize, limit: usize, instead: &str) -> Status {
    let message =
        format!("{what} have {size} bytes together, above the limit of {limit} of a message; {instead}");
    status(Code::ResourceExhausted, "ANSWER_TOO_LARGE", message)
}

/// The error for a request that exceeds the budget of its connection.
pub(crate) fn connection_budget_exhausted(full: BudgetExhausted) -> ToolError {
    overloaded("requests of this connection", full)
}

/// The error for a request that exceeds the budget of arriving requests on all connections.
pub(crate) fn arrival_budget_exhausted(full: BudgetExhausted) -> ToolError {
    overloaded("requests that are arriving", full)
}

/// The error for a request that did not begin because of the budget for unread responses.
pub(crate) fn response_budget_exhausted(full: BudgetExhausted) -> ToolError {
    overloaded("answers that wait to be read", full)
}

/// The error that replaces a response because of the budget for unread responses.
pub(crate) const fn answer_dropped(BudgetExhausted { used, limit }: BudgetExhausted) -> ToolError {
    ToolError::AnswerDropped { used, limit }
}

/// The status that ends a stream whose next message exceeds a budget. `delivered` states whether an earlier message arrived,
/// whose calls may have begun.
pub(crate) fn stream_rejected(error: ToolError, delivered: bool) -> Status {
    let status = from_tool_error(error);
    let mut details = status.get_error_details();
    if let Some(info) = details.error_info().cloned() {
        let mut metadata = info.metadata;
        metadata.insert(DELIVERED.to_owned(), delivered.to_string());
        details.set_error_info(info.reason, info.domain, metadata);
    }
    with_details(status.code(), status.message().to_owned(), details)
}

fn overloaded(holders: &str, BudgetExhausted { used, limit }: BudgetExhausted) -> ToolError {
    ToolError::TooManyBytes { holders: holders.to_owned(), used, limit, retry_after: Some(RETRY_AFTER) }
}

/// The status for a message above a limit. `limit` is the limit of its size in bytes.
pub(crate) fn message_too_large(error: MessageTooLarge, limit: usize) -> Status {
    let (message, numbers) = match error {
        MessageTooLarge::Bytes(size) => {
            (request_too_large(size, limit), size_and_limit(size, limit).to_vec())
        }
        MessageTooLarge::Fields => (
            format!("the message has more than {MAX_FIELDS} fields; pass many values as one list or map"),
            vec![("limit", MAX_FIELDS.to_string())],
        ),
    };
    with_details(Code::ResourceExhausted, message, details_with("REQUEST_TOO_LARGE", numbers))
}

/// The status for a request whose headers are above the limit.
pub(crate) fn headers_too_large(size: usize, limit: usize) -> Status {
    let message = format!(
        "the metadata of the request has {size} bytes, counting 32 for each entry, the limit is {limit}; send values as \
         arguments instead"
    );
    with_details(
        Code::ResourceExhausted,
        message,
        details_with("REQUEST_TOO_LARGE", size_and_limit(size, limit)),
    )
}

fn size_and_limit(size: usize, limit: usize) -> [(&'static str, String); 2] {
    [("size", size.to_string()), ("limit", limit.to_string())]
}

/// The status for a message that arrives too slowly.
pub(crate) fn too_slow(arrived: usize, within: Duration) -> Status {
    let within = within.as_secs();
    let message = format!(
        "only {arrived} bytes of the message arrived within {within} s; send at least 128 KiB per second, with pauses of \
         less than 30 s"
    );
    status(Code::DeadlineExceeded, "REQUEST_INCOMPLETE", message)
}

/// The status for a unary request with a second message. The gRPC specification prescribes the code.
pub(crate) fn second_message() -> Status {
    let message = "the request has more than one message, but its RPC takes exactly one".to_owned();
    status(Code::Unimplemented, "UNSUPPORTED", message)
}

/// The status for a message that ends early.
pub(crate) fn request_incomplete(problem: &impl std::fmt::Display) -> Status {
    status(Code::Cancelled, "REQUEST_INCOMPLETE", format!("the request broke off: {problem}"))
}

/// The status for an RPC that this server does not offer. `instead` names the alternative.
#[must_use]
pub fn rpc_not_offered(rpc: &str, instead: &str) -> Status {
    status(Code::Unimplemented, "UNSUPPORTED", format!("{rpc} is not implemented: {instead}"))
}

/// The status for `RegisterTools` from a process that is not a worker of this host.
pub(crate) fn reserved_for_workers() -> Status {
    let message = "RegisterTools is reserved for the workers that this host launched: nothing was changed; clients call tools, \
                   and the pool's workers provide them";
    status(Code::PermissionDenied, "RESERVED", message.to_owned())
}

/// The status for an RPC for clients on the listener of a worker.
pub(crate) fn reserved_for_clients(rpc: &str) -> Status {
    let message =
        format!("{rpc} is not served to workers on the address of their launch; use the address of the host");
    status(Code::PermissionDenied, "RESERVED", message)
}

/// The status for a worker whose runtime is not compatible with this host.
pub(crate) fn incompatible_worker(problem: &str) -> Status {
    status(Code::FailedPrecondition, "INCOMPATIBLE_VERSION", problem.to_owned())
}

/// The status for a tool that returned an unexpected kind of reply, such as a stream instead of a value.
#[must_use]
pub fn unexpected_reply(tool: &str, got: &str, expected: &str) -> Status {
    from_tool_error(ToolError::Internal {
        problem: format!("tool `{tool}` answered with {got} instead of {expected}"),
    })
}

fn status(code: Code, reason: &str, message: String) -> Status {
    with_details(code, message, details(reason))
}

fn with_details(code: Code, message: String, details: ErrorDetails) -> Status {
    fit(Status::with_error_details(code, message, details))
}

fn details(reason: &str) -> ErrorDetails {
    details_with(reason, [])
}

fn details_with(reason: &str, metadata: impl IntoIterator<Item = (&'static str, String)>) -> ErrorDetails {
    let metadata: HashMap<_, _> = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    ErrorDetails::with_error_info(reason, ERROR_DOMAIN, metadata)
}

#[cfg(test)]
mod round_trip_tests;
#[cfg(test)]
mod tests;
