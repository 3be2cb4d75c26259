//! Creates the gRPC statuses of the host. No other module constructs a status.
//!
//! Every error becomes a [`Fault`], whose reason determines the code. The page
//! [errors.md](https://github.com/snakepit-rs/snakepit/blob/main/docs/errors.md) lists the reasons. The details of a status contain
//!
//! - an `ErrorInfo` with the reason and its metadata, such as `delivered` (whether the call may have run),
//! - a `RetryInfo`, if a retry may succeed later,
//! - a `BadRequest`, if a field or an argument is invalid,
//! - a `ToolFailure`, if the tool raised an exception in a stream (a unary call returns `success = false`), or with the last
//!   output of a lost worker.
//!
//! `fault_to_wire` truncates each status to the size of trailers that HTTP/2 peers accept.

use std::time::Duration;

use snakepit_proto::status::request_too_large;
use snakepit_registry::{Code, Fault, Reason, ToolError};
use snakepit_session::SessionError;
use snakepit_wire::fault_to_wire;
/// The gRPC status, from the version of `tonic` that this crate uses.
pub use tonic::Status;

pub use snakepit_client::status::to_tool_error;

use crate::limits::{BudgetExhausted, MAX_FIELDS, MessageTooLarge};

/// The retry delay after a budget was exhausted. By then, other requests have usually released memory.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// Converts the error of a call to a gRPC status with details.
#[must_use]
pub fn from_tool_error(error: ToolError) -> Status {
    fault_to_wire(error.into())
}

/// Converts a session error to a gRPC status with details.
#[must_use]
pub fn from_session_error(error: &SessionError) -> Status {
    fault_to_wire(error.into())
}

/// Converts the error of a write. If the backend failed, the write may have succeeded, so the code is not one that gRPC libraries
/// retry automatically.
#[must_use]
pub fn from_write_error(error: &SessionError) -> Status {
    fault_to_wire(Fault::of_write(error))
}

/// The status for a request that violates the protocol. It names the field and the problem.
#[must_use]
pub fn invalid_field(field: &str, problem: impl std::fmt::Display) -> Status {
    let fault = Fault::new(Reason::InvalidArgument, format!("`{field}` {problem}"));
    fault_to_wire(fault.with_violation(field, problem.to_string()))
}

/// The status of a request with a message that is not valid protobuf, from the one that tonic creates. `None` for other statuses.
pub(crate) fn malformed_message(status: &Status) -> Option<Status> {
    let problem = status.message().strip_prefix("failed to decode Protobuf message: ")?;
    let is_of_tonic = status.code() == tonic::Code::Internal && status.details().is_empty();
    let message = format!("the message is not valid protobuf: {problem}; use the schema of this host");
    is_of_tonic.then(|| self::status(Reason::InvalidArgument, message))
}

/// The status for an RPC that exceeded its deadline outside of a tool call.
pub(crate) fn rpc_deadline_exceeded() -> Status {
    status(Reason::DeadlineExceeded, "the deadline passed before the host had an answer; raise the timeout")
}

/// The status that ends open-ended streams when the host stops. `may_have_run` states whether calls of the stream may have run.
pub(crate) fn shutting_down(may_have_run: bool) -> Status {
    from_tool_error(ToolError::shutting_down(may_have_run))
}

/// The status that ends the `Multiplex` stream of an evicted connection. No call of the stream is running, and none has begun
/// without a reply.
pub(crate) fn connection_evicted() -> Status {
    let message =
        "the host closed this idle connection to make room for another; the call was not begun, repeat it";
    fault_to_wire(Fault::new(Reason::ConnectionLost, message).with_may_have_run(false))
}

/// The status for requests on a connection that exceeds the limit of connections.
pub(crate) fn too_many_connections(limit: usize) -> Status {
    from_tool_error(ToolError::too_many_connections(limit).with_retry_after(RETRY_AFTER))
}

/// The status for a request that exceeds a limit of open requests, such as "requests of this client".
pub(crate) fn too_many_open(requests: &str, open: usize) -> Status {
    let message = format!("{open} {requests} are open, which is the limit; retry later");
    let fault =
        Fault::new(Reason::Overloaded, message).with_entry("queued", &open).with_entry("limit", &open);
    fault_to_wire(fault.with_retry(Some(RETRY_AFTER)))
}

/// The status for a response that exceeds the size limit of a message.
pub(crate) fn answer_too_large(subject: &str, size: usize, limit: usize, instead: &str) -> Status {
    let message =
        format!("{subject} have {size} bytes together, above the limit of {limit} of a message; {instead}");
    status(Reason::AnswerTooLarge, message)
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
    ToolError::answer_dropped(used, limit)
}

/// The status that ends a stream whose next message exceeds a budget. `may_have_run` states whether an earlier message arrived,
/// whose calls may have begun.
pub(crate) fn stream_rejected(error: ToolError, may_have_run: bool) -> Status {
    fault_to_wire(Fault::from(error).with_may_have_run(may_have_run))
}

fn overloaded(holders: &str, BudgetExhausted { used, limit }: BudgetExhausted) -> ToolError {
    ToolError::too_many_bytes(holders, used, limit).with_retry_after(RETRY_AFTER)
}

/// The status for a message that exceeds a limit. `limit` is the limit of its size in bytes.
pub(crate) fn message_too_large(error: MessageTooLarge, limit: usize) -> Status {
    fault_to_wire(match error {
        MessageTooLarge::Bytes(size) => too_large(request_too_large(size, limit), size, limit),
        MessageTooLarge::Fields => {
            let message =
                format!("the message has more than {MAX_FIELDS} fields; pass many values as one list or map");
            Fault::new(Reason::RequestTooLarge, message).with_entry("limit", &MAX_FIELDS)
        }
    })
}

/// The status for a request whose headers exceed the limit.
pub(crate) fn headers_too_large(size: usize, limit: usize) -> Status {
    let message = format!(
        "the metadata of the request has {size} bytes, counting 32 for each entry, the limit is {limit}; send values as \
         arguments instead"
    );
    fault_to_wire(too_large(message, size, limit))
}

fn too_large(message: String, size: usize, limit: usize) -> Fault {
    Fault::new(Reason::RequestTooLarge, message).with_entry("size", &size).with_entry("limit", &limit)
}

/// The status for a message that arrives too slowly.
pub(crate) fn too_slow(arrived: usize, within: Duration) -> Status {
    let within = within.as_secs();
    let message = format!(
        "only {arrived} bytes of the message arrived within {within} s; send at least 128 KiB per second, with pauses of \
         less than 30 s"
    );
    status(Reason::RequestIncomplete, message)
}

/// The status for a unary request with a second message. The gRPC specification prescribes the code.
pub(crate) fn second_message() -> Status {
    status(Reason::Unsupported, "the request has more than one message, but its RPC takes exactly one")
}

/// The status for a message that ends early.
pub(crate) fn request_incomplete(problem: &impl std::fmt::Display) -> Status {
    let fault = Fault::new(Reason::RequestIncomplete, format!("the request broke off: {problem}"));
    fault_to_wire(fault.with_code(Code::Cancelled))
}

/// The status for an RPC that this server does not offer. `instead` names the alternative.
#[must_use]
pub fn rpc_not_offered(rpc: &str, instead: &str) -> Status {
    status(Reason::Unsupported, format!("{rpc} is not implemented: {instead}"))
}

/// The status for `RegisterTools` from a process that is not a worker of this host.
pub(crate) fn reserved_for_workers() -> Status {
    let message = "RegisterTools is reserved for the workers that this host launched: nothing was changed; clients call tools, \
                   and the pool's workers provide them";
    status(Reason::Reserved, message)
}

/// The status for an RPC for clients on the listener of a worker.
pub(crate) fn reserved_for_clients(rpc: &str) -> Status {
    let message =
        format!("{rpc} is not served to workers on the address of their launch; use the address of the host");
    status(Reason::Reserved, message)
}

/// The status for a worker whose runtime is not compatible with this host.
pub(crate) fn incompatible_worker(problem: &str) -> Status {
    status(Reason::IncompatibleVersion, problem)
}

/// The status for a tool that returned an unexpected kind of reply, such as a stream instead of a value.
#[must_use]
pub fn unexpected_reply(tool: &str, got: &str, expected: &str) -> Status {
    from_tool_error(ToolError::internal(format!("tool `{tool}` answered with {got} instead of {expected}")))
}

fn status(reason: Reason, message: impl Into<String>) -> Status {
    fault_to_wire(Fault::new(reason, message))
}

#[cfg(test)]
mod round_trip_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod wire_tests;
