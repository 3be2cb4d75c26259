//! The data of programs: bytes, JSON, or JSON with buffers.

use std::borrow::Cow;

use bytes::Bytes;
use pyo3::{exceptions::PyValueError, prelude::*, types::PyBytes};
use snakepit_registry::Chunk;

use super::{item_to_python, json_to_python};

const JSON: &str = "application/json";
/// The length of the JSON as 8 bytes in little-endian order, the JSON of a nested value, and its buffers.
const NESTED: &str = "application/vnd.snakepit.nested";

/// Returns the data and the content type of a program.
pub(crate) fn program_data(value: &Chunk) -> (Cow<'_, [u8]>, &'static str) {
    let Some(buffers) = &value.binary else { return (Cow::Borrowed(&value.data), JSON) };
    let mut data = Vec::with_capacity(8 + value.size());
    data.extend_from_slice(&(value.data.len() as u64).to_le_bytes());
    data.extend_from_slice(&value.data);
    data.extend_from_slice(buffers);
    (Cow::Owned(data), NESTED)
}

/// Converts the data of a program to its value. Data of any other content type becomes `bytes`.
///
/// # Errors
/// `ValueError` if the data is malformed.
pub(crate) fn read_program<'py>(
    py: Python<'py>,
    data: &Bound<'py, PyBytes>,
    content_type: &str,
) -> PyResult<Bound<'py, PyAny>> {
    match content_type {
        JSON => json_to_python(py, data.as_bytes()),
        NESTED => {
            let parts = data.as_bytes().split_first_chunk().and_then(|(length, rest)| {
                rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)
            });
            let (json, buffers) = parts.ok_or_else(|| PyValueError::new_err("the program is truncated"))?;
            let (json, buffers) = (Bytes::copy_from_slice(json), Bytes::copy_from_slice(buffers));
            item_to_python(py, json, Some(buffers))
        }
        _ => Ok(data.clone().into_any()),
    }
}
