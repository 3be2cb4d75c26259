//! Converts a command-line string to the type that a parameter accepts.

use bytes::Bytes;
use serde_json::value::RawValue;
use snakepit_proto::value::{self, TypedValue};

use super::parameter::AcceptedTypes;

/// Converts a string. It stays a string if the parameter accepts strings or declares no type, so `5` becomes a number only for a
/// parameter that takes numbers.
///
/// # Errors
/// A message that continues a sentence about the argument.
pub(super) fn convert(text: &str, accepted: &AcceptedTypes) -> Result<TypedValue, String> {
    if accepted.text || accepted.any {
        return Ok(string(text));
    }
    if accepted.null && text == "null" {
        return Ok(json("null", text));
    }
    if accepted.boolean && matches!(text, "true" | "false") {
        return Ok(json("boolean", text));
    }
    if accepted.number
        && let Some(special) = special_number(text)
    {
        return Ok(json("float", special));
    }
    if accepted.integer || accepted.number {
        // The worker's contract rejects a fraction for an integer, with the name of the tool.
        let number: Option<&RawValue> = serde_json::from_str(text).ok();
        let type_name = number.and_then(|number| value::infer_type(number.get().as_bytes()));
        if let Some(type_name @ ("integer" | "float")) = type_name {
            return Ok(json(type_name, text.trim()));
        }
    }
    if accepted.bytes {
        return Ok(value::bytes_value(Bytes::copy_from_slice(text.as_bytes())));
    }
    Err(format!("takes {accepted}, not `{text}`"))
}

/// Creates a value of the type `string`.
pub(super) fn string(text: &str) -> TypedValue {
    json("string", &serde_json::Value::from(text).to_string())
}

fn json(type_name: &'static str, json: &str) -> TypedValue {
    TypedValue { type_name: type_name.into(), json: Bytes::copy_from_slice(json.as_bytes()), binary: None }
}

/// The wire form of NaN and infinities, which JSON lacks.
fn special_number(text: &str) -> Option<&'static str> {
    match text.to_ascii_lowercase().as_str() {
        "nan" => Some(r#""NaN""#),
        "inf" | "infinity" => Some(r#""Infinity""#),
        "-inf" | "-infinity" => Some(r#""-Infinity""#),
        _ => None,
    }
}
