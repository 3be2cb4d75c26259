//! Conversions between payloads and arrays of the crate `ndarray`.

use std::borrow::Cow;

use ndarray::{Array, ArrayBase, ArrayView, CowArray, Data, Dimension, IxDyn, ShapeError};

use super::{Element, Payload, PayloadError};

impl Payload {
    /// Returns the array of a tensor, an embedding or raw bytes, for example a numpy array from Python.
    ///
    /// The array is a view of the buffer if the buffer is aligned for `T` and has this machine's byte order. Otherwise
    /// the items are copied. A buffer that arrived over the wire may have any alignment.
    ///
    /// ```
    /// use ndarray::{Ix2, array};
    /// use snakepit_session::Payload;
    ///
    /// let value = Payload::from_ndarray(&array![[1.0_f32, 2.0], [3.0, 4.0]]);
    /// let grid = value.to_ndarray::<f32, Ix2>()?;
    /// assert_eq!(grid.dot(&grid)[[0, 0]], 7.0);
    /// # Ok::<(), snakepit_session::PayloadError>(())
    /// ```
    ///
    /// # Errors
    /// - [`PayloadError::Axes`] if the array has another number of axes than `D`; `IxDyn` accepts every number,
    /// - [`PayloadError::Dtype`] if the items have another data type,
    /// - [`PayloadError::NotAnArray`] as for [`items`](Self::items),
    /// - [`PayloadError::Shape`] if an array of this shape cannot exist.
    pub fn to_ndarray<T: Element, D: Dimension>(&self) -> Result<CowArray<'_, T, D>, PayloadError> {
        let array = self.raw_array()?;
        let items = array.items::<T>()?;
        let shape = array.shape;
        if let Some(expected) = D::NDIM.filter(|axes| *axes != shape.len()) {
            return Err(PayloadError::Axes { shape, expected });
        }
        let count = items.len();
        let dimension = IxDyn(&shape);
        let array: Result<CowArray<'_, T, D>, ShapeError> = match items {
            Cow::Borrowed(items) => ArrayView::from_shape(dimension, items)
                .and_then(|view| Ok(view.into_dimensionality::<D>()?.into())),
            Cow::Owned(items) => Array::from_shape_vec(dimension, items)
                .and_then(|array| Ok(array.into_dimensionality::<D>()?.into())),
        };
        array.map_err(|_| PayloadError::Shape { shape, items: count })
    }

    /// Creates a tensor from a copy of an array or a view. The tensor is in row-major order, even if the array is not. Python
    /// receives a numpy array. `Payload::from(array)` does not copy an array in row-major order.
    #[must_use]
    pub fn from_ndarray<T, S, D>(array: &ArrayBase<S, D>) -> Self
    where
        T: Element,
        S: Data<Elem = T>,
        D: Dimension,
    {
        let tensor = match array.as_slice() {
            Some(items) => Self::tensor(array.shape(), items),
            None => Self::tensor_from_vec(array.shape(), array.iter().copied().collect()),
        };
        tensor.expect("an array has the number of items of its shape")
    }
}

impl<T: Element, D: Dimension> From<Array<T, D>> for Payload {
    fn from(array: Array<T, D>) -> Self {
        if !array.is_standard_layout() {
            return Self::from_ndarray(&array);
        }
        let (shape, count) = (array.shape().to_vec(), array.len());
        let (mut items, offset) = array.into_raw_vec_and_offset();
        // The vector of a sliced array also has the items outside of the slice.
        let start = offset.unwrap_or(0);
        items.truncate(start + count);
        items.drain(..start);
        Self::tensor_from_vec(&shape, items).expect("an array has the number of items of its shape")
    }
}

#[cfg(test)]
mod tests {
    use std::fmt;

    use bytes::Bytes;
    use half::f16;
    use ndarray::{
        Array0, Array1, Array2, Array3, ArrayD, Axis, Ix0, Ix1, Ix2, Ix3, ShapeBuilder, arr0, array, s,
    };
    use num_complex::Complex;

    use super::*;
    use crate::{Dtype, ValueType};

    #[test]
    fn arrays_of_every_dtype_round_trip() {
        fn round_trip<T: Element + PartialEq + fmt::Debug>(array: Array1<T>, dtype: Dtype) {
            let value = Payload::from_ndarray(&array);
            assert_eq!(value.dtype(), Some(dtype));
            assert_eq!(value.to_ndarray::<T, Ix1>().unwrap(), array);
            assert_eq!(Payload::from(array), value);
        }
        round_trip(array![true, false], Dtype::Bool);
        round_trip(array![i8::MIN, 1], Dtype::Int8);
        round_trip(array![i16::MIN, 1], Dtype::Int16);
        round_trip(array![i32::MIN, 1], Dtype::Int32);
        round_trip(array![i64::MIN, 1], Dtype::Int64);
        round_trip(array![u8::MAX, 1], Dtype::Uint8);
        round_trip(array![u16::MAX, 1], Dtype::Uint16);
        round_trip(array![u32::MAX, 1], Dtype::Uint32);
        round_trip(array![u64::MAX, 1], Dtype::Uint64);
        round_trip(array![f16::MAX, f16::from_f32(0.5)], Dtype::Float16);
        round_trip(array![f32::MAX, 0.5], Dtype::Float32);
        round_trip(array![f64::MAX, 0.5], Dtype::Float64);
        round_trip(array![Complex::new(1.0_f32, -2.0)], Dtype::Complex64);
        round_trip(array![Complex::new(1.0_f64, -2.0)], Dtype::Complex128);
    }

    #[test]
    fn an_owned_array_becomes_a_payload_and_a_view_without_a_copy() {
        let array = Array2::from_shape_fn((2, 3), |(row, column)| (10 * row + column) as f64);
        let address = array.as_ptr();
        let value = Payload::from(array.clone());
        assert_ne!(value.to_ndarray::<f64, Ix2>().unwrap().as_ptr(), address);
        let value = Payload::from(array);
        let view = value.to_ndarray::<f64, Ix2>().unwrap();
        assert!(view.is_view());
        assert_eq!((view.as_ptr(), view[[1, 2]]), (address, 12.0));
    }

    #[test]
    fn every_order_in_memory_becomes_row_major() {
        let rows = array![[1, 2, 3], [4, 5, 6]];
        let mut columns = Array2::zeros((2, 3).f());
        columns.assign(&rows);
        assert!(!columns.is_standard_layout());
        let expected = Payload::tensor(&[2, 3], &[1, 2, 3, 4, 5, 6]).unwrap();
        assert_eq!(Payload::from_ndarray(&columns), expected);
        assert_eq!(Payload::from(columns), expected);
        let transposed = Payload::from_ndarray(&rows.t());
        assert_eq!(transposed, Payload::tensor(&[3, 2], &[1, 4, 2, 5, 3, 6]).unwrap());
        let strided = Payload::from_ndarray(&rows.slice(s![.., ..;-2]));
        assert_eq!(strided, Payload::tensor(&[2, 2], &[3, 1, 6, 4]).unwrap());
    }

    #[test]
    fn a_sliced_array_contains_only_its_items() {
        let mut array = array![[1, 2], [3, 4], [5, 6]];
        array.slice_axis_inplace(Axis(0), (1..2).into());
        assert!(array.is_standard_layout());
        assert_eq!(Payload::from(array), Payload::tensor(&[1, 2], &[3, 4]).unwrap());
    }

    #[test]
    fn arrays_without_axes_or_items_round_trip() {
        let scalar: Array0<i64> = arr0(7);
        let value = Payload::from(scalar.clone());
        assert_eq!(value.to_ndarray::<i64, Ix0>().unwrap(), scalar);
        let empty = Array3::<f32>::zeros((3, 0, 2));
        let value = Payload::from(empty.clone());
        assert_eq!(value.to_ndarray::<f32, Ix3>().unwrap(), empty);
        let dynamic = ArrayD::<u8>::zeros(vec![1; 5]);
        assert_eq!(Payload::from_ndarray(&dynamic).to_ndarray::<u8, IxDyn>().unwrap(), dynamic);
    }

    #[test]
    fn big_endian_complex_numbers_are_swapped_part_by_part() {
        let mut buffer = 1.5_f32.to_be_bytes().to_vec();
        buffer.extend((-2.0_f32).to_be_bytes());
        let metadata = Bytes::from_static(br#"{"shape": [1], "dtype": ">c8"}"#);
        let value = Payload::from_buffer(ValueType::Tensor, metadata, buffer.into());
        assert_eq!(value.to_ndarray::<Complex<f32>, Ix1>().unwrap(), array![Complex::new(1.5, -2.0)]);
    }

    #[test]
    fn other_axes_dtypes_and_impossible_shapes_are_errors() {
        let value = Payload::tensor(&[2, 1], &[1_u8, 2]).unwrap();
        let problem = value.to_ndarray::<u8, Ix1>().unwrap_err().to_string();
        assert_eq!(problem, "the array has shape [2, 1], which does not have 1 axes");
        assert!(matches!(value.to_ndarray::<i8, Ix2>(), Err(PayloadError::Dtype { .. })));
        // The byte count is 0 in any order of the factors, but no array has so many items on the other axes.
        let metadata = Bytes::from(format!(r#"{{"shape": [0, {0}, {0}], "dtype": "uint8"}}"#, 1_u64 << 40));
        let value = Payload::from_buffer(ValueType::Tensor, metadata, Bytes::new());
        assert!(matches!(value.to_ndarray::<u8, Ix3>(), Err(PayloadError::Shape { .. })), "{value:?}");
    }
}
