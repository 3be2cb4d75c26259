//! How the exception that a tool raised rides in a gRPC status: as a [`ToolFailure`] among the `google.rpc` details.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;
use tonic::{Code, Status};

use crate::pb::{Any, ToolFailure};

/// The `domain` of every `google.rpc.ErrorInfo` this project sends.
pub const ERROR_DOMAIN: &str = "snakepit";
/// The `reason` in the `google.rpc.ErrorInfo` of a status that carries a tool's failure.
pub const TOOL_FAILED: &str = "TOOL_FAILED";

const FAILURE_URL: &str = "type.googleapis.com/snakepit.bridge.ToolFailure";
const ERROR_INFO_URL: &str = "type.googleapis.com/google.rpc.ErrorInfo";

/// `google.rpc.Status`, as it stands in the `grpc-status-details-bin` trailer.
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

/// A status that carries a tool's failure in its details.
#[must_use]
pub fn attach_failure(code: Code, message: impl Into<String>, failure: &ToolFailure) -> Status {
    let message = message.into();
    let info = ErrorInfo {
        reason: TOOL_FAILED.to_owned(),
        domain: ERROR_DOMAIN.to_owned(),
        metadata: BTreeMap::new(),
    };
    let detail = |url: &str, value: Vec<u8>| Any { type_url: url.to_owned(), value: value.into() };
    let details =
        vec![detail(ERROR_INFO_URL, info.encode_to_vec()), detail(FAILURE_URL, failure.encode_to_vec())];
    let details = RpcStatus { code: code.into(), message: message.clone(), details };
    Status::with_details(code, message, Bytes::from(details.encode_to_vec()))
}

/// The tool's failure that a status carries, if it carries one that can be read.
#[must_use]
pub fn failure_of(status: &Status) -> Option<ToolFailure> {
    let details = RpcStatus::decode(status.details()).ok()?.details;
    let detail = details.into_iter().find(|detail| detail.type_url == FAILURE_URL)?;
    ToolFailure::decode(detail.value).ok()
}

/// What lies at the bottom of a chain of errors. The layers of a transport above it only say "transport error".
#[must_use]
pub fn root_cause<'a>(error: &'a (dyn std::error::Error + 'static)) -> &'a (dyn std::error::Error + 'static) {
    std::iter::successors(Some(error), |&error| error.source()).last().unwrap_or(error)
}

/// Whether an error of this type is among the causes of a status. A status that the peer sent has none.
#[must_use]
pub fn caused_by<E: std::error::Error + 'static>(status: &Status) -> bool {
    let first = std::error::Error::source(status);
    std::iter::successors(first, |&error| error.source()).any(|error| error.is::<E>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_survives_the_trailers() {
        let failure = ToolFailure {
            r#type: "ValueError".into(),
            message: "no".into(),
            tool_name: "add".into(),
            ..ToolFailure::default()
        };
        let sent = attach_failure(Code::Internal, "tool `add` failed", &failure);
        let headers = sent.into_http::<()>().into_parts().0.headers;
        let received = Status::from_header_map(&headers).unwrap();
        assert_eq!((received.code(), received.message()), (Code::Internal, "tool `add` failed"));
        assert_eq!(failure_of(&received), Some(failure));
    }

    #[test]
    fn other_details_are_no_failure() {
        assert_eq!(failure_of(&Status::internal("x")), None);
        assert_eq!(failure_of(&Status::with_details(Code::Internal, "x", Bytes::from_static(b"\xff"))), None);
    }
}
