//! Large lists of numbers as raw buffers: what a tensor or an embedding may hold without numpy. Metadata says that it is a
//! list, and for numpy it stays one of float64.

use pyo3::{
    exceptions::PyValueError,
    prelude::*,
    types::{PyBool, PyFloat, PyInt, PyList, PyTuple},
};
use snakepit_session::{Payload, ValueType};

use super::{
    array,
    write::{MARKED, MAX_DEPTH},
};

/// The JSON of a list that is longer than this is not sent, in bytes: where the protocol draws the line for arrays.
const LARGE: usize = 10_240;

/// Beyond this not every integer is a float of its own.
const EXACT: u64 = 1 << f64::MANTISSA_DIGITS;

/// The numbers of a list, nested or not.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    shape: Vec<usize>,
    /// They are float64, in little endian.
    buffer: Vec<u8>,
    /// Whether one of them is no integer.
    has_float: bool,
}

impl Numbers {
    /// The numbers of a value that takes much space as JSON, or has none in JSON: NaN and infinities. `None` for any other,
    /// and for what floats cannot tell: large integers, lists of nothing but integers.
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

    /// The payload of a variable of this type; the one that is there, if no buffer can be of the type.
    pub(crate) fn or(self, payload: Payload, kind: ValueType) -> PyResult<Payload> {
        if !matches!(kind, ValueType::Embedding | ValueType::Tensor) {
            return Ok(payload);
        }
        let metadata = array::Metadata {
            ty: kind.as_str().to_owned(),
            shape: self.shape,
            dtype: "float64".to_owned(),
            binary_format: "raw".to_owned(),
            container: LIST.to_owned(),
        };
        Ok(Payload::from_buffer(kind, metadata.to_json()?, self.buffer.into()))
    }

    /// Says whether all of it are numbers, in lists that are equally long. It has a JSON form, so it is not too deep.
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
            #[allow(clippy::cast_precision_loss, reason = "there is none up to here")]
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

/// What the metadata of a list calls its container.
pub(super) const LIST: &str = "list";

/// Whether a shape is of no more lists than its bytes may be read as: lists of one list, or of nothing, take no bytes, and
/// could be any number.
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

/// A buffer of float64 as the list that it was.
pub(super) fn to_list<'py>(py: Python<'py>, shape: &[usize], buffer: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    let expected = shape.iter().try_fold(size_of::<f64>(), |size, n| size.checked_mul(*n));
    // A buffer that is empty could be any number of empty lists.
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
