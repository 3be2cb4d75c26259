//! Conversions of calls to the requests of unary and streaming RPCs.

use std::time::Duration;

use snakepit_proto::{MAX_MESSAGE_BYTES, Message as _, headers, pb};
use snakepit_registry::{CallMode, CallReports, ToolCall, ToolError};
use snakepit_session::SessionId;
use tonic::{Request, metadata::MetadataValue};

use crate::{payload_to_wire, without_buffers};

/// Converts a call to the request of a unary or streaming RPC. `time_left` is the time until its deadline. Nested arguments become
/// plain JSON unless the receiver `takes_buffers`. The answer may always be nested.
#[must_use]
pub fn request_to_wire(
    call: ToolCall,
    time_left: Option<Duration>,
    takes_buffers: bool,
) -> Request<pb::ExecuteToolRequest> {
    let at_most_once = call.is_at_most_once();
    let reports = CallReports::of(&call).map(|reports| (reports.wants_progress(), reports.wants_logs()));
    let ToolCall { id, tool, session, arguments, metadata, mode, idempotent, trace, .. } = call;
    let mut message = pb::ExecuteToolRequest {
        session_id: session.as_ref().map(SessionId::to_string).unwrap_or_default(),
        tool_name: tool.to_string(),
        metadata,
        stream: mode == CallMode::Streaming,
        ..pb::ExecuteToolRequest::default()
    };
    for (name, payload) in arguments {
        let payload = if takes_buffers { payload } else { without_buffers(payload) };
        let (any, buffer) = payload_to_wire(payload);
        if let Some(buffer) = buffer {
            message.binary_parameters.insert(name.clone(), buffer);
        }
        message.parameters.insert(name, any);
    }
    let mut request = Request::new(message);
    request.metadata_mut().insert(headers::CALL_ID, MetadataValue::from(id.as_u64()));
    request.metadata_mut().insert(headers::TAKES_BUFFERS, MetadataValue::from_static("true"));
    if idempotent {
        request.metadata_mut().insert(headers::IDEMPOTENT, MetadataValue::from_static("true"));
    }
    if at_most_once {
        request.metadata_mut().insert(headers::AT_MOST_ONCE, MetadataValue::from_static("true"));
    }
    if let Some((progress, logs)) = reports {
        let names = match (progress, logs) {
            (true, true) => "progress,logs",
            (_, true) => "logs",
            _ => "progress",
        };
        request.metadata_mut().insert(headers::REPORTS, MetadataValue::from_static(names));
    }
    if let Some(time_left) = time_left {
        request.set_timeout(time_left.min(headers::MAX_TIMEOUT));
    }
    if let Some(trace) = trace {
        let mut entry = |name, value: Option<String>| {
            // Omits trace context that is not a valid header value.
            if let Some(value) = value.and_then(|value| value.parse().ok()) {
                request.metadata_mut().insert(name, value);
            }
        };
        entry(headers::TRACEPARENT, Some(trace.traceparent));
        entry(headers::TRACESTATE, trace.tracestate);
    }
    request
}

/// Checks that a call does not exceed the size limit of messages. Sending a larger call would break the connection, and other
/// calls with it.
///
/// # Errors
/// [`ToolError::InvalidArguments`] with the largest argument, the size and the limit.
pub fn check_size(request: &pb::ExecuteToolRequest) -> Result<(), ToolError> {
    let size = request.encoded_len();
    if size <= MAX_MESSAGE_BYTES {
        return Ok(());
    }
    let values = request.parameters.iter().map(|(name, any)| (any.value.len(), name));
    let buffers = request.binary_parameters.iter().map(|(name, buffer)| (buffer.len(), name));
    let largest = values.chain(buffers).max().map(|(_, name)| name.clone());
    Err(ToolError::invalid_argument(
        &*request.tool_name,
        largest.as_deref().unwrap_or("arguments"),
        format!(
            "is too large: the call has {size} bytes, the limit is {MAX_MESSAGE_BYTES}; pass the path of a file, or make \
             several calls"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use snakepit_session::Payload;

    use super::*;

    #[test]
    fn a_call_that_exceeds_a_message_is_rejected_with_the_limit() {
        let mut call = ToolCall::new("echo");
        call.arguments.insert("small".to_owned(), Payload::bytes(Bytes::from(vec![7; 10])));
        call.arguments
            .insert("large".to_owned(), Payload::bytes(Bytes::from(vec![7; MAX_MESSAGE_BYTES - 1000])));
        check_size(request_to_wire(call.clone(), None, true).get_ref()).unwrap();
        call.arguments.insert("large".to_owned(), Payload::bytes(Bytes::from(vec![7; MAX_MESSAGE_BYTES])));
        let rejected = check_size(request_to_wire(call, None, true).get_ref()).unwrap_err();
        assert!(
            matches!(&rejected, ToolError::InvalidArguments { violations, .. } if violations[0].field == "large")
        );
        assert!(rejected.to_string().contains("the limit is 104857600"), "{rejected}");
        assert!(!rejected.may_have_run());
    }

    #[test]
    fn a_timeout_above_the_maximum_of_the_header_is_clamped() {
        let request = request_to_wire(ToolCall::new("echo"), Some(2 * headers::MAX_TIMEOUT), true);
        let sent = request.metadata().get(headers::GRPC_TIMEOUT).unwrap().to_str().unwrap();
        assert_eq!(headers::parse_timeout(sent), Some(headers::MAX_TIMEOUT));
    }
}
