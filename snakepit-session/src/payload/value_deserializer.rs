//! [`ValueDeserializer`]: reads JSON in which strings stand for NaN and infinities, floats for integers, and envelopes for bytes and
//! arrays.

use std::borrow::Cow;

use bytes::Bytes;
use serde::{
    Deserialize as _, Deserializer,
    de::{
        DeserializeSeed, Error as _, IntoDeserializer, Unexpected, Visitor,
        value::{MapAccessDeserializer, MapDeserializer, SeqDeserializer},
    },
    forward_to_deserialize_any,
};
use serde_json::{Error, Value};

use super::{
    ValueType,
    array::ArrayMetadata,
    nested::{self, Envelope},
    serde_form::{self, PAYLOAD},
    whole::{Key, visit_integer},
};

/// Whether the JSON may contain an envelope, or the name of NaN or an infinity, with or without an escaped first letter.
pub(super) fn may_contain(json: &[u8]) -> bool {
    let contains = |text: &[u8]| memchr::memmem::find(json, text).is_some();
    contains(br#"aN""#) || contains(br#"nfinity""#) || contains(br#""__snakepit__""#)
}

/// Deserializes JSON. If the caller requests a number, `"NaN"` and the like are read as numbers. If it requests an integer, 5.0 is
/// read as one. Envelopes refer to `buffers`.
///
/// `whole` changes values for visitors without a type hint, such as those of flattened structs and untagged enums: 5.0 is an
/// integer, and bytes are a map with base64.
pub(super) fn read<'de, S: DeserializeSeed<'de>>(
    json: &[u8],
    seed: S,
    whole: bool,
    buffers: &'de Bytes,
) -> Result<S::Value, Error> {
    let value: Value = serde_json::from_slice(json)?;
    nested::check_references(&value, buffers).map_err(|problem| Error::custom(format!("it {problem}")))?;
    seed.deserialize(ValueDeserializer { value, whole, buffers })
}

/// Deserializes a parsed value.
struct ValueDeserializer<'a> {
    value: Value,
    whole: bool,
    buffers: &'a Bytes,
}

impl<'a> ValueDeserializer<'a> {
    /// The bytes or array that this value stands for.
    fn into_buffer(self) -> Result<BufferDeserializer<'a>, Error> {
        let Value::Object(map) = self.value else { return Err(Error::custom("it is not a map")) };
        let envelope =
            Envelope::parse(map, self.buffers).map_err(|problem| Error::custom(format!("it {problem}")))?;
        Ok(BufferDeserializer { envelope, whole: self.whole })
    }

    fn is_envelope(&self) -> bool {
        self.value.as_object().is_some_and(Envelope::is_in)
    }
}

/// Passes integral floats as integers to visitors that request one.
macro_rules! integers {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            match self.value.as_f64() {
                Some(number) if self.value.is_f64() => visit_integer(number, visitor),
                _ => self.value.$method(visitor),
            }
        })*
    };
}

impl<'de> IntoDeserializer<'de, Error> for ValueDeserializer<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for ValueDeserializer<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.is_envelope() {
            return self.into_buffer()?.deserialize_any(visitor);
        }
        let Self { whole, buffers, .. } = self;
        match self.value {
            Value::Array(items) => {
                let items = items.into_iter().map(|value| Self { value, whole, buffers });
                let mut items = SeqDeserializer::new(items);
                let value = visitor.visit_seq(&mut items)?;
                items.end().map(|()| value)
            }
            Value::Object(entries) => {
                let mut entries = MapDeserializer::new(
                    entries.into_iter().map(|(key, value)| (Key(key), Self { value, whole, buffers })),
                );
                let value = visitor.visit_map(&mut entries)?;
                entries.end().map(|()| value)
            }
            plain => match plain.as_f64() {
                // As an integer, -0.0 would lose its sign.
                Some(number) if whole && plain.is_f64() && number != 0.0 => visit_integer(number, visitor),
                _ => plain.deserialize_any(visitor),
            },
        }
    }

    integers! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128 deserialize_u8 deserialize_u16
        deserialize_u32 deserialize_u64 deserialize_u128
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value.as_str() {
            Some("NaN") => visitor.visit_f64(f64::NAN),
            Some("Infinity") => visitor.visit_f64(f64::INFINITY),
            Some("-Infinity") => visitor.visit_f64(f64::NEG_INFINITY),
            _ => self.value.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.value.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        if name == PAYLOAD {
            let payload = nested::of_value(&self.value, self.buffers).map_err(Error::custom)?;
            return serde_form::pass(payload, visitor);
        }
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let Self { whole, buffers, .. } = self;
        match self.value {
            Value::Object(entries) => {
                if entries.len() != 1 {
                    return Err(Error::invalid_value(Unexpected::Map, &"map with a single key"));
                }
                let entries = entries.into_iter().map(|(key, value)| (key, Self { value, whole, buffers }));
                visitor.visit_enum(MapAccessDeserializer::new(MapDeserializer::new(entries)))
            }
            plain => plain.deserialize_enum(name, variants, visitor),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.is_envelope() {
            self.into_buffer()?.deserialize_seq(visitor)
        } else {
            self.deserialize_any(visitor)
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.is_envelope() {
            self.into_buffer()?.visit_bytes(visitor)
        } else {
            self.deserialize_any(visitor)
        }
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_bytes(visitor)
    }

    forward_to_deserialize_any! {
        bool char str string unit unit_struct tuple_struct map struct identifier ignored_any
    }
}

/// Deserializes bytes or an array inside a value.
struct BufferDeserializer<'a> {
    envelope: Envelope<'a>,
    whole: bool,
}

impl<'de> BufferDeserializer<'de> {
    fn visit_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.envelope.data {
            Cow::Borrowed(data) => visitor.visit_borrowed_bytes(data),
            Cow::Owned(data) => visitor.visit_byte_buf(data),
        }
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.envelope.ty {
            ValueType::Bytes if self.whole => self.envelope.into_plain().deserialize_any(visitor),
            ValueType::Bytes => self.visit_bytes(visitor),
            // Complex numbers and unknown data types have no list form.
            _ if self.whole => match self.lists() {
                Ok(lists) => lists.deserialize_any(visitor),
                Err(_) => self.envelope.into_plain().deserialize_any(visitor),
            },
            _ => self.deserialize_seq(visitor),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.envelope.ty == ValueType::Bytes {
            return visitor.visit_seq(SeqDeserializer::new(self.envelope.data.iter().copied()));
        }
        let metadata = self.metadata()?;
        metadata.lists(&self.envelope.data).map_err(Error::custom)?.deserialize_any(visitor)
    }

    fn metadata(&self) -> Result<ArrayMetadata, Error> {
        serde_json::from_value(Value::Object(self.envelope.metadata.clone()))
    }

    /// The items of an array as nested lists.
    fn lists(&self) -> Result<Value, Error> {
        let metadata = self.metadata()?;
        Value::deserialize(metadata.lists(&self.envelope.data).map_err(Error::custom)?)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use crate::{Payload, ValueType};

    fn list(json: &'static str) -> Payload {
        Payload::from_json(ValueType::List, json.into())
    }

    #[test]
    fn nan_and_infinities_read_as_numbers_on_request() {
        #[derive(Debug, PartialEq, Deserialize)]
        enum Reading {
            Unknown,
            Exact(f64),
            Range { least: f64, most: Option<f32> },
        }
        // The forms that the Python side writes, and that other clients may write.
        for json in [r#"[1.5, "\u004eaN", "-\u0049nfinity"]"#, r#"[1.5, "NaN", "-Infinity"]"#] {
            let list = list(json);
            let numbers: Vec<f64> = list.to_serde().unwrap();
            assert!(
                numbers[0] == 1.5 && numbers[1].is_nan() && numbers[2] == f64::NEG_INFINITY,
                "{numbers:?}"
            );
            let texts: Vec<serde_json::Value> = list.to_serde().unwrap();
            assert_eq!(texts, [1.5.into(), "NaN".into(), serde_json::Value::from("-Infinity")]);
        }
        let readings: Vec<Reading> =
            list(r#"["Unknown", {"Exact": "Infinity"}, {"Range": {"least": "-Infinity", "most": null}}]"#)
                .to_serde()
                .unwrap();
        let expected = [
            Reading::Unknown,
            Reading::Exact(f64::INFINITY),
            Reading::Range { least: f64::NEG_INFINITY, most: None },
        ];
        assert_eq!(readings, expected);
        let rows: Vec<BTreeMap<String, f64>> = list(r#"[{"NaN": 1}, {"x": "Infinity"}]"#).to_serde().unwrap();
        assert_eq!((rows[0]["NaN"], rows[1]["x"]), (1.0, f64::INFINITY));
        // With and without a name of a special number, which is read differently.
        for two in
            [r#"[{"Exact": "Infinity", "Unknown": null}]"#, r#"[{"Exact": 1, "Unknown": null}]"#, r#"[{}]"#]
        {
            assert!(list(two).to_serde::<Vec<Reading>>().is_err(), "{two}");
        }
        assert!(list(r#"["NaN", 1]"#).to_serde::<Vec<(f64, f64)>>().is_err());
        assert!(list(r#"["NaN", "many"]"#).to_serde::<Vec<f64>>().is_err());
    }
}
