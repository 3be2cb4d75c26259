//! JSON into Python objects, by a serde visitor and without a tree in between.

use std::fmt;

use pyo3::{
    IntoPyObjectExt,
    exceptions::PyValueError,
    prelude::*,
    types::{PyDict, PyList, PyString},
};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// How many digits an integer may have and still surely fit an `i64`.
const SAFE_DIGITS: usize = 18;

/// Parses JSON into a Python object. Integers of any size keep their value.
///
/// # Errors
/// `ValueError` when the text is no JSON.
pub(crate) fn json_to_python<'py>(py: Python<'py>, json: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    if has_long_integer(json) {
        // serde_json rounds integers that fit no machine word; Python's own parser does not.
        let text =
            std::str::from_utf8(json).map_err(|e| PyValueError::new_err(format!("invalid JSON: {e}")))?;
        return py
            .import("json")?
            .call_method1("loads", (text,))
            .map_err(|e| PyValueError::new_err(format!("invalid JSON: {}", e.value(py))));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let value =
        Object(py).deserialize(&mut deserializer).and_then(|value| deserializer.end().map(|()| value));
    value.map_err(|e| PyValueError::new_err(format!("invalid JSON: {e}")))
}

/// Parses the JSON of a float: a number, or one of the names that JSON has no number for.
///
/// # Errors
/// `ValueError` when the text is neither.
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

/// Whether some run of digits, not a fraction, is too long for the visitor. Text inside strings may match too, which
/// costs only time.
fn has_long_integer(json: &[u8]) -> bool {
    let mut run = 0;
    let mut fraction = false;
    for byte in json {
        if byte.is_ascii_digit() {
            run += 1;
            if run > SAFE_DIGITS && !fraction {
                return true;
            }
        } else {
            run = 0;
            fraction = *byte == b'.';
        }
    }
    false
}

struct Object<'py>(Python<'py>);

impl<'py> Object<'py> {
    fn of<E: Error>(self, value: impl IntoPyObjectExt<'py>) -> Result<Bound<'py, PyAny>, E> {
        value.into_bound_py_any(self.0).map_err(E::custom)
    }
}

impl<'de, 'py> DeserializeSeed<'de> for Object<'py> {
    type Value = Bound<'py, PyAny>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, 'py> Visitor<'de> for Object<'py> {
    type Value = Bound<'py, PyAny>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(self.0.None().into_bound(self.0))
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

    fn visit_str<E: Error>(self, value: &str) -> Result<Self::Value, E> {
        Ok(PyString::new(self.0, value).into_any())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let list = PyList::empty(self.0);
        while let Some(item) = items.next_element_seed(Object(self.0))? {
            list.append(item).map_err(Error::custom)?;
        }
        Ok(list.into_any())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let dict = PyDict::new(self.0);
        while let Some(key) = entries.next_key_seed(Object(self.0))? {
            let value = entries.next_value_seed(Object(self.0))?;
            dict.set_item(key, value).map_err(Error::custom)?;
        }
        Ok(dict.into_any())
    }
}

#[cfg(test)]
mod tests {
    use super::has_long_integer;

    #[test]
    fn only_integers_beyond_a_machine_word_take_the_slow_path() {
        assert!(!has_long_integer(b"[123456789012345678, 0.00012345678901234567890]"));
        assert!(has_long_integer(b"[1234567890123456789]"));
        assert!(has_long_integer(b"{\"a\": -99999999999999999999}"));
    }
}
