//! Numbers that JSON represents differently: NaN and infinities, which are strings, and integers in the form of floats.

use serde::{
    Deserializer,
    de::{
        DeserializeSeed, Error as _, IntoDeserializer, Unexpected, Visitor,
        value::{MapAccessDeserializer, MapDeserializer, SeqDeserializer},
    },
    forward_to_deserialize_any,
};
use serde_json::{Error, Value};

use super::whole::{Key, visit_integer};

/// Whether the JSON may contain the name of NaN or an infinity, with or without an escaped first letter.
pub(super) fn may_contain(json: &[u8]) -> bool {
    memchr::memmem::find(json, br#"aN""#).is_some() || memchr::memmem::find(json, br#"nfinity""#).is_some()
}

/// Deserializes JSON. The names read as numbers if the caller requests a number, and 5.0 as an integer if it requests an
/// integer. With `whole`, 5.0 is an integer also for visitors without a type hint, such as those of flattened structs and
/// untagged enums.
pub(super) fn read<'de, S: DeserializeSeed<'de>>(
    json: &[u8],
    seed: S,
    whole: bool,
) -> Result<S::Value, Error> {
    let value: Value = serde_json::from_slice(json)?;
    seed.deserialize(Special { value, whole })
}

struct Special {
    value: Value,
    whole: bool,
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

impl<'de> IntoDeserializer<'de, Error> for Special {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Special {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let whole = self.whole;
        match self.value {
            Value::Array(items) => {
                let items = items.into_iter().map(|value| Self { value, whole });
                let mut items = SeqDeserializer::new(items);
                let value = visitor.visit_seq(&mut items)?;
                items.end().map(|()| value)
            }
            Value::Object(entries) => {
                let mut entries = MapDeserializer::new(
                    entries.into_iter().map(|(key, value)| (Key(key), Self { value, whole })),
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
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let whole = self.whole;
        match self.value {
            Value::Object(entries) => {
                if entries.len() != 1 {
                    return Err(Error::invalid_value(Unexpected::Map, &"map with a single key"));
                }
                let entries = entries.into_iter().map(|(key, value)| (key, Self { value, whole }));
                visitor.visit_enum(MapAccessDeserializer::new(MapDeserializer::new(entries)))
            }
            plain => plain.deserialize_enum(name, variants, visitor),
        }
    }

    forward_to_deserialize_any! {
        bool char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map struct identifier ignored_any
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
