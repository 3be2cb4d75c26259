//! How the exception that a tool raised rides in a gRPC status: as a [`ToolFailure`] among the `google.rpc` details.

use bytes::Bytes;
use prost::Message;
use tonic::{Code, Status};

use crate::pb::{Any, ToolFailure};

const TYPE_URL: &str = "type.googleapis.com/snakepit.bridge.ToolFailure";

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

/// A status that carries a tool's failure in its details.
#[must_use]
#[allow(clippy::needless_pass_by_value, reason = "made for this call and of no use after it")]
pub fn attach_failure(code: Code, message: impl Into<String>, failure: ToolFailure) -> Status {
    let message = message.into();
    let detail = Any { type_url: TYPE_URL.to_owned(), value: failure.encode_to_vec().into() };
    let details = RpcStatus { code: code.into(), message: message.clone(), details: vec![detail] };
    Status::with_details(code, message, Bytes::from(details.encode_to_vec()))
}

/// The tool's failure that a status carries, if it carries one that can be read.
#[must_use]
pub fn failure_of(status: &Status) -> Option<ToolFailure> {
    let details = RpcStatus::decode(status.details()).ok()?.details;
    let detail = details.into_iter().find(|detail| detail.type_url == TYPE_URL)?;
    ToolFailure::decode(detail.value).ok()
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
        let sent = attach_failure(Code::Internal, "tool `add` failed", failure.clone());
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
