//! [`Numbers`]: large lists of numbers as raw buffers, for tensor and embedding variables without numpy. The metadata
//! marks the buffer as a list. Readers that ignore the mark receive an array of float64.

use pyo3::{
    exceptions::PyValueError,
    prelude::*,
    types::{PyBool, PyFloat, PyInt, PyList, PyTuple},
};
use snakepit_session::{Payload, ValueType};

use super::{
    array,
    json::{MARKED, MAX_DEPTH},
    metadata::{LIST, Metadata},
};

/// The size of JSON, in bytes, above which a list is sent as a buffer. The protocol has the same threshold for arrays.
const BUFFER_THRESHOLD: usize = 10_240;

/// All integers up to this magnitude have an exact float.
const MAX_EXACT_INTEGER: u64 = 1 << f64::MANTISSA_DIGITS;

/// The numbers of a list, which may be nested.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    shape: Vec<usize>,
    /// float64 values in little-endian order.
    buffer: Vec<u8>,
    /// Whether at least one number is a float.
    has_float: bool,
}

impl Numbers {
    /// Collects the numbers of a list that is large as JSON, or that contains NaN or infinities. Returns `None` for
    /// other values, lists of integers only, and integers that a float cannot represent exactly.
    pub(crate) fn from_large_list(value: &Bound<'_, PyAny>, payload: &Payload) -> PyResult<Option<Self>> {
        let json = payload.json();
        let marks = MARKED.map(|(mark, _)| mark.as_bytes());
        let has_marks = |json: &[u8]| {
            json.windows(marks[0].len()).any(|text| text == marks[0])
                || json.windows(8).any(|text| text == br#"nfinity""#)
        };
        let is_large = payload.binary().is_some() || json.len() > BUFFER_THRESHOLD || has_marks(json);
        if payload.ty() != ValueType::List || !is_large {
            return Ok(None);
        }
        let mut numbers = Self::default();
        let is_regular = numbers.read(value, 0)?;
        let has_buffer_form =
            is_regular && numbers.has_float && has_bounded_lists(&numbers.shape, numbers.buffer.len());
        Ok(has_buffer_form.then_some(numbers))
    }

    /// Returns the payload for a variable of type `kind`, or `payload` if that type does not support buffers.
    pub(crate) fn into_payload_or(self, payload: Payload, kind: ValueType) -> PyResult<Payload> {
        if !matches!(kind, ValueType::Embedding | ValueType::Tensor) {
            return Ok(payload);
        }
        let metadata = Metadata {
            ty: kind.as_str().to_owned(),
            shape: self.shape,
            dtype: "float64".to_owned(),
            binary_format: "raw".to_owned(),
            container: LIST.to_owned(),
        };
        Ok(Payload::from_buffer(kind, metadata.to_json()?, self.buffer.into()))
    }

    /// Reads a value, which has a JSON form and therefore a limited depth. Returns whether it consists of numbers in
    /// lists of equal length.
    fn read(&mut self, value: &Bound<'_, PyAny>, depth: usize) -> PyResult<bool> {
        if let Ok(number) = value.cast::<PyFloat>() {
            self.has_float = true;
            Ok(self.push(number.value(), depth))
        } else if let Ok(list) = value.cast::<PyList>() {
            self.read_items(list.len(), list.iter(), depth)
        } else if let Ok(tuple) = value.cast::<PyTuple>() {
            self.read_items(tuple.len(), tuple.iter(), depth)
        } else if value.is_instance_of::<PyBool>() {
            Ok(false)
        } else if value.is_instance_of::<PyInt>() {
            let exact =
                value.extract::<i64>().ok().filter(|number| number.unsigned_abs() <= MAX_EXACT_INTEGER);
            #[allow(clippy::cast_precision_loss, reason = "exact up to this number")]
            Ok(exact.is_some_and(|number| self.push(number as f64, depth)))
        } else if array::is_array(value)? {
            self.read(&value.call_method0("tolist")?, depth)
        } else if let Some(Ok(plain)) = array::scalar_to_plain(value)? {
            self.read(&plain, depth)
        } else {
            Ok(false)
        }
    }

    fn read_items<'py>(
        &mut self,
        len: usize,
        items: impl Iterator<Item = Bound<'py, PyAny>>,
        depth: usize,
    ) -> PyResult<bool> {
        match self.shape.get(depth) {
            Some(known) if *known == len => {}
            None if self.buffer.is_empty() => self.shape.push(len),
            _ => return Ok(false),
        }
        for item in items {
            if !self.read(&item, depth + 1)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn push(&mut self, number: f64, depth: usize) -> bool {
        self.buffer.extend_from_slice(&number.to_le_bytes());
        depth == self.shape.len()
    }
}

/// Returns whether the number of lists in a shape is in proportion to the bytes of its buffer. Empty lists, and lists that
/// contain one list, need no bytes, so a small message could describe any number of them.
pub(super) fn has_bounded_lists(shape: &[usize], bytes: usize) -> bool {
    const LISTS_PER_BYTE: usize = 2;
    /// Small buffers may have this many lists in addition.
    const EXTRA_LISTS: usize = 1024;
    let (mut lists, mut lists_at_depth) = (0_usize, 1_usize);
    for length in shape {
        lists = lists.saturating_add(lists_at_depth);
        lists_at_depth = lists_at_depth.saturating_mul(*length);
    }
    lists <= bytes.saturating_mul(LISTS_PER_BYTE).saturating_add(EXTRA_LISTS)
}

/// Converts a buffer of float64 to the list that it represents.
pub(super) fn to_list<'py>(py: Python<'py>, shape: &[usize], buffer: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    let expected = shape.iter().try_fold(size_of::<f64>(), |size, n| size.checked_mul(*n));
    // An empty buffer could represent any number of empty lists.
    let is_valid = expected == Some(buffer.len())
        && (!buffer.is_empty() || shape == [0])
        && has_bounded_lists(shape, buffer.len());
    if !is_valid || shape.is_empty() || shape.len() > MAX_DEPTH {
        return Err(PyValueError::new_err(format!(
            "the buffer of {} bytes does not match a list of the shape {shape:?}",
            buffer.len()
        )));
    }
    Ok(nested_list(py, shape, buffer)?.into_any())
}

fn nested_list<'py>(py: Python<'py>, shape: &[usize], buffer: &[u8]) -> PyResult<Bound<'py, PyList>> {
    match shape {
        [len, inner @ ..] if !inner.is_empty() => {
            let lists = buffer.chunks_exact(buffer.len() / len).map(|part| nested_list(py, inner, part));
            PyList::new(py, lists.collect::<PyResult<Vec<_>>>()?)
        }
        _ => {
            let (items, _) = buffer.as_chunks();
            PyList::new(py, items.iter().map(|bytes| f64::from_le_bytes(*bytes)))
        }
    }
}
