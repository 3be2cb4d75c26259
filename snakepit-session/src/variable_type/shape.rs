//! Determines the shape of nested lists of numbers without building them, because they can have millions of items.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{self, SeqAccess, Visitor},
};

use crate::ValueType;

/// Determines the shape of an array in JSON.
///
/// # Errors
/// The reason, which continues a message after "value". `None` if the JSON is not an array.
pub(super) fn json_shape(kind: ValueType, json: &[u8]) -> Result<Vec<usize>, Option<String>> {
    const NOT_NUMBERS: &str = "must be a list of numbers, or nested lists of equal length";
    match json.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'[') => {
            let Shape { axes, has_booleans } =
                serde_json::from_slice(json).map_err(|_| Some(NOT_NUMBERS.to_owned()))?;
            if has_booleans && kind == ValueType::Embedding {
                return Err(Some(NOT_NUMBERS.to_owned()));
            }
            Ok(axes)
        }
        Some(b'{') if kind == ValueType::Tensor => {
            let ShapedTensor { shape, data } = serde_json::from_slice(json).map_err(|error| {
                Some(format!("must have `shape` and `data`, a list of numbers ({error})"))
            })?;
            let items = |shape: &[usize]| shape.iter().try_fold(1_usize, |items, n| items.checked_mul(*n));
            // The data may be flat, or nested according to the shape.
            let data_shape = data.axes;
            if data_shape != shape && (data_shape.len() != 1 || items(&shape) != Some(data_shape[0])) {
                return Err(Some(format!(
                    "has `data` of shape {data_shape:?}, which does not match `shape` {shape:?}"
                )));
            }
            Ok(shape)
        }
        _ => Err(None),
    }
}

/// A tensor with an explicit shape.
#[derive(Deserialize)]
struct ShapedTensor {
    shape: Vec<usize>,
    data: Shape,
}

/// The length of each axis; empty for a number.
#[derive(Default, PartialEq)]
struct Shape {
    axes: Vec<usize>,
    /// Whether an item is a boolean. Tensors accept booleans, embeddings do not.
    has_booleans: bool,
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items;

        impl<'de> Visitor<'de> for Items {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number or a list")
            }

            fn visit_f64<E>(self, _: f64) -> Result<Shape, E> {
                Ok(Shape::default())
            }

            fn visit_i64<E>(self, _: i64) -> Result<Shape, E> {
                Ok(Shape::default())
            }

            fn visit_u64<E>(self, _: u64) -> Result<Shape, E> {
                Ok(Shape::default())
            }

            fn visit_bool<E>(self, _: bool) -> Result<Shape, E> {
                Ok(Shape { has_booleans: true, ..Shape::default() })
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Shape, E> {
                match text {
                    "NaN" | "Infinity" | "-Infinity" => Ok(Shape::default()),
                    _ => Err(E::custom("text that is not a number")),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Shape, A::Error> {
                let (mut length, mut first) = (0, Shape::default());
                while let Some(item) = items.next_element::<Shape>()? {
                    if length == 0 {
                        first.axes = item.axes;
                    } else if item.axes != first.axes {
                        return Err(de::Error::custom("lists of different lengths"));
                    }
                    first.has_booleans |= item.has_booleans;
                    length += 1;
                }
                first.axes.insert(0, length);
                Ok(first)
            }
        }

        deserializer.deserialize_any(Items)
    }
}
