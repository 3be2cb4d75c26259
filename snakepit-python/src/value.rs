//! Values between Python objects and payloads: one place that says which Python type becomes which wire type.
//!
//! JSON goes straight into Python objects and back (`read`, `write`); arrays and bytes travel as raw buffers (`array`), large lists of
//! numbers where the variable's type allows it (`numbers`).

mod array;
mod conversions;
mod numbers;
mod read;
mod write;

use std::fmt;

use bytes::Bytes;
use pyo3::{
    exceptions::{PyTypeError, PyValueError},
    prelude::*,
    pybacked::PyBackedBytes,
    types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyMemoryView, PyString, PyTuple},
};
use snakepit_session::{Payload, ValueType};

pub(crate) use conversions::Conversions;
pub(crate) use numbers::Numbers;
pub(crate) use read::json_to_python;

/// Turns a payload into the Python object it stands for.
///
/// # Errors
/// `ValueError` when the payload is malformed, is not of the type that it claims, holds a pickle that nobody allowed, or
/// needs numpy and there is none.
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
        ValueType::Integer if value.is_instance_of::<PyFloat>() => match read::whole(&value)? {
            Some(integer) => return Ok(integer),
            None => false,
        },
        ValueType::Integer => value.is_instance_of::<PyInt>() && !value.is_instance_of::<PyBool>(),
        ValueType::String | ValueType::Choice | ValueType::Module => value.is_instance_of::<PyString>(),
        ValueType::Boolean => value.is_instance_of::<PyBool>(),
        ValueType::Map => value.is_instance_of::<PyDict>(),
        ValueType::List => value.is_instance_of::<PyList>(),
        ValueType::Null => value.is_none(),
        // A foreign worker may describe an array in its own way: it is what its JSON says.
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
        read::described(&value)
    )))
}

/// Turns what a tool returned into a payload.
///
/// # Errors
/// `TypeError` that names the Python type without a wire form, and where in `what` it sits.
pub(crate) fn from_python(value: &Bound<'_, PyAny>, what: fmt::Arguments<'_>) -> PyResult<Payload> {
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
        return from_python(&plain, what);
    } else {
        return Err(write::unfit(value, what));
    };
    if ty == ValueType::Float {
        // NaN and infinities have names of their own there, which the type makes clear.
        return Ok(Payload::float(value.extract()?));
    }
    Ok(Payload::from_json(ty, python_to_json(value, what)?))
}

/// Writes a Python object as JSON: the form of chunks and of values inside other values.
///
/// # Errors
/// `TypeError` that names the Python type without a JSON form, and where in `what` it sits.
pub(crate) fn python_to_json(value: &Bound<'_, PyAny>, what: fmt::Arguments<'_>) -> PyResult<Bytes> {
    write::to_json(value, what).map(Bytes::from)
}

/// The content of a `bytes`, `bytearray` or `memoryview`; `None` for anything else. `bytes` are not copied.
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

/// The name of an object's type, with its module unless it is a builtin.
pub(crate) fn type_name(value: &Bound<'_, PyAny>) -> String {
    value.get_type().fully_qualified_name().map_or_else(|_| "?".to_owned(), |name| name.to_string())
}

fn type_error(message: String) -> PyErr {
    PyTypeError::new_err(message)
}
