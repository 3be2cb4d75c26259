//! Conversion between Python objects and payloads: defines which Python type becomes which wire type.
//!
//! `read` and `write` convert between JSON and Python objects directly. Arrays and bytes travel as raw buffers
//! (`array`), and so do large lists of numbers where the type of the variable allows it (`numbers`).

mod array;
mod conversions;
mod numbers;
mod read;
mod write;

use std::fmt;

use bytes::Bytes;
use pyo3::{
    exceptions::{PyException, PyTypeError, PyUnicodeEncodeError, PyValueError},
    prelude::*,
    pybacked::PyBackedBytes,
    types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyMemoryView, PyString, PyTuple},
};
use snakepit_session::{Payload, ValueType};

pub(crate) use conversions::Conversions;
pub(crate) use numbers::Numbers;
pub(crate) use read::json_to_python;

/// Converts a payload to a Python object.
///
/// # Errors
/// `ValueError` if the payload is malformed, does not match its declared type, is a pickle and pickles are not enabled,
/// or requires numpy and numpy is not installed.
pub(crate) fn to_python<'py>(py: Python<'py>, payload: Payload) -> PyResult<Bound<'py, PyAny>> {
    let (ty, json, buffer) = payload.into_parts();
    if let Some(buffer) = buffer {
        return match ty {
            ValueType::Bytes if !array::is_pickle(&json) => Ok(PyBytes::new(py, &buffer).into_any()),
            _ => array::to_python(py, &json, &buffer),
        };
    }
    let value = match ty {
        ValueType::Float => return read::float_to_python(py, &json),
        ValueType::Tensor | ValueType::Embedding => array::from_inline(read::numbers_to_python(py, &json)?)?,
        _ => json_to_python(py, &json)?,
    };
    let fits = match ty {
        ValueType::Integer if value.is_instance_of::<PyFloat>() => match read::to_integer(&value)? {
            Some(integer) => return Ok(integer),
            None => false,
        },
        ValueType::Integer => value.is_instance_of::<PyInt>() && !value.is_instance_of::<PyBool>(),
        ValueType::String | ValueType::Choice | ValueType::Module => value.is_instance_of::<PyString>(),
        ValueType::Boolean => value.is_instance_of::<PyBool>(),
        ValueType::Map => value.is_instance_of::<PyDict>(),
        ValueType::List => value.is_instance_of::<PyList>(),
        ValueType::Null => value.is_none(),
        // A foreign worker may use its own description of an array. Its JSON is returned as it is.
        ValueType::Tensor | ValueType::Embedding => {
            value.is_instance_of::<PyList>() || value.is_instance_of::<PyDict>() || array::is_array(&value)?
        }
        ValueType::Bytes => false,
        ValueType::Float => true,
    };
    if fits {
        return Ok(value);
    }
    Err(PyValueError::new_err(format!(
        "it is declared `{ty}`, and its JSON is {}; declare what it is",
        read::describe_type(&value)
    )))
}

/// Converts a Python object to a payload.
///
/// # Errors
/// `TypeError` with the Python type that has no wire form, and its path in `what`.
pub(crate) fn from_python(value: &Bound<'_, PyAny>, what: fmt::Arguments<'_>) -> PyResult<Payload> {
    payload_of(value, what).map_err(|error| with_name(value.py(), error, what, "cannot be converted"))
}

fn payload_of(value: &Bound<'_, PyAny>, what: fmt::Arguments<'_>) -> PyResult<Payload> {
    let ty = if value.is_none() {
        return Ok(Payload::null());
    } else if value.is_instance_of::<PyString>() {
        ValueType::String
    } else if value.is_instance_of::<PyBool>() {
        ValueType::Boolean
    } else if value.is_instance_of::<PyInt>() {
        ValueType::Integer
    } else if value.is_instance_of::<PyFloat>() {
        ValueType::Float
    } else if value.is_instance_of::<PyDict>() {
        ValueType::Map
    } else if value.is_instance_of::<PyList>() || value.is_instance_of::<PyTuple>() {
        ValueType::List
    } else if let Some(buffer) = raw_bytes(value)? {
        return Ok(Payload::bytes(buffer));
    } else if array::is_array(value)? {
        return array::from_python(value, what);
    } else if let Some(plain) = array::scalar_to_plain(value)? {
        let plain = plain.map_err(|problem| type_error(format!("{what} {problem}")))?;
        return payload_of(&plain, what);
    } else {
        return Err(write::unfit(value, what));
    };
    if ty == ValueType::Float {
        // NaN and infinities are strings there. The type distinguishes them from text.
        return Ok(Payload::float(value.extract()?));
    }
    Ok(Payload::from_json(ty, write::to_json(value, what)?.into()))
}

/// Converts a Python object to JSON: the form of chunks, and of values inside other values.
///
/// # Errors
/// `TypeError` with the Python type that has no JSON form, and its path in `what`.
pub(crate) fn python_to_json(value: &Bound<'_, PyAny>, what: fmt::Arguments<'_>) -> PyResult<Bytes> {
    let json = write::to_json(value, what);
    json.map(Bytes::from).map_err(|error| with_name(value.py(), error, what, "cannot be converted"))
}

/// Adds the name of the value to an error. For values from the host, whose sender does not appear in the traceback.
pub(crate) fn named_read<'py>(
    value: PyResult<Bound<'py, PyAny>>,
    py: Python<'py>,
    what: fmt::Arguments<'_>,
) -> PyResult<Bound<'py, PyAny>> {
    value.map_err(|error| with_name(py, error, what, "cannot be read"))
}

/// Adds the name of the value to an error of Python, a library or the value itself. Errors of this module contain it
/// already. Exceptions such as a cancellation remain unchanged.
fn with_name(py: Python<'_>, error: PyErr, what: fmt::Arguments<'_>, problem: &str) -> PyErr {
    let (what, text) = (what.to_string(), error.value(py).to_string());
    if !error.is_instance_of::<PyException>(py) || text.contains(&what) {
        return error;
    }
    if error.is_instance_of::<PyUnicodeEncodeError>(py) {
        let reason = format!(
            "{what} holds a lone surrogate, which has no form in UTF-8; replace it, as by \
             text.encode(errors=\"replace\").decode()"
        );
        // `UnicodeEncodeError` accepts any reason. If a subclass rejects it, the error is still correct.
        let _ = error.value(py).setattr("reason", reason);
        return error;
    }
    let message = format!("{what} {problem}: {text}");
    let wrapped = match error.is_instance_of::<PyTypeError>(py) {
        true => PyTypeError::new_err(message),
        false => PyValueError::new_err(message),
    };
    wrapped.set_cause(py, Some(error));
    wrapped
}

/// Returns the content of a `bytes`, `bytearray` or `memoryview`, and `None` for other objects. `bytes` are not copied.
pub(crate) fn raw_bytes(value: &Bound<'_, PyAny>) -> PyResult<Option<Bytes>> {
    if let Ok(bytes) = value.extract::<PyBackedBytes>() {
        return Ok(Some(Bytes::from_owner(bytes)));
    }
    if value.is_instance_of::<PyMemoryView>() {
        let copy: PyBackedBytes = value.call_method0("tobytes")?.extract()?;
        return Ok(Some(Bytes::from_owner(copy)));
    }
    Ok(None)
}

/// Returns the name of an object's type, with its module unless it is a builtin.
pub(crate) fn type_name(value: &Bound<'_, PyAny>) -> String {
    value.get_type().fully_qualified_name().map_or_else(|_| "?".to_owned(), |name| name.to_string())
}

fn type_error(message: String) -> PyErr {
    PyTypeError::new_err(message)
}
