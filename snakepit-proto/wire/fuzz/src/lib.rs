//! Invariants of values from the wire, for arbitrary bytes. The fuzzer runs them, and `tests/fuzz.rs` as a test.

use bytes::Bytes;
use serde::de::IgnoredAny;
use snakepit_proto::pb;
use snakepit_session::{Payload, ValueType, VariableType};
use snakepit_wire::{
    payload_from_wire, payload_to_wire, payload_to_wire_inline, value_from_wire, value_to_wire,
};

/// Types of variables, with all kinds of constraints.
const TYPES: [(ValueType, &str); 17] = [
    (ValueType::Float, ""),
    (ValueType::Float, r#"{"min":-1.5,"max":1e9}"#),
    (ValueType::Integer, ""),
    (ValueType::Integer, r#"{"min":-5,"max":1000}"#),
    (ValueType::String, ""),
    (ValueType::String, r#"{"min_length":1,"max_length":8,"pattern":"^[a-z]"}"#),
    (ValueType::String, r#"{"enum":["a","b"]}"#),
    (ValueType::Boolean, ""),
    (ValueType::Choice, r#"{"choices":["a","b"]}"#),
    (ValueType::Module, ""),
    (ValueType::Module, r#"{"allowed_modules":["m"]}"#),
    (ValueType::Embedding, ""),
    (ValueType::Embedding, r#"{"dimensions":2}"#),
    (ValueType::Tensor, ""),
    (ValueType::Tensor, r#"{"shape":[2,2]}"#),
    (ValueType::Map, ""),
    (ValueType::List, ""),
];

/// Converts a value and runs all operations of a host on it.
///
/// The first line of the input is the type URL. The second line is the size of the binary field, or empty without
/// one. The rest of the input is the value, followed by the binary field.
///
/// # Panics
/// If an invariant does not hold.
pub fn any(input: &[u8]) {
    let mut lines = input.splitn(3, |byte| *byte == b'\n');
    let (Some(type_url), Some(size), Some(rest)) = (lines.next(), lines.next(), lines.next()) else { return };
    let type_url = String::from_utf8_lossy(type_url).into_owned();
    let size: Option<usize> = std::str::from_utf8(size).ok().and_then(|size| size.parse().ok());
    let (value, binary) = rest.split_at(rest.len() - size.unwrap_or(0).min(rest.len()));
    let binary = size.map(|_| Bytes::copy_from_slice(binary));
    let has_buffer_type = type_url.ends_with(".binary");
    let is_protobuf_type =
        type_url.rsplit('/').next().is_some_and(|name| name.starts_with("google.protobuf."));
    let Ok(payload) = payload_from_wire(pb::Any { type_url, value: Bytes::copy_from_slice(value) }, binary)
    else {
        return;
    };
    assert!(!has_buffer_type || payload.binary().is_some(), "a value of a `.binary` type has a buffer");
    if is_protobuf_type {
        matches_its_type(&payload);
    }
    round_trips(&payload);
    expands_in_proportion(&payload);
    for (kind, constraints) in TYPES {
        check_variable(kind, constraints, &payload);
    }
    // Constraints come from the wire too.
    if let Ok(constraints) = std::str::from_utf8(payload.json()) {
        for (kind, _) in TYPES {
            check_variable(kind, constraints, &payload);
        }
    }
}

/// Checks that a buffer is rejected, or expands to at most three lists and numbers per byte.
fn expands_in_proportion(payload: &Payload) {
    fn parts(value: &serde_json::Value) -> usize {
        1 + value.as_array().map_or(0, |items| items.iter().map(parts).sum())
    }
    if let (Some(buffer), Ok(value)) = (payload.binary(), payload.to_serde()) {
        assert!(
            parts(&value) <= 3 * (buffer.len() + payload.json().len()) + 1024,
            "{} bytes are {value}",
            buffer.len()
        );
    }
}

/// Checks that a value is unchanged after the conversion to the wire and back.
fn round_trips(payload: &Payload) {
    let (any, binary) = payload_to_wire(payload.clone());
    // proto3 does not distinguish an empty field from a missing one.
    let read = payload_from_wire(any.clone(), binary.clone().filter(|binary| !binary.is_empty()));
    assert_eq!(read.as_ref(), Ok(payload), "after a round trip");
    assert_eq!(payload_from_wire(any, binary).as_ref(), Ok(payload), "after a round trip");
    assert_eq!(
        value_from_wire(value_to_wire(payload.clone())).as_ref(),
        Ok(payload),
        "after a round trip in a multiplexed call"
    );

    let inline =
        payload_from_wire(payload_to_wire_inline(payload.clone()), None).expect("an inline value is valid");
    assert_eq!(inline.ty(), payload.ty());
    match payload.binary() {
        None => assert_eq!(inline, *payload),
        Some(buffer) if payload.ty() == ValueType::Bytes => assert_eq!(inline.binary(), Some(buffer)),
        Some(_) if payload.nested_json().is_some() => assert_eq!(inline.binary(), None),
        Some(buffer) => {
            let json: serde_json::Value = inline.to_serde().expect("an inline buffer is JSON");
            let data = json["data"].as_str().expect("the data is a string");
            assert_eq!(data.len(), buffer.len().div_ceil(3) * 4, "the data is the whole buffer in base64");
        }
    }
}

/// Checks that a value from a protobuf message is JSON of its type.
fn matches_its_type(payload: &Payload) {
    let json = payload.json();
    serde_json::from_slice::<IgnoredAny>(json).expect("the value is JSON");
    let json_type = Payload::of_json(Bytes::copy_from_slice(json.trim_ascii())).ty();
    match payload.ty() {
        ValueType::Float => assert!(json_type == ValueType::Float || is_special_float(json)),
        ValueType::Bytes => assert!(payload.binary().is_some()),
        ty => assert_eq!(ty, json_type),
    }
}

/// Checks that a variable rejects a value, or stores a value that has its type and that it accepts again.
fn check_variable(kind: ValueType, constraints: &str, payload: &Payload) {
    let Ok(ty) = VariableType::with_constraints(kind, constraints) else { return };
    let Ok(stored) = ty.check(payload.clone()) else { return };
    assert_eq!(stored.ty(), kind);
    assert_eq!(ty.check(stored.clone()).as_ref(), Ok(&stored), "a variable accepts its own value");
    assert_eq!(stored.binary(), payload.binary());
    serde_json::from_slice::<IgnoredAny>(stored.json()).expect("the value is JSON");
    let reads = match kind {
        ValueType::Float => stored.to_serde::<f64>().is_ok() || is_special_float(stored.json()),
        ValueType::Integer => stored.to_serde::<i64>().is_ok(),
        ValueType::Boolean => stored.to_serde::<bool>().is_ok(),
        ValueType::String | ValueType::Choice | ValueType::Module => stored.to_serde::<String>().is_ok(),
        ValueType::Map => stored.json().trim_ascii_start().starts_with(b"{"),
        ValueType::List => stored.nested_json().unwrap_or(stored.json()).trim_ascii_start().starts_with(b"["),
        _ => true,
    };
    assert!(reads, "{stored:?} is not a {kind}");
}

/// Whether the JSON is the string of a float without a JSON number.
fn is_special_float(json: &[u8]) -> bool {
    [&br#""NaN""#[..], br#""Infinity""#, br#""-Infinity""#].contains(&json)
}
