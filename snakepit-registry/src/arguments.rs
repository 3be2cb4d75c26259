//! Arguments as one serde value: a map whose entries are read straight from each payload's own bytes.

use serde::{
    Deserializer,
    de::{DeserializeOwned, IntoDeserializer, MapAccess, Visitor},
    forward_to_deserialize_any,
};
use snakepit_session::Payload;

use crate::{Arguments, ToolError};

/// Reads all arguments into a Rust value.
///
/// # Errors
/// [`ToolError::InvalidArgument`], naming the argument where serde can tell which it was.
pub(crate) fn from_arguments<A: DeserializeOwned>(tool: &str, arguments: &Arguments) -> Result<A, ToolError> {
    let mut current = None;
    A::deserialize(ArgumentsDeserializer { arguments, current: &mut current }).map_err(|error| {
        let problem = format!("does not fit: {error}");
        // What fails between two arguments concerns all of them: one is missing, or the whole shape is another.
        let argument = current
            .map_or_else(|| quoted(&error.to_string()).unwrap_or("arguments").to_owned(), str::to_owned);
        ToolError::InvalidArgument { tool: tool.to_owned(), argument, problem }
    })
}

/// The first name in backticks, as in "missing field `x`".
fn quoted(text: &str) -> Option<&str> {
    text.split('`').nth(1)
}

struct ArgumentsDeserializer<'a, 'c> {
    arguments: &'a Arguments,
    current: &'c mut Option<&'a str>,
}

impl<'de, 'a: 'de> Deserializer<'de> for ArgumentsDeserializer<'a, '_> {
    type Error = serde_json::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_map(Entries { entries: self.arguments.iter(), value: None, current: self.current })
    }

    /// A tool without arguments takes `()`.
    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        if self.arguments.is_empty() { visitor.visit_unit() } else { self.deserialize_any(visitor) }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        if self.arguments.is_empty() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit_struct seq tuple
        tuple_struct map struct enum identifier ignored_any
    }
}

struct Entries<'a, 'c> {
    entries: std::collections::btree_map::Iter<'a, String, Payload>,
    value: Option<&'a Payload>,
    current: &'c mut Option<&'a str>,
}

impl<'de, 'a: 'de> MapAccess<'de> for Entries<'a, '_> {
    type Error = serde_json::Error;

    fn next_key_seed<K: serde::de::DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Self::Error> {
        let Some((name, value)) = self.entries.next() else {
            *self.current = None;
            return Ok(None);
        };
        *self.current = Some(name);
        self.value = Some(value);
        seed.deserialize(name.as_str().into_deserializer()).map(Some)
    }

    fn next_value_seed<V: serde::de::DeserializeSeed<'de>>(
        &mut self,
        seed: V,
    ) -> Result<V::Value, Self::Error> {
        let value = self.value.take().ok_or_else(|| serde::de::Error::custom("a value without its key"))?;
        let result = match value.binary() {
            Some(buffer) => seed.deserialize(serde::de::value::BytesDeserializer::new(buffer)),
            None => {
                let mut json = serde_json::Deserializer::from_slice(value.json());
                seed.deserialize(&mut json).and_then(|value| json.end().map(|()| value))
            }
        }?;
        *self.current = None;
        Ok(result)
    }
}
