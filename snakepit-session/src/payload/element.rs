//! The Rust types of array items.

use super::Dtype;

/// A type of array items: `bool`, integers of 8 to 64 bits, `f32` and `f64`. With the feature `ndarray` also
/// `half::f16` and `num_complex::Complex` of `f32` and `f64`.
///
/// [`Payload::items`](crate::Payload::items) reads them, and [`Payload::tensor`](crate::Payload::tensor) writes them.
pub trait Element: sealed::Sealed + Copy + Send + Sync + 'static {
    /// The data type of the items.
    const DTYPE: Dtype;

    /// Casts a buffer in this machine's byte order to items. Returns `None` if the buffer is not aligned or contains invalid
    /// values.
    #[doc(hidden)]
    fn cast(buffer: &[u8]) -> Option<&[Self]>;

    /// Returns the bytes of items, in this machine's byte order.
    #[doc(hidden)]
    fn bytes(items: &[Self]) -> &[u8];

    /// Reads an item from a slice of its size.
    #[doc(hidden)]
    fn read(item: &[u8], is_big_endian: bool) -> Self;

    /// Appends the item to a buffer, little-endian.
    #[doc(hidden)]
    fn write(self, buffer: &mut Vec<u8>);
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! numbers {
    ($($ty:ty, $dtype:ident;)*) => {$(
        impl sealed::Sealed for $ty {}

        impl Element for $ty {
            const DTYPE: Dtype = Dtype::$dtype;

            fn cast(buffer: &[u8]) -> Option<&[Self]> {
                bytemuck::try_cast_slice(buffer).ok()
            }

            fn bytes(items: &[Self]) -> &[u8] {
                bytemuck::cast_slice(items)
            }

            fn read(item: &[u8], is_big_endian: bool) -> Self {
                let mut bytes = [0; size_of::<Self>()];
                bytes.copy_from_slice(item);
                if is_big_endian { Self::from_be_bytes(bytes) } else { Self::from_le_bytes(bytes) }
            }

            fn write(self, buffer: &mut Vec<u8>) {
                buffer.extend_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}

numbers! {
    i8, Int8;
    i16, Int16;
    i32, Int32;
    i64, Int64;
    u8, Uint8;
    u16, Uint16;
    u32, Uint32;
    u64, Uint64;
    f32, Float32;
    f64, Float64;
}

impl sealed::Sealed for bool {}

impl Element for bool {
    const DTYPE: Dtype = Dtype::Bool;

    fn cast(buffer: &[u8]) -> Option<&[Self]> {
        bytemuck::checked::try_cast_slice(buffer).ok()
    }

    fn bytes(items: &[Self]) -> &[u8] {
        bytemuck::cast_slice(items)
    }

    fn read(item: &[u8], _is_big_endian: bool) -> Self {
        // numpy also treats other numbers as true.
        item != [0]
    }

    fn write(self, buffer: &mut Vec<u8>) {
        buffer.push(self.into());
    }
}

#[cfg(feature = "ndarray")]
mod optional {
    use half::f16;
    use num_complex::Complex;

    use super::{Dtype, Element, sealed};

    numbers! {
        f16, Float16;
    }

    macro_rules! complex_numbers {
        ($($ty:ty, $dtype:ident;)*) => {$(
            impl sealed::Sealed for Complex<$ty> {}

            impl Element for Complex<$ty> {
                const DTYPE: Dtype = Dtype::$dtype;

                fn cast(buffer: &[u8]) -> Option<&[Self]> {
                    bytemuck::try_cast_slice(buffer).ok()
                }

                fn bytes(items: &[Self]) -> &[u8] {
                    bytemuck::cast_slice(items)
                }

                fn read(item: &[u8], is_big_endian: bool) -> Self {
                    // The byte order applies to each part.
                    let (re, im) = item.split_at(size_of::<$ty>());
                    Self::new(<$ty>::read(re, is_big_endian), <$ty>::read(im, is_big_endian))
                }

                fn write(self, buffer: &mut Vec<u8>) {
                    self.re.write(buffer);
                    self.im.write(buffer);
                }
            }
        )*};
    }

    complex_numbers! {
        f32, Complex64;
        f64, Complex128;
    }
}
