//! The size limit of values that this process sends.

use std::{fmt, sync::OnceLock};

use pyo3::{exceptions::PyValueError, prelude::*};
use snakepit_proto::mux::MAX_ITEM_BYTES;

use super::Purpose;

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

/// Returns the error of a value above the limit, with its size and the limit.
#[cold]
pub(super) fn error(size: usize, purpose: Purpose, description: fmt::Arguments<'_>) -> PyErr {
    let limit = bytes();
    PyValueError::new_err(format!(
        "{description} has {size} bytes, the limit is {limit}; {} a smaller value or the path of a file, or raise \
         {ENV_MAX_VALUE_BYTES}, which may be up to {MAX_ITEM_BYTES}",
        purpose.verb()
    ))
}
