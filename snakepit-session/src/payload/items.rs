//! Arrays as slices: reads the shape, data type and items of a payload with a raw buffer, and creates payloads from items.

use std::borrow::Cow;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;

use super::{ArrayMetadata, Dtype, Element, Payload, PayloadError, dtype::ItemFormat};
use crate::ValueType;

/// The shape and the buffer of an array.
#[derive(Debug)]
pub(super) struct RawArray<'a> {
    ty: ValueType,
    /// The length of each axis.
    pub(super) shape: Vec<usize>,
    format: ItemFormat,
    /// The name of the data type in the metadata.
    dtype_name: String,
    buffer: RawBuffer<'a>,
}

#[derive(Debug)]
enum RawBuffer<'a> {
    Bytes(&'a [u8]),
    /// The base64 text of a buffer in a message without a binary field. Only [`RawArray::items`] decodes it.
    Base64(Cow<'a, str>),
}

impl<'a> RawArray<'a> {
    fn dtype(&self) -> Option<Dtype> {
        self.format.dtype()
    }

    /// The items, in row-major order.
    pub(super) fn items<T: Element>(&self) -> Result<Cow<'a, [T]>, PayloadError> {
        if self.dtype() != Some(T::DTYPE) {
            return Err(PayloadError::Dtype { expected: T::DTYPE, found: self.dtype_name.clone() });
        }
        let buffer = match &self.buffer {
            RawBuffer::Bytes(buffer) => {
                if self.format.is_native()
                    && let Some(items) = T::cast(buffer)
                {
                    return Ok(Cow::Borrowed(items));
                }
                Cow::Borrowed(*buffer)
            }
            RawBuffer::Base64(text) => Cow::Owned(BASE64.decode(&**text).map_err(|error| {
                let problem = format!("its `data` is not valid base64: {error}");
                PayloadError::NotAnArray { ty: self.ty, problem }
            })?),
        };
        let items = buffer.chunks_exact(size_of::<T>());
        Ok(Cow::Owned(items.map(|item| T::read(item, self.format.is_big_endian)).collect()))
    }
}

/// Frees the unused capacity of a vector if it is more than half of it. The size of a payload counts only its items.
fn without_spare_capacity<T>(mut items: Vec<T>) -> Vec<T> {
    if items.len() < items.capacity() / 2 {
        items.shrink_to_fit();
    }
    items
}

/// Items that own the buffer of a payload, so that it needs no copy.
struct OwnedItems<T>(Vec<T>);

impl<T: Element> AsRef<[u8]> for OwnedItems<T> {
    fn as_ref(&self) -> &[u8] {
        T::bytes(&self.0)
    }
}

impl Payload {
    /// Creates a tensor from items in row-major order and the length of each axis. Python receives a numpy array.
    ///
    /// ```
    /// use snakepit_session::{Dtype, Payload};
    ///
    /// let grid = Payload::tensor(&[2, 3], &[1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0])?;
    /// assert_eq!((grid.shape(), grid.dtype()), (Some(vec![2, 3]), Some(Dtype::Float32)));
    /// assert_eq!(grid.items::<f32>()?[4], 5.0);
    /// # Ok::<(), snakepit_session::PayloadError>(())
    /// ```
    ///
    /// # Errors
    /// [`PayloadError::Shape`] if the number of items does not match the shape.
    pub fn tensor<T: Element>(shape: &[usize], items: &[T]) -> Result<Self, PayloadError> {
        check_shape(shape, items.len())?;
        Ok(from_items(ValueType::Tensor, shape, items))
    }

    /// Like [`tensor`](Self::tensor), without a copy: the payload owns the items. A vector that uses less than half of its
    /// capacity shrinks first.
    ///
    /// # Errors
    /// [`PayloadError::Shape`] if the number of items does not match the shape.
    pub fn tensor_from_vec<T: Element>(shape: &[usize], items: Vec<T>) -> Result<Self, PayloadError> {
        check_shape(shape, items.len())?;
        if cfg!(target_endian = "little") {
            let buffer = Bytes::from_owner(OwnedItems(without_spare_capacity(items)));
            return Ok(Self::from_buffer(ValueType::Tensor, metadata::<T>(ValueType::Tensor, shape), buffer));
        }
        Ok(from_items(ValueType::Tensor, shape, &items))
    }

    /// Creates an embedding: an array with one axis.
    #[must_use]
    pub fn embedding<T: Element>(items: &[T]) -> Self {
        from_items(ValueType::Embedding, &[items.len()], items)
    }

    /// The length of each axis of an array. An array is a tensor or an embedding with a raw buffer, such as a numpy array from
    /// Python, or raw bytes, which have one axis. `None` for other values, and for a buffer that does not match its metadata.
    ///
    /// Each call parses the metadata, which is short. If the metadata contains the buffer as base64, the call scans the text, but
    /// does not decode it.
    #[must_use]
    pub fn shape(&self) -> Option<Vec<usize>> {
        self.raw_array().ok().map(|array| array.shape)
    }

    /// The data type of array items. `None` for other values (see [`shape`](Self::shape)), and for data types
    /// without a [`Dtype`], such as extended floats.
    #[must_use]
    pub fn dtype(&self) -> Option<Dtype> {
        match self.ty {
            ValueType::Bytes => self.binary.is_some().then_some(Dtype::Bytes),
            _ => self.raw_array().ok()?.dtype(),
        }
    }

    /// The items of an array, in row-major order. Raw bytes read as `u8`.
    ///
    /// The slice borrows the buffer if it is aligned for `T` and has this machine's byte order. Otherwise the items are
    /// copied. An array larger than 256 KiB in the answer to a call with smaller arguments is aligned. Others may have any
    /// alignment, because they share the memory of a message.
    ///
    /// Values in another form, such as lists of numbers, read with [`to_serde`](Self::to_serde). It also converts
    /// between types of numbers.
    ///
    /// # Errors
    /// - [`PayloadError::Dtype`] if the items have another data type,
    /// - [`PayloadError::NotAnArray`] if the value is not an array with a raw buffer, or its buffer does not match its
    ///   metadata.
    pub fn items<T: Element>(&self) -> Result<Cow<'_, [T]>, PayloadError> {
        self.raw_array()?.items()
    }

    /// Parses the metadata and compares it with the length of the buffer.
    pub(super) fn raw_array(&self) -> Result<RawArray<'_>, PayloadError> {
        let ty = self.ty;
        let error = |problem: String| PayloadError::NotAnArray { ty, problem };
        let no_buffer = || error("it has no raw buffer; read it with `to_serde`".to_owned());
        let buffer = match (ty, &self.binary) {
            (ValueType::Tensor | ValueType::Embedding | ValueType::Bytes, Some(buffer)) => {
                RawBuffer::Bytes(buffer)
            }
            (ValueType::Tensor | ValueType::Embedding, None) => {
                RawBuffer::Base64(InlineBuffer::parse(&self.json).ok_or_else(no_buffer)?.data)
            }
            _ => return Err(no_buffer()),
        };
        let bytes = buffer.len().map_err(error)?;
        let metadata = match ty {
            ValueType::Bytes => ArrayMetadata::of_bytes(bytes),
            _ => ArrayMetadata::parse(&self.json)
                .map_err(|problem| error(format!("its metadata {problem}")))?,
        };
        let (shape, format) = metadata.array(bytes).map_err(error)?;
        let (shape, dtype_name) = (shape.to_vec(), metadata.dtype.clone().unwrap_or_default());
        Ok(RawArray { ty, shape, format, dtype_name, buffer })
    }
}

/// The buffer of an array in a message without a binary field, such as a call to a host tool from Python: base64 in the
/// metadata.
#[derive(Deserialize)]
struct InlineBuffer<'a> {
    #[serde(borrow)]
    binary_format: Cow<'a, str>,
    #[serde(borrow)]
    data: Cow<'a, str>,
}

impl<'a> InlineBuffer<'a> {
    /// Returns `None` for JSON of another form, such as lists of numbers.
    fn parse(json: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(json).ok().filter(|inline: &Self| inline.binary_format == "raw")
    }
}

impl RawBuffer<'_> {
    /// The number of bytes, without decoding them.
    ///
    /// # Errors
    /// The reason.
    fn len(&self) -> Result<usize, String> {
        match self {
            Self::Bytes(buffer) => Ok(buffer.len()),
            Self::Base64(text) if text.len() % 4 != 0 => {
                Err("its `data` is not valid base64: its length is not a multiple of 4".to_owned())
            }
            Self::Base64(text) => {
                let padding = text.bytes().rev().take(2).take_while(|byte| *byte == b'=').count();
                Ok(text.len() / 4 * 3 - padding)
            }
        }
    }
}

fn check_shape(shape: &[usize], items: usize) -> Result<(), PayloadError> {
    let expected = shape.iter().try_fold(1_usize, |items, length| items.checked_mul(*length));
    if expected == Some(items) {
        return Ok(());
    }
    Err(PayloadError::Shape { shape: shape.to_vec(), items })
}

fn metadata<T: Element>(ty: ValueType, shape: &[usize]) -> Bytes {
    let metadata = json!({"type": ty, "shape": shape, "dtype": T::DTYPE.as_str(), "binary_format": "raw"});
    metadata.to_string().into()
}

/// Creates a payload from items that match the shape.
fn from_items<T: Element>(ty: ValueType, shape: &[usize], items: &[T]) -> Payload {
    let buffer = if cfg!(target_endian = "little") {
        Bytes::copy_from_slice(T::bytes(items))
    } else {
        let mut buffer = Vec::with_capacity(size_of_val(items));
        items.iter().for_each(|item| item.write(&mut buffer));
        buffer.into()
    };
    Payload::from_buffer(ty, metadata::<T>(ty, shape), buffer)
}

#[cfg(test)]
mod tests {
    use std::fmt;

    use super::*;

    fn array(metadata: &serde_json::Value, buffer: &[u8]) -> Payload {
        let buffer = Bytes::copy_from_slice(buffer);
        Payload::from_buffer(ValueType::Tensor, metadata.to_string().into(), buffer)
    }

    fn round_trip<T: Element + PartialEq + fmt::Debug>(items: &[T]) {
        let value = Payload::tensor(&[items.len(), 1], items).unwrap();
        assert_eq!((value.shape(), value.dtype()), (Some(vec![items.len(), 1]), Some(T::DTYPE)));
        assert_eq!(*value.items::<T>().unwrap(), *items);
        // Its own vector is aligned, so nothing is copied in either direction.
        let items = items.to_vec();
        let address = items.as_ptr();
        let value = Payload::tensor_from_vec(&[items.len()], items).unwrap();
        let Cow::Borrowed(borrowed) = value.items::<T>().unwrap() else { panic!("{} was copied", T::DTYPE) };
        assert_eq!(borrowed.as_ptr(), address);
    }

    #[test]
    fn items_round_trip() {
        round_trip(&[true, false, true]);
        round_trip(&[i8::MIN, 0, i8::MAX]);
        round_trip(&[i16::MIN, 0, i16::MAX]);
        round_trip(&[i32::MIN, 0, i32::MAX]);
        round_trip(&[i64::MIN, 0, i64::MAX]);
        round_trip(&[0, u8::MAX]);
        round_trip(&[0, u16::MAX]);
        round_trip(&[0, u32::MAX]);
        round_trip(&[0, u64::MAX]);
        round_trip(&[0.5, f32::MIN_POSITIVE, f32::INFINITY]);
        round_trip(&[-0.5, f64::MAX, f64::NEG_INFINITY]);
    }

    #[test]
    fn unaligned_and_big_endian_items_are_copied() {
        let numbers = [1.5_f64, -2.0];
        let mut bytes = vec![0];
        numbers.iter().for_each(|number| bytes.extend(number.to_le_bytes()));
        let bytes = Bytes::from(bytes);
        // One of two adjacent slices is unaligned.
        for start in [0, 1] {
            let buffer = bytes.slice(start..start + 16);
            let metadata = Bytes::from_static(br#"{"shape": [2], "dtype": "float64"}"#);
            let value = Payload::from_buffer(ValueType::Tensor, metadata, buffer.clone());
            let is_aligned = buffer.as_ptr().cast::<f64>().is_aligned();
            let items = value.items::<f64>().unwrap();
            assert_eq!(matches!(items, Cow::Borrowed(_)), is_aligned);
            if start == 1 {
                assert_eq!(*items, numbers);
            }
        }
        let big = array(&json!({"shape": [2], "dtype": ">i2"}), &[0, 1, 0xff, 0xfe]);
        assert_eq!(*big.items::<i16>().unwrap(), [1, -2]);
        // The byte order of single bytes does not matter.
        let bytes = array(&json!({"shape": [2], "dtype": ">u1"}), &[7, 8]);
        assert!(matches!(bytes.items::<u8>().unwrap(), Cow::Borrowed([7, 8])));
    }

    #[test]
    fn a_tensor_does_not_keep_a_large_unused_capacity() {
        let with_capacity = |capacity, len| {
            let mut items = Vec::with_capacity(capacity);
            items.resize(len, 1_u8);
            without_spare_capacity(items).capacity()
        };
        assert!(with_capacity(1000, 10) < 500);
        assert_eq!(with_capacity(1000, 500), 1000, "moving the items costs more than the memory");
    }

    #[test]
    fn booleans_other_than_0_and_1_are_true() {
        let flags = array(&json!({"shape": [3], "dtype": "bool"}), &[0, 2, 1]);
        assert_eq!(*flags.items::<bool>().unwrap(), [false, true, true]);
    }

    #[test]
    fn arrays_without_axes_or_items_have_slices() {
        let scalar = Payload::tensor(&[], &[7_i64]).unwrap();
        assert_eq!((scalar.shape(), &*scalar.items::<i64>().unwrap()), (Some(vec![]), &[7][..]));
        let empty = Payload::tensor::<f32>(&[3, 0, 2], &[]).unwrap();
        assert_eq!((empty.shape(), empty.items::<f32>().unwrap().len()), (Some(vec![3, 0, 2]), 0));
        assert!(array(&json!({"shape": [0], "dtype": ">f8"}), &[]).items::<f64>().unwrap().is_empty());
    }

    #[test]
    fn bytes_are_an_array_of_one_axis() {
        let value = Payload::bytes(Bytes::from_static(b"abc"));
        assert_eq!((value.shape(), value.dtype()), (Some(vec![3]), Some(Dtype::Bytes)));
        assert!(matches!(value.items::<u8>().unwrap(), Cow::Borrowed(b"abc")));
        assert!(value.items::<i8>().is_err());
    }

    #[test]
    fn a_buffer_may_be_base64_in_the_metadata() {
        let inline = |data: &str| {
            let json = json!({"shape": [2], "dtype": "int16", "binary_format": "raw", "data": data});
            Payload::from_json(ValueType::Tensor, json.to_string().into())
        };
        let value = inline("AQD+/w==");
        assert_eq!((value.shape(), value.dtype()), (Some(vec![2]), Some(Dtype::Int16)));
        assert_eq!(*value.items::<i16>().unwrap(), [1, -2]);
        let invalid = inline("!!!!!w==");
        assert_eq!(invalid.shape(), Some(vec![2]), "the shape does not need the items");
        let problem = invalid.items::<i16>().unwrap_err().to_string();
        assert!(problem.contains("its `data` is not valid base64"), "{problem}");
        let problem = inline("AQ").items::<i16>().unwrap_err().to_string();
        assert!(problem.contains("its `data` is not valid base64"), "{problem}");
        let problem = inline("AQ==").items::<i16>().unwrap_err().to_string();
        assert!(problem.contains("1 bytes, which does not match shape [2]"), "{problem}");
    }

    #[test]
    fn hostile_arrays_are_errors() {
        let huge = 1_u64 << 62;
        for (metadata, bytes, expected) in [
            (json!({"shape": [2], "dtype": "float32"}), 7, "7 bytes, which does not match shape [2]"),
            (json!({"shape": [2], "dtype": "float32"}), 12, "12 bytes, which does not match shape [2]"),
            (json!({"shape": [huge, 4], "dtype": "float32"}), 0, "0 bytes, which does not match shape"),
            (json!({"shape": [huge, huge, 0], "dtype": "float32"}), 0, "0 bytes, which does not match"),
            (json!({"shape": [-1], "dtype": "float32"}), 4, "its metadata cannot be read"),
            (json!({"shape": [1e30], "dtype": "float32"}), 4, "its metadata cannot be read"),
            (json!({"shape": "2", "dtype": "float32"}), 8, "its metadata cannot be read"),
            (json!({"dtype": "float32"}), 4, "its metadata has no shape"),
            (json!({"shape": [1]}), 4, "dtype ``, which is unknown"),
            (json!({"shape": vec![1; 65], "dtype": "float32"}), 4, "65 axes, the limit is 64"),
            (
                json!({"shape": [1], "dtype": "float32", "binary_format": "pickle"}),
                4,
                "its buffer is in format `pickle`",
            ),
        ] {
            let value = array(&metadata, &vec![0; bytes]);
            let problem = value.items::<f32>().unwrap_err().to_string();
            assert!(problem.starts_with("tensor value is not an array: "), "{problem}");
            assert!(problem.contains(expected), "{metadata}: {problem}");
            assert_eq!((value.shape(), value.dtype()), (None, None), "{metadata}");
        }
        let problem = array(&json!({"shape": [1], "dtype": "int32"}), &[0; 4]).items::<f32>().unwrap_err();
        assert_eq!(
            problem.to_string(),
            "the array has items of int32, not float32; read it with another type"
        );
        for other in [Payload::null(), Payload::try_from_serde(&[1, 2]).unwrap()] {
            let problem = other.items::<i64>().unwrap_err().to_string();
            assert!(problem.ends_with("it has no raw buffer; read it with `to_serde`"), "{problem}");
        }
        let extended = array(&json!({"shape": [1], "dtype": "float128"}), &[0; 16]);
        assert_eq!((extended.shape(), extended.dtype()), (Some(vec![1]), None));
    }
}
