//! Conversion between Python objects and payloads: defines which Python type becomes which wire type.
//!
//! `read` and `write` convert between JSON and Python objects directly. Arrays and bytes travel as raw buffers
//! (`array`), and so do large lists of numbers where the type of the variable allows it (`numbers`).

mod array;
mod buffer;
mod envelope;
mod error;
mod json;
mod limit;
mod metadata;
mod numbers;
mod parameters;
mod program;
mod purpose;
mod read;
mod write;

use std::fmt;

use bytes::Bytes;
use pyo3::{
    exceptions::{PyException, PyValueError},
    intern,
    prelude::*,
    pybacked::PyBackedBytes,
    types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyMemoryView, PyString, PyTuple},
};
use snakepit_registry::Chunk;
use snakepit_session::{Payload, ValueType};

use crate::errors::SnakepitError;

pub(crate) use error::type_name;
use error::{type_error, with_name};
pub(crate) use limit::numbers_of;
pub(crate) use numbers::Numbers;
pub(crate) use parameters::Parameters;
pub(crate) use program::{program_data, read_program};
pub(crate) use purpose::Purpose;
pub(crate) use read::json_to_python;

/// Converts a payload to a Python object.
///
/// # Errors
/// `ValueError` if the payload is malformed, does not match its declared type, is a pickle and pickles are not enabled,
/// or requires numpy and numpy is not installed.
pub(crate) fn to_python<'py>(py: Python<'py>, payload: Payload) -> PyResult<Bound<'py, PyAny>> {
    if let (Some(json), Some(buffers)) = (payload.nested_json(), payload.binary()) {
        return read::nested_to_python(py, json, buffers);
    }
    let (ty, json, buffer) = payload.into_parts();
    if let Some(buffer) = buffer {
        return match ty {
            ValueType::Bytes => buffer::bytes_to_python(py, &json, &buffer),
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
    match payload_of(value, purpose, description) {
        Ok(payload) if payload.size() <= limit::bytes() => Ok(payload),
        Ok(payload) => {
            Err(purpose.error(value.py(), limit::error(payload.size(), purpose, description), description))
        }
        Err(error) => Err(purpose.error(value.py(), error, description)),
    }
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
    } else if array::is_array(value)? && !array::has_objects(value)? {
        return array::from_python(value, purpose, description);
    } else if let Some(plain) = array::scalar_to_plain(value)? {
        let plain = plain.map_err(|problem| type_error(format!("{description} {problem}")))?;
        return payload_of(&plain, purpose, description);
    } else {
        // Converters may return any other value. Arrays of strings and objects become lists.
        return match write::to_item(value, purpose, description)? {
            (json, None) => Ok(Payload::of_json(json.into())),
            (json, Some(buffers)) => Ok(Payload::nested(&json, buffers)),
        };
    };
    if ty == ValueType::Float {
        // `Payload::float` writes NaN and infinities as strings. The type distinguishes them from text.
        return Ok(Payload::float(value.extract()?));
    }
    if !matches!(ty, ValueType::Map | ValueType::List) {
        return Ok(Payload::from_json(ty, write::to_json(value, purpose, description)?.into()));
    }
    Ok(match write::to_item(value, purpose, description)? {
        (json, None) => Payload::from_json(ty, json.into()),
        (json, Some(buffers)) => Payload::nested(&json, buffers),
    })
}

/// Converts a Python object to an item of a stream.
///
/// # Errors
/// Those of [`from_python`].
pub(crate) fn to_chunk(
    value: &Bound<'_, PyAny>,
    purpose: Purpose,
    description: fmt::Arguments<'_>,
) -> PyResult<Chunk> {
    let item = write::to_item(value, purpose, description).and_then(|(json, buffers)| {
        let size = json.len() + buffers.as_ref().map_or(0, Bytes::len);
        if size <= limit::bytes() {
            Ok((json, buffers))
        } else {
            Err(limit::error(size, purpose, description))
        }
    });
    let (json, buffers) = item.map_err(|error| purpose.error(value.py(), error, description))?;
    Ok(match buffers {
        None => Chunk { data: json.into(), ..Chunk::default() },
        Some(buffers) => Chunk::of(Payload::nested(&json, buffers)),
    })
}

/// Converts an item of a stream, which is JSON and buffers, to a Python object.
///
/// # Errors
/// `ValueError` if the item is malformed.
pub(crate) fn item_to_python<'py>(
    py: Python<'py>,
    json: Bytes,
    buffers: Option<Bytes>,
) -> PyResult<Bound<'py, PyAny>> {
    match buffers {
        None => json_to_python(py, &json),
        Some(_) => {
            Payload::check_buffers(&json, buffers.as_ref())
                .map_err(|error| PyValueError::new_err(error.to_string()))?;
            to_python(py, Payload::of_chunk(json, buffers))
        }
    }
}

/// Converts a Python object to JSON alone, without buffers. Arrays become lists.
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

/// Returns the content of a `bytes`, `bytearray` or `memoryview`, and `None` for other objects and for encoded values, which have
/// metadata. `bytes` are not copied.
pub(crate) fn raw_bytes(value: &Bound<'_, PyAny>) -> PyResult<Option<Bytes>> {
    if let Ok(bytes) = value.cast::<PyBytes>()
        && !bytes.is_exact_instance_of::<PyBytes>()
        && bytes.hasattr(intern!(value.py(), "__snakepit_format__"))?
    {
        return Ok(None);
    }
    if let Ok(bytes) = value.extract::<PyBackedBytes>() {
        return Ok(Some(Bytes::from_owner(bytes)));
    }
    if value.is_instance_of::<PyMemoryView>() {
        let copy: PyBackedBytes = value.call_method0("tobytes")?.extract()?;
        return Ok(Some(Bytes::from_owner(copy)));
    }
    Ok(None)
}
