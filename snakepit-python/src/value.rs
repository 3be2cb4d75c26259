//! Conversion between Python objects and payloads: defines which Python type becomes which wire type.
//!
//! `read` and `write` convert between JSON and Python objects directly. Arrays and bytes travel as raw buffers
//! (`array`), and so do large lists of numbers where the type of the variable allows it (`numbers`).

mod array;
mod buffer;
mod error;
mod json;
mod metadata;
mod numbers;
mod parameters;
mod purpose;
mod read;
mod write;

use std::fmt;

use bytes::Bytes;
use pyo3::{
    exceptions::{PyException, PyValueError},
    prelude::*,
    pybacked::PyBackedBytes,
    types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyMemoryView, PyString, PyTuple},
};
use snakepit_session::{Payload, ValueType};

use crate::errors::SnakepitError;

pub(crate) use error::type_name;
use error::{type_error, with_name};
pub(crate) use numbers::Numbers;
pub(crate) use parameters::Parameters;
pub(crate) use purpose::Purpose;
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
            ValueType::Bytes if !buffer::is_pickle(&json) => Ok(PyBytes::new(py, &buffer).into_any()),
            _ => buffer::to_python(py, &json, &buffer),
        };
    }
    let value = match ty {
        ValueType::Float => return read::float_to_python(py, &json),
        ValueType::Tensor | ValueType::Embedding => array::from_inline(read::numbers_to_python(py, &json)?)?,
        _ => json_to_python(py, &json)?,
    };
    let is_of_declared_type = match ty {
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
        // A foreign worker may use its own description of an array. Its JSON is returned unchanged.
        ValueType::Tensor | ValueType::Embedding => {
            value.is_instance_of::<PyList>() || value.is_instance_of::<PyDict>() || array::is_array(&value)?
        }
        ValueType::Bytes => false,
        ValueType::Float => true,
    };
    if is_of_declared_type {
        return Ok(value);
    }
    Err(PyValueError::new_err(format!(
        "it is declared `{ty}`, but its JSON is {}; declare its actual type",
        read::describe_type(&value)
    )))
}

/// Converts a Python object to a payload.
///
/// # Errors
/// The exception of the [purpose](Purpose), with the Python type that has no wire form, and its path in the value.
pub(crate) fn from_python(
    value: &Bound<'_, PyAny>,
    purpose: Purpose,
    description: fmt::Arguments<'_>,
) -> PyResult<Payload> {
    payload_of(value, purpose, description).map_err(|error| purpose.error(value.py(), error, description))
}

fn payload_of(
    value: &Bound<'_, PyAny>,
    purpose: Purpose,
    description: fmt::Arguments<'_>,
) -> PyResult<Payload> {
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
        return array::from_python(value, description);
    } else if let Some(plain) = array::scalar_to_plain(value)? {
        let plain = plain.map_err(|problem| type_error(format!("{description} {problem}")))?;
        return payload_of(&plain, purpose, description);
    } else {
        return Err(write::type_without_wire_form(value, purpose, description));
    };
    if ty == ValueType::Float {
        // `Payload::float` writes NaN and infinities as strings. The type distinguishes them from text.
        return Ok(Payload::float(value.extract()?));
    }
    Ok(Payload::from_json(ty, write::to_json(value, purpose, description)?.into()))
}

/// Converts a Python object to JSON: the form of chunks, and of values inside other values.
///
/// # Errors
/// The exception of the [purpose](Purpose), with the Python type that has no JSON form, and its path in the value.
pub(crate) fn python_to_json(
    value: &Bound<'_, PyAny>,
    purpose: Purpose,
    description: fmt::Arguments<'_>,
) -> PyResult<Bytes> {
    let json = write::to_json(value, purpose, description);
    json.map(Bytes::from).map_err(|error| purpose.error(value.py(), error, description))
}

/// Converts an error to a [`SnakepitError`] with the name of the value. Used for values from the host, because the traceback does
/// not show their sender.
pub(crate) fn name_read_error<'py>(
    value: PyResult<Bound<'py, PyAny>>,
    py: Python<'py>,
    description: fmt::Arguments<'_>,
) -> PyResult<Bound<'py, PyAny>> {
    value.map_err(|error| {
        // Exceptions that end a program, such as `KeyboardInterrupt`, stay as they are.
        if !error.is_instance_of::<PyException>(py) || error.is_instance_of::<SnakepitError>(py) {
            return error;
        }
        let error = with_name(py, error, description, "cannot be read");
        let unreadable = SnakepitError::new_err(error.value(py).to_string());
        unreadable.set_cause(py, Some(error));
        unreadable
    })
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
