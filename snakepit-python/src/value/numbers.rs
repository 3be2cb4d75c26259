//! [`Numbers`]: large lists of numbers as raw buffers, for tensor and embedding variables without numpy. The metadata
//! marks the buffer as a list; numpy reads it as an array of float64.

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
const LARGE: usize = 10_240;

/// Larger integers may not have an exact float.
const EXACT: u64 = 1 << f64::MANTISSA_DIGITS;

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
    pub(crate) fn of_large(value: &Bound<'_, PyAny>, payload: &Payload) -> PyResult<Option<Self>> {
        let json = payload.json();
        let marks = MARKED.map(|(mark, _)| mark.as_bytes());
        let names = |json: &[u8]| {
            json.windows(marks[0].len()).any(|text| text == marks[0])
                || json.windows(8).any(|text| text == br#"nfinity""#)
        };
        if payload.ty() != ValueType::List || (json.len() <= LARGE && !names(json)) {
            return Ok(None);
        }
        let mut numbers = Self::default();
        let is_regular = numbers.read(value, 0)?;
        let fits = is_regular && numbers.has_float && is_lean(&numbers.shape, numbers.buffer.len());
        Ok(fits.then_some(numbers))
    }

    /// Returns the payload for a variable of type `kind`, or `payload` if that type takes no buffer.
    pub(crate) fn or(self, payload: Payload, kind: ValueType) -> PyResult<Payload> {
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

    /// Reads a value. Returns whether it consists of numbers in lists of equal length. The value has a JSON form, so
    /// its depth is limited.
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
            let exact = value.extract::<i64>().ok().filter(|number| number.unsigned_abs() <= EXACT);
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

/// Returns whether a shape describes a number of lists in proportion to its bytes. Lists of one list, or of nothing,
/// need no bytes, so a small message could describe any number of them.
pub(super) fn is_lean(shape: &[usize], bytes: usize) -> bool {
    const PER_BYTE: usize = 2;
    const MORE: usize = 1024;
    let (mut lists, mut along) = (0_usize, 1_usize);
    for length in shape {
        lists = lists.saturating_add(along);
        along = along.saturating_mul(*length);
    }
    lists <= bytes.saturating_mul(PER_BYTE).saturating_add(MORE)
}

/// Converts a buffer of float64 to the list that it represents.
pub(super) fn to_list<'py>(py: Python<'py>, shape: &[usize], buffer: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    let expected = shape.iter().try_fold(size_of::<f64>(), |size, n| size.checked_mul(*n));
    // An empty buffer could represent any number of empty lists.
    let fits = expected == Some(buffer.len())
        && (!buffer.is_empty() || shape == [0])
        && is_lean(shape, buffer.len());
    if !fits || shape.is_empty() || shape.len() > MAX_DEPTH {
        return Err(PyValueError::new_err(format!(
            "the list's buffer has {} bytes, which do not make a list of the shape {shape:?}",
            buffer.len()
        )));
    }
    Ok(list(py, shape, buffer)?.into_any())
}

fn list<'py>(py: Python<'py>, shape: &[usize], buffer: &[u8]) -> PyResult<Bound<'py, PyList>> {
    match shape {
        [len, inner @ ..] if !inner.is_empty() => {
            let lists = buffer.chunks_exact(buffer.len() / len).map(|part| list(py, inner, part));
            PyList::new(py, lists.collect::<PyResult<Vec<_>>>()?)
        }
        _ => {
            let (items, _) = buffer.as_chunks();
            PyList::new(py, items.iter().map(|bytes| f64::from_le_bytes(*bytes)))
        }
    }
}
