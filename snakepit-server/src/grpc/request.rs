//! Converts requests: headers to deadlines and traces, messages to calls, and errors of sessions to statuses.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use snakepit_proto::{headers, pb};
use snakepit_registry::{Arguments, CallMode, ToolCall, TraceContext};
use snakepit_session::{Payload, SessionError, SessionId};
use snakepit_wire::payload_from_wire;
use tokio::time::Instant;
use tonic::{Extensions, Status, metadata::MetadataMap};

use crate::{
    host::FromWorker,
    listen::{CallDeadline, Connection},
    status::{from_session_error, from_write_error, invalid_field},
};

/// Parses a session id, which must not be empty.
pub(super) fn session_id(id: &str) -> Result<SessionId, Status> {
    SessionId::try_new(id).map_err(read_status)
}

/// Checks the length of an id or name, so that it may appear in messages and logs.
pub(super) fn bounded<'a>(field: &str, name: &'a str, max_bytes: usize) -> Result<&'a str, Status> {
    if name.len() > max_bytes {
        let problem = format!("has {} bytes, the limit is {max_bytes}", name.len());
        return Err(invalid_field(field, problem));
    }
    Ok(name)
}

/// Parses a TTL in seconds. Zero stands for the default.
pub(super) fn ttl(field: &str, seconds: i64) -> Result<Option<Duration>, Status> {
    match u64::try_from(seconds) {
        Ok(0) => Ok(None),
        Ok(seconds) => Ok(Some(Duration::from_secs(seconds))),
        Err(_) => Err(invalid_field(field, "is negative; use 0 for the default")),
    }
}

/// Converts a request to a call, without a principal.
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
    call.idempotent = headers::has_flag(headers, headers::IDEMPOTENT);
    call.trace = trace(headers);
    Ok(if headers::has_flag(headers, headers::AT_MOST_ONCE) { call.at_most_once(true) } else { call })
}

/// Marks the call of a client that is a process of a worker.
pub(super) fn mark_worker(call: &mut ToolCall, extensions: &Extensions) {
    if is_from_worker(extensions) {
        call.extensions.insert(FromWorker);
    }
}

/// Whether a request comes from a process of a worker.
pub(super) fn is_from_worker(extensions: &Extensions) -> bool {
    extensions.get::<Arc<Connection>>().is_some_and(|connection| connection.find_launch().is_some())
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
    // A buffer without a parameter of the same name is raw bytes.
    arguments.extend(buffers.into_iter().map(|(name, buffer)| (name, Payload::bytes(buffer))));
    Ok(arguments)
}

/// Converts the error of a read or of a new session, for `map_err`.
#[allow(clippy::needless_pass_by_value, reason = "it is an argument of map_err")]
pub(super) fn read_status(error: SessionError) -> Status {
    from_session_error(&error)
}

/// Converts the error of a write, for `map_err`.
#[allow(clippy::needless_pass_by_value, reason = "it is an argument of map_err")]
pub(super) fn write_status(error: SessionError) -> Status {
    from_write_error(&error)
}

/// Counts on the wire are int32; larger ones become the largest.
pub(super) fn count_to_wire(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

fn trace(headers: &MetadataMap) -> Option<TraceContext> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    Some(TraceContext { traceparent: text(headers::TRACEPARENT)?, tracestate: text(headers::TRACESTATE) })
}

/// The deadline of a call, from the extension that [`listen`](crate::listen) sets.
///
/// # Errors
/// The header `grpc-timeout` is malformed.
pub(super) fn deadline(headers: &MetadataMap, extensions: &Extensions) -> Result<Option<Instant>, Status> {
    let Some(value) = headers.get(headers::GRPC_TIMEOUT) else { return Ok(None) };
    if value.to_str().ok().and_then(headers::parse_timeout).is_none() {
        return Err(invalid_field(
            headers::GRPC_TIMEOUT,
            "is malformed; it takes up to 8 digits and a unit of H, M, S, m, u or n",
        ));
    }
    // A timeout that overflows the clock sets no deadline.
    Ok(extensions.get::<CallDeadline>().map(|deadline| deadline.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_malformed_timeout_is_rejected() {
        let mut headers = MetadataMap::new();
        headers.insert("grpc-timeout", "soon".parse().unwrap());
        let error = deadline(&headers, &Extensions::default()).unwrap_err();
        assert_eq!(error.code(), tonic::Code::InvalidArgument);
    }

    #[test]
    fn a_buffer_alone_is_raw_bytes() {
        let buffers = BTreeMap::from([("image".to_owned(), Bytes::from_static(b"\x89PNG"))]);
        let arguments = arguments(BTreeMap::new(), buffers).unwrap();
        assert_eq!(arguments.get("image"), Some(&Payload::bytes(Bytes::from_static(b"\x89PNG"))));
    }
}
