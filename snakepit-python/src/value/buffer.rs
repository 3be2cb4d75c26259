//! Converts raw buffers to Python objects: arrays, lists of numbers, and pickles where they are enabled.

use pyo3::{exceptions::PyValueError, intern, prelude::*, types::PyBytes};

use super::{
    array::raw_to_array,
    metadata::{LIST, Metadata},
    numbers,
};

/// Set to `1` to enable unpickling of values. A pickle runs code of its sender.
const ENV_ALLOW_PICKLE: &str = "SNAKEPIT_ALLOW_PICKLE";

/// Converts a buffer to the numpy array, list or pickled object that its metadata describes.
pub(super) fn to_python<'py>(py: Python<'py>, metadata: &[u8], buffer: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    read(py, &Metadata::parse(metadata)?, buffer)
}

/// Like [`to_python`], with parsed metadata.
pub(super) fn read<'py>(py: Python<'py>, metadata: &Metadata, buffer: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    let Metadata { ty, shape, dtype, binary_format, container } = metadata;
    match binary_format.as_str() {
        // `to_list` rejects buffers that do not match their shape.
        "raw"
            if container == LIST
                && (dtype == "float64"
                    || buffer.is_empty()
                    || !numbers::has_bounded_lists(shape, buffer.len())) =>
        {
            numbers::to_list(py, shape, buffer)
        }
        "raw" if container == LIST => raw_to_array(py, dtype, shape, buffer)?.call_method0("tolist"),
        "raw" => raw_to_array(py, dtype, shape, buffer),
        "pickle" if pickle_allowed(py)? => {
            py.import("pickle")?.call_method1("loads", (PyBytes::new(py, buffer),))
        }
        "pickle" => Err(PyValueError::new_err(format!(
            "the value is a pickle, and unpickling runs code of its sender; send binary_format `raw`, or set \
             {ENV_ALLOW_PICKLE}=1 for the workers if every sender is trusted"
        ))),
        other => Err(PyValueError::new_err(format!(
            "the value, of type `{ty}`, has binary_format `{other}`, which is unknown; send `raw`"
        ))),
    }
}

/// Converts the buffer of raw bytes. Bytes that encode another object, such as a table, keep its format.
pub(super) fn bytes_to_python<'py>(
    py: Python<'py>,
    metadata: &[u8],
    buffer: &[u8],
) -> PyResult<Bound<'py, PyAny>> {
    /// The metadata of most bytes.
    const PLAIN: &[u8] = br#"{"type":"bytes","binary_format":"raw"}"#;
    if metadata == PLAIN {
        return Ok(PyBytes::new(py, buffer).into_any());
    }
    match serde_json::from_slice(metadata) {
        Ok(EncodedMetadata { binary_format: Some(format), .. }) if format == "pickle" => {
            to_python(py, metadata, buffer)
        }
        Ok(EncodedMetadata { format: Some(format), class, .. }) => {
            let encoded = py.import(intern!(py, "snakepit_bridge._encoded"))?;
            encoded.getattr(intern!(py, "Encoded"))?.call1((PyBytes::new(py, buffer), format, class))
        }
        _ => Ok(PyBytes::new(py, buffer).into_any()),
    }
}

/// The metadata of bytes that encode another object.
#[derive(serde::Deserialize)]
struct EncodedMetadata {
    binary_format: Option<String>,
    format: Option<String>,
    class: Option<String>,
}

fn pickle_allowed(py: Python<'_>) -> PyResult<bool> {
    let environ = py.import("os")?.getattr("environ")?;
    Ok(environ.call_method1("get", (ENV_ALLOW_PICKLE,))?.extract::<Option<String>>()?.as_deref() == Some("1"))
}
