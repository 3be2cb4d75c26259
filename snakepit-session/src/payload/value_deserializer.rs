//! [`ValueDeserializer`]: reads JSON in which strings stand for NaN and infinities, floats for integers, and envelopes for bytes and
//! arrays.

use std::borrow::Cow;

use bytes::Bytes;
use serde::{
    Deserialize as _, Deserializer,
    de::{
        DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor,
        value::{MapAccessDeserializer, SeqDeserializer},
    },
};
use serde_json::{Error, Value};

use super::{
    ValueType,
    array::ArrayMetadata,
    cursor::Cursor,
    envelopes::{Content, Envelopes, may_have_envelope},
    nested::{self, Envelope},
    serde_form::{self, PAYLOAD, RAW_VALUE},
    whole::{Key, visit_integer},
};

/// Whether the JSON may contain an envelope, or the name of NaN or an infinity, with or without an escaped first letter.
pub(super) fn may_contain(json: &[u8]) -> bool {
    let contains = |text: &[u8]| memchr::memmem::find(json, text).is_some();
    contains(br#"aN""#) || contains(br#"nfinity""#) || may_have_envelope(json)
}

/// The representation of values for `deserialize_any`, which has no type hint.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct AnyOptions {
    /// 5.0 is an integer, and bytes are a map with base64.
    pub(super) whole: bool,
    /// An integer beyond 64 bits is an error instead of a rounded float.
    pub(super) exact: bool,
}

/// Deserializes JSON. If the caller requests a number, `"NaN"` and the like are read as numbers. If it requests an integer, 5.0 is
/// read as one. Envelopes refer to `buffers`.
///
/// `any_options` applies to visitors without a type hint, such as the visitors of flattened structs and untagged enums.
///
/// A payload inside the value gets its text, so numbers of any size stay exact.
pub(super) fn read<'de, S: DeserializeSeed<'de>>(
    json: &'de [u8],
    seed: S,
    any_options: AnyOptions,
    buffers: &'de Bytes,
) -> Result<S::Value, Error> {
    let envelopes = if may_have_envelope(json) {
        Envelopes::checked(json, buffers.len()).map_err(|problem| Error::custom(format!("it {problem}")))?
    } else {
        Envelopes::default()
    };
    let mut reader =
        ValueDeserializer { cursor: Cursor::new(json), envelopes: &envelopes, any_options, buffers };
    let value = seed.deserialize(&mut reader)?;
    // A payload is passed on without being read.
    if reader.cursor.at() > 0 {
        reader.cursor.end()?;
    }
    Ok(value)
}

/// Deserializes the value at the place of a cursor.
struct ValueDeserializer<'a, 'de> {
    cursor: Cursor<'de>,
    envelopes: &'a Envelopes,
    any_options: AnyOptions,
    buffers: &'de Bytes,
}

impl<'de> ValueDeserializer<'_, 'de> {
    /// Returns the bytes or array whose envelope is here, and moves behind it.
    fn buffer(&mut self) -> Result<Option<BufferDeserializer<'de>>, Error> {
        if self.cursor.peek() != Some(b'{') {
            return Ok(None);
        }
        let Some(found) = self.envelopes.at(self.cursor.at()) else { return Ok(None) };
        if matches!(found.content, Content::Map { .. }) {
            return Ok(None);
        }
        let json = &self.cursor.json()[found.text.clone()];
        let envelope =
            Envelope::read(json, self.buffers).map_err(|problem| Error::custom(format!("it {problem}")))?;
        self.cursor.jump(found.text.end);
        Ok(Some(BufferDeserializer { envelope, whole: self.any_options.whole }))
    }

    fn visit_list<V: Visitor<'de>>(&mut self, visitor: V) -> Result<V::Value, Error> {
        self.cursor.open(b'[')?;
        let value = visitor.visit_seq(Items { reader: self, is_first: true })?;
        self.cursor.close(b']')?;
        Ok(value)
    }

    fn visit_map<V: Visitor<'de>>(&mut self, visitor: V) -> Result<V::Value, Error> {
        if let Some(found) = self.envelopes.at(self.cursor.at())
            && let Content::Map { items } = found.content
        {
            let end = found.text.end;
            self.cursor.open(b'{')?;
            self.cursor.jump(items);
            self.cursor.open(b'[')?;
            let value = visitor.visit_map(EscapedEntries { reader: self, is_first: true })?;
            self.cursor.close(b']')?;
            // Other keys of the envelope have no meaning.
            self.cursor.jump(end);
            self.cursor.leave();
            return Ok(value);
        }
        self.cursor.open(b'{')?;
        let value = visitor.visit_map(Entries { reader: self, is_first: true })?;
        self.cursor.close(b'}')?;
        Ok(value)
    }

    /// Passes the value in the form that its JSON has. `exact` rejects integers beyond 64 bits.
    fn visit<V: Visitor<'de>>(&mut self, exact: bool, visitor: V) -> Result<V::Value, Error> {
        match self.cursor.peek() {
            Some(b'{') => match self.buffer()? {
                Some(buffer) => buffer.deserialize_any(visitor),
                None => self.visit_map(visitor),
            },
            Some(b'[') => self.visit_list(visitor),
            Some(b'"') => match self.cursor.string()? {
                Cow::Borrowed(text) => visitor.visit_borrowed_str(text),
                Cow::Owned(text) => visitor.visit_string(text),
            },
            _ if self.cursor.is_at_number() => {
                let number = self.cursor.number()?;
                match number.integer() {
                    Some(Ok(number)) => visitor.visit_u64(number),
                    Some(Err(number)) => visitor.visit_i64(number),
                    None if exact && number.is_integral() => Err(inexact(number.text())),
                    // As an integer, -0.0 would lose its sign.
                    None => match number.float()? {
                        number if self.any_options.whole && number != 0.0 => visit_integer(number, visitor),
                        number => visitor.visit_f64(number),
                    },
                }
            }
            _ => match self.cursor.name()? {
                Some(flag) => visitor.visit_bool(flag),
                None => visitor.visit_unit(),
            },
        }
    }

    /// Passes an integer of the requested type to the visitor.
    fn visit_integer<V: Visitor<'de>>(&mut self, visitor: V) -> Result<V::Value, Error> {
        if !self.cursor.is_at_number() {
            return self.visit(false, visitor);
        }
        let number = self.cursor.number()?;
        match number.integer() {
            Some(Ok(number)) => visitor.visit_u64(number),
            Some(Err(number)) => visitor.visit_i64(number),
            None if number.is_integral() => match number.text().parse() {
                Ok(number) => visitor.visit_i128(number),
                Err(_) => match number.text().parse() {
                    Ok(number) => visitor.visit_u128(number),
                    Err(_) => visitor.visit_f64(number.float()?),
                },
            },
            None => visit_integer(number.float()?, visitor),
        }
    }
}

#[cold]
fn inexact(number: &str) -> Error {
    let mut shown: String = number.chars().take(40).collect();
    if shown.len() < number.len() {
        shown.push_str("..");
    }
    Error::custom(format!(
        "the integer {shown} exceeds 64 bits, so a JSON value would round it; take it as `i128`, `f64` or `Payload`"
    ))
}

macro_rules! integers {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            self.visit_integer(visitor)
        })*
    };
}

/// Types for which the form of the JSON suffices. A number does not have these types, so the visitor rejects it.
macro_rules! hinted {
    ($($method:ident($($argument:ident: $ty:ty),*))*) => {
        $(fn $method<V: Visitor<'de>>(self, $(_: $ty,)* visitor: V) -> Result<V::Value, Error> {
            self.visit(false, visitor)
        })*
    };
}

impl<'de> Deserializer<'de> for &mut ValueDeserializer<'_, 'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.visit(self.any_options.exact, visitor)
    }

    integers! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128 deserialize_u8 deserialize_u16
        deserialize_u32 deserialize_u64 deserialize_u128
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.cursor.peek() != Some(b'"') {
            return self.visit(false, visitor);
        }
        let text = self.cursor.string()?;
        match &*text {
            "NaN" => visitor.visit_f64(f64::NAN),
            "Infinity" => visitor.visit_f64(f64::INFINITY),
            "-Infinity" => visitor.visit_f64(f64::NEG_INFINITY),
            _ => visitor.visit_str(&text),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.cursor.peek() != Some(b'n') {
            return visitor.visit_some(self);
        }
        self.cursor.name()?;
        visitor.visit_none()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        match name {
            PAYLOAD => {
                let text = self.cursor.skip()?;
                let part = nested::part_at(self.cursor.json(), &text, self.envelopes, self.buffers);
                serde_form::pass(part, visitor)
            }
            RAW_VALUE => {
                let text = self.cursor.skip()?;
                serde_json::Deserializer::from_slice(&self.cursor.json()[text])
                    .deserialize_newtype_struct(RAW_VALUE, visitor)
            }
            _ => visitor.visit_newtype_struct(self),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.cursor.peek() {
            Some(b'{') => {
                self.cursor.open(b'{')?;
                let entries = Entries { reader: &mut *self, is_first: true };
                let value = visitor.visit_enum(MapAccessDeserializer::new(entries))?;
                self.cursor.close(b'}')?;
                Ok(value)
            }
            Some(b'"') => {
                let text = self.cursor.string()?.into_owned();
                Value::String(text).deserialize_enum(name, variants, visitor)
            }
            _ => self.visit(false, visitor),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.buffer()? {
            Some(buffer) => buffer.deserialize_seq(visitor),
            None => self.visit(false, visitor),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.buffer()? {
            Some(buffer) => buffer.visit_bytes(visitor),
            None => self.visit(false, visitor),
        }
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.cursor.skip()?;
        visitor.visit_unit()
    }

    hinted! {
        deserialize_bool()
        deserialize_char()
        deserialize_str()
        deserialize_string()
        deserialize_unit()
        deserialize_unit_struct(name: &'static str)
        deserialize_tuple_struct(name: &'static str, length: usize)
        deserialize_map()
        deserialize_struct(name: &'static str, fields: &'static [&'static str])
        deserialize_identifier()
    }
}

/// The items of a list.
struct Items<'r, 'a, 'de> {
    reader: &'r mut ValueDeserializer<'a, 'de>,
    is_first: bool,
}

impl<'de> SeqAccess<'de> for Items<'_, '_, 'de> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        if !self.reader.cursor.has_next(b']', &mut self.is_first)? {
            return Ok(None);
        }
        seed.deserialize(&mut *self.reader).map(Some)
    }
}

/// The entries of a map.
struct Entries<'r, 'a, 'de> {
    reader: &'r mut ValueDeserializer<'a, 'de>,
    is_first: bool,
}

impl<'de> MapAccess<'de> for Entries<'_, '_, 'de> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let cursor = &mut self.reader.cursor;
        if !cursor.has_next(b'}', &mut self.is_first)? {
            return Ok(None);
        }
        let key = cursor.string()?.into_owned();
        cursor.expect(b':')?;
        seed.deserialize(Key(key)).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Error> {
        seed.deserialize(&mut *self.reader)
    }
}

/// The entries of a map with the envelope key: a list of key-value pairs.
struct EscapedEntries<'r, 'a, 'de> {
    reader: &'r mut ValueDeserializer<'a, 'de>,
    is_first: bool,
}

impl<'de> MapAccess<'de> for EscapedEntries<'_, '_, 'de> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let cursor = &mut self.reader.cursor;
        if !cursor.has_next(b']', &mut self.is_first)? {
            return Ok(None);
        }
        cursor.open(b'[')?;
        let key = cursor.string()?.into_owned();
        cursor.expect(b',')?;
        seed.deserialize(Key(key)).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Error> {
        let value = seed.deserialize(&mut *self.reader)?;
        self.reader.cursor.close(b']')?;
        Ok(value)
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
