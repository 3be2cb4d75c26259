//! Conversions between the domain's payloads and specs and the wire's messages, for hosts and workers alike.

use std::time::Duration;

use bytes::Bytes;
use snakepit_proto::{
    MAX_MESSAGE_BYTES, Message as _, headers, pb,
    status::{bounded, refuse_field},
    value::{self, DecodeValueError, TypedValue},
};
use snakepit_registry::{CallMode, ParameterSpec, ToolCall, ToolError, ToolFailure, ToolSpec};
use snakepit_session::{Payload, PayloadError, SessionId, ValueType};
use tonic::{Request, Status, metadata::MetadataValue};

/// Why a value from the wire cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Its `Any` cannot be read.
    #[error(transparent)]
    Decode(#[from] DecodeValueError),
    /// Its type is none of the protocol's.
    #[error(transparent)]
    Payload(#[from] PayloadError),
}

/// Metadata key by which a worker says that its tool takes no other arguments than its parameters.
const CLOSED: &str = "snakepit.closed";

/// Reads a payload from an `Any` and the binary field that belongs to it.
///
/// # Errors
/// When the type is unknown, or the value is of another one.
pub fn payload_from_wire(any: pb::Any, binary: Option<Bytes>) -> Result<Payload, WireError> {
    let TypedValue { type_name, json, binary } = value::decode(any, binary)?;
    let ty = type_name.parse()?;
    Ok(match binary {
        Some(buffer) => Payload::declared_buffer(ty, json, buffer)?,
        None => Payload::declared(ty, json)?,
    })
}

/// Writes a payload as an `Any`; its buffer, if any, comes back for the message's binary field.
#[must_use]
pub fn payload_to_wire(payload: Payload) -> (pb::Any, Option<Bytes>) {
    value::encode(typed(payload))
}

/// Writes a payload as an `Any` where the message has no binary field.
#[must_use]
pub fn payload_to_wire_inline(payload: Payload) -> pb::Any {
    value::encode_inline(typed(payload))
}

/// Reads a value of a multiplexed call.
///
/// # Errors
/// When the type is unknown, or raw bytes come without their buffer.
pub fn value_from_wire(value: pb::CallValue) -> Result<Payload, WireError> {
    let pb::CallValue { r#type: number, json, binary, .. } = value;
    let ty = pb::CallValueType::try_from(number).ok().and_then(type_from_wire);
    let ty = ty.ok_or_else(|| PayloadError::UnknownType { name: format!("number {number}") })?;
    Ok(match binary {
        Some(buffer) => Payload::declared_buffer(ty, json, buffer)?,
        None => Payload::declared(ty, json)?,
    })
}

/// Writes a value of a multiplexed call.
#[must_use]
pub fn value_to_wire(payload: Payload) -> pb::CallValue {
    let (ty, json, binary) = payload.into_parts();
    pb::CallValue { r#type: type_to_wire(ty).into(), json, binary, sent_in_parts: 0 }
}

const fn type_to_wire(ty: ValueType) -> pb::CallValueType {
    match ty {
        ValueType::Float => pb::CallValueType::Float,
        ValueType::Integer => pb::CallValueType::Integer,
        ValueType::String => pb::CallValueType::String,
        ValueType::Boolean => pb::CallValueType::Boolean,
        ValueType::Choice => pb::CallValueType::Choice,
        ValueType::Module => pb::CallValueType::Module,
        ValueType::Embedding => pb::CallValueType::Embedding,
        ValueType::Tensor => pb::CallValueType::Tensor,
        ValueType::Map => pb::CallValueType::Map,
        ValueType::List => pb::CallValueType::List,
        ValueType::Null => pb::CallValueType::Null,
        ValueType::Bytes => pb::CallValueType::Bytes,
    }
}

const fn type_from_wire(ty: pb::CallValueType) -> Option<ValueType> {
    Some(match ty {
        pb::CallValueType::Unspecified => return None,
        pb::CallValueType::Float => ValueType::Float,
        pb::CallValueType::Integer => ValueType::Integer,
        pb::CallValueType::String => ValueType::String,
        pb::CallValueType::Boolean => ValueType::Boolean,
        pb::CallValueType::Choice => ValueType::Choice,
        pb::CallValueType::Module => ValueType::Module,
        pb::CallValueType::Embedding => ValueType::Embedding,
        pb::CallValueType::Tensor => ValueType::Tensor,
        pb::CallValueType::Map => ValueType::Map,
        pb::CallValueType::List => ValueType::List,
        pb::CallValueType::Null => ValueType::Null,
        pb::CallValueType::Bytes => ValueType::Bytes,
    })
}

fn typed(payload: Payload) -> TypedValue {
    let (ty, json, binary) = payload.into_parts();
    TypedValue { type_name: ty.as_str().into(), json, binary }
}

/// Writes a call as the request of a plain RPC. `left` is what is left until its deadline.
#[must_use]
pub fn request_to_wire(call: ToolCall, left: Option<Duration>) -> Request<pb::ExecuteToolRequest> {
    let ToolCall { id, tool, session, arguments, metadata, mode, idempotent, trace, .. } = call;
    let mut message = pb::ExecuteToolRequest {
        session_id: session.as_ref().map(SessionId::to_string).unwrap_or_default(),
        tool_name: tool.to_string(),
        metadata,
        stream: mode == CallMode::Streaming,
        ..pb::ExecuteToolRequest::default()
    };
    for (name, payload) in arguments {
        let (any, buffer) = payload_to_wire(payload);
        if let Some(buffer) = buffer {
            message.binary_parameters.insert(name.clone(), buffer);
        }
        message.parameters.insert(name, any);
    }
    let mut request = Request::new(message);
    request.metadata_mut().insert(headers::CALL_ID, MetadataValue::from(id.as_u64()));
    if idempotent {
        request.metadata_mut().insert(headers::IDEMPOTENT, MetadataValue::from_static("true"));
    }
    if let Some(left) = left {
        request.set_timeout(left.min(headers::MAX_TIMEOUT));
    }
    if let Some(trace) = trace {
        let mut entry = |name, value: Option<String>| {
            // A header that is no legal header value belongs to no trace.
            if let Some(value) = value.and_then(|value| value.parse().ok()) {
                request.metadata_mut().insert(name, value);
            }
        };
        entry(headers::TRACEPARENT, Some(trace.traceparent));
        entry(headers::TRACESTATE, trace.tracestate);
    }
    request
}

/// Refuses a call that fits no message: sent all the same, it would break the connection, and with it other calls.
///
/// # Errors
/// [`ToolError::InvalidArgument`], with the largest argument, the size and the limit.
pub fn check_size(request: &pb::ExecuteToolRequest) -> Result<(), ToolError> {
    let size = request.encoded_len();
    if size <= MAX_MESSAGE_BYTES {
        return Ok(());
    }
    let values = request.parameters.iter().map(|(name, any)| (any.value.len(), name));
    let buffers = request.binary_parameters.iter().map(|(name, buffer)| (buffer.len(), name));
    let largest = values.chain(buffers).max().map(|(_, name)| name.clone());
    Err(ToolError::InvalidArgument {
        tool: request.tool_name.clone(),
        argument: largest.unwrap_or_else(|| "arguments".to_owned()),
        problem: format!(
            "is too large: the call has {size} bytes, the limit is {MAX_MESSAGE_BYTES}; pass the path of a file, or make \
             several calls"
        ),
    })
}

/// Reads a spec that a worker registered. A default value that cannot be read is left out.
#[must_use]
pub fn spec_from_registration(registration: pb::ToolRegistration) -> ToolSpec {
    let pb::ToolRegistration { name, description, parameters, mut metadata, supports_streaming } =
        registration;
    let closed = metadata.remove(CLOSED).is_some_and(|flag| flag == "true");
    ToolSpec {
        name,
        description,
        parameters: parameters.into_iter().map(parameter_from_wire).collect(),
        metadata,
        supports_streaming,
        closed,
    }
}

/// Writes a spec as a worker registers it.
#[must_use]
pub fn spec_to_registration(spec: ToolSpec) -> pb::ToolRegistration {
    let pb::ToolSpec { name, description, parameters, metadata, supports_streaming, .. } = spec_to_wire(spec);
    pb::ToolRegistration { name, description, parameters, metadata, supports_streaming }
}

/// Writes a spec as the host lists it.
#[must_use]
pub fn spec_to_wire(spec: ToolSpec) -> pb::ToolSpec {
    let ToolSpec { name, description, parameters, mut metadata, supports_streaming, closed } = spec;
    if closed {
        metadata.insert(CLOSED.to_owned(), "true".to_owned());
    }
    pb::ToolSpec {
        name,
        description,
        parameters: parameters.into_iter().map(parameter_to_wire).collect(),
        metadata,
        supports_streaming,
        required_variables: Vec::new(),
    }
}

fn parameter_from_wire(parameter: pb::ParameterSpec) -> ParameterSpec {
    let pb::ParameterSpec { name, r#type, description, required, default_value, validation_json } = parameter;
    let default = default_value.and_then(|any| payload_from_wire(any, None).ok());
    ParameterSpec { name, type_name: r#type, description, required, default, validation_json }
}

fn parameter_to_wire(parameter: ParameterSpec) -> pb::ParameterSpec {
    let ParameterSpec { name, type_name, description, required, default, validation_json } = parameter;
    pb::ParameterSpec {
        name,
        r#type: type_name,
        description,
        required,
        default_value: default.map(payload_to_wire_inline),
        validation_json,
    }
}

/// Reads why a tool failed.
#[must_use]
pub fn failure_from_wire(failure: pb::ToolFailure) -> ToolFailure {
    let pb::ToolFailure { r#type, message, traceback, tool_name, worker_id, session_id: _, output_lines } =
        failure;
    ToolFailure { tool: tool_name, error_type: r#type, message, traceback, worker: worker_id, output_lines }
}

/// Writes why a tool failed, cut to what an answer may take.
#[must_use]
pub fn failure_to_wire(failure: ToolFailure, session_id: String) -> pb::ToolFailure {
    let ToolFailure { tool, error_type, message, traceback, worker, output_lines } = failure;
    bounded(pb::ToolFailure {
        r#type: error_type,
        message,
        traceback,
        tool_name: tool,
        worker_id: worker,
        session_id,
        output_lines,
    })
}

/// A refusal of a request for one of its arguments.
#[must_use]
pub fn bad_argument(tool: &str, argument: &str, problem: &str) -> Status {
    refuse_field(format!("argument `{argument}` of tool `{tool}` {problem}"), argument, problem)
}

/// A refusal of a request for one of its fields.
#[must_use]
pub fn bad_field(field: &str, problem: &str) -> Status {
    refuse_field(format!("`{field}` {problem}"), field, problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_fits_no_message_is_refused_with_the_limit() {
        let mut call = ToolCall::new("echo");
        call.arguments.insert("small".to_owned(), Payload::bytes(Bytes::from(vec![7; 10])));
        call.arguments
            .insert("large".to_owned(), Payload::bytes(Bytes::from(vec![7; MAX_MESSAGE_BYTES - 1000])));
        check_size(request_to_wire(call.clone(), None).get_ref()).unwrap();
        call.arguments.insert("large".to_owned(), Payload::bytes(Bytes::from(vec![7; MAX_MESSAGE_BYTES])));
        let refused = check_size(request_to_wire(call, None).get_ref()).unwrap_err();
        assert!(matches!(&refused, ToolError::InvalidArgument { argument, .. } if argument == "large"));
        assert!(refused.to_string().contains("the limit is 104857600"), "{refused}");
        assert!(!refused.is_delivered());
    }

    #[test]
    fn a_timeout_beyond_what_the_header_can_say_is_cut() {
        let request = request_to_wire(ToolCall::new("echo"), Some(2 * headers::MAX_TIMEOUT));
        let sent = request.metadata().get(headers::GRPC_TIMEOUT).unwrap().to_str().unwrap();
        assert_eq!(headers::parse_timeout(sent), Some(headers::MAX_TIMEOUT));
    }
}
