//! The codec between `google.protobuf.Any` and typed values.
//!
//! A value is a type name, its JSON and, for large arrays and bytes, a raw buffer in a separate field of the message.
//! The codec passes JSON on without parsing it where the wire allows that.

use std::borrow::Cow;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use prost::Message;
use serde::de::IgnoredAny;

use crate::pb::Any;

mod nested;

const URL_PREFIX: &str = "type.googleapis.com/";
const OWN_PREFIX: &str = "snakepit.";
const BINARY_SUFFIX: &str = ".binary";

/// The content of an [`Any`], without parsed JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypedValue {
    /// The name of the type without a prefix: `integer`, `string`, `tensor`, ...
    pub type_name: Cow<'static, str>,
    /// The value as JSON. With a `binary` part, its metadata as JSON (shape, dtype, format).
    pub json: Bytes,
    /// The raw buffer of a value that is not JSON.
    pub binary: Option<Bytes>,
}

/// The error of an [`Any`] that cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeValueError {
    /// The type URL is not part of this protocol.
    #[error(
        "unknown value type `{type_url}`; send `type.googleapis.com/snakepit.<type>` with JSON, \
         or a google.protobuf wrapper, Struct, ListValue or Value"
    )]
    UnknownType {
        /// The type URL as received.
        type_url: String,
    },
    /// The bytes are neither the message of the type URL nor JSON.
    #[error("value of type `{type_url}` is malformed: {problem}")]
    Malformed {
        /// The type URL as received.
        type_url: String,
        /// The decoding error.
        problem: String,
    },
}

/// Decodes a value from an [`Any`] and the binary field that belongs to it.
///
/// - JSON inside `snakepit.<type>` is not parsed.
/// - An empty `Any` is null, or bytes if `binary` is given.
/// - proto3 does not distinguish an empty bytes field from a missing one, so the type does. A `.binary` value without a
///   buffer has an empty buffer, and other types of this project have none.
///
/// # Errors
/// [`DecodeValueError`] if the type is unknown, or does not match the bytes.
pub fn decode(any: Any, binary: Option<Bytes>) -> Result<TypedValue, DecodeValueError> {
    let Any { type_url, value } = any;
    let name = type_url.rsplit('/').next().unwrap_or_default();
    if let Some(own) = name.strip_prefix(OWN_PREFIX) {
        return match own.strip_suffix(BINARY_SUFFIX) {
            Some(base) => Ok(TypedValue {
                type_name: type_name(base),
                json: value,
                binary: Some(binary.unwrap_or_default()),
            }),
            None => Ok(TypedValue { type_name: type_name(own), json: value, binary: None }),
        };
    }
    if type_url.is_empty() && value.is_empty() {
        return Ok(match binary {
            Some(buffer) => bytes_value(buffer),
            None => json_value("null", &serde_json::Value::Null),
        });
    }
    let Some(google) = name.strip_prefix("google.protobuf.") else {
        return Err(DecodeValueError::UnknownType { type_url });
    };
    let malformed = |problem: &dyn std::fmt::Display| DecodeValueError::Malformed {
        type_url: type_url.clone(),
        problem: problem.to_string(),
    };
    match google {
        // Hosts of the original protocol send bare JSON. Other programs send the protobuf message.
        "StringValue" => match strict_string(&value) {
            Some(text) => Ok(json_value("string", &text.into())),
            None => bare_json(value).map_err(|e| malformed(&e)),
        },
        // SessionContext of the original protocol sends bare JSON. An encoded Value is never valid JSON.
        "Value" => match bare_json(value.clone()) {
            Ok(typed) => Ok(typed),
            Err(_) => {
                let message = prost_types::Value::decode(value).map_err(|e| malformed(&e))?;
                Ok(value_of_inferred_type(&json_of_value(message)))
            }
        },
        "BoolValue" => Ok(value_of_inferred_type(&bool::decode(value).map_err(|e| malformed(&e))?.into())),
        "Int64Value" => Ok(value_of_inferred_type(&i64::decode(value).map_err(|e| malformed(&e))?.into())),
        "Int32Value" => Ok(value_of_inferred_type(&i32::decode(value).map_err(|e| malformed(&e))?.into())),
        "UInt64Value" => Ok(value_of_inferred_type(&u64::decode(value).map_err(|e| malformed(&e))?.into())),
        "UInt32Value" => Ok(value_of_inferred_type(&u32::decode(value).map_err(|e| malformed(&e))?.into())),
        "DoubleValue" => {
            Ok(json_value("float", &json_of_f64(f64::decode(value).map_err(|e| malformed(&e))?)))
        }
        "FloatValue" => {
            let number = f32::decode(value).map_err(|e| malformed(&e))?;
            Ok(json_value("float", &json_of_f64(f64::from(number))))
        }
        "BytesValue" => Ok(bytes_value(Bytes::decode(value).map_err(|e| malformed(&e))?)),
        "Struct" => {
            let message = prost_types::Struct::decode(value).map_err(|e| malformed(&e))?;
            Ok(json_value("map", &json_of_struct(message)))
        }
        "ListValue" => {
            let message = prost_types::ListValue::decode(value).map_err(|e| malformed(&e))?;
            Ok(json_value("list", &json_of_list(message)))
        }
        "Empty" => Ok(json_value("null", &serde_json::Value::Null)),
        _ => Err(DecodeValueError::UnknownType { type_url }),
    }
}

/// Encodes a value as an [`Any`], and returns its buffer, if any, for the binary field of the message.
#[must_use]
pub fn encode(value: TypedValue) -> (Any, Option<Bytes>) {
    let suffix = if value.binary.is_some() { BINARY_SUFFIX } else { "" };
    let mut type_url =
        String::with_capacity(URL_PREFIX.len() + OWN_PREFIX.len() + value.type_name.len() + suffix.len());
    for part in [URL_PREFIX, OWN_PREFIX, &value.type_name, suffix] {
        type_url.push_str(part);
    }
    (Any { type_url, value: value.json }, value.binary)
}

/// Encodes a value as an [`Any`] for a message without a binary field.
///
/// Raw bytes become a `google.protobuf.BytesValue`. Other buffers (tensors) are added to the JSON metadata as base64,
/// under the key `data`.
#[must_use]
pub fn encode_inline(value: TypedValue) -> Any {
    let Some(buffer) = value.binary else { return encode(value).0 };
    if let Some(json) = inline_nested(&value.json, &buffer) {
        return encode(TypedValue { type_name: value.type_name, json: json.into(), binary: None }).0;
    }
    if value.type_name == "bytes" {
        return Any {
            type_url: format!("{URL_PREFIX}google.protobuf.BytesValue"),
            value: Bytes::from(buffer.encode_to_vec()),
        };
    }
    let mut metadata: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&value.json).unwrap_or_default();
    metadata.insert("data".into(), BASE64.encode(&buffer).into());
    let json = Bytes::from(serde_json::Value::Object(metadata).to_string());
    encode(TypedValue { type_name: value.type_name, json, binary: None }).0
}

/// Converts the JSON of a nested value to plain JSON, for readers that do not know nested values. The buffers become base64.
/// Returns `None` for other JSON.
///
/// A nested value is JSON with bytes and arrays inside it: `{"binary_format":"nested","value":VALUE}`. In VALUE, maps with the
/// key `__snakepit__` refer to parts of `buffers` by `offset` and `length`. References to more bytes than there are stay
/// unchanged.
#[must_use]
pub fn inline_nested(json: &[u8], buffers: &[u8]) -> Option<Vec<u8>> {
    let value = json.strip_prefix(NESTED_PREFIX)?.strip_suffix(b"}")?;
    Some(nested::inline(value, buffers))
}

/// The first bytes of the JSON of a nested value.
const NESTED_PREFIX: &[u8] = br#"{"binary_format":"nested","value":"#;

/// Creates a `bytes` value from its buffer.
#[must_use]
pub fn bytes_value(buffer: Bytes) -> TypedValue {
    TypedValue {
        type_name: Cow::Borrowed("bytes"),
        json: Bytes::from_static(br#"{"type":"bytes","binary_format":"raw"}"#),
        binary: Some(buffer),
    }
}

/// Infers the type of bare JSON from its first byte. `None` if that is not the start of JSON.
#[must_use]
pub fn infer_type(json: &[u8]) -> Option<&'static str> {
    let trimmed = json.trim_ascii();
    match trimmed.first()? {
        b'"' => Some("string"),
        b'{' => Some("map"),
        b'[' => Some("list"),
        b't' | b'f' => Some("boolean"),
        b'n' => Some("null"),
        b'-' | b'0'..=b'9' if trimmed.iter().any(|b| matches!(b, b'.' | b'e' | b'E')) => Some("float"),
        b'-' | b'0'..=b'9' => Some("integer"),
        _ => None,
    }
}

fn type_name(name: &str) -> Cow<'static, str> {
    const KNOWN: [&str; 12] = [
        "float",
        "integer",
        "string",
        "boolean",
        "choice",
        "module",
        "embedding",
        "tensor",
        "map",
        "list",
        "null",
        "bytes",
    ];
    KNOWN
        .iter()
        .find(|known| **known == name)
        .map_or_else(|| Cow::Owned(name.to_owned()), |k| Cow::Borrowed(*k))
}

/// Decodes a StringValue, only if the bytes are exactly its field. prost alone would accept some JSON as unknown
/// fields.
fn strict_string(bytes: &Bytes) -> Option<String> {
    const FIELD_1_LENGTH_DELIMITED: u8 = 0x0A;
    let Some(first) = bytes.first() else { return Some(String::new()) };
    if *first != FIELD_1_LENGTH_DELIMITED {
        return None;
    }
    let text = String::decode(bytes.clone()).ok()?;
    (text.encoded_len() == bytes.len()).then_some(text)
}

fn bare_json(json: Bytes) -> Result<TypedValue, serde_json::Error> {
    serde_json::from_slice::<IgnoredAny>(&json)?;
    let type_name = infer_type(&json).unwrap_or("null");
    Ok(TypedValue { type_name: Cow::Borrowed(type_name), json, binary: None })
}

fn json_value(type_name: &'static str, json: &serde_json::Value) -> TypedValue {
    TypedValue { type_name: Cow::Borrowed(type_name), json: Bytes::from(json.to_string()), binary: None }
}

fn value_of_inferred_type(json: &serde_json::Value) -> TypedValue {
    let json = Bytes::from(json.to_string());
    let type_name = infer_type(&json).unwrap_or("null");
    TypedValue { type_name: Cow::Borrowed(type_name), json, binary: None }
}

/// Converts a float. JSON has no NaN and no infinities, so the protocol uses strings.
fn json_of_f64(number: f64) -> serde_json::Value {
    match serde_json::Number::from_f64(number) {
        Some(finite) => finite.into(),
        None if number.is_nan() => "NaN".into(),
        None if number > 0.0 => "Infinity".into(),
        None => "-Infinity".into(),
    }
}

fn json_of_value(value: prost_types::Value) -> serde_json::Value {
    use prost_types::value::Kind;
    match value.kind {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        Some(Kind::BoolValue(flag)) => flag.into(),
        Some(Kind::StringValue(text)) => text.into(),
        // A protobuf Value has only doubles. Whole numbers that a double represents exactly are integers.
        #[allow(clippy::cast_possible_truncation, reason = "checked to be whole and below 2^53")]
        Some(Kind::NumberValue(n)) if n.fract() == 0.0 && n.abs() < 9_007_199_254_740_992.0 => {
            (n as i64).into()
        }
        Some(Kind::NumberValue(number)) => json_of_f64(number),
        Some(Kind::StructValue(fields)) => json_of_struct(fields),
        Some(Kind::ListValue(list)) => json_of_list(list),
    }
}

fn json_of_struct(fields: prost_types::Struct) -> serde_json::Value {
    fields.fields.into_iter().map(|(k, v)| (k, json_of_value(v))).collect::<serde_json::Map<_, _>>().into()
}

fn json_of_list(list: prost_types::ListValue) -> serde_json::Value {
    list.values.into_iter().map(json_of_value).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wrapped(type_url: &str, value: impl Into<Bytes>) -> Any {
        Any { type_url: format!("type.googleapis.com/{type_url}"), value: value.into() }
    }

    fn decoded(type_url: &str, value: impl Into<Bytes>) -> (String, String) {
        let typed = decode(wrapped(type_url, value), None).unwrap();
        (typed.type_name.into_owned(), String::from_utf8(typed.json.to_vec()).unwrap())
    }

    fn pair(type_name: &str, json: &str) -> (String, String) {
        (type_name.to_owned(), json.to_owned())
    }

    #[test]
    fn types_of_this_project_are_not_parsed() {
        assert_eq!(decoded("snakepit.float", "\"NaN\""), pair("float", "\"NaN\""));
        assert_eq!(decoded("snakepit.map", "{ \"a\" : 1 }"), pair("map", "{ \"a\" : 1 }"));
    }

    #[test]
    fn string_value_holds_the_message_or_bare_json() {
        let real = Bytes::from("hi \"there\"".to_owned().encode_to_vec());
        assert_eq!(decoded("google.protobuf.StringValue", real), pair("string", r#""hi \"there\"""#));
        assert_eq!(decoded("google.protobuf.StringValue", "42"), pair("integer", "42"));
        assert_eq!(decoded("google.protobuf.StringValue", "[1]"), pair("list", "[1]"));
        // Nine digits are a well-formed unknown field to a lenient protobuf decoder.
        assert_eq!(decoded("google.protobuf.StringValue", "100000000"), pair("integer", "100000000"));
        assert_eq!(decoded("google.protobuf.StringValue", ""), pair("string", "\"\""));
    }

    #[test]
    fn value_holds_bare_json_or_the_message() {
        assert_eq!(decoded("google.protobuf.Value", "2.5"), pair("float", "2.5"));
        let real = prost_types::Value { kind: Some(prost_types::value::Kind::NumberValue(3.0)) };
        assert_eq!(decoded("google.protobuf.Value", real.encode_to_vec()), pair("integer", "3"));
    }

    #[test]
    fn wrappers_decode() {
        assert_eq!(decoded("google.protobuf.BoolValue", true.encode_to_vec()), pair("boolean", "true"));
        assert_eq!(decoded("google.protobuf.Int64Value", (-7_i64).encode_to_vec()), pair("integer", "-7"));
        assert_eq!(decoded("google.protobuf.DoubleValue", 7_f64.encode_to_vec()), pair("float", "7.0"));
        assert_eq!(
            decoded("google.protobuf.DoubleValue", f64::NEG_INFINITY.encode_to_vec()),
            pair("float", "\"-Infinity\"")
        );
        let bytes =
            decode(wrapped("google.protobuf.BytesValue", vec![1_u8, 2].encode_to_vec()), None).unwrap();
        assert_eq!(bytes, bytes_value(Bytes::from_static(&[1, 2])));
    }

    #[test]
    fn an_empty_buffer_is_preserved_in_both_forms() {
        let empty = wrapped("snakepit.tensor.binary", r#"{"shape":[0,3]}"#);
        for field in [None, Some(Bytes::new())] {
            assert_eq!(decode(empty.clone(), field).unwrap().binary, Some(Bytes::new()));
        }
    }

    #[test]
    fn a_buffer_is_unchanged_after_a_round_trip() {
        let tensor = wrapped("snakepit.tensor.binary", r#"{"shape":[2]}"#);
        let typed = decode(tensor.clone(), Some(Bytes::from_static(b"12345678"))).unwrap();
        assert_eq!(typed.type_name, "tensor");
        assert_eq!(encode(typed), (tensor, Some(Bytes::from_static(b"12345678"))));
    }

    #[test]
    fn foreign_types_are_rejected_by_name() {
        let error = decode(wrapped("acme.Rocket", "x"), None).unwrap_err();
        assert!(error.to_string().contains("acme.Rocket"), "{error}");
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail_without_panic(
            name in prop::sample::select(vec![
                "google.protobuf.StringValue", "google.protobuf.Value", "google.protobuf.Struct",
                "google.protobuf.ListValue", "google.protobuf.Int64Value", "google.protobuf.BytesValue",
                "google.protobuf.DoubleValue", "snakepit.map", "snakepit.tensor.binary", "",
            ]),
            bytes in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            let _ = decode(wrapped(name, bytes), None);
        }

        #[test]
        fn every_string_survives_both_encodings(text in ".*") {
            let expected = serde_json::Value::from(text.clone()).to_string();
            let real = Bytes::from(text.encode_to_vec());
            prop_assert_eq!(decoded("google.protobuf.StringValue", real), pair("string", &expected));
            let bare = expected.clone();
            prop_assert_eq!(decoded("google.protobuf.StringValue", bare), pair("string", &expected));
        }
    }
}
