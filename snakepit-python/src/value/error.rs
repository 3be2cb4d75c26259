//! Errors of conversions, which name the value and the Python type.

use std::fmt;

use pyo3::{
    exceptions::{PyException, PyTypeError, PyUnicodeEncodeError, PyValueError},
    prelude::*,
};

/// Adds the name of the value to an error of Python, a library or the value itself. Leaves errors that contain the name,
/// and exceptions such as a cancellation, unchanged.
pub(super) fn with_name(
    py: Python<'_>,
    error: PyErr,
    description: fmt::Arguments<'_>,
    problem: &str,
) -> PyErr {
    let (description, text) = (description.to_string(), error.value(py).to_string());
    if !error.is_instance_of::<PyException>(py) || text.contains(&description) {
        return error;
    }
    if error.is_instance_of::<PyUnicodeEncodeError>(py) {
        let reason = format!(
            "{description} contains a lone surrogate, which cannot be encoded as UTF-8; replace it, for example with \
             text.encode(errors=\"replace\").decode()"
        );
        // `UnicodeEncodeError` accepts any reason. If a subclass rejects it, the error is still correct.
        let _ = error.value(py).setattr("reason", reason);
        return error;
    }
    // Some exceptions, such as a `MemoryError`, have no text.
    let reason = if text.is_empty() { type_name(error.value(py).as_any()) } else { text };
    let message = format!("{description} {problem}: {reason}");
    let wrapped = match error.is_instance_of::<PyTypeError>(py) {
        true => PyTypeError::new_err(message),
        false => PyValueError::new_err(message),
    };
    wrapped.set_cause(py, Some(error));
    wrapped
}

/// Returns the name of an object's type, with its module unless it is a builtin.
pub(crate) fn type_name(value: &Bound<'_, PyAny>) -> String {
    value.get_type().fully_qualified_name().map_or_else(|_| "?".to_owned(), |name| name.to_string())
}

/// Creates a `TypeError`.
pub(super) fn type_error(message: String) -> PyErr {
    PyTypeError::new_err(message)
}
