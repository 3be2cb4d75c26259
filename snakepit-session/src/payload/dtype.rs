//! The data types of array items.

use std::fmt;

use serde::de::{Error, Visitor};
use serde_json::Error as JsonError;

/// The data type of array items: [`Payload::dtype`](crate::Payload::dtype). The names are the same as in numpy.
///
/// A data type does not include a byte order. [`Payload::items`](crate::Payload::items) converts items of either order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dtype {
    /// One byte, 0 or 1.
    Bool,
    /// `i8`.
    Int8,
    /// `i16`.
    Int16,
    /// `i32`.
    Int32,
    /// `i64`.
    Int64,
    /// `u8`.
    Uint8,
    /// `u16`.
    Uint16,
    /// `u32`.
    Uint32,
    /// `u64`.
    Uint64,
    /// An IEEE 754 number of 16 bits: `half::f16` with the feature `ndarray`.
    Float16,
    /// `f32`.
    Float32,
    /// `f64`.
    Float64,
    /// Two `f32`: `num_complex::Complex<f32>` with the feature `ndarray`.
    Complex64,
    /// Two `f64`: `num_complex::Complex<f64>` with the feature `ndarray`.
    Complex128,
    /// The raw bytes of a value of type [`Bytes`](crate::ValueType::Bytes). They read as `u8`.
    Bytes,
}

impl Dtype {
    /// The name of the data type in numpy, such as `float32`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bool => "bool",
            Self::Int8 => "int8",
            Self::Int16 => "int16",
            Self::Int32 => "int32",
            Self::Int64 => "int64",
            Self::Uint8 => "uint8",
            Self::Uint16 => "uint16",
            Self::Uint32 => "uint32",
            Self::Uint64 => "uint64",
            Self::Float16 => "float16",
            Self::Float32 => "float32",
            Self::Float64 => "float64",
            Self::Complex64 => "complex64",
            Self::Complex128 => "complex128",
            Self::Bytes => "bytes",
        }
    }

    /// The size of one item in bytes.
    #[must_use]
    pub const fn item_size(self) -> usize {
        match self {
            Self::Bool | Self::Int8 | Self::Uint8 | Self::Bytes => 1,
            Self::Int16 | Self::Uint16 | Self::Float16 => 2,
            Self::Int32 | Self::Uint32 | Self::Float32 => 4,
            Self::Int64 | Self::Uint64 | Self::Float64 | Self::Complex64 => 8,
            Self::Complex128 => 16,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The format of an item, parsed from numpy's names of data types such as `float32` and `<f4`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ItemFormat {
    kind: Kind,
    /// The size of one item in bytes.
    pub(super) bytes: usize,
    pub(super) is_big_endian: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bool,
    Int,
    Uint,
    Float,
    Complex,
    Bfloat,
}

impl ItemFormat {
    pub(super) fn parse(name: &str) -> Option<Self> {
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

    /// The data type. `None` if [`Dtype`] lacks it, for example for extended floats.
    pub(super) const fn dtype(self) -> Option<Dtype> {
        Some(match (self.kind, self.bytes) {
            (Kind::Bool, _) => Dtype::Bool,
            (Kind::Int, 1) => Dtype::Int8,
            (Kind::Int, 2) => Dtype::Int16,
            (Kind::Int, 4) => Dtype::Int32,
            (Kind::Int, 8) => Dtype::Int64,
            (Kind::Uint, 1) => Dtype::Uint8,
            (Kind::Uint, 2) => Dtype::Uint16,
            (Kind::Uint, 4) => Dtype::Uint32,
            (Kind::Uint, 8) => Dtype::Uint64,
            (Kind::Float, 2) => Dtype::Float16,
            (Kind::Float, 4) => Dtype::Float32,
            (Kind::Float, 8) => Dtype::Float64,
            (Kind::Complex, 8) => Dtype::Complex64,
            (Kind::Complex, 16) => Dtype::Complex128,
            _ => return None,
        })
    }

    /// Whether the items have the byte order of this machine.
    pub(super) const fn is_native(self) -> bool {
        self.bytes == 1 || self.is_big_endian == cfg!(target_endian = "big")
    }

    /// The bits of the item, zero-extended. `None` for an item of more than eight bytes.
    pub(super) fn bits(self, item: &[u8]) -> Option<u64> {
        let mut wide = [0; 8];
        wide.get_mut(..item.len())?.copy_from_slice(item);
        if self.is_big_endian {
            wide[..item.len()].reverse();
        }
        Some(u64::from_le_bytes(wide))
    }

    pub(super) fn visit<'de, V: Visitor<'de>>(self, item: &[u8], visitor: V) -> Result<V::Value, JsonError> {
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
            JsonError::custom(format!(
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
    pub(super) fn float(self, bits: u64) -> Option<f64> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numpy_names_parse_as_dtypes() {
        for dtype in [
            Dtype::Bool,
            Dtype::Int8,
            Dtype::Int16,
            Dtype::Int32,
            Dtype::Int64,
            Dtype::Uint8,
            Dtype::Uint16,
            Dtype::Uint32,
            Dtype::Uint64,
            Dtype::Float16,
            Dtype::Float32,
            Dtype::Float64,
            Dtype::Complex64,
            Dtype::Complex128,
        ] {
            let format = ItemFormat::parse(dtype.as_str()).unwrap();
            assert_eq!((format.dtype(), format.bytes), (Some(dtype), dtype.item_size()), "{dtype}");
        }
        let dtype = |name: &str| ItemFormat::parse(name)?.dtype();
        assert_eq!((dtype(">c16"), dtype("|b1")), (Some(Dtype::Complex128), Some(Dtype::Bool)));
        for unknown in
            ["float128", "bfloat16", "int4", "decimal", "datetime64[s]", "", "f99999999999999999999"]
        {
            assert_eq!(dtype(unknown), None, "{unknown}");
        }
    }
}
