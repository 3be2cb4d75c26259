//! The one place where errors become gRPC statuses.
//!
//! | error | code | reason |
//! | --- | --- | --- |
//! | tool not found | `NOT_FOUND` | `TOOL_NOT_FOUND` |
//! | bad argument | `INVALID_ARGUMENT`, with a field violation | `INVALID_ARGUMENT` |
//! | tool cannot be called this way, RPC not offered | `UNIMPLEMENTED` | `UNSUPPORTED` |
//! | tool raised (streams only; a unary call answers `success = false`) | `INTERNAL`, with a `ToolFailure` | `TOOL_FAILED` |
//! | queue full | `RESOURCE_EXHAUSTED`, with a retry delay | `OVERLOADED` |
//! | would wait for itself | `FAILED_PRECONDITION` | `DEADLOCK` |
//! | deadline | `DEADLINE_EXCEEDED` | `DEADLINE_EXCEEDED` |
//! | cancelled | `CANCELLED` | `CANCELLED` |
//! | worker lost | `UNAVAILABLE`, with whether it may have run, and its last output lines in a `ToolFailure` | `WORKER_LOST` |
//! | connection to another host lost | `UNAVAILABLE` | `CONNECTION_LOST` |
//! | idle connection closed to make room, before the call was begun | `UNAVAILABLE`, with that it did not run | `CONNECTION_LOST` |
//! | no worker | `UNAVAILABLE`, with a retry delay | `NO_WORKER` |
//! | refused or cut off because the host shuts down | `UNAVAILABLE`, with whether it may have run | `SHUTTING_DOWN` |
//! | session, program or variable not found | `NOT_FOUND` | `SESSION_NOT_FOUND`, `PROGRAM_NOT_FOUND`, `VARIABLE_NOT_FOUND` |
//! | version no longer kept | `NOT_FOUND` | `VERSION_NOT_KEPT` |
//! | variable exists | `ALREADY_EXISTS` | `VARIABLE_EXISTS` |
//! | variable at another version than expected | `ABORTED`, with both versions | `VERSION_CONFLICT` |
//! | value outside its type, or too large | `INVALID_ARGUMENT`, with a field violation | `INVALID_VALUE` |
//! | too many sessions, variables, watches, global programs | `RESOURCE_EXHAUSTED` | `TOO_MANY_SESSIONS`, `_VARIABLES`, `_WATCHES`, `_PROGRAMS` |
//! | too many programs, or too many bytes, in a session | `RESOURCE_EXHAUSTED` | `SESSION_FULL` |
//! | too many bytes in all sessions | `RESOURCE_EXHAUSTED` | `BACKEND_FULL` |
//! | values asked for that fit no message | `RESOURCE_EXHAUSTED` | `ANSWER_TOO_LARGE` |
//! | requests of a connection, or of all, hold too many bytes | `RESOURCE_EXHAUSTED`, with a retry delay | `OVERLOADED` |
//! | too many bytes of answers that the client does not read | `RESOURCE_EXHAUSTED` | `ANSWER_DROPPED` |
//! | a request's message or headers above their limit | `RESOURCE_EXHAUSTED` | `REQUEST_TOO_LARGE` |
//! | a request's message does not arrive in time, or breaks off | `DEADLINE_EXCEEDED`, `CANCELLED` | `REQUEST_INCOMPLETE` |
//! | odd names, types, sizes, metadata, page tokens | `INVALID_ARGUMENT`, with a field violation | `INVALID_ARGUMENT` |
//! | session backend failed while reading, or opening a session | `UNAVAILABLE` | `BACKEND_FAILED` |
//! | session backend failed while writing | `INTERNAL`, with that it may be done: gRPC libraries repeat `UNAVAILABLE` unasked | `BACKEND_FAILED` |
//! | RegisterTools by a process that is no worker of the host; an RPC for clients on a worker's listener | `PERMISSION_DENIED` | `RESERVED` |
//! | `snakepit_bridge` of a version that does not fit the host | `FAILED_PRECONDITION` | `INCOMPATIBLE_VERSION` |
//! | anything else | `INTERNAL` | `INTERNAL` |
//!
//! Each status is cut to what HTTP/2 peers accept as trailers, see [`fit`].

mod back;

use std::{collections::HashMap, time::Duration};

use snakepit_proto::{
    pb,
    status::{
        CONNECTION_LOST, DELIVERED, ERROR_DOMAIN, SHUTTING_DOWN, attach_failure, brief, fit,
        request_too_large, worker_lost,
    },
};
use snakepit_registry::ToolError;
use snakepit_session::SessionError;
use snakepit_wire::failure_to_wire;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

pub use back::to_tool_error;
pub(crate) use back::{HOST, session_error};

use crate::listen::{Excess, Exhausted, MAX_FIELDS};

/// When requests may have been answered that hold memory now.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// Maps a call's failure to a gRPC status with details.
#[must_use]
pub fn from_tool_error(error: ToolError) -> Status {
    let message = error.to_string();
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
        ToolError::Unsupported { .. } => status(Code::Unimplemented, "UNSUPPORTED", message),
        ToolError::Failed(failure) => {
            attach_failure(Code::Internal, message, &failure_to_wire(*failure, String::new()))
        }
        ToolError::Overloaded { queued, limit, retry_after } => {
            let numbers = [("queued", queued.to_string()), ("limit", limit.to_string())];
            let mut details = details_with("OVERLOADED", numbers);
            details.set_retry_info(retry_after);
            with_details(Code::ResourceExhausted, message, details)
        }
        ToolError::TooMuchAtOnce { whose, used, limit, retry_after } => {
            let entries =
                [("whose", brief(&whose)), ("used_bytes", used.to_string()), ("limit", limit.to_string())];
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
        ToolError::WorkerLost { worker, reason, delivered, output_lines } => {
            let last_words =
                pb::ToolFailure { message: reason, worker_id: worker, output_lines, ..Default::default() };
            worker_lost(message, delivered, &last_words)
        }
        ToolError::ConnectionLost { peer, problem } => {
            let entries = [("peer", brief(&peer)), ("problem", brief(&problem))];
            with_details(Code::Unavailable, message, details_with(CONNECTION_LOST, entries))
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
        ToolError::Session(error) => from_session_error(&error),
        _ => status(Code::Internal, "INTERNAL", message),
    }
}

/// Maps a session error to a gRPC status with details.
#[must_use]
pub fn from_session_error(error: &SessionError) -> Status {
    session_status(error, false)
}

/// Maps the error of a write that must not be repeated blindly. When the backend failed, the write may have been done, so the
/// code is none that gRPC libraries repeat on their own.
#[must_use]
pub fn from_write_error(error: &SessionError) -> Status {
    session_status(error, matches!(error, SessionError::Backend { .. }))
}

fn session_status(error: &SessionError, may_be_done: bool) -> Status {
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
        | SessionError::BatchRefused { .. }
        | SessionError::InvalidPageToken => (Code::InvalidArgument, "INVALID_ARGUMENT"),
        SessionError::Backend { .. } if may_be_done => (Code::Internal, "BACKEND_FAILED"),
        SessionError::Backend { .. } => (Code::Unavailable, "BACKEND_FAILED"),
        _ => (Code::Internal, "INTERNAL"),
    };
    let mut entries = entries_of(error);
    if may_be_done {
        entries.push((DELIVERED, true.to_string()));
    }
    let mut details = details_with(reason, entries);
    if let Some(field) = field_of(error) {
        details.add_bad_request_violation(field, brief(&error.to_string()));
    }
    with_details(code, error.to_string(), details)
}

/// The field of a request that an error is about.
const fn field_of(error: &SessionError) -> Option<&'static str> {
    Some(match error {
        SessionError::InvalidId { .. } => "session_id",
        SessionError::InvalidProgramName { .. } | SessionError::InvalidVariableName { .. } => "name",
        SessionError::ProgramTooLarge { .. } => "program",
        SessionError::MetadataTooLarge { .. } => "metadata",
        SessionError::InvalidType { .. } => "type",
        SessionError::InvalidValue { .. } | SessionError::ValueTooLarge { .. } => "value",
        SessionError::WrittenTwice { .. } | SessionError::BatchRefused { .. } => "updates",
        SessionError::TooManyNames { .. } => "variable_identifiers",
        SessionError::InvalidPageToken => "page_token",
        _ => return None,
    })
}

/// What a client needs to tell the error as what it was.
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
        SessionError::Backend { problem } => vec![("problem", brief(problem))],
        _ => Vec::new(),
    }
}

/// A request that breaks the protocol: names the field and what is wrong with it.
#[must_use]
pub fn invalid_field(field: &str, problem: impl std::fmt::Display) -> Status {
    let mut details = details("INVALID_ARGUMENT");
    details.add_bad_request_violation(brief(field), brief(&problem.to_string()));
    with_details(Code::InvalidArgument, format!("`{field}` {problem}"), details)
}

/// An RPC that is not a call, or had not become one yet, was not answered by its deadline.
pub(crate) fn rpc_deadline_exceeded() -> Status {
    let message = "the deadline passed before the host had an answer; raise the timeout".to_owned();
    status(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", message)
}

/// A stream that goes on for as long as its reader listens ends with the host.
pub(crate) fn shutting_down() -> Status {
    from_tool_error(ToolError::ShuttingDown { delivered: false })
}

/// The stream of a connection that makes room for another ends: none of its calls run, and none was begun that has no answer.
pub(crate) fn connection_evicted() -> Status {
    let message =
        "the host closed this idle connection to make room for another; the call was not begun, repeat it";
    let details = details_with(CONNECTION_LOST, [(DELIVERED, false.to_string())]);
    with_details(Code::Unavailable, message.to_owned(), details)
}

/// An answer would be larger than a message may be.
pub(crate) fn too_much(what: &str, size: usize, limit: usize, instead: &str) -> Status {
    let message =
        format!("{what} have {size} bytes together, above the limit of {limit} of a message; {instead}");
    status(Code::ResourceExhausted, "ANSWER_TOO_LARGE", message)
}

/// The requests of a connection hold as much memory as they may.
pub(crate) fn too_much_of_a_connection(full: Exhausted) -> ToolError {
    too_much_at_once("requests of this connection", full)
}

/// The requests that are arriving, on all connections, hold as much memory as they may.
pub(crate) fn too_much_arriving(full: Exhausted) -> ToolError {
    too_much_at_once("requests that are arriving", full)
}

/// The same, before the request was begun.
pub(crate) fn too_many_unread(full: Exhausted) -> ToolError {
    too_much_at_once("answers that wait to be read", full)
}

/// Answers hold as much memory as they may, because they are not read.
pub(crate) const fn answer_dropped(Exhausted { used, limit }: Exhausted) -> ToolError {
    ToolError::AnswerDropped { used, limit }
}

fn too_much_at_once(whose: &str, Exhausted { used, limit }: Exhausted) -> ToolError {
    ToolError::TooMuchAtOnce { whose: whose.to_owned(), used, limit, retry_after: Some(RETRY_AFTER) }
}

/// A request's message is above a limit; that of its size is `limit`.
pub(crate) fn message_refused(excess: Excess, limit: usize) -> Status {
    let (message, numbers) = match excess {
        Excess::Bytes(size) => (request_too_large(size, limit), numbers(size, limit).to_vec()),
        Excess::Fields => (
            format!("the message has more than {MAX_FIELDS} fields; pass many values as one list or map"),
            vec![("limit", MAX_FIELDS.to_string())],
        ),
    };
    with_details(Code::ResourceExhausted, message, details_with("REQUEST_TOO_LARGE", numbers))
}

/// A request's headers are above the limit.
pub(crate) fn headers_too_large(size: usize, limit: usize) -> Status {
    let message = format!(
        "the metadata of the request has {size} bytes, counting 32 for each entry, the limit is {limit}; send values as \
         arguments instead"
    );
    with_details(Code::ResourceExhausted, message, details_with("REQUEST_TOO_LARGE", numbers(size, limit)))
}

fn numbers(size: usize, limit: usize) -> [(&'static str, String); 2] {
    [("size", size.to_string()), ("limit", limit.to_string())]
}

/// A request's message does not arrive in time.
pub(crate) fn too_slow(here: usize, within: Duration) -> Status {
    let within = within.as_secs();
    let message =
        format!("only {here} bytes of the message arrived within {within} s; the request was given up");
    status(Code::DeadlineExceeded, "REQUEST_INCOMPLETE", message)
}

/// A request has a second message though its RPC takes one. The code is the one that gRPC demands.
pub(crate) fn second_message() -> Status {
    let message = "the request has more than one message, but its RPC takes exactly one".to_owned();
    status(Code::Unimplemented, "UNSUPPORTED", message)
}

/// A request's message broke off.
pub(crate) fn request_broke(problem: &impl std::fmt::Display) -> Status {
    status(Code::Cancelled, "REQUEST_INCOMPLETE", format!("the request broke off: {problem}"))
}

/// An RPC that this server does not offer, with what to do instead.
#[must_use]
pub fn rpc_not_offered(rpc: &str, instead: &str) -> Status {
    status(Code::Unimplemented, "UNSUPPORTED", format!("{rpc} is not implemented: {instead}"))
}

/// RegisterTools, from a process that is no worker of this host.
pub(crate) fn reserved_for_workers() -> Status {
    let message = "RegisterTools is reserved for the workers that this host launched: nothing was changed; clients call tools, \
                   and the pool's workers provide them";
    status(Code::PermissionDenied, "RESERVED", message.to_owned())
}

/// An RPC for clients, on the listener of a worker.
pub(crate) fn reserved_for_clients(rpc: &str) -> Status {
    let message =
        format!("{rpc} is not served to workers on the address of their launch; use the address of the host");
    status(Code::PermissionDenied, "RESERVED", message)
}

/// A worker whose runtime does not fit this host.
pub(crate) fn incompatible_worker(problem: &str) -> Status {
    status(Code::FailedPrecondition, "INCOMPATIBLE_VERSION", problem.to_owned())
}

/// A tool answered with what its caller did not ask for, such as a stream instead of a value.
#[must_use]
pub fn answered_otherwise(tool: &str, got: &str, expected: &str) -> Status {
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
mod tests;
