//! A tool's failure inside a gRPC status: how a stream that failed says why.

use bytes::Bytes;
use prost::Message;
use tonic::{Code, Status};

use crate::pb::{Any, ToolFailure};

const FAILURE_URL: &str = "type.googleapis.com/snakepit.bridge.ToolFailure";

/// `google.rpc.Status`, as the gRPC documentation defines it for the `grpc-status-details-bin` trailer.
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
pub fn attach_failure(code: Code, message: String, failure: &ToolFailure) -> Status {
    let detail = Any { type_url: FAILURE_URL.to_owned(), value: Bytes::from(failure.encode_to_vec()) };
    let details = RpcStatus { code: code as i32, message: message.clone(), details: vec![detail] };
    Status::with_details(code, message, Bytes::from(details.encode_to_vec()))
}

/// The tool's failure that a status carries, if it does.
#[must_use]
pub fn failure_of(status: &Status) -> Option<ToolFailure> {
    let details = RpcStatus::decode(status.details()).ok()?.details;
    let detail = details.into_iter().find(|detail| detail.type_url == FAILURE_URL)?;
    ToolFailure::decode(detail.value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_rides_in_a_status() {
        let failure = ToolFailure { r#type: "ValueError".into(), message: "no".into(), ..Default::default() };
        let status = attach_failure(Code::Internal, "tool failed".into(), &failure);
        assert_eq!(failure_of(&status), Some(failure));
        assert_eq!(failure_of(&Status::internal("other")), None);
        assert_eq!(
            failure_of(&Status::with_details(Code::Internal, "", Bytes::from_static(b"\xff\xff"))),
            None
        );
    }
}
