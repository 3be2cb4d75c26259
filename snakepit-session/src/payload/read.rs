//! Deserializes values: JSON directly, arrays as nested lists, and bytes as bytes or a list.

use bytes::Bytes;
use serde::{
    Deserializer,
    de::{DeserializeSeed, Error, IntoDeserializer, Visitor, value::SeqDeserializer},
    forward_to_deserialize_any,
};
use serde_json::Error as Problem;

use super::{
    Payload,
    array::ArrayMetadata,
    root::RootSeed,
    value_deserializer::{self, AnyOptions},
};
use crate::ValueType;

static NO_BUFFERS: Bytes = Bytes::new();

impl Payload {
    /// Deserializes the value like [`Payload::to_serde`], with a seed.
    ///
    /// # Errors
    /// The value is malformed or does not match the seed.
    pub fn read<'de, S: DeserializeSeed<'de>>(&'de self, seed: S) -> Result<S::Value, serde_json::Error> {
        let seed = RootSeed { payload: self, seed };
        match &self.binary {
            None if self.ty == ValueType::Float && self.json.starts_with(b"\"") => {
                seed.deserialize(NonFinite(self))
            }
            None if matches!(self.ty, ValueType::List | ValueType::Map)
                && value_deserializer::may_contain(&self.json) =>
            {
                value_deserializer::read(&self.json, seed, AnyOptions::default(), &NO_BUFFERS)
            }
            None => {
                let mut json = serde_json::Deserializer::from_slice(&self.json);
                let value = seed.deserialize(&mut json)?;
                json.end()?;
                Ok(value)
            }
            Some(buffer) => match self.nested_json() {
                Some(json) => value_deserializer::read(json, seed, AnyOptions::default(), buffer),
                None => seed.deserialize(Buffer { value: self, buffer }),
            },
        }
    }

    /// Like [`Payload::read`], but accepts integral floats such as 5.0 for integers, at any depth. This is slower, and intended
    /// for values that `read` rejected.
    ///
    /// # Errors
    /// The value is malformed, or the seed rejects it.
    pub fn read_whole<'de, S: DeserializeSeed<'de>>(
        &'de self,
        seed: S,
    ) -> Result<S::Value, serde_json::Error> {
        self.read_with(seed, AnyOptions { whole: true, exact: false })
    }

    /// Deserializes the value. `any_options` applies to visitors without a type hint.
    pub(super) fn read_with<'de, S: DeserializeSeed<'de>>(
        &'de self,
        seed: S,
        any_options: AnyOptions,
    ) -> Result<S::Value, serde_json::Error> {
        let root_seed = |seed| RootSeed { payload: self, seed };
        match &self.binary {
            None if self.ty == ValueType::Float && self.json.starts_with(b"\"") => self.read(seed),
            None => value_deserializer::read(&self.json, root_seed(seed), any_options, &NO_BUFFERS),
            Some(buffer) => match self.nested_json() {
                Some(json) => value_deserializer::read(json, root_seed(seed), any_options, buffer),
                None => self.read(seed),
            },
        }
    }
}

/// NaN or an infinity, which is a string in JSON but reads as a number on request.
struct NonFinite<'a>(&'a Payload);

impl<'de> Deserializer<'de> for NonFinite<'de> {
    type Error = Problem;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        let mut json = serde_json::Deserializer::from_slice(&self.0.json);
        let value = json.deserialize_any(visitor)?;
        json.end()?;
        Ok(value)
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        match self.0.to_float() {
            Some(number) => visitor.visit_f64(number),
            None => self.deserialize_any(visitor),
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

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map struct enum identifier ignored_any
    }
}

/// A buffer, which reads as bytes on request.
#[derive(Clone, Copy)]
struct Buffer<'a> {
    value: &'a Payload,
    buffer: &'a [u8],
}

impl<'de> Deserializer<'de> for Buffer<'de> {
    type Error = Problem;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        if !matches!(self.value.ty, ValueType::Tensor | ValueType::Embedding) {
            return visitor.visit_borrowed_bytes(self.buffer);
        }
        let metadata = ArrayMetadata::parse(&self.value.json)
            .map_err(|problem| Problem::custom(format!("its metadata {problem}")))?;
        metadata.lists(self.buffer).map_err(Problem::custom)?.deserialize_any(visitor)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        if self.value.ty == ValueType::Bytes {
            return visitor
                .visit_seq(SeqDeserializer::new(self.buffer.iter().map(|byte| byte.into_deserializer())));
        }
        self.deserialize_any(visitor)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Problem> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        visitor.visit_borrowed_bytes(self.buffer)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        visitor.visit_borrowed_bytes(self.buffer)
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

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string unit unit_struct tuple_struct map
        struct enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::error_chain;

    #[test]
    fn arrays_round_trip() {
        let grid = Payload::tensor(&[2, 2], &[1.5_f32, 2.0, -3.0, 4.0]).unwrap();
        assert_eq!(grid.to_serde::<Vec<[f32; 2]>>().unwrap(), [[1.5, 2.0], [-3.0, 4.0]]);
        assert_eq!(grid.to_serde::<Option<Vec<Vec<f64>>>>().unwrap().unwrap()[1][0], -3.0);
        let problem = grid.to_serde::<Vec<f32>>().unwrap_err().to_string();
        assert_eq!(problem, "tensor value does not fit alloc::vec::Vec<f32>");
        let vector = Payload::embedding(&[1_u8, 2]);
        assert_eq!((vector.ty(), vector.to_serde::<Vec<u64>>().unwrap()), (ValueType::Embedding, vec![1, 2]));
        let problem = Payload::tensor(&[2, 3], &[0_i64; 5]).unwrap_err().to_string();
        assert_eq!(problem, "a tensor of shape [2, 3] cannot have 5 items");
        assert!(Payload::tensor::<f32>(&[usize::MAX, 2], &[]).is_err());
    }

    #[test]
    fn bytes_and_nonfinite_numbers_round_trip() {
        let bytes = Payload::bytes(Bytes::from_static(b"ab"));
        assert_eq!(bytes.to_serde::<Vec<u8>>().unwrap(), b"ab");
        assert_eq!(bytes.to_serde::<[u8; 2]>().unwrap(), *b"ab");
        assert_eq!(Payload::float(f64::INFINITY).to_serde::<f64>().unwrap(), f64::INFINITY);
        assert!(Payload::float(f64::NAN).to_serde::<Option<f32>>().unwrap().unwrap().is_nan());
        assert_eq!(Payload::float(f64::NAN).to_serde::<String>().unwrap(), "NaN");
    }

    #[test]
    fn any_buffer_reads_as_bytes_on_request() {
        #[derive(Deserialize)]
        struct Borrowed<'a>(&'a [u8]);
        let pickle =
            Payload::from_buffer(ValueType::Tensor, r#"{"binary_format": "pickle"}"#.into(), "x".into());
        let seed = std::marker::PhantomData::<Borrowed<'_>>;
        assert_eq!(pickle.read(seed).unwrap().0, b"x");
        let problem = error_chain(&pickle.to_serde::<Vec<f32>>().unwrap_err()).to_string();
        assert!(problem.contains("its buffer is in format `pickle`"), "{problem}");
    }
}
