//! Envelopes: maps that stand for bytes and arrays inside other values, and for maps that would look like an envelope.

use std::cell::Cell;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use pyo3::{
    exceptions::PyValueError,
    intern,
    prelude::*,
    pybacked::PyBackedBytes,
    types::{PyBytes, PyDict, PyInt, PyList, PyString},
};

use super::{buffer, json::ENVELOPE_KEY, metadata::Metadata};

/// The buffers of a value that is being read.
pub(super) struct Buffers<'a> {
    bytes: &'a [u8],
    /// The number of bytes that envelopes may still refer to. Each byte may be used once, so that a small message cannot expand
    /// to a large value.
    remaining: Cell<usize>,
    /// The exception of an envelope. The JSON parser reports only its text.
    pub(super) error: Cell<Option<PyErr>>,
}

impl<'a> Buffers<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, remaining: Cell::new(bytes.len()), error: Cell::new(None) }
    }

    /// Converts an envelope to the object that it stands for. Returns other maps unchanged.
    ///
    /// # Errors
    /// `ValueError` if its buffer is outside of the buffers, or does not match its metadata.
    pub(super) fn open<'py>(&self, map: Bound<'py, PyDict>) -> PyResult<Bound<'py, PyAny>> {
        let py = map.py();
        let kind: Option<String> = map.get_item(ENVELOPE_KEY)?.and_then(|kind| kind.extract().ok());
        match kind.as_deref() {
            Some("bytes") => {
                let bytes = PyBytes::new(py, &self.data(&map)?);
                match map.get_item(intern!(py, "format"))? {
                    Some(format) => {
                        let class = map.get_item(intern!(py, "class"))?;
                        let encoded = py.import(intern!(py, "snakepit_bridge._encoded"))?;
                        encoded.getattr(intern!(py, "Encoded"))?.call1((bytes, format, class))
                    }
                    None => Ok(bytes.into_any()),
                }
            }
            Some("tensor" | "embedding") => {
                let text = |name| -> PyResult<String> {
                    Ok(map.get_item(name)?.and_then(|text| text.extract().ok()).unwrap_or_default())
                };
                let format = text("binary_format")?;
                let metadata = Metadata {
                    ty: "tensor".to_owned(),
                    shape: map.get_item("shape")?.map_or_else(|| Ok(Vec::new()), |shape| shape.extract())?,
                    dtype: text("dtype")?,
                    binary_format: if format.is_empty() { "raw".to_owned() } else { format },
                    container: text("container")?,
                };
                buffer::read(py, &metadata, &self.data(&map)?)
            }
            Some("map") => {
                let malformed = || {
                    PyValueError::new_err(
                        "an escaped map needs `items`, a list of pairs of a string and a value",
                    )
                };
                let items = map.get_item(intern!(py, "items"))?.ok_or_else(malformed)?;
                let dict = PyDict::new(py);
                for item in items.cast::<PyList>().map_err(|_| malformed())? {
                    let pair =
                        item.cast::<PyList>().ok().filter(|pair| pair.len() == 2).ok_or_else(malformed)?;
                    let key = pair.get_item(0)?.cast_into::<PyString>().map_err(|_| malformed())?;
                    dict.set_item(key, pair.get_item(1)?)?;
                }
                Ok(dict.into_any())
            }
            _ => Ok(map.into_any()),
        }
    }

    /// Converts the envelopes in a tree of lists and maps.
    pub(super) fn open_all<'py>(&self, value: Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        if let Ok(list) = value.cast::<PyList>() {
            for (index, item) in list.iter().enumerate() {
                list.set_item(index, self.open_all(item)?)?;
            }
        } else if let Ok(map) = value.cast::<PyDict>() {
            for key in map.keys() {
                if let Some(item) = map.get_item(&key)? {
                    map.set_item(key, self.open_all(item)?)?;
                }
            }
            if map.contains(ENVELOPE_KEY)? {
                return self.open(map.clone());
            }
        }
        Ok(value)
    }

    /// The buffer of an envelope: a part of the buffers, or base64.
    fn data(&self, map: &Bound<'_, PyDict>) -> PyResult<std::borrow::Cow<'a, [u8]>> {
        let error = |problem: String| PyValueError::new_err(problem);
        let number = |name: &str| -> PyResult<Option<usize>> {
            let Some(number) = map.get_item(name)? else { return Ok(None) };
            // A boolean is an int.
            let size = if number.is_exact_instance_of::<PyInt>() { number.extract().ok() } else { None };
            size.map(Some).ok_or_else(|| error(format!("the `{name}` of its bytes is not a number of bytes")))
        };
        if let (Some(offset), Some(length)) = (number("offset")?, number("length")?) {
            let part = offset.checked_add(length).and_then(|end| self.bytes.get(offset..end));
            let part = part.zip(self.remaining.get().checked_sub(length));
            let (part, remaining) = part.ok_or_else(|| {
                error(format!(
                    "it refers to {length} bytes at {offset}, which are not in its buffers of {} bytes, or not only once",
                    self.bytes.len()
                ))
            })?;
            self.remaining.set(remaining);
            return Ok(part.into());
        }
        let text: Option<String> = map.get_item("data")?.and_then(|text| text.extract().ok());
        let text =
            text.ok_or_else(|| error("it contains bytes without `data`; send base64 text".to_owned()))?;
        let data = BASE64.decode(text);
        data.map(Into::into).map_err(|problem| error(format!("its `data` is not valid base64: {problem}")))
    }
}

/// Collects the buffers of a value that is being written, and copies all of them at once.
#[derive(Default)]
pub(super) struct BufferCollector<'py> {
    /// `bytes`, and objects that export a contiguous buffer.
    parts: Vec<Bound<'py, PyAny>>,
    length: usize,
}

impl<'py> BufferCollector<'py> {
    /// Adds the items of an array, aligned for all types of items. Returns their offset.
    pub(super) fn push_array(&mut self, buffer: Bound<'py, PyAny>, length: usize) -> usize {
        const ALIGNMENT: usize = 8;
        let padding = self.length.next_multiple_of(ALIGNMENT) - self.length;
        if padding > 0 {
            let zeros = PyBytes::new(buffer.py(), &[0; ALIGNMENT][..padding]);
            self.push(zeros.into_any(), padding);
        }
        self.push(buffer, length)
    }

    /// Adds a buffer of this length. Returns its offset.
    pub(super) fn push(&mut self, buffer: Bound<'py, PyAny>, length: usize) -> usize {
        let offset = self.length;
        self.parts.push(buffer);
        self.length += length;
        offset
    }

    /// The number of bytes so far.
    pub(super) const fn size(&self) -> usize {
        self.length
    }

    /// Joins the buffers. Returns `None` without any. A single `bytes` object is not copied.
    pub(super) fn into_bytes(self, py: Python<'py>) -> PyResult<Option<Bytes>> {
        if self.parts.is_empty() {
            return Ok(None);
        }
        let joined =
            PyBytes::new(py, b"").call_method1(intern!(py, "join"), (PyList::new(py, self.parts)?,))?;
        Ok(Some(Bytes::from_owner(joined.extract::<PyBackedBytes>()?)))
    }
}
