//! Reading requests: headers into deadlines and traces, messages into domain calls.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use snakepit_proto::{headers, pb};
use snakepit_registry::{Arguments, CallMode, ToolCall, TraceContext};
use snakepit_session::{Payload, SessionId};
use snakepit_wire::payload_from_wire;
use tokio::time::Instant;
use tonic::{Extensions, Status, metadata::MetadataMap};

use super::deadline::CallDeadline;
use crate::status::{from_session_error, invalid_field};

/// Reads a session id that must be there.
pub(super) fn session_id(id: &str) -> Result<SessionId, Status> {
    SessionId::try_new(id).map_err(|error| from_session_error(&error))
}

/// Checks the length of an id or a name that is looked up, which may then stand in messages and logs.
pub(super) fn bounded<'a>(field: &str, name: &'a str, max_bytes: usize) -> Result<&'a str, Status> {
    if name.len() > max_bytes {
        let problem = format!("has {} bytes, the limit is {max_bytes}", name.len());
        return Err(invalid_field(field, problem));
    }
    Ok(name)
}

/// Reads a TTL; 0 is the default.
pub(super) fn ttl(field: &str, seconds: i64) -> Result<Option<Duration>, Status> {
    match u64::try_from(seconds) {
        Ok(0) => Ok(None),
        Ok(seconds) => Ok(Some(Duration::from_secs(seconds))),
        Err(_) => Err(invalid_field(field, "is negative; use 0 for the default")),
    }
}

/// The call that a request asks for.
pub(super) fn tool_call(
    headers: &MetadataMap,
    extensions: &Extensions,
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
    call.deadline = deadline(headers, extensions)?;
    call.idempotent = headers.get(headers::IDEMPOTENT).is_some_and(|flag| flag == "true");
    call.trace = trace(headers);
    Ok(call)
}

fn arguments(
    parameters: BTreeMap<String, pb::Any>,
    mut buffers: BTreeMap<String, Bytes>,
) -> Result<Arguments, Status> {
    let read = |(name, any)| match payload_from_wire(any, buffers.remove(&name)) {
        Ok(payload) => Ok((name, payload)),
        Err(error) => Err(invalid_field(&format!("parameters[{name}]"), format!("cannot be read: {error}"))),
    };
    let mut arguments = parameters.into_iter().map(read).collect::<Result<Arguments, _>>()?;
    // A buffer without a parameter of its name is raw bytes.
    arguments.extend(buffers.into_iter().map(|(name, buffer)| (name, Payload::bytes(buffer))));
    Ok(arguments)
}

fn trace(headers: &MetadataMap) -> Option<TraceContext> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    Some(TraceContext { traceparent: text(headers::TRACEPARENT)?, tracestate: text(headers::TRACESTATE) })
}

/// The deadline that `grpc-timeout` asks for, a little early, as [the layer](super::deadline) found it.
pub(super) fn deadline(headers: &MetadataMap, extensions: &Extensions) -> Result<Option<Instant>, Status> {
    let Some(value) = headers.get(headers::GRPC_TIMEOUT) else { return Ok(None) };
    if value.to_str().ok().and_then(headers::parse_timeout).is_none() {
        return Err(invalid_field(
            headers::GRPC_TIMEOUT,
            "is malformed; it takes up to 8 digits and a unit of H, M, S, m, u or n",
        ));
    }
    // A timeout too long for the clock is none.
    Ok(extensions.get::<CallDeadline>().map(|deadline| deadline.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_malformed_timeout_is_refused() {
        let mut headers = MetadataMap::new();
        headers.insert("grpc-timeout", "soon".parse().unwrap());
        let refused = deadline(&headers, &Extensions::default()).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    }

    #[test]
    fn a_buffer_alone_is_raw_bytes() {
        let buffers = BTreeMap::from([("image".to_owned(), Bytes::from_static(b"\x89PNG"))]);
        let arguments = arguments(BTreeMap::new(), buffers).unwrap();
        assert_eq!(arguments.get("image"), Some(&Payload::bytes(Bytes::from_static(b"\x89PNG"))));
    }
}
