//! Converts JSON to Python objects with a serde visitor, without an intermediate tree.

use std::{borrow::Cow, fmt};

use pyo3::{
    IntoPyObjectExt,
    exceptions::PyValueError,
    prelude::*,
    types::{PyDict, PyList, PyString},
};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use snakepit_session::Payload;

use super::{
    envelope::Buffers,
    json::{ENVELOPE_KEY, MARKED},
};

/// The number of digits of an integer that is guaranteed to fit `i64`.
const SAFE_DIGITS: usize = 18;

/// Parses JSON into a Python object. Integers of any size are exact, and [marked](super::json::MARKED) strings become
/// floats.
///
/// # Errors
/// `ValueError` if the text is not valid JSON.
pub(crate) fn json_to_python<'py>(py: Python<'py>, json: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    parse(py, json, false, &[])
}

/// Parses the JSON of a nested value, whose bytes and arrays are in `buffers`.
///
/// # Errors
/// `ValueError` if the text is not valid JSON, or does not match the buffers.
pub(super) fn nested_to_python<'py>(
    py: Python<'py>,
    json: &[u8],
    buffers: &[u8],
) -> PyResult<Bound<'py, PyAny>> {
    parse(py, json, false, buffers)
}

/// Parses JSON that holds only numbers: strings such as `"NaN"` become floats.
///
/// # Errors
/// `ValueError` if the text is not valid JSON.
pub(super) fn numbers_to_python<'py>(py: Python<'py>, json: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    // The form `{"shape": .., "data": ..}` also contains other strings.
    parse(py, json, json.trim_ascii_start().first() == Some(&b'['), &[])
}

fn parse<'py>(
    py: Python<'py>,
    json: &[u8],
    only_numbers: bool,
    buffers: &[u8],
) -> PyResult<Bound<'py, PyAny>> {
    let buffers = Buffers::new(buffers);
    if has_long_integer(json) {
        // serde_json rounds integers that do not fit a machine word. Python's parser does not.
        let text =
            std::str::from_utf8(json).map_err(|e| PyValueError::new_err(format!("invalid JSON: {e}")))?;
        let value = py
            .import("json")?
            .call_method1("loads", (unmark(text),))
            .map_err(|e| PyValueError::new_err(format!("invalid JSON: {}", e.value(py))))?;
        return if Payload::may_have_envelope(json) { buffers.open_all(value) } else { Ok(value) };
    }
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let value = Object { py, only_numbers, buffers: &buffers }
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value));
    value.map_err(|e| {
        buffers.error.take().unwrap_or_else(|| PyValueError::new_err(format!("invalid JSON: {e}")))
    })
}

/// Parses the JSON of a float: a number, or the name of a float that has no JSON number.
///
/// # Errors
/// `ValueError` if the text is neither.
pub(super) fn float_to_python<'py>(py: Python<'py>, json: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    let number = match json {
        br#""NaN""# => f64::NAN,
        br#""Infinity""# => f64::INFINITY,
        br#""-Infinity""# => f64::NEG_INFINITY,
        _ => serde_json::from_slice(json)
            .map_err(|e| PyValueError::new_err(format!("invalid JSON of a float: {e}")))?,
    };
    number.into_bound_py_any(py)
}

/// Returns the float with this name in the protocol.
fn named_float(text: &str) -> Option<f64> {
    match text {
        "NaN" => Some(f64::NAN),
        "Infinity" => Some(f64::INFINITY),
        "-Infinity" => Some(f64::NEG_INFINITY),
        _ => None,
    }
}

/// Replaces marked floats with their names in Python's JSON parser.
fn unmark(text: &str) -> Cow<'_, str> {
    let mut text = Cow::Borrowed(text);
    for (mark, number) in MARKED {
        if !text.contains(mark) {
            continue;
        }
        let mut plain = String::with_capacity(text.len());
        let mut rest = &*text;
        while let Some(at) = rest.find(mark) {
            let (before, after) = (&rest[..at], &rest[at + mark.len()..]);
            plain.push_str(before);
            // Escaped quotes mean that the mark is inside a string, so it is text.
            plain.push_str(if before.ends_with('\\') { mark } else { number });
            rest = after;
        }
        plain.push_str(rest);
        text = Cow::Owned(plain);
    }
    text
}

/// Returns the integer that equals a float. Returns `None` if the float has a fraction or is too large to be exact.
/// Variables apply the same rule.
///
/// # Errors
/// If the object is not a float.
pub(super) fn to_integer<'py>(value: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyAny>>> {
    /// All integers up to this magnitude have an exact float.
    const MAX_EXACT_INTEGER: f64 = 9_007_199_254_740_992.0;
    let number: f64 = value.extract()?;
    if number.fract() != 0.0 || number.abs() > MAX_EXACT_INTEGER {
        return Ok(None);
    }
    value.call_method0("__int__").map(Some)
}

/// Describes the JSON type of a value.
pub(super) fn describe_type(value: &Bound<'_, PyAny>) -> String {
    let name = value.get_type().name().map_or_else(|_| String::new(), |name| name.to_string());
    let kind = match name.as_str() {
        "str" => "a string",
        "bool" => "a boolean",
        "int" => "an integer",
        "float" => "a float",
        "list" => "a list",
        "dict" => "a map",
        "NoneType" => "null",
        _ => "something else",
    };
    kind.to_owned()
}

/// Returns whether the text contains digits of an integer that may not fit `i64`. Digits in strings may match, too,
/// which only selects the slower parser.
fn has_long_integer(json: &[u8]) -> bool {
    let mut digits = 0;
    let mut is_fraction = false;
    for byte in json {
        if byte.is_ascii_digit() {
            digits += 1;
            if digits > SAFE_DIGITS && !is_fraction {
                return true;
            }
        } else {
            digits = 0;
            is_fraction = *byte == b'.';
        }
    }
    false
}

#[derive(Clone, Copy)]
struct Object<'a, 'py> {
    py: Python<'py>,
    /// Whether strings that name a float become floats.
    only_numbers: bool,
    buffers: &'a Buffers<'a>,
}

impl<'py> Object<'_, 'py> {
    fn of<E: Error>(self, value: impl IntoPyObjectExt<'py>) -> Result<Bound<'py, PyAny>, E> {
        value.into_bound_py_any(self.py).map_err(E::custom)
    }
}

impl<'de, 'py> DeserializeSeed<'de> for Object<'_, 'py> {
    type Value = Bound<'py, PyAny>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, 'py> Visitor<'de> for Object<'_, 'py> {
    type Value = Bound<'py, PyAny>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(self.py.None().into_bound(self.py))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Self::Value, E> {
        self.of(value)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Self::Value, E> {
        self.of(value)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
        self.of(value)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Self::Value, E> {
        self.of(value)
    }

    fn visit_borrowed_str<E: Error>(self, value: &'de str) -> Result<Self::Value, E> {
        match named_float(value).filter(|_| self.only_numbers) {
            Some(number) => self.of(number),
            None => Ok(PyString::new(self.py, value).into_any()),
        }
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Self::Value, E> {
        // serde_json passes strings without escapes to `visit_borrowed_str`. The names of floats contain no escapes, so
        // this string is marked.
        match named_float(value) {
            Some(number) => self.of(number),
            None => Ok(PyString::new(self.py, value).into_any()),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let list = PyList::empty(self.py);
        while let Some(item) = items.next_element_seed(self)? {
            list.append(item).map_err(Error::custom)?;
        }
        Ok(list.into_any())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let dict = PyDict::new(self.py);
        let mut is_envelope = false;
        while let Some(key) = entries.next_key_seed(Key { py: self.py, is_envelope: &mut is_envelope })? {
            let value = entries.next_value_seed(self)?;
            dict.set_item(key, value).map_err(Error::custom)?;
        }
        if is_envelope {
            return self.buffers.open(dict).map_err(|error| {
                let text = error.to_string();
                self.buffers.error.set(Some(error));
                A::Error::custom(text)
            });
        }
        Ok(dict.into_any())
    }
}

/// A key of a map. Always a string.
struct Key<'a, 'py> {
    py: Python<'py>,
    /// Set if the key marks an envelope.
    is_envelope: &'a mut bool,
}

impl<'de, 'py> DeserializeSeed<'de> for Key<'_, 'py> {
    type Value = Bound<'py, PyString>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'py> Visitor<'_> for Key<'_, 'py> {
    type Value = Bound<'py, PyString>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Self::Value, E> {
        *self.is_envelope |= value == ENVELOPE_KEY;
        Ok(PyString::new(self.py, value))
    }
}

#[cfg(test)]
mod tests {
    use super::{has_long_integer, unmark};

    #[test]
    fn marks_inside_strings_are_text() {
        assert_eq!(unmark(r#"[1, "\u004eaN", "-\u0049nfinity"]"#), "[1, NaN, -Infinity]");
        for text in [r#"["NaN", 1]"#, r#""say \"\u004eaN\"""#] {
            assert_eq!(unmark(text), text);
        }
    }

    #[test]
    fn only_integers_beyond_a_machine_word_use_the_slow_parser() {
        assert!(!has_long_integer(b"[123456789012345678, 0.00012345678901234567890]"));
        assert!(has_long_integer(b"[1234567890123456789]"));
        assert!(has_long_integer(b"{\"a\": -99999999999999999999}"));
    }
}
