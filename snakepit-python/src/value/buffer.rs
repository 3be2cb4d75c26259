//! Converts raw buffers to Python objects: arrays, lists of numbers, and pickles where they are enabled.

use pyo3::{exceptions::PyValueError, prelude::*, types::PyBytes};

use super::{
    array::raw_to_array,
    metadata::{LIST, Metadata},
    numbers,
};

/// Set to `1` to enable unpickling of values. A pickle runs code of its sender.
const ENV_ALLOW_PICKLE: &str = "SNAKEPIT_ALLOW_PICKLE";

/// Converts a buffer to the numpy array, list or pickled object that its metadata describes.
pub(super) fn to_python<'py>(py: Python<'py>, metadata: &[u8], buffer: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    let Metadata { ty, shape, dtype, binary_format, container } = Metadata::parse(metadata)?;
    match binary_format.as_str() {
        // `to_list` rejects buffers that do not match their shape.
        "raw"
            if container == LIST
                && (dtype == "float64"
                    || buffer.is_empty()
                    || !numbers::has_bounded_lists(&shape, buffer.len())) =>
        {
            numbers::to_list(py, &shape, buffer)
        }
        "raw" if container == LIST => raw_to_array(py, &dtype, &shape, buffer)?.call_method0("tolist"),
        "raw" => raw_to_array(py, &dtype, &shape, buffer),
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

/// Returns whether the metadata describes a pickle.
pub(super) fn is_pickle(metadata: &[u8]) -> bool {
    Metadata::parse(metadata).is_ok_and(|metadata| metadata.binary_format == "pickle")
}

fn pickle_allowed(py: Python<'_>) -> PyResult<bool> {
    let environ = py.import("os")?.getattr("environ")?;
    Ok(environ.call_method1("get", (ENV_ALLOW_PICKLE,))?.extract::<Option<String>>()?.as_deref() == Some("1"))
}
