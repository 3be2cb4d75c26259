//! Validates values against types and constraints.

use serde::de::IgnoredAny;
use serde_json::Value;

use super::{Rules, shape::json_shape};
use crate::{
    Payload, ValueType,
    payload::{ArrayMetadata, nested, whole},
};

/// The maximum nesting of lists and maps. Common JSON parsers accept it.
const MAX_DEPTH: usize = 100;
/// The maximum number of digits in an integer in a list or map, which is Python's default limit.
const MAX_DIGITS: usize = 4300;

/// Validates a value and converts it to the stored form. `steps` is the budget of a pattern.
pub(super) fn check(
    kind: ValueType,
    rules: &Rules,
    value: Payload,
    steps: &mut usize,
) -> Result<Payload, String> {
    let may_have_buffer = match kind {
        ValueType::Embedding | ValueType::Tensor | ValueType::Bytes => value.nested_json().is_none(),
        ValueType::Map | ValueType::List => value.nested_json().is_some(),
        _ => false,
    };
    if value.binary().is_some() && !may_have_buffer {
        return Err(format!("value must be of type {kind}, not a buffer of {}", value.ty()));
    }
    let json = match rules {
        Rules::Float { min, max } => {
            let number = value.to_float().ok_or_else(|| type_error(kind, &value))?;
            check_bounds(number, *min, *max)?;
            // Clients may send an integer for a float.
            let json_type = Payload::of_json(value.json().clone()).ty();
            if json_type == ValueType::Integer {
                Payload::float(number).json().clone()
            } else {
                value.json().clone()
            }
        }
        Rules::Integer { min, max } => {
            let parsed: Value = serde_json::from_slice(value.json()).map_err(|_| type_error(kind, &value))?;
            let number = integer(&parsed).ok_or_else(|| type_error(kind, &value))?;
            check_bounds(number, *min, *max)?;
            // Rewrite numbers that parse only as floats: `5.0`, and `-0`, which no integer type can express.
            if parsed.is_f64() { number.to_string().into() } else { value.json().clone() }
        }
        Rules::String { min, max, pattern, one_of } => {
            let text = text(kind, &value)?;
            let length = text.chars().count();
            if let Some(min) = min.filter(|min| length < *min) {
                return Err(format!("value must have at least {min} characters, it has {length}"));
            }
            if let Some(max) = max.filter(|max| length > *max) {
                return Err(format!("value must have at most {max} characters, it has {length}"));
            }
            if let Some(pattern) = pattern
                && !pattern.is_match(&text, steps)?
            {
                return Err(format!(
                    "value {} must match pattern {}",
                    excerpt(value.json()),
                    pattern.as_str()
                ));
            }
            check_allowed(&value, &text, one_of.as_deref())?;
            value.json().clone()
        }
        Rules::Boolean => match &value.json()[..] {
            b"true" | b"false" => value.json().clone(),
            _ => return Err(type_error(kind, &value)),
        },
        Rules::OneOf(texts) => {
            let text = text(kind, &value)?;
            if text.is_empty() {
                return Err(format!("value of type {kind} must not be empty"));
            }
            check_allowed(&value, &text, texts.as_deref())?;
            value.json().clone()
        }
        Rules::Map => {
            check_json_starts_with(b'{', kind, &value)?;
            value.json().clone()
        }
        Rules::List => {
            check_json_starts_with(b'[', kind, &value)?;
            value.json().clone()
        }
        Rules::Bytes => match value.ty() {
            ValueType::Bytes if value.binary().is_some() => value.json().clone(),
            _ => return Err(type_error(kind, &value)),
        },
        Rules::Embedding { dimensions } => {
            let shape = shape(kind, &value)?;
            if let Some(shape) = &shape
                && shape.len() != 1
            {
                return Err(format!("value must be a flat list of numbers, its shape is {shape:?}"));
            }
            if let Some(dimensions) = *dimensions
                && shape.as_deref() != Some(&[dimensions])
            {
                let found =
                    shape.map_or_else(|| "an unknown number".to_owned(), |shape| shape[0].to_string());
                return Err(format!("value must have exactly {dimensions} dimensions, it has {found}"));
            }
            value.json().clone()
        }
        Rules::Tensor { shape: expected } => {
            let shape = shape(kind, &value)?;
            if let Some(expected) = expected
                && shape.as_ref() != Some(expected)
            {
                let found = shape.map_or_else(|| "unknown".to_owned(), |shape| format!("{shape:?}"));
                return Err(format!("value's shape must be {expected:?}, it is {found}"));
            }
            value.json().clone()
        }
    };
    Ok(match value.into_parts() {
        (.., Some(buffer)) => Payload::from_buffer(kind, json, buffer),
        (.., None) => Payload::from_json(kind, json),
    })
}

fn type_error(kind: ValueType, value: &Payload) -> String {
    let actual = match value.ty() {
        ValueType::Null if kind == ValueType::Float => {
            r#"null; if it was NaN or an infinity, send "NaN", "Infinity" or "-Infinity", or use `Payload::float` in Rust"#
                .to_owned()
        }
        ValueType::Null => "null".to_owned(),
        _ if serde_json::from_slice::<IgnoredAny>(value.json()).is_err() => {
            format!("{}, which is not valid JSON", excerpt(value.json()))
        }
        ValueType::Integer if kind == ValueType::Integer => {
            format!("{}, which does not fit 64 bits", excerpt(value.json()))
        }
        ValueType::Float if kind == ValueType::Integer => {
            let number = excerpt(value.json());
            format!("float {number}; a variable has the type of its first value, so delete it, or register it as float")
        }
        ty => format!("{ty} {}", excerpt(value.json())),
    };
    format!("value must be of type {kind}, it is {actual}")
}

/// The beginning of a value, for error messages.
fn excerpt(json: &[u8]) -> String {
    const MAX_EXCERPT_BYTES: usize = 64;
    let text = String::from_utf8_lossy(&json[..json.len().min(MAX_EXCERPT_BYTES)]).into_owned();
    if json.len() > MAX_EXCERPT_BYTES { text + "..." } else { text }
}

fn check_bounds<T: PartialOrd + std::fmt::Display + Copy>(
    number: T,
    min: Option<T>,
    max: Option<T>,
) -> Result<(), String> {
    // Only NaN does not compare.
    if let Some(bound) = min.or(max)
        && number.partial_cmp(&bound).is_none()
    {
        return Err(format!("value {number} cannot be compared with the bound {bound}"));
    }
    if let Some(min) = min.filter(|min| number < *min) {
        return Err(format!("value {number} is below minimum {min}"));
    }
    if let Some(max) = max.filter(|max| number > *max) {
        return Err(format!("value {number} is above maximum {max}"));
    }
    Ok(())
}

fn check_allowed(value: &Payload, text: &str, allowed: Option<&[String]>) -> Result<(), String> {
    match allowed {
        Some(allowed) if !allowed.iter().any(|allowed| allowed == text) => {
            let mut shown: Vec<_> = allowed.iter().take(20).map(String::as_str).collect();
            if allowed.len() > shown.len() {
                shown.push("...");
            }
            Err(format!("value {} must be one of {}", excerpt(value.json()), shown.join(", ")))
        }
        _ => Ok(()),
    }
}

fn text(kind: ValueType, value: &Payload) -> Result<String, String> {
    serde_json::from_slice(value.json()).map_err(|_| type_error(kind, value))
}

fn check_json_starts_with(first: u8, kind: ValueType, value: &Payload) -> Result<(), String> {
    let json = value.nested_json().unwrap_or(value.json());
    let is_expected = json.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&first);
    if !is_expected || serde_json::from_slice::<IgnoredAny>(json).is_err() {
        return Err(type_error(kind, value));
    }
    check_readable(json)?;
    match value.binary() {
        Some(buffers) => nested::check(json, buffers).map_err(|problem| format!("value {problem}")),
        None => Ok(()),
    }
}

/// Rejects valid JSON that parsers, such as Python's, do not accept.
fn check_readable(json: &[u8]) -> Result<(), String> {
    let text = std::str::from_utf8(json).map_err(|error| format!("value is not valid UTF-8: {error}"))?;
    let (mut at, mut depth) = (0, 0_usize);
    while let Some(byte) = json.get(at) {
        let token_length = match byte {
            b'"' => string_length(&json[at..]),
            b'-' | b'0'..=b'9' => number_length(&json[at..]),
            _ => 1,
        };
        let end = (at + token_length).min(json.len());
        match byte {
            b'"' => check_string(&text[at..end])?,
            b'-' | b'0'..=b'9' => check_number(&text[at..end])?,
            b'[' | b'{' => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Err(format!("value is nested more than {MAX_DEPTH} deep"));
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at = end;
    }
    Ok(())
}

/// The length of the string that starts here, including its quotes.
fn string_length(json: &[u8]) -> usize {
    let mut is_escaped = false;
    let end = json.iter().skip(1).position(|byte| match byte {
        _ if is_escaped => {
            is_escaped = false;
            false
        }
        b'\\' => {
            is_escaped = true;
            false
        }
        byte => *byte == b'"',
    });
    end.map_or(json.len(), |end| end + 2)
}

/// The length of the number that starts here.
fn number_length(json: &[u8]) -> usize {
    let is_part = |byte: &u8| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
    json.iter().position(|byte| !is_part(byte)).unwrap_or(json.len())
}

fn check_string(quoted: &str) -> Result<(), String> {
    // Only escapes can contain lone surrogates.
    if quoted.contains("\\u") && serde_json::from_str::<String>(quoted).is_err() {
        return Err(format!(
            "value holds the string {}, which is invalid Unicode: a surrogate lacks its pair",
            excerpt(quoted.as_bytes())
        ));
    }
    Ok(())
}

fn check_number(number: &str) -> Result<(), String> {
    let is_float = number.contains(['.', 'e', 'E']);
    if is_float && !number.parse().is_ok_and(f64::is_finite) {
        return Err(format!(
            "value holds the number {}, which does not fit a 64-bit float",
            excerpt(number.as_bytes())
        ));
    }
    let digits = number.trim_start_matches('-').len();
    if !is_float && digits > MAX_DIGITS {
        return Err(format!(
            "value holds an integer of {digits} digits; write more than {MAX_DIGITS} as a string"
        ));
    }
    Ok(())
}

/// Parses an integer; accepts integral floats such as `5.0`.
pub(super) fn integer(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| whole::integer(value.as_f64()?))
}

/// The shape of an array. `None` if the host does not know the format.
fn shape(kind: ValueType, value: &Payload) -> Result<Option<Vec<usize>>, String> {
    let Some(buffer) = value.binary() else {
        let shape = json_shape(kind, value.json()).map_err(|problem| match problem {
            Some(problem) => format!("value {problem}: {}", excerpt(value.json())),
            None => type_error(kind, value),
        })?;
        // A map may have additional fields.
        check_readable(value.json())?;
        return Ok(Some(shape));
    };
    let metadata =
        ArrayMetadata::parse(value.json()).map_err(|problem| format!("value's metadata {problem}"))?;
    check_readable(value.json()).map_err(|problem| format!("value's metadata is invalid: {problem}"))?;
    if metadata.shape.is_some() && metadata.is_raw() {
        metadata.items(buffer).map_err(|problem| format!("value's buffer {problem}"))?;
    }
    Ok(metadata.shape)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::VariableType;

    fn payload(json: &str) -> Payload {
        Payload::of_json(json.to_owned().into())
    }

    fn buffer(metadata: &str, bytes: usize) -> Payload {
        Payload::from_buffer(ValueType::Tensor, metadata.to_owned().into(), vec![0; bytes].into())
    }

    fn checked(kind: ValueType, constraints: &str, value: Payload) -> Result<Payload, String> {
        VariableType::with_constraints(kind, constraints).unwrap().check(value)
    }

    #[test]
    fn values_outside_their_type_are_rejected_with_the_bound() {
        use ValueType::*;
        for (kind, constraints, value, expected) in [
            (Float, r#"{"max": 10}"#, "11", "value 11 is above maximum 10"),
            (Float, r#"{"min": 0}"#, "-0.5", "value -0.5 is below minimum 0"),
            (Float, r#"{"max": 10}"#, r#""NaN""#, "value NaN cannot be compared with the bound 10"),
            (Float, r#"{"max": 10}"#, r#""Infinity""#, "value inf is above maximum 10"),
            (Float, "", r#""1""#, r#"value must be of type float, it is string "1""#),
            (Float, "", "null", "value must be of type float, it is null"),
            (Float, "", "1e999", "must be of type float"),
            (Integer, r#"{"min": 0}"#, "-1", "value -1 is below minimum 0"),
            (
                Integer,
                "",
                "1.5",
                "must be of type integer, it is float 1.5; a variable has the type of its first value",
            ),
            (Integer, "", "9223372036854775808", "it is 9223372036854775808, which does not fit 64 bits"),
            (Integer, "", "true", "must be of type integer"),
            (String, r#"{"min_length": 3}"#, r#""ab""#, "at least 3 characters, it has 2"),
            (String, r#"{"max_length": 3}"#, r#""abcd""#, "at most 3 characters, it has 4"),
            (String, r#"{"pattern": "^[a-z]+$"}"#, r#""A""#, r#"value "A" must match pattern ^[a-z]+$"#),
            (String, r#"{"enum": ["a", "b"]}"#, r#""c""#, r#"value "c" must be one of a, b"#),
            (String, "", "1", "must be of type string"),
            (Boolean, "", "1", "must be of type boolean"),
            (Choice, r#"{"choices": ["a", "b"]}"#, r#""c""#, "must be one of a, b"),
            (Module, r#"{"allowed_modules": ["m"]}"#, r#""n""#, "must be one of m"),
            (Module, "", r#""""#, "must not be empty"),
            (Embedding, r#"{"dimensions": 3}"#, "[1, 2]", "must have exactly 3 dimensions, it has 2"),
            (Embedding, "", "[[1], [2]]", "flat list of numbers, its shape is [2, 1]"),
            (Embedding, "", r#"["x"]"#, "list of numbers"),
            (Embedding, "", "1", "must be of type embedding"),
            (Tensor, r#"{"shape": [2, 2]}"#, "[[1, 2]]", "shape must be [2, 2], it is [1, 2]"),
            (Tensor, "", "[[1, 2], [3]]", "of equal length"),
            (
                Tensor,
                "",
                r#"{"shape": [2, 2], "data": [1, 2, 3]}"#,
                "has `data` of shape [3], which does not match `shape` [2, 2]",
            ),
            (Tensor, "", r#"{"shape": [2]}"#, "missing field `data`"),
            (Map, "", "[]", "must be of type map"),
            (List, "", "{}", "must be of type list"),
            (List, "", "[1", "must be of type list"),
            (Embedding, "", "[true]", "list of numbers"),
            (Tensor, "", r#"{"shape": [2], "data": [1, "x"]}"#, "list of numbers"),
        ] {
            let problem = checked(kind, constraints, payload(value)).unwrap_err();
            assert!(problem.contains(expected), "{kind} {constraints} {value}: {problem}");
        }
        let metadata = r#"{"shape": [2, 3], "dtype": "float32"}"#;
        let problem = checked(Tensor, "", buffer(metadata, 23)).unwrap_err();
        assert!(problem.contains("23 bytes, which does not match shape [2, 3] of float32"), "{problem}");
        let problem = checked(Embedding, "", buffer(metadata, 24)).unwrap_err();
        assert!(problem.contains("flat"), "{problem}");
        let problem = checked(Embedding, r#"{"dimensions": 3}"#, buffer("{}", 24)).unwrap_err();
        assert!(problem.contains("it has an unknown number"), "{problem}");
        for dtype in ["", "blah", "object", "int4"] {
            let metadata = format!(r#"{{"shape": [3], "dtype": "{dtype}"}}"#);
            let problem = checked(Tensor, "", buffer(&metadata, 12)).unwrap_err();
            assert!(problem.contains(&format!("dtype `{dtype}`, which is unknown")), "{problem}");
        }
        let problem = checked(Float, "", buffer("{}", 8)).unwrap_err();
        assert!(problem.contains("not a buffer of tensor"), "{problem}");
        let deep = |depth: usize| payload(&format!("{}{}", "[".repeat(depth), "]".repeat(depth)));
        checked(List, "", deep(100)).unwrap();
        let problem = checked(List, "", deep(101)).unwrap_err();
        assert!(problem.contains("nested more than 100 deep"), "{problem}");
        checked(Tensor, "", deep(100_000)).unwrap_err();
        checked(List, "", payload(&format!(r#"["{}\""]"#, "[".repeat(200)))).unwrap();
        let problem = checked(Tensor, "", buffer(r#"{"x": "\ud800"}"#, 8)).unwrap_err();
        assert!(problem.contains("invalid Unicode"), "{problem}");
        let overflow = r#"{"shape": [18446744073709551615, 2], "dtype": "float32"}"#;
        checked(Tensor, "", buffer(overflow, 8)).unwrap_err();
    }

    #[test]
    fn json_that_python_cannot_read_is_rejected_at_any_depth() {
        let digits = |count: usize| "9".repeat(count);
        for (inner, expected) in [
            (r#""\ud800""#.to_owned(), "invalid Unicode"),
            (r#""\udc00\ud800""#.to_owned(), "invalid Unicode"),
            (r#""\ud800x""#.to_owned(), "invalid Unicode"),
            (r#"{"\ud800": 1}"#.to_owned(), "invalid Unicode"),
            ("1e400".to_owned(), "the number 1e400, which does not fit"),
            ("-1E+400".to_owned(), "the number -1E+400, which does not fit"),
            (digits(400) + ".5", "which does not fit"),
            (digits(4301), "an integer of 4301 digits"),
            (format!("-{}", digits(5000)), "an integer of 5000 digits"),
        ] {
            for (kind, json) in [
                (ValueType::List, format!("[{inner}]")),
                (ValueType::List, format!(r#"["\"", [{{"a": {inner}}}]]"#)),
                (ValueType::Map, format!(r#"{{"a": [{inner}], "b": 1}}"#)),
                (ValueType::Tensor, format!(r#"{{"shape": [1], "data": [1], "more": {inner}}}"#)),
            ] {
                let problem = checked(kind, "", payload(&json)).unwrap_err();
                assert!(problem.contains(expected), "{kind} {json}: {problem}");
            }
        }
        let json = Payload::from_json(ValueType::List, Bytes::from_static(b"[\"\xff\"]"));
        assert!(checked(ValueType::List, "", json).unwrap_err().contains("not valid UTF-8"));
        let readable = format!(
            r#"["\ud83d\ude00", "\\ud800", "ü\"", 1e308, -1.5e-400, -0, {}, {{"\u00e9": []}}]"#,
            digits(4300)
        );
        checked(ValueType::List, "", payload(&readable)).unwrap();
    }

    #[test]
    fn values_are_stored_in_the_form_of_their_type() {
        use ValueType::*;
        for (kind, constraints, value, stored) in [
            (Float, r#"{"min": 1, "max": 1}"#, "1", "1.0"),
            (Float, "", r#""NaN""#, r#""NaN""#),
            (Float, "", "0.1", "0.1"),
            (Integer, "", "5.0", "5"),
            (Integer, "", "-9223372036854775808", "-9223372036854775808"),
            (String, r#"{"min_length": 2, "max_length": 2}"#, r#""üü""#, r#""üü""#),
            (String, r#"{"pattern": "b"}"#, r#""abc""#, r#""abc""#),
            (Choice, "", r#""any""#, r#""any""#),
            (Embedding, r#"{"dimensions": 3}"#, r#"[1, 2.5, "NaN"]"#, r#"[1, 2.5, "NaN"]"#),
            (Embedding, r#"{"dimensions": 0}"#, "[]", "[]"),
            (Tensor, r#"{"shape": [2, 2]}"#, "[[1, 2], [3, 4]]", "[[1, 2], [3, 4]]"),
            (
                Tensor,
                r#"{"shape": [2, 2]}"#,
                r#"{"shape": [2, 2], "data": [1, 2, 3, 4]}"#,
                r#"{"shape": [2, 2], "data": [1, 2, 3, 4]}"#,
            ),
            (Map, "", "{}", "{}"),
            (List, "", "[1, null]", "[1, null]"),
        ] {
            let value = checked(kind, constraints, payload(value)).unwrap();
            assert_eq!((value.ty(), &value.json()[..]), (kind, stored.as_bytes()));
        }
        for (kind, value, stored) in [
            (Integer, "5.0", "5"),
            (Integer, "5e0", "5"),
            (Integer, "-0", "0"),
            (Integer, "5", "5"),
            (Float, "2", "2.0"),
        ] {
            let declared = Payload::from_json(kind, value.to_owned().into());
            let value = checked(kind, "", declared).unwrap();
            assert_eq!(
                &value.json()[..],
                stored.as_bytes(),
                "the declared type of a number takes precedence"
            );
        }
        let value =
            checked(Embedding, r#"{"dimensions": 3}"#, buffer(r#"{"shape": [3], "dtype": "<f4"}"#, 12));
        assert_eq!(value.unwrap().ty(), Embedding);
        let pickled = buffer(r#"{"shape": [3], "dtype": "float32", "binary_format": "pickle"}"#, 99);
        checked(Tensor, r#"{"shape": [3]}"#, pickled).unwrap();
    }

    #[test]
    fn a_pattern_with_nested_repetition_matches_in_linear_time() {
        let ty = VariableType::with_constraints(ValueType::String, r#"{"pattern": "^(a+)+$"}"#).unwrap();
        let text = format!(r#""{}!""#, "a".repeat(1_000_000));
        // A backtracking engine would take exponential time here.
        ty.check(payload(&text)).unwrap_err();
    }
}
