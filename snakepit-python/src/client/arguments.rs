//! Checks the arguments of the client's methods. Errors name the argument, its value and the valid ones.

use std::time::Duration;

use pyo3::{
    exceptions::{PyException, PyOverflowError},
    prelude::*,
    types::{PyBool, PyString},
};
use snakepit_proto::headers::MAX_TIMEOUT;

use crate::{
    errors::{InvalidArgumentError, InvalidTypeError},
    value::type_name,
};

/// The minimum of a timeout argument.
#[derive(Debug, Clone, Copy)]
pub(super) enum MinTimeout {
    /// The client may give up immediately.
    Zero,
    Nanosecond,
}

/// Reads a timeout in seconds. Infinity becomes the maximum of the protocol.
///
/// # Errors
/// [`InvalidTypeError`] if the value is not a number, or [`InvalidArgumentError`] if it is out of range.
pub(super) fn timeout(name: &str, value: &Bound<'_, PyAny>, min: MinTimeout) -> PyResult<Duration> {
    let range = || {
        let min = match min {
            MinTimeout::Zero => "0",
            MinTimeout::Nanosecond => "1e-9",
        };
        format!("seconds from {min} to {}, or inf for the maximum", MAX_TIMEOUT.as_secs())
    };
    let not_a_number = || wrong_type(name, value, &format!("a number of {}", range()));
    if value.is_instance_of::<PyBool>() || is_not_scalar(value) {
        return Err(not_a_number());
    }
    let seconds = match value.extract::<f64>() {
        Ok(seconds) => seconds,
        Err(error) if error.is_instance_of::<PyOverflowError>(value.py()) => {
            return Err(InvalidArgumentError::new_err(format!(
                "`{name}` is too large, expected {}",
                range()
            )));
        }
        // The value is not a number, or its `__float__` raises, as for a signaling NaN of `decimal`.
        Err(error) => {
            let invalid = not_a_number();
            if !error.is_instance_of::<PyException>(value.py()) {
                return Err(error);
            }
            invalid.set_cause(value.py(), Some(error));
            return Err(invalid);
        }
    };
    let timeout = match seconds {
        f64::INFINITY => Some(MAX_TIMEOUT),
        seconds => Duration::try_from_secs_f64(seconds).ok().filter(|timeout| *timeout <= MAX_TIMEOUT),
    };
    let is_valid = |timeout: &Duration| matches!(min, MinTimeout::Zero) || !timeout.is_zero();
    timeout.filter(is_valid).ok_or_else(|| {
        // Writes large and small numbers with an exponent.
        InvalidArgumentError::new_err(format!("`{name}` is {seconds:?}, expected {}", range()))
    })
}

/// Returns whether a value is a boolean or a numpy array, which both convert to a float.
fn is_not_scalar(value: &Bound<'_, PyAny>) -> bool {
    let ty = value.get_type();
    let is_numpy = ty.module().is_ok_and(|module| module == "numpy");
    is_numpy && ty.name().is_ok_and(|name| ["bool", "bool_", "ndarray"].iter().any(|other| name == *other))
}

/// Reads a string.
///
/// # Errors
/// [`InvalidTypeError`] if the value is not a string, or [`InvalidArgumentError`] if it cannot be encoded as UTF-8.
pub(super) fn text<'a>(name: &str, value: &'a Bound<'_, PyAny>) -> PyResult<&'a str> {
    let text = value.cast::<PyString>().map_err(|_| wrong_type(name, value, "a str"))?;
    text.to_str().map_err(|_| {
        let shown = value.repr().map(|shown| shown.to_string_lossy().into_owned()).unwrap_or_default();
        InvalidArgumentError::new_err(format!("`{name}` is {shown}, which cannot be encoded as UTF-8"))
    })
}

/// Creates the error for an argument of the wrong type, as `snakepit_bridge._checked` does.
fn wrong_type(name: &str, value: &Bound<'_, PyAny>, expected: &str) -> PyErr {
    let kind = type_name(value);
    let article = if kind.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    let given = if value.is_none() { "None".to_owned() } else { format!("{article} `{kind}`") };
    InvalidTypeError::new_err(format!("`{name}` is {given}, expected {expected}"))
}
