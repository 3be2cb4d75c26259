//! NaN and infinities inside of other values, where JSON has only texts for them: numbers to whoever wants numbers.

use serde::{
    Deserializer,
    de::{
        DeserializeSeed, IntoDeserializer, Visitor,
        value::{MapAccessDeserializer, MapDeserializer, SeqDeserializer},
    },
    forward_to_deserialize_any,
};
use serde_json::{Error, Value};

/// Whether one of the names may be in a JSON text, with or without an escaped first letter.
pub(super) fn may_hold(json: &[u8]) -> bool {
    memchr::memmem::find(json, br#"aN""#).is_some() || memchr::memmem::find(json, br#"nfinity""#).is_some()
}

/// Reads JSON in which the names are numbers where a number is wanted.
pub(super) fn read<'de, S: DeserializeSeed<'de>>(json: &[u8], seed: S) -> Result<S::Value, Error> {
    let value: Value = serde_json::from_slice(json)?;
    seed.deserialize(Special(value))
}

struct Special(Value);

impl<'de> IntoDeserializer<'de, Error> for Special {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Special {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(items) => {
                let mut items = SeqDeserializer::new(items.into_iter().map(Special));
                let value = visitor.visit_seq(&mut items)?;
                items.end().map(|()| value)
            }
            Value::Object(entries) => {
                let mut entries =
                    MapDeserializer::new(entries.into_iter().map(|(key, value)| (key, Special(value))));
                let value = visitor.visit_map(&mut entries)?;
                entries.end().map(|()| value)
            }
            plain => plain.deserialize_any(visitor),
        }
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0.as_str() {
            Some("NaN") => visitor.visit_f64(f64::NAN),
            Some("Infinity") => visitor.visit_f64(f64::INFINITY),
            Some("-Infinity") => visitor.visit_f64(f64::NEG_INFINITY),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
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
        match self.0 {
            Value::Object(entries) => {
                let entries = entries.into_iter().map(|(key, value)| (key, Special(value)));
                visitor.visit_enum(MapAccessDeserializer::new(MapDeserializer::new(entries)))
            }
            plain => plain.deserialize_enum(name, variants, visitor),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 char str string bytes byte_buf unit unit_struct seq tuple
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
    fn names_are_numbers_where_numbers_are_wanted() {
        #[derive(Debug, PartialEq, Deserialize)]
        enum Reading {
            Unknown,
            Exact(f64),
            Range { least: f64, most: Option<f32> },
        }
        // As Python's side writes them, and as anybody else may.
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
        assert!(list(r#"["NaN", 1]"#).to_serde::<Vec<(f64, f64)>>().is_err());
        assert!(list(r#"["NaN", "many"]"#).to_serde::<Vec<f64>>().is_err());
    }
}
