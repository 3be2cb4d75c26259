//! Reading requests: headers into deadlines and traces, messages into domain calls.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use snakepit_proto::{headers, pb};
use snakepit_registry::{Arguments, CallMode, ToolCall, TraceContext};
use snakepit_session::{Payload, SessionId};
use snakepit_worker::wire::payload_from_wire;
use tokio::time::Instant;
use tonic::{Status, metadata::MetadataMap};

use crate::status::{from_session_error, invalid_field};

/// Reads a session id that must be there.
pub(super) fn session_id(id: &str) -> Result<SessionId, Status> {
    SessionId::try_new(id).map_err(|error| from_session_error(&error))
}

/// The call that a request asks for.
pub(super) fn tool_call(
    headers: &MetadataMap,
    request: pb::ExecuteToolRequest,
    mode: CallMode,
) -> Result<ToolCall, Status> {
    let pb::ExecuteToolRequest {
        session_id: session,
        tool_name,
        parameters,
        metadata,
        stream: _,
        binary_parameters,
    } = request;
    if tool_name.is_empty() {
        return Err(invalid_field("tool_name", "is empty; name the tool to call"));
    }
    let mut call = ToolCall::new(tool_name);
    if !session.is_empty() {
        call.session = Some(session_id(&session)?);
    }
    call.arguments = arguments(parameters, binary_parameters)?;
    call.metadata = metadata;
    call.mode = mode;
    call.deadline = deadline(headers)?;
    call.idempotent = headers.get(headers::IDEMPOTENT).is_some_and(|flag| flag == "true");
    call.trace = trace(headers);
    Ok(call)
}

fn arguments(
    parameters: BTreeMap<String, pb::Any>,
    mut buffers: BTreeMap<String, Bytes>,
) -> Result<Arguments, Status> {
    let mut arguments = Arguments::new();
    for (name, any) in parameters {
        let buffer = buffers.remove(&name);
        let payload = payload_from_wire(any, buffer).map_err(|error| {
            invalid_field(&format!("parameters[{name}]"), format!("cannot be read: {error}"))
        })?;
        arguments.insert(name, payload);
    }
    // A buffer without a parameter of its name is raw bytes.
    arguments.extend(buffers.into_iter().map(|(name, buffer)| (name, Payload::bytes(buffer))));
    Ok(arguments)
}

fn trace(headers: &MetadataMap) -> Option<TraceContext> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    Some(TraceContext { traceparent: text(headers::TRACEPARENT)?, tracestate: text(headers::TRACESTATE) })
}

/// The deadline that `grpc-timeout` asks for, a little early: at the full time the server's own transport answers
/// CANCELLED by itself, and a client gives up without waiting for an answer at all.
pub(super) fn deadline(headers: &MetadataMap) -> Result<Option<Instant>, Status> {
    let Some(value) = headers.get("grpc-timeout") else { return Ok(None) };
    let timeout = value.to_str().ok().and_then(parse_timeout).ok_or_else(|| {
        invalid_field(
            "grpc-timeout",
            "is malformed; it takes up to 8 digits and a unit of H, M, S, m, u or n",
        )
    })?;
    let margin = (timeout / 20).clamp(Duration::from_millis(1), Duration::from_millis(25));
    Ok(Instant::now().checked_add(timeout.saturating_sub(margin)))
}

/// Parses the value of `grpc-timeout`, as the gRPC specification over HTTP/2 defines it.
fn parse_timeout(value: &str) -> Option<Duration> {
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 3600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_parse_as_specified() {
        assert_eq!(parse_timeout("5S"), Some(Duration::from_secs(5)));
        assert_eq!(parse_timeout("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(parse_timeout("250m"), Some(Duration::from_millis(250)));
        for odd in ["", "S", "5", "5s", "-5S", "123456789S", "5é"] {
            assert_eq!(parse_timeout(odd), None, "{odd:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_lies_just_before_the_transport_gives_up() {
        let mut headers = MetadataMap::new();
        headers.insert("grpc-timeout", "1S".parse().unwrap());
        let left = deadline(&headers).unwrap().unwrap() - Instant::now();
        assert_eq!(left, Duration::from_millis(975));
        headers.insert("grpc-timeout", "soon".parse().unwrap());
        assert_eq!(deadline(&headers).unwrap_err().code(), tonic::Code::InvalidArgument);
    }

    #[test]
    fn a_buffer_alone_is_raw_bytes() {
        let buffers = BTreeMap::from([("image".to_owned(), Bytes::from_static(b"\x89PNG"))]);
        let arguments = arguments(BTreeMap::new(), buffers).unwrap();
        assert_eq!(arguments["image"], Payload::bytes(Bytes::from_static(b"\x89PNG")));
    }
}
