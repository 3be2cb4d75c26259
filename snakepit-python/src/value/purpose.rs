//! [`Purpose`]: the purpose of a value from Python code. It selects the exception class and the advice in error messages.

use std::fmt;

use pyo3::{
    exceptions::{PyException, PyTypeError, PyUnicodeEncodeError},
    intern,
    prelude::*,
};

use super::error::with_name;
use crate::errors::{InvalidArgumentError, InvalidTypeError};

/// The purpose of a value from Python code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// An argument of a call.
    Argument,
    /// The result of a tool, or a chunk of it.
    Result,
    /// The value or the constraints of a variable, or a program.
    Variable,
}

impl Purpose {
    /// The verb of advice: "pass something flatter".
    pub(super) const fn verb(self) -> &'static str {
        match self {
            Self::Argument => "pass",
            Self::Result => "return",
            Self::Variable => "store",
        }
    }

    /// Converts the error of a value that cannot be sent. Callers get an [`InvalidArgumentError`], which is a
    /// `ValueError`, or an [`InvalidTypeError`], which is a `TypeError` too. Tools get the plain exceptions. Exceptions
    /// such as a cancellation remain unchanged.
    pub(super) fn error(self, py: Python<'_>, error: PyErr, description: fmt::Arguments<'_>) -> PyErr {
        let error = with_name(py, error, description, "cannot be converted");
        if self == Self::Result || !error.is_instance_of::<PyException>(py) {
            return error;
        }
        // The text of a `UnicodeEncodeError` begins with the name of the codec.
        let reason = match error.is_instance_of::<PyUnicodeEncodeError>(py) {
            true => error.value(py).getattr(intern!(py, "reason")).ok(),
            false => None,
        };
        let message = reason.map_or_else(|| error.value(py).to_string(), |reason| reason.to_string());
        let invalid = match error.is_instance_of::<PyTypeError>(py) {
            true => InvalidTypeError::new_err(message),
            false => InvalidArgumentError::new_err(message),
        };
        // The new exception replaces `error`, so it takes over its cause, which shows the origin.
        invalid.set_cause(py, error.cause(py));
        invalid
    }
}
