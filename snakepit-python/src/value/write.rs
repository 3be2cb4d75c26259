//! Python objects into JSON, written directly; what has no JSON form is reported with its type and its place.

use std::{collections::HashSet, fmt};

use pyo3::{
    exceptions::PyValueError,
    prelude::*,
    types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple},
};

use super::{array, named, type_error, type_name};

/// How deep values may nest: as deep as the readers on the other side follow.
pub(super) const MAX_DEPTH: usize = 127;

/// Writes a value as JSON.
pub(super) fn to_json(value: &Bound<'_, PyAny>, what: fmt::Arguments<'_>) -> PyResult<Vec<u8>> {
    let mut out = Vec::with_capacity(64);
    write(value, &mut out, 0).map_err(|error| match error {
        Misfit::Python { error, path } => {
            let path: String = path.into_iter().rev().collect();
            named(value.py(), error, format_args!("{what}{path}"), "cannot be converted")
        }
        Misfit::TooDeep => PyValueError::new_err(format!(
            "{what} is nested deeper than {MAX_DEPTH} levels, or contains itself; return something flatter"
        )),
        Misfit::Type { name, path } => {
            let path: String = path.into_iter().rev().collect();
            type_error(format!("{what}{path} is a `{name}`, {}", hint(&name)))
        }
        Misfit::Value { problem, path } => {
            let path: String = path.into_iter().rev().collect();
            type_error(format!("{what}{path} {problem}"))
        }
    })?;
    Ok(out)
}

/// How floats that JSON has no number for are written inside of other values, and what Python's own parser reads as such.
///
/// The protocol writes them as strings. To tell them from texts of that content, one letter is escaped, which no writer of
/// JSON does by itself and which is the same string to every reader.
pub(super) const MARKED: [(&str, &str); 3] =
    [(r#""\u004eaN""#, "NaN"), (r#""-\u0049nfinity""#, "-Infinity"), (r#""\u0049nfinity""#, "Infinity")];

const HINT: &str = "which has no JSON form; use str, int, float, bool, None, list, tuple or dict";

/// The error for a whole value without a wire form.
pub(super) fn unfit(value: &Bound<'_, PyAny>, what: fmt::Arguments<'_>) -> PyErr {
    let name = type_name(value);
    type_error(format!("{what} is a `{name}`, {}", hint(&name)))
}

/// Why a type has no JSON form, and what to use instead.
fn hint(name: &str) -> String {
    match name {
        "bytes" | "bytearray" | "memoryview" => {
            "which has no JSON form inside of another value; pass it alone, or its text by base64".to_owned()
        }
        "set" | "frozenset" => "which has no JSON form; make it a list by list()".to_owned(),
        "datetime.datetime" | "datetime.date" | "datetime.time" => {
            "which has no JSON form; make it a text by isoformat()".to_owned()
        }
        _ => HINT.to_owned(),
    }
}

enum Misfit {
    Python {
        error: PyErr,
        path: Vec<String>,
    },
    TooDeep,
    /// The steps of the path stand innermost first: each level adds its own on the way out.
    Type {
        name: String,
        path: Vec<String>,
    },
    /// A value that would not arrive as what it is.
    Value {
        problem: String,
        path: Vec<String>,
    },
}

impl Misfit {
    fn below(mut self, step: impl FnOnce() -> String) -> Self {
        if let Self::Python { path, .. } | Self::Type { path, .. } | Self::Value { path, .. } = &mut self {
            path.push(step());
        }
        self
    }
}

impl From<PyErr> for Misfit {
    fn from(error: PyErr) -> Self {
        Self::Python { error, path: Vec::new() }
    }
}

fn write(value: &Bound<'_, PyAny>, out: &mut Vec<u8>, depth: usize) -> Result<(), Misfit> {
    if depth > MAX_DEPTH {
        return Err(Misfit::TooDeep);
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
        if let Some(problem) = array::problem_of(value)? {
            return Err(Misfit::Value { problem, path: Vec::new() });
        }
        write(&value.call_method0("tolist")?, out, depth + 1)
    } else if let Some(plain) = array::scalar_to_plain(value)? {
        let plain = plain.map_err(|problem| Misfit::Value { problem, path: Vec::new() })?;
        write(&plain, out, depth + 1)
    } else {
        Err(Misfit::Type { name: type_name(value), path: Vec::new() })
    }
}

fn write_text(text: &Bound<'_, PyString>, out: &mut Vec<u8>) -> Result<(), Misfit> {
    // Python strings may hold lone surrogates, which have no UTF-8: the UnicodeEncodeError says so.
    let text = text.to_cow()?;
    // Writing into a vector cannot fail, nor does a string's serialization.
    serde_json::to_writer(out, text.as_ref()).map_err(|e| PyValueError::new_err(e.to_string()).into())
}

fn write_integer(number: &Bound<'_, PyInt>, out: &mut Vec<u8>) -> Result<(), Misfit> {
    if let Ok(small) = number.extract::<i64>() {
        return serde_json::to_writer(out, &small).map_err(|e| PyValueError::new_err(e.to_string()).into());
    }
    // `int`'s own repr, because subclasses such as IntEnum have another.
    let Ok(text) = number.py().get_type::<PyInt>().call_method1("__repr__", (number,)) else {
        let problem = "it is an integer of more digits than Python makes a text of; pass it as one by hex()";
        return Err(PyValueError::new_err(problem).into());
    };
    out.extend_from_slice(text.cast::<PyString>().map_err(PyErr::from)?.to_cow()?.as_bytes());
    Ok(())
}

fn write_float(number: f64, out: &mut Vec<u8>) {
    if number.is_finite() {
        // Writing into a vector cannot fail, nor does a finite number's serialization.
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
) -> Result<(), Misfit> {
    out.push(b'[');
    for (index, item) in items.enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write(&item, out, depth + 1).map_err(|e| e.below(|| format!("[{index}]")))?;
    }
    out.push(b']');
    Ok(())
}

fn write_dict(dict: &Bound<'_, PyDict>, out: &mut Vec<u8>, depth: usize) -> Result<(), Misfit> {
    out.push(b'{');
    let mut first = true;
    // Keys that are no strings, as they are written: two of them, or one and a string, may be the same there.
    let mut converted = HashSet::new();
    for (key, value) in dict.iter() {
        if !std::mem::take(&mut first) {
            out.push(b',');
        }
        if let Ok(text) = key.cast::<PyString>() {
            write_text(text, out).map_err(|e| e.below(|| format!(" key {}", repr(&key))))?;
        } else {
            let text = key_text(&key)?;
            serde_json::to_writer(&mut *out, &text).map_err(|e| PyValueError::new_err(e.to_string()))?;
            if dict.contains(&text)? || !converted.insert(text.clone()) {
                let problem = format!(
                    "has two keys that are both \"{text}\" in JSON, whose keys are strings; make them different strings"
                );
                return Err(Misfit::Value { problem, path: Vec::new() });
            }
        }
        out.push(b':');
        write(&value, out, depth + 1).map_err(|e| e.below(|| format!("[{}]", repr(&key))))?;
    }
    out.push(b'}');
    Ok(())
}

/// JSON's keys are strings. Numbers, booleans and None become theirs, as Python's own `json` does it.
fn key_text(key: &Bound<'_, PyAny>) -> Result<String, Misfit> {
    let is_plain = |key: &Bound<'_, PyAny>| {
        key.is_none() || key.is_instance_of::<PyInt>() || key.is_instance_of::<PyFloat>()
    };
    let unwrapped = if is_plain(key) { None } else { array::scalar_to_plain(key)?.and_then(Result::ok) };
    let key = unwrapped.as_ref().unwrap_or(key);
    if !is_plain(key) {
        return Err(Misfit::Type { name: type_name(key), path: vec![format!(" key {}", repr(key))] });
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
    write(key, &mut text, 0).map_err(|e| e.below(|| " key".to_owned()))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn repr(value: &Bound<'_, PyAny>) -> String {
    const SHOWN: usize = 64;
    let text = value.repr().map_or_else(|_| "?".to_owned(), |text| text.to_string_lossy().into_owned());
    text.chars().take(SHOWN).collect()
}
