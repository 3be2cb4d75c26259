//! numpy arrays as raw little-endian buffers with dtype and shape. Imports numpy only when a value requires it.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use pyo3::{
    exceptions::{PyImportError, PyValueError},
    intern,
    prelude::*,
    pybacked::PyBackedBytes,
    types::{PyByteArray, PyDict, PyList},
};
use snakepit_session::{Payload, ValueType};

use super::{
    error::{type_error, type_name},
    limit,
    metadata::Metadata,
    purpose::Purpose,
};

/// The kinds of numpy data types that are plain numbers: booleans, integers, floats, complex numbers.
const NUMBER_KINDS: &str = "biufc";

/// Returns numpy if this process has imported it. Otherwise, no value can be of a numpy type.
fn imported_numpy(py: Python<'_>) -> PyResult<Option<Bound<'_, PyAny>>> {
    let modules = py.import("sys")?.getattr("modules")?;
    modules.cast::<PyDict>()?.get_item("numpy")
}

pub(super) fn is_array(value: &Bound<'_, PyAny>) -> PyResult<bool> {
    match imported_numpy(value.py())? {
        Some(numpy) => value.is_instance(&numpy.getattr("ndarray")?),
        None => Ok(false),
    }
}

/// Returns whether an array contains strings or objects, so that lists represent it.
pub(super) fn has_objects(array: &Bound<'_, PyAny>) -> PyResult<bool> {
    let py = array.py();
    let kind: String = array.getattr(intern!(py, "dtype"))?.getattr(intern!(py, "kind"))?.extract()?;
    Ok(matches!(kind.as_str(), "O" | "U" | "S" | "T"))
}

/// Returns the reason why an array cannot be sent unchanged, or `None` if it can.
///
/// Masked values would become the numbers below the mask. Dates would become numbers without a unit.
pub(super) fn conversion_problem(array: &Bound<'_, PyAny>) -> PyResult<Option<String>> {
    let py = array.py();
    let modules = py.import("sys")?.getattr("modules")?;
    // Masked arrays require this module.
    if let Some(masked) = modules.cast::<PyDict>()?.get_item("numpy.ma")?
        && array.is_instance(&masked.getattr("MaskedArray")?)?
    {
        let ty = type_name(array);
        return Ok(Some(format!(
            "is a `{ty}`, whose masked values have no wire format; replace them with filled(value), or convert \
             it to a list with tolist(), where they are None"
        )));
    }
    let dtype = array.getattr("dtype")?;
    let kind: String = dtype.getattr("kind")?.extract()?;
    let (ty, name) = (type_name(array), dtype.getattr("name")?);
    Ok(match kind.as_str() {
        "M" => Some(format!(
            "is a `{ty}` of dtype `{name}`, which has no wire format; convert it to text with astype(str).tolist()"
        )),
        "m" => Some(format!(
            "is a `{ty}` of dtype `{name}`, which has no wire format; convert it to numbers in a unit of your \
             choice, for example with astype('timedelta64[s]').astype(float)"
        )),
        "V" => Some(format!(
            "is a `{ty}` of dtype `{name}`, which has no wire format; convert it to a dict with an array for each field"
        )),
        _ => None,
    })
}

/// Converts lists of numbers to an array.
///
/// # Errors
/// `ValueError` if the lists differ in length or contain other values.
pub(super) fn from_lists<'py>(lists: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let error = |problem: &dyn fmt::Display| {
        PyValueError::new_err(format!(
            "it cannot be converted to an array: {problem}; send lists of numbers of equal length, or an array"
        ))
    };
    let numpy = numpy(lists.py())?;
    let array = numpy.call_method1("asarray", (lists,)).map_err(|cause| error(cause.value(lists.py())))?;
    let dtype = array.getattr("dtype")?;
    if NUMBER_KINDS.contains(&dtype.getattr("kind")?.extract::<String>()?) {
        return Ok(array);
    }
    Err(error(&format_args!("its items are of dtype `{}`", dtype.getattr("name")?)))
}

/// Converts a map with `shape` and `data`, the form in which some clients send arrays. Returns `None` for other maps.
///
/// # Errors
/// `ValueError` if the data are not lists of numbers or do not match the shape.
pub(super) fn from_map<'py>(map: &Bound<'py, PyDict>) -> PyResult<Option<Bound<'py, PyAny>>> {
    let (Some(shape), Some(data)) = (map.get_item("shape")?, map.get_item("data")?) else { return Ok(None) };
    let (Ok(shape), true) = (shape.extract::<Vec<usize>>(), data.is_instance_of::<PyList>()) else {
        return Ok(None);
    };
    let mut array = from_lists(&data)?;
    if let Some(dtype) = map.get_item("dtype")? {
        array = array.call_method1("astype", (number_type(&dtype)?,))?;
    }
    array.call_method1("reshape", (shape.clone(),)).map(Some).map_err(|_| {
        let size = array.len().unwrap_or_default();
        PyValueError::new_err(format!(
            "it cannot be converted to an array: its data has {size} numbers, which do not match the shape {shape:?}"
        ))
    })
}

/// Returns the data type of this name, if it is numeric.
fn number_type<'py>(name: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let dtype = numpy(name.py())?.call_method1("dtype", (name,)).ok();
    let kind = |dtype: &Bound<'py, PyAny>| dtype.getattr("kind")?.extract::<String>();
    dtype.filter(|dtype| kind(dtype).is_ok_and(|kind| NUMBER_KINDS.contains(&kind))).ok_or_else(|| {
        PyValueError::new_err(format!(
            "the tensor's dtype is {name:?}, which is not numeric; name a numeric type"
        ))
    })
}

fn numpy(py: Python<'_>) -> PyResult<Bound<'_, PyModule>> {
    py.import("numpy").map_err(|error| {
        if error.is_instance_of::<PyImportError>(py) {
            PyValueError::new_err(
                "the value is a tensor, and numpy is not installed in the worker's environment; \
                 install it, or send a list",
            )
        } else {
            error
        }
    })
}

/// Converts a numpy scalar to a Python number, or returns the reason why that is impossible. Returns `None` for other
/// values.
pub(super) fn scalar_to_plain<'py>(
    value: &Bound<'py, PyAny>,
) -> PyResult<Option<Result<Bound<'py, PyAny>, String>>> {
    let Some(numpy) = imported_numpy(value.py())? else { return Ok(None) };
    if !value.is_instance(&numpy.getattr("generic")?)? {
        return Ok(None);
    }
    if let Some(problem) = conversion_problem(value)? {
        return Ok(Some(Err(problem)));
    }
    let plain = value.call_method0("item")?;
    // Extended floats have no Python equivalent: their `item` returns a numpy scalar.
    if plain.get_type().is(value.get_type()) {
        let ty = type_name(value);
        return Ok(Some(Err(format!(
            "is a `{ty}`, whose precision exceeds that of a float or complex; round it with float() or complex(), or convert it \
             exactly, to an array or with str()"
        ))));
    }
    Ok(Some(Ok(plain)))
}

/// The number of items in an array.
pub(super) fn length(array: &Bound<'_, PyAny>) -> PyResult<usize> {
    array.getattr(intern!(array.py(), "size"))?.extract()
}

/// The size of an array in bytes.
pub(super) fn size(array: &Bound<'_, PyAny>) -> PyResult<usize> {
    array.getattr(intern!(array.py(), "nbytes"))?.extract()
}

/// Converts a numpy array to a raw buffer.
pub(super) fn from_python(
    array: &Bound<'_, PyAny>,
    purpose: Purpose,
    description: fmt::Arguments<'_>,
) -> PyResult<Payload> {
    match raw(array)? {
        Ok((metadata, array)) => {
            // The copy of an array that repeats a few items can be larger than the memory.
            let size = size(&array)?;
            if size > limit::write_limit() {
                return Err(limit::error(size, purpose, description));
            }
            let buffer: PyBackedBytes = little_endian(&array)?.call_method0("tobytes")?.extract()?;
            Ok(Payload::from_buffer(ValueType::Tensor, metadata.to_json()?, Bytes::from_owner(buffer)))
        }
        Err(problem) => Err(type_error(format!("{description} {problem}"))),
    }
}

/// Returns an array whose items are contiguous and little-endian, and its size in bytes.
pub(super) fn contiguous<'py>(array: &Bound<'py, PyAny>) -> PyResult<(Bound<'py, PyAny>, usize)> {
    let py = array.py();
    let array = numpy(py)?.call_method1(intern!(py, "ascontiguousarray"), (little_endian(array)?,))?;
    let length = size(&array)?;
    Ok((array, length))
}

/// Returns an array in little-endian order.
fn little_endian<'py>(array: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let little_endian = array.getattr("dtype")?.call_method1("newbyteorder", ("<",))?;
    let kwargs = PyDict::new(array.py());
    kwargs.set_item("copy", false)?;
    array.call_method("astype", (little_endian,), Some(&kwargs))
}

/// Returns the metadata of a numpy array, and the array as a plain one, or the reason why it has no raw form.
pub(super) fn raw<'py>(array: &Bound<'py, PyAny>) -> PyResult<Result<(Metadata, Bound<'py, PyAny>), String>> {
    if let Some(problem) = conversion_problem(array)? {
        return Ok(Err(problem));
    }
    let dtype = array.getattr("dtype")?;
    let kind: String = dtype.getattr("kind")?.extract()?;
    let name: String = dtype.getattr("name")?.extract()?;
    if !NUMBER_KINDS.contains(&kind) {
        let ty = type_name(array);
        return Ok(Err(format!(
            "is a `{ty}` of dtype `{name}`, which has no raw form; convert it to a list with tolist()"
        )));
    }
    // A plain array, because subclasses may override the shape.
    let array = numpy(array.py())?.call_method1(intern!(array.py(), "asarray"), (array,))?;
    let metadata = Metadata {
        ty: "tensor".to_owned(),
        shape: array.getattr("shape")?.extract()?,
        dtype: name,
        binary_format: "raw".to_owned(),
        container: String::new(),
    };
    Ok(Ok((metadata, array)))
}

/// Decodes a tensor from a message without a binary field, where it is base64 in the metadata. Returns other values
/// unchanged.
pub(super) fn from_inline(value: Bound<'_, PyAny>) -> PyResult<Bound<'_, PyAny>> {
    let Ok(dict) = value.cast::<PyDict>() else { return Ok(value) };
    let text = |name: &str| -> PyResult<Option<String>> {
        Ok(dict.get_item(name)?.and_then(|value| value.extract().ok()))
    };
    if text("binary_format")?.as_deref() != Some("raw") {
        return Ok(value);
    }
    let (Some(data), Some(dtype), Some(shape)) = (text("data")?, text("dtype")?, dict.get_item("shape")?)
    else {
        return Ok(value);
    };
    let buffer = BASE64
        .decode(data)
        .map_err(|e| PyValueError::new_err(format!("the tensor's `data` is not valid base64: {e}")))?;
    raw_to_array(value.py(), &dtype, &shape.extract::<Vec<usize>>()?, &buffer)
}

/// Converts a raw buffer to an array of this shape.
pub(super) fn raw_to_array<'py>(
    py: Python<'py>,
    dtype: &str,
    shape: &[usize],
    buffer: &[u8],
) -> PyResult<Bound<'py, PyAny>> {
    let numpy = numpy(py)?;
    let unknown = |_| {
        PyValueError::new_err(format!(
            "the tensor's dtype `{dtype}` is unknown to numpy; name a numeric type"
        ))
    };
    // Little-endian by default.
    let order = if dtype.starts_with('>') { ">" } else { "<" };
    let dtype =
        numpy.call_method1("dtype", (dtype,)).map_err(unknown)?.call_method1("newbyteorder", (order,))?;
    // A bytearray makes the array writable, which tools expect of their arguments.
    let flat = numpy.call_method1("frombuffer", (PyByteArray::new(py, buffer), dtype))?;
    flat.call_method1("reshape", (shape.to_vec(),))
}
