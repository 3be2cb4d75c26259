//! Details of gRPC statuses in the `google.rpc` format: a reason, the exception of a tool, an invalid argument.
//!
//! A [size limit](fit) keeps all statuses within the limits of HTTP/2 peers for trailers.

use std::{borrow::Cow, collections::BTreeMap, time::Duration};

use bytes::Bytes;
use prost::Message;
use snakepit_reason::Reason;
pub use snakepit_reason::{DELIVERED, LAYER};
use tonic::{Code, Status};

use crate::pb::{Any, ToolFailure};

mod size_limit;

pub use size_limit::{HEADER_LIST_BYTES, bounded, bounded_text, brief, fit};

/// The `domain` of every `google.rpc.ErrorInfo` this project sends.
pub const ERROR_DOMAIN: &str = "snakepit";
/// The `reason` in the `google.rpc.ErrorInfo` of a status with a tool failure.
pub const TOOL_FAILED: &str = Reason::ToolFailed.as_str();
/// The `reason` if no tool has this name.
pub const TOOL_NOT_FOUND: &str = Reason::ToolNotFound.as_str();
/// The `reason` if an argument or field is missing, unknown or invalid.
pub const INVALID_ARGUMENT: &str = Reason::InvalidArgument.as_str();
/// The `reason` if the tool does not support this kind of call.
pub const UNSUPPORTED: &str = Reason::Unsupported.as_str();
/// The `reason` of a cancelled call.
pub const CANCELLED: &str = Reason::Cancelled.as_str();
/// The `reason` of load shedding.
pub const OVERLOADED: &str = Reason::Overloaded.as_str();
/// The `reason` of a request that exceeds the size limit.
pub const REQUEST_TOO_LARGE: &str = Reason::RequestTooLarge.as_str();
/// The `reason` of an answer, or of a chunk, that exceeds the size limit.
pub const ANSWER_TOO_LARGE: &str = Reason::AnswerTooLarge.as_str();
/// The `reason` if a worker is stopping. The call has not begun.
pub const STOPPING: &str = Reason::Stopping.as_str();
/// The `reason` if the worker was lost. Its last output is in the details as a [`ToolFailure`].
pub const WORKER_LOST: &str = Reason::WorkerLost.as_str();
/// The `reason` if a proxy answered instead of the host. Clients create it.
pub const PROXY: &str = Reason::Proxy.as_str();
/// The `reason` if the host shuts down and rejected or aborted the call.
pub const SHUTTING_DOWN: &str = Reason::ShuttingDown.as_str();
/// The `reason` if the connection to a host was lost or closed.
pub const CONNECTION_LOST: &str = Reason::ConnectionLost.as_str();
/// The `reason` of a bug in host or worker.
pub const INTERNAL: &str = Reason::Internal.as_str();

const FAILURE_URL: &str = "type.googleapis.com/snakepit.bridge.ToolFailure";
const ERROR_INFO_URL: &str = "type.googleapis.com/google.rpc.ErrorInfo";
const BAD_REQUEST_URL: &str = "type.googleapis.com/google.rpc.BadRequest";
const RETRY_INFO_URL: &str = "type.googleapis.com/google.rpc.RetryInfo";

/// `google.rpc.Status`, the content of the trailer `grpc-status-details-bin`.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

/// `google.rpc.ErrorInfo`: the machine-readable reason of an error.
#[derive(Clone, PartialEq, Message)]
struct ErrorInfo {
    #[prost(string, tag = "1")]
    reason: String,
    #[prost(string, tag = "2")]
    domain: String,
    #[prost(btree_map = "string, string", tag = "3")]
    metadata: BTreeMap<String, String>,
}

/// `google.rpc.BadRequest`: the invalid fields of a request.
#[derive(Clone, PartialEq, Message)]
struct BadRequest {
    #[prost(message, repeated, tag = "1")]
    field_violations: Vec<FieldViolation>,
}

/// An invalid field of a request, or argument of a call.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct FieldViolation {
    /// The name of the field.
    #[prost(string, tag = "1")]
    pub field: String,
    /// The problem, as a predicate.
    #[prost(string, tag = "2")]
    pub description: String,
}

/// `google.rpc.RetryInfo`: the time after which a retry may succeed.
#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, tag = "1")]
    retry_delay: Option<prost_types::Duration>,
}

/// The details of a status that this project writes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Details {
    /// One of the reasons above. `None` for statuses of other programs.
    pub reason: Option<String>,
    /// The metadata of the reason.
    pub metadata: BTreeMap<String, String>,
    /// The failure of the tool, or the last output of a lost worker.
    pub failure: Option<ToolFailure>,
    /// The invalid fields or arguments.
    pub violations: Vec<FieldViolation>,
    /// The time after which a retry may succeed.
    pub retry_after: Option<Duration>,
}

impl Details {
    /// Returns whether the host reports that the call or request cannot have run.
    #[must_use]
    pub fn cannot_have_run(&self) -> bool {
        self.metadata.get(DELIVERED).is_some_and(|flag| flag == "false")
    }
}

/// Creates a status with a reason, within the [size limit](fit).
#[must_use]
pub fn error_status(code: Code, reason: &str, message: impl Into<String>) -> Status {
    build(code, message.into(), reason, None)
}

/// Checks that a request does not exceed the size limit of messages. Sending a larger request would break the connection. Hosts
/// answer larger requests with the same status.
///
/// # Errors
/// `RESOURCE_EXHAUSTED` with the size and the limit.
pub fn check_request_size(request: &impl Message) -> Result<(), Status> {
    check_encoded_request_size(request.encoded_len())
}

/// Checks the encoded size of a request, in bytes, as [`check_request_size`] does.
///
/// # Errors
/// As [`check_request_size`].
pub fn check_encoded_request_size(size: usize) -> Result<(), Status> {
    let limit = crate::MAX_MESSAGE_BYTES;
    if size <= limit {
        return Ok(());
    }
    Err(error_status(Code::ResourceExhausted, REQUEST_TOO_LARGE, request_too_large(size, limit)))
}

/// The message for a request of this size.
#[must_use]
pub fn request_too_large(size: usize, limit: usize) -> String {
    format!("the message has {size} bytes, the limit is {limit}; send less at once, or the path of a file")
}

/// Creates a status with a reason and its metadata, within the [size limit](fit).
#[must_use]
pub fn error_status_with<'a>(
    code: Code,
    reason: &str,
    message: impl Into<String>,
    metadata: impl IntoIterator<Item = (&'a str, String)>,
) -> Status {
    let metadata = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    build_with(code, message.into(), reason, metadata, None)
}

/// Creates the status of a call whose answer, or a chunk of it, exceeds the size limit of the call. The tool has run.
#[must_use]
pub fn answer_too_large(message: impl Into<String>, size: usize, limit: usize) -> Status {
    let entries = [("size", size.to_string()), ("limit", limit.to_string()), (DELIVERED, true.to_string())];
    error_status_with(Code::ResourceExhausted, ANSWER_TOO_LARGE, message, entries)
}

/// Creates a status with an invalid field or argument, within the [size limit](fit).
#[must_use]
pub fn field_error_status(message: impl Into<String>, field: &str, description: &str) -> Status {
    let violation = FieldViolation { field: brief(field), description: brief(description) };
    let detail = BadRequest { field_violations: vec![violation] }.encode_to_vec();
    build(Code::InvalidArgument, message.into(), INVALID_ARGUMENT, Some(any(BAD_REQUEST_URL, detail)))
}

/// Creates a status with a tool failure in its details, cut to the [size limit](fit).
#[must_use]
pub fn failure_status(code: Code, message: impl Into<String>, failure: &ToolFailure) -> Status {
    failure_status_with_reason(code, TOOL_FAILED, message, failure)
}

/// Like [`failure_status`], with a reason other than [`TOOL_FAILED`].
#[must_use]
pub fn failure_status_with_reason(
    code: Code,
    reason: &str,
    message: impl Into<String>,
    failure: &ToolFailure,
) -> Status {
    build(code, message.into(), reason, Some(any(FAILURE_URL, failure.encode_to_vec())))
}

/// The parts of a status that [`status_with_details`] writes.
#[derive(Debug, Default)]
pub struct StatusParts {
    /// One of the reasons of [`Reason`].
    pub reason: &'static str,
    /// The metadata of the reason.
    pub metadata: BTreeMap<String, String>,
    /// The invalid fields or arguments.
    pub violations: Vec<FieldViolation>,
    /// The failure of the tool, or the last output of a lost worker.
    pub failure: Option<ToolFailure>,
    /// Whether the status has a `google.rpc.RetryInfo`, and its delay.
    pub retry: Option<Option<Duration>>,
}

/// Creates a status with details, within the [size limit](fit).
#[must_use]
pub fn status_with_details(code: Code, message: String, parts: StatusParts) -> Status {
    let StatusParts { reason, metadata, violations, failure, retry } = parts;
    let info = ErrorInfo { reason: reason.to_owned(), domain: ERROR_DOMAIN.to_owned(), metadata };
    let info = any(ERROR_INFO_URL, info.encode_to_vec());
    let retry = retry.map(|delay| {
        let retry_delay = delay.and_then(|delay| prost_types::Duration::try_from(delay).ok());
        any(RETRY_INFO_URL, RetryInfo { retry_delay }.encode_to_vec())
    });
    let mut details = match failure {
        Some(failure) => vec![info, any(FAILURE_URL, failure.encode_to_vec())],
        None => vec![info],
    };
    // Peers search the details by type. The order is that of earlier versions.
    match (retry, details.len()) {
        (Some(retry), 1) => details.insert(0, retry),
        (Some(retry), _) => details.push(retry),
        (None, _) => {}
    }
    if !violations.is_empty() {
        details.push(any(BAD_REQUEST_URL, BadRequest { field_violations: violations }.encode_to_vec()));
    }
    let details = RpcStatus { code: code.into(), message: message.clone(), details };
    fit(Status::with_details(code, message, Bytes::from(details.encode_to_vec())))
}

fn build(code: Code, message: String, reason: &str, detail: Option<Any>) -> Status {
    build_with(code, message, reason, BTreeMap::new(), detail)
}

fn build_with(
    code: Code,
    message: String,
    reason: &str,
    metadata: BTreeMap<String, String>,
    further: impl IntoIterator<Item = Any>,
) -> Status {
    let info = ErrorInfo { reason: reason.to_owned(), domain: ERROR_DOMAIN.to_owned(), metadata };
    let details = std::iter::once(any(ERROR_INFO_URL, info.encode_to_vec())).chain(further).collect();
    let details = RpcStatus { code: code.into(), message: message.clone(), details };
    fit(Status::with_details(code, message, Bytes::from(details.encode_to_vec())))
}

fn any(type_url: &str, value: Vec<u8>) -> Any {
    Any { type_url: type_url.to_owned(), value: value.into() }
}

/// Parses the details of a status. Ignores malformed details and those of other programs.
#[must_use]
pub fn details_of(status: &Status) -> Details {
    let mut parsed = Details::default();
    let details = RpcStatus::decode(status.details()).map(|status| status.details).unwrap_or_default();
    for Any { type_url, value } in details {
        match type_url.as_str() {
            ERROR_INFO_URL => {
                let info = ErrorInfo::decode(value).ok().filter(|info| info.domain == ERROR_DOMAIN);
                if let Some(ErrorInfo { reason, metadata, .. }) = info.filter(|_| parsed.reason.is_none()) {
                    parsed.reason = Some(reason);
                    parsed.metadata = metadata;
                }
            }
            FAILURE_URL => parsed.failure = parsed.failure.or(ToolFailure::decode(value).ok()),
            BAD_REQUEST_URL => {
                let violations = BadRequest::decode(value).map(|bad| bad.field_violations);
                parsed.violations.extend(violations.unwrap_or_default());
            }
            RETRY_INFO_URL => {
                let delay = RetryInfo::decode(value).ok().and_then(|info| info.retry_delay);
                parsed.retry_after = parsed.retry_after.or(delay.and_then(|delay| delay.try_into().ok()));
            }
            _ => {}
        }
    }
    parsed
}

/// A tool failure in the details of a status, if any.
#[must_use]
pub fn failure_of(status: &Status) -> Option<ToolFailure> {
    let Details { reason, failure, .. } = details_of(status);
    failure.filter(|_| reason.is_none_or(|reason| reason == TOOL_FAILED))
}

/// Returns the root cause of an error. The transport errors that wrap it have no useful text. Returns [`ClosedByPeer`] if the
/// peer closed the connection.
#[must_use]
pub fn root_cause<'a>(error: &'a (dyn std::error::Error + 'static)) -> &'a (dyn std::error::Error + 'static) {
    let root = std::iter::successors(Some(error), |&error| error.source()).last().unwrap_or(error);
    let io = root.downcast_ref().or_else(|| root.downcast_ref::<h2::Error>()?.get_io());
    match io.map(std::io::Error::kind) {
        Some(std::io::ErrorKind::BrokenPipe) => &ClosedByPeer,
        _ => root,
    }
}

/// The peer closed the connection. The system and h2 report this as a broken pipe, even if the peer sent a reason in a GOAWAY
/// frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the other side closed it, and its log may show the reason")]
pub struct ClosedByPeer;

/// Whether an error of this type is among the causes of a status. A status from the peer has no cause.
#[must_use]
pub fn caused_by<E: std::error::Error + 'static>(status: &Status) -> bool {
    let first = std::error::Error::source(status);
    std::iter::successors(first, |&error| error.source()).any(|error| error.is::<E>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_in_the_trailers_is_received_unchanged() {
        let failure = ToolFailure {
            r#type: "ValueError".into(),
            message: "no".into(),
            tool_name: "add".into(),
            ..ToolFailure::default()
        };
        let sent = failure_status(Code::Internal, "tool `add` failed", &failure);
        let headers = sent.into_http::<()>().into_parts().0.headers;
        let received = Status::from_header_map(&headers).unwrap();
        assert_eq!((received.code(), received.message()), (Code::Internal, "tool `add` failed"));
        assert_eq!(failure_of(&received), Some(failure));
    }

    #[test]
    fn statuses_have_a_reason() {
        let status = field_error_status("argument `a` is missing", "a", "is missing");
        let violation = FieldViolation { field: "a".into(), description: "is missing".into() };
        let expected = Details {
            reason: Some(INVALID_ARGUMENT.into()),
            violations: vec![violation],
            ..Details::default()
        };
        assert_eq!((status.code(), details_of(&status)), (Code::InvalidArgument, expected));
        assert_eq!(
            details_of(&error_status(Code::Unavailable, STOPPING, "x")).reason.as_deref(),
            Some(STOPPING)
        );
        assert_eq!(details_of(&Status::not_found("x")), Details::default());
    }

    #[test]
    fn the_last_output_of_a_lost_worker_is_not_a_failure_of_the_tool() {
        let last_output = ToolFailure { output_lines: vec!["bye".into()], ..ToolFailure::default() };
        let status =
            failure_status_with_reason(Code::Unavailable, WORKER_LOST, "worker `w` was lost", &last_output);
        assert_eq!(failure_of(&status), None);
        assert_eq!(details_of(&status).failure, Some(last_output));
    }

    #[test]
    fn a_connection_that_the_peer_closed_is_named_so() {
        let broken = || std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        assert!(root_cause(&broken()).is::<ClosedByPeer>());
        assert!(root_cause(&Status::from_error(Box::new(broken()))).is::<ClosedByPeer>());
        let reset = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        assert_eq!(root_cause(&reset).to_string(), reset.to_string());
    }

    #[test]
    fn other_details_are_not_a_failure() {
        assert_eq!(failure_of(&Status::internal("x")), None);
        assert_eq!(failure_of(&Status::with_details(Code::Internal, "x", Bytes::from_static(b"\xff"))), None);
    }
}
