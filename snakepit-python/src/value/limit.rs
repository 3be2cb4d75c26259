//! The size limit of values that this process sends.

use std::{fmt, sync::OnceLock};

use pyo3::{create_exception, exceptions::PyValueError, intern, prelude::*};
use snakepit_proto::mux::MAX_ITEM_BYTES;

use super::Purpose;

create_exception!(
    snakepit_bridge._native,
    AnswerTooLargeError,
    PyValueError,
    "A result of a tool, or a chunk of it, that is too large. The call fails with the reason `ANSWER_TOO_LARGE`."
);

/// Environment: the maximum size of a value in bytes, below that of a message.
const ENV_MAX_VALUE_BYTES: &str = "SNAKEPIT_MAX_VALUE_BYTES";

/// The limit. Above the size of a message, the sender of the message reports the error.
pub(super) fn bytes() -> usize {
    static LIMIT: OnceLock<usize> = OnceLock::new();
    *LIMIT.get_or_init(|| {
        let number = std::env::var(ENV_MAX_VALUE_BYTES).ok().and_then(|text| text.trim().parse().ok());
        number.filter(|limit| *limit < MAX_ITEM_BYTES).unwrap_or(usize::MAX)
    })
}

/// The size at which writing a value stops, so that a small object that stands for a huge value, such as a `range` or a list
/// that contains one array many times, does not use up the memory. Up to this size, errors contain the exact size of the value.
pub(super) fn write_limit() -> usize {
    bytes().min(MAX_ITEM_BYTES).saturating_mul(2)
}

/// Returns the error of a value that exceeds the limit, with its size and the limit.
#[cold]
pub(super) fn error(size: usize, purpose: Purpose, description: fmt::Arguments<'_>) -> PyErr {
    let limit = bytes().min(MAX_ITEM_BYTES);
    let more = if size > write_limit() { "at least " } else { "" };
    let advice = if limit < MAX_ITEM_BYTES {
        format!(", or raise {ENV_MAX_VALUE_BYTES}, which may be up to {MAX_ITEM_BYTES}")
    } else {
        String::new()
    };
    let message = format!(
        "{description} has {more}{size} bytes, the limit is {limit}; {} a smaller value or the path of a file{advice}",
        purpose.verb()
    );
    if purpose != Purpose::Result {
        return PyValueError::new_err(message);
    }
    let error = AnswerTooLargeError::new_err(message);
    Python::attach(|py| {
        // Without the numbers, the call fails with this exception.
        let _ = error.value(py).setattr(intern!(py, "_numbers"), (size, limit));
    });
    error
}

/// Returns the size and the limit if this is the error of a result that exceeds the limit.
pub(crate) fn numbers_of(py: Python<'_>, error: &PyErr) -> Option<(usize, usize)> {
    if !error.is_instance_of::<AnswerTooLargeError>(py) {
        return None;
    }
    error.value(py).getattr(intern!(py, "_numbers")).ok()?.extract().ok()
}
