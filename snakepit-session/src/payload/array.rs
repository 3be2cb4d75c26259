//! Arrays as raw buffers, as in numpy: items in row-major order, with shape and data type in the metadata.

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, SeqAccess, Visitor},
    forward_to_deserialize_any,
};
use serde_json::Error;

use super::{dtype::ItemFormat, whole::visit_integer};

/// The maximum number of axes, as in numpy.
const MAX_AXES: usize = 64;

/// The maximum number of nested lists for each byte of a buffer. Empty lists and lists of one list take no bytes, so their
/// number needs a bound.
const LISTS_PER_BYTE: usize = 2;
/// The number of nested lists that a buffer of any size may have in addition.
const EXTRA_LISTS: usize = 1024;

/// The parsed metadata of a buffer.
#[derive(Debug, Deserialize)]
pub(crate) struct ArrayMetadata {
    /// The length of each axis.
    pub(crate) shape: Option<Vec<usize>>,
    pub(super) dtype: Option<String>,
    binary_format: Option<String>,
}

impl ArrayMetadata {
    /// Parses the JSON of the metadata.
    ///
    /// # Errors
    /// The reason, which continues a message after "value's metadata".
    pub(crate) fn parse(json: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(json).map_err(|error| format!("cannot be read: {error}"))
    }

    /// The metadata of raw bytes.
    pub(super) fn of_bytes(length: usize) -> Self {
        Self { shape: Some(vec![length]), dtype: Some("uint8".to_owned()), binary_format: None }
    }

    /// Whether the buffer contains the plain items, which is the default.
    pub(crate) fn is_raw(&self) -> bool {
        self.binary_format.as_deref().is_none_or(|format| matches!(format, "raw" | "numpy"))
    }

    /// The items of a raw buffer.
    ///
    /// # Errors
    /// The reason, which continues a message after "value's buffer".
    pub(crate) fn items<'a>(&'a self, buffer: &'a [u8]) -> Result<Items<'a>, String> {
        let (shape, format) = self.layout(buffer.len())?;
        Ok(Items { shape, format, buffer })
    }

    /// The shape and the format of the items of a raw buffer with this number of bytes.
    fn layout(&self, bytes: usize) -> Result<(&[usize], ItemFormat), String> {
        let name = self.dtype.as_deref().unwrap_or_default();
        let Some(format) = ItemFormat::parse(name) else {
            return Err(format!(
                "has dtype `{name}`, which is unknown; use one such as float32, int64 or bool"
            ));
        };
        let shape = self.shape.as_deref().unwrap_or_default();
        let expected = shape.iter().try_fold(format.bytes, |size, n| size.checked_mul(*n));
        if expected != Some(bytes) {
            return Err(format!("has {bytes} bytes, which does not match shape {shape:?} of {name}"));
        }
        Ok((shape, format))
    }

    /// The shape and the format of the items of an array whose raw buffer has this number of bytes.
    ///
    /// # Errors
    /// The reason.
    pub(super) fn array(&self, bytes: usize) -> Result<(&[usize], ItemFormat), String> {
        self.check_shape()?;
        self.layout(bytes).map_err(|problem| format!("its buffer {problem}"))
    }

    /// The items of a raw buffer if they can be read as nested lists.
    ///
    /// # Errors
    /// The reason.
    pub(super) fn lists<'a>(&'a self, buffer: &'a [u8]) -> Result<Items<'a>, String> {
        let shape = self.check_shape()?;
        let limit = buffer.len().saturating_mul(LISTS_PER_BYTE).saturating_add(EXTRA_LISTS);
        if nested_lists(shape) > limit {
            return Err(format!(
                "its shape {shape:?} has more than {limit} nested lists, the limit for its size"
            ));
        }
        let (shape, format) = self.array(buffer.len())?;
        Ok(Items { shape, format, buffer })
    }

    /// Returns the shape if the buffer is raw and the number of axes is within the limit.
    fn check_shape(&self) -> Result<&[usize], String> {
        if !self.is_raw() {
            let format = self.binary_format.as_deref().unwrap_or_default();
            return Err(format!(
                "its buffer is in format `{format}`, which cannot be read in Rust; send it as `raw`"
            ));
        }
        let shape = self.shape.as_deref().ok_or("its metadata has no shape")?;
        if shape.len() > MAX_AXES {
            return Err(format!("its shape has {} axes, the limit is {MAX_AXES}", shape.len()));
        }
        Ok(shape)
    }
}

/// The number of nested lists in a shape.
fn nested_lists(shape: &[usize]) -> usize {
    let (mut lists, mut axis_lists) = (0_usize, 1_usize);
    for length in shape {
        lists = lists.saturating_add(axis_lists);
        axis_lists = axis_lists.saturating_mul(*length);
    }
    lists
}

/// The items of an array, which deserialize as a number if no axis remains, or else as a list.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Items<'a> {
    pub(super) shape: &'a [usize],
    pub(super) format: ItemFormat,
    pub(super) buffer: &'a [u8],
}

/// Passes integral floats as integers to visitors that request one.
macro_rules! integers {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            let item = self.shape.is_empty().then(|| self.format.bits(self.buffer)).flatten();
            match item.and_then(|bits| self.format.float(bits)) {
                Some(number) => visit_integer(number, visitor),
                None => self.deserialize_any(visitor),
            }
        })*
    };
}

impl<'de> Deserializer<'de> for Items<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.shape.split_first() {
            None => self.format.visit(self.buffer, visitor),
            Some((length, rest)) => {
                visitor.visit_seq(List { length: *length, rest: Self { shape: rest, ..self } })
            }
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    integers! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128 deserialize_u8 deserialize_u16
        deserialize_u32 deserialize_u64 deserialize_u128
    }

    forward_to_deserialize_any! {
        bool f32 f64 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map struct enum identifier
        ignored_any
    }
}

/// The remaining items of an axis.
struct List<'a> {
    length: usize,
    rest: Items<'a>,
}

impl<'de> SeqAccess<'de> for List<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let Some(remaining) = self.length.checked_sub(1) else { return Ok(None) };
        let (item, rest) = self.rest.buffer.split_at(self.rest.buffer.len() / self.length);
        self.length = remaining;
        self.rest.buffer = rest;
        seed.deserialize(Items { buffer: item, ..self.rest }).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        // Empty rows take no bytes, so the declared length may be huge.
        Some(self.length.min(self.rest.buffer.len()))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::{Value, json};

    use crate::{Payload, ValueType, error_chain};

    fn read(metadata: &Value, buffer: &[u8]) -> Result<Value, String> {
        let buffer = Bytes::copy_from_slice(buffer);
        let value = Payload::from_buffer(ValueType::Tensor, metadata.to_string().into(), buffer);
        value.to_serde().map_err(|error| error_chain(&error).to_string())
    }

    #[test]
    fn items_are_read_by_dtype_and_byte_order() {
        let one = |dtype: &str, item: &[u8]| read(&json!({"shape": [], "dtype": dtype}), item).unwrap();
        assert_eq!(one("bool", &[1]), json!(true));
        assert_eq!(one("int8", &[0xff]), json!(-1));
        assert_eq!(one("<i2", &[0xfe, 0xff]), json!(-2));
        assert_eq!(one(">i4", &[0xff, 0xff, 0xff, 0xfd]), json!(-3));
        assert_eq!(one("int64", &i64::MIN.to_le_bytes()), json!(i64::MIN));
        assert_eq!(one("uint16", &[1, 2]), json!(0x0201));
        assert_eq!(one(">u2", &[1, 2]), json!(0x0102));
        assert_eq!(one("uint64", &u64::MAX.to_le_bytes()), json!(u64::MAX));
        assert_eq!(one("float32", &1.5_f32.to_le_bytes()), json!(1.5));
        assert_eq!(one(">f8", &(-2.25_f64).to_be_bytes()), json!(-2.25));
        // binary16: one, minus two, the smallest, the largest.
        for (bits, number) in [(0x3c00, 1.0), (0xc000, -2.0), (0x0001, 2_f64.powi(-24)), (0x7bff, 65504.0)] {
            assert_eq!(one("float16", &u16::to_le_bytes(bits)), json!(number));
        }
    }

    #[test]
    fn axes_are_nested_lists() {
        let numbers = |metadata: Value, buffer: &[u8]| read(&metadata, buffer).unwrap();
        let bytes = [1, 2, 3, 4, 5, 6];
        let of = |shape: &[usize]| json!({"shape": shape, "dtype": "uint8", "binary_format": "numpy"});
        assert_eq!(numbers(of(&[6]), &bytes), json!([1, 2, 3, 4, 5, 6]));
        assert_eq!(numbers(of(&[2, 3]), &bytes), json!([[1, 2, 3], [4, 5, 6]]));
        assert_eq!(numbers(of(&[3, 1, 2]), &bytes), json!([[[1, 2]], [[3, 4]], [[5, 6]]]));
        assert_eq!(numbers(of(&[0]), &[]), json!([]));
        assert_eq!(numbers(of(&[2, 0, 3]), &[]), json!([[], []]));
        // Gray images have this form.
        assert!(read(&of(&[2000, 2, 1]), &[7; 4000]).is_ok());
    }

    #[test]
    fn unreadable_arrays_are_reported() {
        let many = vec![1; 65];
        for (metadata, bytes, expected) in [
            (
                json!({"shape": [2], "dtype": "float32"}),
                7,
                "7 bytes, which does not match shape [2] of float32",
            ),
            (json!({"shape": [1], "dtype": "complex64"}), 8, "items of complex64 cannot be read"),
            (json!({"shape": [1], "dtype": "float128"}), 16, "items of float128 cannot be read"),
            (json!({"shape": [1], "dtype": "decimal"}), 8, "dtype `decimal`, which is unknown"),
            (json!({"shape": [1], "binary_format": "pickle"}), 8, "its buffer is in format `pickle`"),
            (json!({"dtype": "float32"}), 8, "its metadata has no shape"),
            (json!([]), 8, "its metadata cannot be read"),
            (json!({"shape": many, "dtype": "uint8"}), 1, "its shape has 65 axes, the limit is 64"),
            (json!({"shape": [1_u64 << 60, 0], "dtype": "uint8"}), 0, "has more than 1024 nested lists"),
            (
                json!({"shape": [1_u64 << 40, 1_u64 << 40, 0], "dtype": "uint8"}),
                0,
                "has more than 1024 nested lists",
            ),
            (json!({"shape": [600, 1, 1, 1, 1], "dtype": "uint8"}), 600, "has more than 2224 nested lists"),
        ] {
            let problem = read(&metadata, &vec![0; bytes]).unwrap_err();
            assert!(problem.contains(expected), "{metadata}: {problem}");
        }
    }
}
