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
    exceptions::{PyException, PyTypeError, PyUnicodeEncodeError, PyValueError},
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
    payload_of(value, what).map_err(|error| named(value.py(), error, what, "cannot be converted"))
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
        // NaN and infinities have names of their own there, which the type makes clear.
        return Ok(Payload::float(value.extract()?));
    }
    Ok(Payload::from_json(ty, write::to_json(value, what)?.into()))
}

/// Writes a Python object as JSON: the form of chunks and of values inside other values.
///
/// # Errors
/// `TypeError` that names the Python type without a JSON form, and where in `what` it sits.
pub(crate) fn python_to_json(value: &Bound<'_, PyAny>, what: fmt::Arguments<'_>) -> PyResult<Bytes> {
    let json = write::to_json(value, what);
    json.map(Bytes::from).map_err(|error| named(value.py(), error, what, "cannot be converted"))
}

/// Says in an error which value could not be read: for what comes from the host, whose sender the reader of the error does not
/// see.
pub(crate) fn named_read<'py>(
    value: PyResult<Bound<'py, PyAny>>,
    py: Python<'py>,
    what: fmt::Arguments<'_>,
) -> PyResult<Bound<'py, PyAny>> {
    value.map_err(|error| named(py, error, what, "cannot be read"))
}

/// An error that names the value, as most of this module do: code of Python, of libraries, and of the value itself knows
/// nothing of it. What is no error, such as a cancellation, stays as it is.
fn named(py: Python<'_>, error: PyErr, what: fmt::Arguments<'_>, problem: &str) -> PyErr {
    let (what, text) = (what.to_string(), error.value(py).to_string());
    if !error.is_instance_of::<PyException>(py) || text.contains(&what) {
        return error;
    }
    if error.is_instance_of::<PyUnicodeEncodeError>(py) {
        let reason = format!(
            "{what} holds a lone surrogate, which has no form in UTF-8; replace it, as by \
             text.encode(errors=\"replace\").decode()"
        );
        // It takes any reason. Should a subclass refuse it, the error is still the right one.
        let _ = error.value(py).setattr("reason", reason);
        return error;
    }
    let message = format!("{what} {problem}: {text}");
    let named = match error.is_instance_of::<PyTypeError>(py) {
        true => PyTypeError::new_err(message),
        false => PyValueError::new_err(message),
    };
    named.set_cause(py, Some(error));
    named
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
