//! Arrays as raw buffers like those of numpy: items in row-major order, with shape and data type in the metadata.

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error, SeqAccess, Visitor},
    forward_to_deserialize_any,
};
use serde_json::{Error as Problem, json};

use super::{Payload, whole::visit_integer};
use crate::ValueType;

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
    dtype: Option<String>,
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

    /// Whether the buffer contains the plain items, which is the default.
    pub(crate) fn is_raw(&self) -> bool {
        self.binary_format.as_deref().is_none_or(|format| matches!(format, "raw" | "numpy"))
    }

    /// The items of a raw buffer.
    ///
    /// # Errors
    /// The reason, which continues a message after "value's buffer".
    pub(crate) fn items<'a>(&'a self, buffer: &'a [u8]) -> Result<Items<'a>, String> {
        let name = self.dtype.as_deref().unwrap_or_default();
        let Some(dtype) = Dtype::parse(name) else {
            return Err(format!(
                "has dtype `{name}`, which is unknown; use one such as float32, int64 or bool"
            ));
        };
        let shape = self.shape.as_deref().unwrap_or_default();
        let expected = shape.iter().try_fold(dtype.bytes, |size, n| size.checked_mul(*n));
        if expected != Some(buffer.len()) {
            return Err(format!(
                "has {} bytes, which does not match shape {shape:?} of {name}",
                buffer.len()
            ));
        }
        Ok(Items { shape, dtype, buffer })
    }

    /// The items of a raw buffer if they can be read as nested lists.
    ///
    /// # Errors
    /// The reason.
    pub(super) fn lists<'a>(&'a self, buffer: &'a [u8]) -> Result<Items<'a>, String> {
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
        let limit = buffer.len().saturating_mul(LISTS_PER_BYTE).saturating_add(EXTRA_LISTS);
        if nested_lists(shape) > limit {
            return Err(format!(
                "its shape {shape:?} has more than {limit} nested lists, the limit for its size"
            ));
        }
        self.items(buffer).map_err(|problem| format!("its buffer {problem}"))
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

/// A data type, parsed from numpy's names such as `float32` and `<f4`.
#[derive(Debug, Clone, Copy)]
struct Dtype {
    kind: Kind,
    /// The size of one item in bytes.
    bytes: usize,
    is_big_endian: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Bool,
    Int,
    Uint,
    Float,
    Complex,
    Bfloat,
}

impl Dtype {
    fn parse(name: &str) -> Option<Self> {
        let plain = name.trim_start_matches(['<', '>', '=', '|']);
        let (kind, bits) = match plain {
            "bool" | "?" | "b1" => (Kind::Bool, 8),
            _ => {
                let digits = plain.trim_start_matches(|c: char| !c.is_ascii_digit());
                let size: usize = digits.parse().ok()?;
                match &plain[..plain.len() - digits.len()] {
                    "float" => (Kind::Float, size),
                    "int" => (Kind::Int, size),
                    "uint" => (Kind::Uint, size),
                    "complex" => (Kind::Complex, size),
                    "bfloat" => (Kind::Bfloat, size),
                    "f" => (Kind::Float, size.checked_mul(8)?),
                    "i" => (Kind::Int, size.checked_mul(8)?),
                    "u" => (Kind::Uint, size.checked_mul(8)?),
                    "c" => (Kind::Complex, size.checked_mul(8)?),
                    _ => return None,
                }
            }
        };
        // The packing of items below one byte is not specified.
        let is_supported = matches!(bits, 8 | 16 | 32 | 64 | 80 | 96 | 128 | 256);
        is_supported.then_some(Self { kind, bytes: bits / 8, is_big_endian: name.starts_with('>') })
    }

    /// The bits of the item, zero-extended. `None` for an item of more than eight bytes.
    fn bits(self, item: &[u8]) -> Option<u64> {
        let mut wide = [0; 8];
        wide.get_mut(..item.len())?.copy_from_slice(item);
        if self.is_big_endian {
            wide[..item.len()].reverse();
        }
        Some(u64::from_le_bytes(wide))
    }

    fn visit<'de, V: Visitor<'de>>(self, item: &[u8], visitor: V) -> Result<V::Value, Problem> {
        let unsupported = || {
            let name = match self.kind {
                Kind::Bool => "bool",
                Kind::Int => "int",
                Kind::Uint => "uint",
                Kind::Float => "float",
                Kind::Complex => "complex",
                Kind::Bfloat => "bfloat",
            };
            let bits = 8 * self.bytes;
            Problem::custom(format!(
                "items of {name}{bits} cannot be read in Rust; convert them to another dtype first"
            ))
        };
        let bits = self.bits(item).ok_or_else(unsupported)?;
        match (self.kind, self.bytes) {
            (Kind::Bool, _) => visitor.visit_bool(bits != 0),
            (Kind::Uint, 1 | 2 | 4 | 8) => visitor.visit_u64(bits),
            (Kind::Int, 1 | 2 | 4 | 8) => {
                let unused_bits = 64 - 8 * self.bytes;
                visitor.visit_i64((bits << unused_bits).cast_signed() >> unused_bits)
            }
            (Kind::Float, _) => visitor.visit_f64(self.float(bits).ok_or_else(unsupported)?),
            _ => Err(unsupported()),
        }
    }

    /// Converts the bits of an item to a number. Returns `None` for types other than floats.
    fn float(self, bits: u64) -> Option<f64> {
        match (self.kind, self.bytes) {
            (Kind::Float, 2) => Some(half_to_f64(bits)),
            (Kind::Float, 4) => Some(f32::from_bits((bits & 0xffff_ffff) as u32).into()),
            (Kind::Float, 8) => Some(f64::from_bits(bits)),
            _ => None,
        }
    }
}

/// Converts the bits of an IEEE 754 binary16 number.
fn half_to_f64(bits: u64) -> f64 {
    let (negative, exponent, fraction) = (bits & 0x8000 != 0, (bits >> 10) & 0x1f, (bits & 0x3ff) as f64);
    let magnitude = match exponent {
        0 => fraction * 2_f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1.0 + fraction / 1024.0) * 2_f64.powi(exponent as i32 - 15),
    };
    if negative { -magnitude } else { magnitude }
}

/// The items of an array, which deserialize as a number if no axis remains, or else as a list.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Items<'a> {
    shape: &'a [usize],
    dtype: Dtype,
    buffer: &'a [u8],
}

/// Passes integral floats as integers to visitors that request one.
macro_rules! integers {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
            let item = self.shape.is_empty().then(|| self.dtype.bits(self.buffer)).flatten();
            match item.and_then(|bits| self.dtype.float(bits)) {
                Some(number) => visit_integer(number, visitor),
                None => self.deserialize_any(visitor),
            }
        })*
    };
}

impl<'de> Deserializer<'de> for Items<'_> {
    type Error = Problem;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        match self.shape.split_first() {
            None => self.dtype.visit(self.buffer, visitor),
            Some((length, rest)) => {
                visitor.visit_seq(List { length: *length, rest: Self { shape: rest, ..self } })
            }
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Problem> {
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
    type Error = Problem;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Problem> {
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

/// Creates a payload from items that match the shape.
pub(super) fn from_items<T: Number>(ty: ValueType, shape: &[usize], items: &[T]) -> Payload {
    let metadata = json!({"type": ty, "shape": shape, "dtype": T::DTYPE, "binary_format": "raw"});
    let mut buffer = Vec::with_capacity(size_of_val(items));
    items.iter().for_each(|item| item.write(&mut buffer));
    Payload::from_buffer(ty, metadata.to_string().into(), buffer.into())
}

/// A number type of arrays.
pub trait Number: sealed::Sealed + Copy {
    /// The numpy name of the data type, such as `float32`.
    const DTYPE: &'static str;

    /// Appends the number to a buffer, little-endian.
    #[doc(hidden)]
    fn write(self, buffer: &mut Vec<u8>);
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! numbers {
    ($($ty:ty, $dtype:literal;)*) => {$(
        impl sealed::Sealed for $ty {}

        impl Number for $ty {
            const DTYPE: &'static str = $dtype;

            fn write(self, buffer: &mut Vec<u8>) {
                buffer.extend_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}

numbers! {
    f32, "float32";
    f64, "float64";
    i8, "int8";
    i16, "int16";
    i32, "int32";
    i64, "int64";
    u8, "uint8";
    u16, "uint16";
    u32, "uint32";
    u64, "uint64";
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::{Value, json};

    use crate::{Payload, ValueType};

    fn read(metadata: &Value, buffer: &[u8]) -> Result<Value, String> {
        let buffer = Bytes::copy_from_slice(buffer);
        let value = Payload::from_buffer(ValueType::Tensor, metadata.to_string().into(), buffer);
        value.to_serde().map_err(|error| error.to_string())
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
        // Grey images have this form.
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
