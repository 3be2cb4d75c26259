//! Converts Python objects to JSON directly. Errors contain the type and the path of a value without a JSON form.

use std::{collections::HashSet, fmt};

use pyo3::{
    exceptions::PyValueError,
    prelude::*,
    types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple},
};

use super::{
    array,
    error::{type_error, type_name, with_name},
    json::{MARKED, MAX_DEPTH},
    purpose::Purpose,
};

/// Converts a value to JSON.
pub(super) fn to_json(
    value: &Bound<'_, PyAny>,
    purpose: Purpose,
    description: fmt::Arguments<'_>,
) -> PyResult<Vec<u8>> {
    let verb = purpose.verb();
    let mut out = Vec::with_capacity(64);
    write(value, &mut out, 0).map_err(|error| match error {
        WriteError::Python { error, path } => {
            let path: String = path.into_iter().rev().collect();
            with_name(value.py(), error, format_args!("{description}{path}"), "cannot be converted")
        }
        WriteError::TooDeep => PyValueError::new_err(format!(
            "{description} is nested deeper than {MAX_DEPTH} levels, or contains itself; {verb} a flatter structure"
        )),
        WriteError::Type { name, path } => {
            let path: String = path.into_iter().rev().collect();
            type_error(format!("{description}{path} is a `{name}`, {}", hint(&name, purpose)))
        }
        WriteError::Value { problem, path } => {
            let path: String = path.into_iter().rev().collect();
            type_error(format!("{description}{path} {problem}"))
        }
    })?;
    Ok(out)
}

/// Returns the error for a value whose type has no wire form.
pub(super) fn type_without_wire_form(
    value: &Bound<'_, PyAny>,
    purpose: Purpose,
    description: fmt::Arguments<'_>,
) -> PyErr {
    let name = type_name(value);
    type_error(format!("{description} is a `{name}`, {}", hint(&name, purpose)))
}

/// Describes why a type has no JSON form, and the alternative.
fn hint(name: &str, purpose: Purpose) -> String {
    match name {
        "bytes" | "bytearray" | "memoryview" => {
            return format!(
                "which has no JSON form inside another value; {} it alone, or as base64 text",
                purpose.verb()
            );
        }
        "set" | "frozenset" => "which has no JSON form; convert it with list()",
        "datetime.datetime" | "datetime.date" | "datetime.time" => {
            "which has no JSON form; convert it with isoformat()"
        }
        _ => "which has no JSON form; use str, int, float, bool, None, list, tuple or dict",
    }
    .to_owned()
}

enum WriteError {
    Python {
        error: PyErr,
        path: Vec<String>,
    },
    TooDeep,
    /// A type without a JSON form. The path is in reverse order, because each level appends its step while the error
    /// propagates.
    Type {
        name: String,
        path: Vec<String>,
    },
    /// A value that JSON cannot represent unchanged.
    Value {
        problem: String,
        path: Vec<String>,
    },
}

impl WriteError {
    fn with_step(mut self, step: impl FnOnce() -> String) -> Self {
        if let Self::Python { path, .. } | Self::Type { path, .. } | Self::Value { path, .. } = &mut self {
            path.push(step());
        }
        self
    }
}

impl From<PyErr> for WriteError {
    fn from(error: PyErr) -> Self {
        Self::Python { error, path: Vec::new() }
    }
}

fn write(value: &Bound<'_, PyAny>, out: &mut Vec<u8>, depth: usize) -> Result<(), WriteError> {
    if depth > MAX_DEPTH {
        return Err(WriteError::TooDeep);
    }
    if let Ok(text) = value.cast::<PyString>() {
        write_text(text, out)
    } else if value.is_none() {
        out.extend_from_slice(b"null");
        Ok(())
    } else if let Ok(flag) = value.cast::<PyBool>() {
        out.extend_from_slice(if flag.is_true() { b"true" } else { b"false" });
        Ok(())
    } else if let Ok(number) = value.cast::<PyInt>() {
        write_integer(number, out)
    } else if let Ok(number) = value.cast::<PyFloat>() {
        write_float(number.value(), out);
        Ok(())
    } else if let Ok(dict) = value.cast::<PyDict>() {
        write_dict(dict, out, depth)
    } else if let Ok(list) = value.cast::<PyList>() {
        write_items(list.iter(), out, depth)
    } else if let Ok(tuple) = value.cast::<PyTuple>() {
        write_items(tuple.iter(), out, depth)
    } else if array::is_array(value)? {
        if let Some(problem) = array::conversion_problem(value)? {
            return Err(WriteError::Value { problem, path: Vec::new() });
        }
        write(&value.call_method0("tolist")?, out, depth + 1)
    } else if let Some(plain) = array::scalar_to_plain(value)? {
        let plain = plain.map_err(|problem| WriteError::Value { problem, path: Vec::new() })?;
        write(&plain, out, depth + 1)
    } else {
        Err(WriteError::Type { name: type_name(value), path: Vec::new() })
    }
}

fn write_text(text: &Bound<'_, PyString>, out: &mut Vec<u8>) -> Result<(), WriteError> {
    // Python strings may contain lone surrogates, which cannot be encoded as UTF-8. The UnicodeEncodeError reports them.
    let text = text.to_cow()?;
    // Writing to a vector and serializing a string cannot fail.
    serde_json::to_writer(out, text.as_ref()).map_err(|e| PyValueError::new_err(e.to_string()).into())
}

fn write_integer(number: &Bound<'_, PyInt>, out: &mut Vec<u8>) -> Result<(), WriteError> {
    if let Ok(small) = number.extract::<i64>() {
        return serde_json::to_writer(out, &small).map_err(|e| PyValueError::new_err(e.to_string()).into());
    }
    // `int.__repr__`, because subclasses such as IntEnum override it.
    let Ok(text) = number.py().get_type::<PyInt>().call_method1("__repr__", (number,)) else {
        let problem = "it is an integer with more digits than Python converts to text; convert it with hex()";
        return Err(PyValueError::new_err(problem).into());
    };
    out.extend_from_slice(text.cast::<PyString>().map_err(PyErr::from)?.to_cow()?.as_bytes());
    Ok(())
}

fn write_float(number: f64, out: &mut Vec<u8>) {
    if number.is_finite() {
        // Writing to a vector and serializing a finite number cannot fail.
        let _ = serde_json::to_writer(out, &number);
    } else {
        let [(nan, _), (negative, _), (positive, _)] = MARKED;
        let mark = match number {
            _ if number.is_nan() => nan,
            _ if number > 0.0 => positive,
            _ => negative,
        };
        out.extend_from_slice(mark.as_bytes());
    }
}

fn write_items<'py>(
    items: impl Iterator<Item = Bound<'py, PyAny>>,
    out: &mut Vec<u8>,
    depth: usize,
) -> Result<(), WriteError> {
    // Even an empty list is a level.
    if depth == MAX_DEPTH {
        return Err(WriteError::TooDeep);
    }
    out.push(b'[');
    for (index, item) in items.enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write(&item, out, depth + 1).map_err(|e| e.with_step(|| format!("[{index}]")))?;
    }
    out.push(b']');
    Ok(())
}

fn write_dict(dict: &Bound<'_, PyDict>, out: &mut Vec<u8>, depth: usize) -> Result<(), WriteError> {
    if depth == MAX_DEPTH {
        return Err(WriteError::TooDeep);
    }
    out.push(b'{');
    let mut first = true;
    // Two converted keys, or one of them and a string key, may have the same text.
    let mut converted = HashSet::new();
    for (key, value) in dict.iter() {
        if !std::mem::take(&mut first) {
            out.push(b',');
        }
        if let Ok(text) = key.cast::<PyString>() {
            write_text(text, out).map_err(|e| e.with_step(|| format!(" key {}", repr(&key))))?;
        } else {
            let text = key_text(&key)?;
            serde_json::to_writer(&mut *out, &text).map_err(|e| PyValueError::new_err(e.to_string()))?;
            if dict.contains(&text)? || !converted.insert(text.clone()) {
                let problem = format!(
                    "has two keys that are both \"{text}\" in JSON, whose keys are strings; make them different strings"
                );
                return Err(WriteError::Value { problem, path: Vec::new() });
            }
        }
        out.push(b':');
        write(&value, out, depth + 1).map_err(|e| e.with_step(|| format!("[{}]", repr(&key))))?;
    }
    out.push(b'}');
    Ok(())
}

/// Converts a key to text, as Python's `json` does for numbers, booleans and None.
fn key_text(key: &Bound<'_, PyAny>) -> Result<String, WriteError> {
    let is_plain = |key: &Bound<'_, PyAny>| {
        key.is_none() || key.is_instance_of::<PyInt>() || key.is_instance_of::<PyFloat>()
    };
    let unwrapped = if is_plain(key) { None } else { array::scalar_to_plain(key)?.and_then(Result::ok) };
    let key = unwrapped.as_ref().unwrap_or(key);
    if !is_plain(key) {
        return Err(WriteError::Type { name: type_name(key), path: vec![format!(" key {}", repr(key))] });
    }
    if let Ok(number) = key.cast::<PyFloat>()
        && !number.value().is_finite()
    {
        return Ok(match number.value() {
            number if number.is_nan() => "NaN",
            number if number > 0.0 => "Infinity",
            _ => "-Infinity",
        }
        .to_owned());
    }
    let mut text = Vec::new();
    write(key, &mut text, 0).map_err(|e| e.with_step(|| " key".to_owned()))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn repr(value: &Bound<'_, PyAny>) -> String {
    const MAX_CHARS: usize = 64;
    let text = value.repr().map_or_else(|_| "?".to_owned(), |text| text.to_string_lossy().into_owned());
    text.chars().take(MAX_CHARS).collect()
}
