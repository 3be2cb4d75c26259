//! Conversions of payloads.

use bytes::Bytes;
use snakepit_proto::{
    pb,
    value::{self, DecodeValueError, TypedValue},
};
use snakepit_session::{Payload, PayloadError, ValueType};

/// The error of a value that cannot be converted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Its `Any` cannot be decoded.
    #[error(transparent)]
    Decode(#[from] DecodeValueError),
    /// Its type is unknown, or does not match its data.
    #[error(transparent)]
    Payload(#[from] PayloadError),
}

/// Converts an `Any`, and the binary field that belongs to it, to a payload.
///
/// # Errors
/// [`WireError`] if the type is unknown, or does not match the value.
pub fn payload_from_wire(any: pb::Any, binary: Option<Bytes>) -> Result<Payload, WireError> {
    let TypedValue { type_name, json, binary } = value::decode(any, binary)?;
    let ty = type_name.parse()?;
    Ok(match binary {
        Some(buffer) => Payload::declared_buffer(ty, json, buffer)?,
        None => Payload::declared(ty, json)?,
    })
}

/// Converts a payload to an `Any`, and returns its buffer, if any, for the binary field of the message.
#[must_use]
pub fn payload_to_wire(payload: Payload) -> (pb::Any, Option<Bytes>) {
    value::encode(typed(payload))
}

/// Converts a payload to an `Any` for a message without a binary field.
#[must_use]
pub fn payload_to_wire_inline(payload: Payload) -> pb::Any {
    value::encode_inline(typed(payload))
}

/// Converts a nested value to plain JSON, for a reader that does not know nested values. Returns other values unchanged.
#[must_use]
pub fn without_buffers(payload: Payload) -> Payload {
    match payload.binary().and_then(|buffers| value::inline_nested(payload.json(), buffers)) {
        Some(json) => Payload::from_json(payload.ty(), json.into()),
        None => payload,
    }
}

/// Converts a nested value in a message to plain JSON, for a reader that does not know nested values.
pub fn inline_any(any: &mut pb::Any, buffers: &mut Bytes) {
    if let Some(base) = any.type_url.strip_suffix(".binary")
        && let Some(json) = value::inline_nested(&any.value, buffers)
    {
        *any = pb::Any { type_url: base.to_owned(), value: json.into() };
        buffers.clear();
    }
}

/// Estimates the size of the result of [`payload_to_wire_inline`] in bytes. Does not count the names of its type and of its
/// parts.
#[must_use]
pub fn inline_size(payload: &Payload) -> usize {
    let buffer = payload.binary().map_or(0, |buffer| match payload.ty() {
        ValueType::Bytes => buffer.len(),
        // Base64.
        _ => buffer.len().div_ceil(3) * 4,
    });
    payload.json().len() + buffer
}

/// Converts a value of a multiplexed call to a payload.
///
/// # Errors
/// [`WireError`] if the type is unknown, or raw bytes have no buffer.
pub fn value_from_wire(value: pb::CallValue) -> Result<Payload, WireError> {
    let pb::CallValue { r#type: number, json, binary, .. } = value;
    let ty = pb::CallValueType::try_from(number).ok().and_then(type_from_wire);
    let ty = match ty {
        Some(ty) => ty,
        None => return Err(PayloadError::unknown_type(format!("number {number}")).into()),
    };
    Ok(match binary {
        Some(buffer) => Payload::declared_buffer(ty, json, buffer)?,
        None => Payload::declared(ty, json)?,
    })
}

/// Converts a payload to a value of a multiplexed call.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inline_size_is_that_of_the_message() {
        let numbers = [1.5_f64; 1000];
        for value in [
            Payload::null(),
            Payload::bytes(vec![0; 1000].into()),
            Payload::embedding(&numbers),
            Payload::tensor(&[10, 100], &numbers).unwrap(),
            Payload::try_from_serde(&[Payload::embedding(&numbers)]).unwrap(),
        ] {
            let (estimate, actual) = (inline_size(&value), payload_to_wire_inline(value).value.len());
            assert!(estimate.abs_diff(actual) < 64, "{estimate} instead of {actual}");
        }
    }
}
