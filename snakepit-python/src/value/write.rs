//! Converts Python objects to JSON directly. Errors contain the type and the path of a value without a JSON form.

use std::{
    collections::HashSet,
    fmt,
    ops::{Deref, DerefMut},
};

use bytes::Bytes;
use pyo3::{
    exceptions::PyValueError,
    intern,
    prelude::*,
    types::{
        PyBool, PyByteArray, PyBytes, PyDict, PyFloat, PyInt, PyList, PyMemoryView, PyRange, PyString,
        PyTuple,
    },
};

use super::{
    array,
    envelope::BufferCollector,
    error::{type_error, type_name, with_name},
    json::{ENVELOPE_KEY, MARKED, MAX_DEPTH},
    limit,
    purpose::Purpose,
};

/// Converts a value to JSON alone. Arrays become lists.
pub(super) fn to_json(
    value: &Bound<'_, PyAny>,
    purpose: Purpose,
    description: fmt::Arguments<'_>,
) -> PyResult<Vec<u8>> {
    Ok(convert(value, None, purpose, description)?.json)
}

/// Converts a value to JSON, and returns its buffers, if any.
pub(super) fn to_item(
    value: &Bound<'_, PyAny>,
    purpose: Purpose,
    description: fmt::Arguments<'_>,
) -> PyResult<(Vec<u8>, Option<Bytes>)> {
    let out = convert(value, Some(BufferCollector::default()), purpose, description)?;
    let buffers = match out.buffers {
        Some(collector) => collector.into_bytes(value.py())?,
        None => None,
    };
    Ok((out.json, buffers))
}

/// The JSON and the buffers of a value.
struct Output<'py> {
    json: Vec<u8>,
    /// `None` if the value must be JSON alone.
    buffers: Option<BufferCollector<'py>>,
}

impl Output<'_> {
    /// Checks that the value may still grow.
    fn check_size(&self) -> Result<(), WriteError> {
        check_size(self.json.len() + self.buffers.as_ref().map_or(0, BufferCollector::size))
    }
}

/// Checks the size of a value that is being written, in bytes.
fn check_size(size: usize) -> Result<(), WriteError> {
    if size > limit::write_limit() { Err(WriteError::TooLarge { size }) } else { Ok(()) }
}

impl Deref for Output<'_> {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.json
    }
}

impl DerefMut for Output<'_> {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.json
    }
}

fn convert<'py>(
    value: &Bound<'py, PyAny>,
    buffers: Option<BufferCollector<'py>>,
    purpose: Purpose,
    description: fmt::Arguments<'_>,
) -> PyResult<Output<'py>> {
    let verb = purpose.verb();
    let mut out = Output { json: Vec::with_capacity(64), buffers };
    write(value, &mut out, 0).map_err(|error| match error {
        WriteError::Python { error, path } => {
            let path: String = path.into_iter().rev().collect();
            with_name(value.py(), error, format_args!("{description}{path}"), "cannot be converted")
        }
        WriteError::TooDeep => PyValueError::new_err(format!(
            "{description} is nested deeper than {MAX_DEPTH} levels, or contains itself; {verb} a flatter structure"
        )),
        WriteError::TooLarge { size } => limit::error(size, purpose, description),
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

/// Describes why a type has no JSON form, and the alternative.
fn hint(name: &str, purpose: Purpose) -> String {
    match name {
        "bytes" | "bytearray" | "memoryview" => {
            "which has no JSON form; convert it to base64 text".to_owned()
        }
        _ => format!(
            "which has no wire form; {} a str, number, list, dict, bytes or array, or register a converter with \
             snakepit_bridge.converter({})",
            purpose.verb(),
            name.rsplit('.').next().unwrap_or(name)
        ),
    }
}

enum WriteError {
    Python {
        error: PyErr,
        path: Vec<String>,
    },
    TooDeep,
    /// The value is too large. This many bytes were written before it was known.
    TooLarge {
        size: usize,
    },
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

fn write<'py>(value: &Bound<'py, PyAny>, out: &mut Output<'py>, depth: usize) -> Result<(), WriteError> {
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
        write_items(list.iter().map(Ok), out, depth)
    } else if let Ok(tuple) = value.cast::<PyTuple>() {
        write_items(tuple.iter().map(Ok), out, depth)
    } else if out.buffers.is_some() && write_buffer(value, out, depth)? {
        Ok(())
    } else if array::is_array(value)? {
        if let Some(problem) = array::conversion_problem(value)? {
            return Err(WriteError::Value { problem, path: Vec::new() });
        }
        // Each item has at least one byte and a comma. An array may repeat a few items billions of times.
        check_size(array::length(value)?.saturating_mul(2))?;
        write(&value.call_method0("tolist")?, out, depth + 1)
    } else if let Some(plain) = array::scalar_to_plain(value)? {
        let plain = plain.map_err(|problem| WriteError::Value { problem, path: Vec::new() })?;
        write(&plain, out, depth + 1)
    } else if let Ok(range) = value.cast::<PyRange>() {
        write_items(range.try_iter()?, out, depth)
    } else if let Some(form) = call_converter(value, "encode")? {
        write(&form, out, depth + 1)
    } else if out.buffers.is_some() && write_exported_buffer(value, out, depth)? {
        Ok(())
    } else if let Some(marker) = call_converter(value, "marker")? {
        write(&marker, out, depth + 1)
    } else {
        Err(WriteError::Type { name: type_name(value), path: Vec::new() })
    }
}

/// Writes bytes, an encoded value or an array of numbers as a reference to its buffer. Returns `false` for other values.
fn write_buffer<'py>(
    value: &Bound<'py, PyAny>,
    out: &mut Output<'py>,
    depth: usize,
) -> Result<bool, WriteError> {
    let py = value.py();
    let Some(collector) = &mut out.buffers else { return Ok(false) };
    if let Ok(bytes) = value.cast::<PyBytes>() {
        check_envelope_depth(depth, 1)?;
        let is_encoded =
            !bytes.is_exact_instance_of::<PyBytes>() && bytes.hasattr(intern!(py, "__snakepit_format__"))?;
        let length = bytes.as_bytes().len();
        let offset = collector.push(value.clone(), length);
        out.json.extend_from_slice(br#"{"__snakepit__":"bytes","#);
        if is_encoded {
            let text = |name| -> PyResult<String> { value.getattr(name)?.extract() };
            let (format, class) = (text("format")?, text("class_name")?);
            write_entry(out, "format", &format)?;
            write_entry(out, "class", &class)?;
        }
        write_range(out, offset, length);
        return Ok(true);
    }
    if value.is_instance_of::<PyByteArray>() || value.is_instance_of::<PyMemoryView>() {
        return write_exported_buffer(value, out, depth);
    }
    if !array::is_array(value)? {
        return Ok(false);
    }
    if array::has_objects(value)? {
        return Ok(false);
    }
    let (metadata, array) = match array::raw(value)? {
        Ok(raw) => raw,
        Err(problem) => return Err(WriteError::Value { problem, path: Vec::new() }),
    };
    check_size(collector.size() + array::size(&array)?)?;
    // The shape is a list.
    check_envelope_depth(depth, 2)?;
    let (array, length) = array::contiguous(&array)?;
    let offset = collector.push_array(array, length);
    out.json.extend_from_slice(br#"{"__snakepit__":"tensor","#);
    write_entry(out, "dtype", &metadata.dtype)?;
    write_entry(out, "shape", &metadata.shape)?;
    write_range(out, offset, length);
    Ok(true)
}

/// Writes an object that exports its memory as a buffer. Returns `false` for other objects.
fn write_exported_buffer<'py>(
    value: &Bound<'py, PyAny>,
    out: &mut Output<'py>,
    depth: usize,
) -> Result<bool, WriteError> {
    let py = value.py();
    let Ok(view) = PyMemoryView::from(value) else { return Ok(false) };
    let Some(collector) = &mut out.buffers else { return Ok(false) };
    check_envelope_depth(depth, 1)?;
    let length: usize = view.getattr(intern!(py, "nbytes"))?.extract()?;
    check_size(collector.size() + length)?;
    let is_contiguous = view.getattr(intern!(py, "c_contiguous"))?.is_truthy()?;
    let buffer = if is_contiguous { view.into_any() } else { view.call_method0(intern!(py, "tobytes"))? };
    let offset = collector.push(buffer, length);
    out.json.extend_from_slice(br#"{"__snakepit__":"bytes","#);
    write_range(out, offset, length);
    Ok(true)
}

/// Checks that readers can read an envelope, which is a map with this number of levels.
fn check_envelope_depth(depth: usize, levels: usize) -> Result<(), WriteError> {
    if depth + levels > MAX_DEPTH { Err(WriteError::TooDeep) } else { Ok(()) }
}

fn write_entry(out: &mut Output<'_>, key: &str, value: &impl serde::Serialize) -> Result<(), WriteError> {
    out.json.extend_from_slice(format!("\"{key}\":").as_bytes());
    serde_json::to_writer(&mut out.json, value).map_err(|e| PyValueError::new_err(e.to_string()))?;
    out.json.push(b',');
    Ok(())
}

fn write_range(out: &mut Output<'_>, offset: usize, length: usize) {
    out.json.extend_from_slice(format!("\"offset\":{offset},\"length\":{length}}}").as_bytes());
}

/// Converts a value with a function of `_converters.py`. Returns `None` if the function has no form for it. The module is imported
/// for the first such value, because most workers do not need them.
fn call_converter<'py>(value: &Bound<'py, PyAny>, function: &str) -> PyResult<Option<Bound<'py, PyAny>>> {
    let py = value.py();
    let converters = py.import(intern!(py, "snakepit_bridge._converters"))?;
    let form = converters.getattr(function)?.call1((value,))?;
    Ok((!form.is(py.NotImplemented())).then_some(form))
}

fn write_text(text: &Bound<'_, PyString>, out: &mut Output<'_>) -> Result<(), WriteError> {
    // Python strings may contain lone surrogates, which cannot be encoded as UTF-8. The UnicodeEncodeError reports them.
    let text = text.to_cow()?;
    // Writing to a vector and serializing a string cannot fail.
    serde_json::to_writer(&mut out.json, text.as_ref())
        .map_err(|e| PyValueError::new_err(e.to_string()).into())
}

fn write_integer(number: &Bound<'_, PyInt>, out: &mut Output<'_>) -> Result<(), WriteError> {
    if let Ok(small) = number.extract::<i64>() {
        return serde_json::to_writer(&mut out.json, &small)
            .map_err(|e| PyValueError::new_err(e.to_string()).into());
    }
    // `int.__repr__`, because subclasses such as IntEnum override it.
    let Ok(text) = number.py().get_type::<PyInt>().call_method1("__repr__", (number,)) else {
        let problem = "it is an integer with more digits than Python converts to text; convert it with hex()";
        return Err(PyValueError::new_err(problem).into());
    };
    out.extend_from_slice(text.cast::<PyString>().map_err(PyErr::from)?.to_cow()?.as_bytes());
    Ok(())
}

fn write_float(number: f64, out: &mut Output<'_>) {
    if number.is_finite() {
        // Writing to a vector and serializing a finite number cannot fail.
        let _ = serde_json::to_writer(&mut out.json, &number);
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
    items: impl Iterator<Item = PyResult<Bound<'py, PyAny>>>,
    out: &mut Output<'py>,
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
        write(&item?, out, depth + 1).map_err(|e| e.with_step(|| format!("[{index}]")))?;
        out.check_size()?;
    }
    out.push(b']');
    Ok(())
}

fn write_dict<'py>(dict: &Bound<'py, PyDict>, out: &mut Output<'py>, depth: usize) -> Result<(), WriteError> {
    if depth == MAX_DEPTH {
        return Err(WriteError::TooDeep);
    }
    if dict.contains(intern!(dict.py(), ENVELOPE_KEY))? {
        return write_escaped(dict, out, depth);
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
            let text = convert_key(dict, &key, &mut converted)?;
            serde_json::to_writer(&mut out.json, &text).map_err(|e| PyValueError::new_err(e.to_string()))?;
        }
        out.push(b':');
        write(&value, out, depth + 1).map_err(|e| e.with_step(|| format!("[{}]", repr(&key))))?;
        out.check_size()?;
    }
    out.push(b'}');
    Ok(())
}

/// Writes a map that readers would take for an envelope.
fn write_escaped<'py>(
    dict: &Bound<'py, PyDict>,
    out: &mut Output<'py>,
    depth: usize,
) -> Result<(), WriteError> {
    let py = dict.py();
    out.extend_from_slice(br#"{"__snakepit__":"map","items":"#);
    let (items, mut converted) = (PyList::empty(py), HashSet::new());
    for (key, value) in dict.iter() {
        let text = match key.cast_into::<PyString>() {
            Ok(text) => text,
            Err(key) => PyString::new(py, &convert_key(dict, &key.into_inner(), &mut converted)?),
        };
        items.append((text, value))?;
    }
    write_items(items.iter().map(Ok), out, depth + 1)?;
    out.push(b'}');
    Ok(())
}

/// Converts a key to text. Two keys of a map must not have the same text.
fn convert_key(
    dict: &Bound<'_, PyDict>,
    key: &Bound<'_, PyAny>,
    converted: &mut HashSet<String>,
) -> Result<String, WriteError> {
    let text = key_text(key)?;
    if dict.contains(&text)? || !converted.insert(text.clone()) {
        let problem = format!(
            "has two keys that are both \"{text}\" in JSON, whose keys are strings; make them different strings"
        );
        return Err(WriteError::Value { problem, path: Vec::new() });
    }
    Ok(text)
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
    let mut text = Output { json: Vec::new(), buffers: None };
    write(key, &mut text, 0).map_err(|e| e.with_step(|| " key".to_owned()))?;
    Ok(String::from_utf8_lossy(&text.json).into_owned())
}

fn repr(value: &Bound<'_, PyAny>) -> String {
    const MAX_CHARS: usize = 64;
    let text = value.repr().map_or_else(|_| "?".to_owned(), |text| text.to_string_lossy().into_owned());
    text.chars().take(MAX_CHARS).collect()
}
