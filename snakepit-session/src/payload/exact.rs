//! Reads JSON with integers beyond 64 bits from its text. `serde_json` passes such an integer as a rounded float to a type without a
//! type hint, such as [`serde_json::Value`]. The deserializer here reports an error instead.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{
        DeserializeSeed, Error as _, IntoDeserializer, MapAccess, Visitor,
        value::{MapAccessDeserializer, MapDeserializer, SeqDeserializer},
    },
};
use serde_json::{Error, value::RawValue};

use super::{
    Payload,
    root::RootSeed,
    serde_form::{PAYLOAD, RAW_VALUE, pass},
    whole::{Key, visit_integer},
};
use crate::ValueType;

/// The number of digits from which an integer can exceed 64 bits.
const DIGITS: usize = 19;

/// The maximum depth of nested values, as in `serde_json`.
const MAX_DEPTH: u8 = 127;

impl Payload {
    /// Whether the value has no buffer and may contain an integer that exceeds 64 bits. [`read_exact`](Self::read_exact) does not
    /// round such integers.
    #[doc(hidden)]
    #[must_use]
    pub fn may_contain_large_integer(&self) -> bool {
        let is_candidate = matches!(self.ty, ValueType::Integer | ValueType::List | ValueType::Map);
        is_candidate && self.binary.is_none() && contains_large_integer(&self.json)
    }

    /// Deserializes the value, and rejects integers beyond 64 bits where the seed has no type hint. With `whole`, accepts integral
    /// floats for integers, as [`read_whole`](Self::read_whole) does.
    ///
    /// # Errors
    /// The value is malformed, or the seed rejects it.
    #[doc(hidden)]
    pub fn read_exact<'de, S: DeserializeSeed<'de>>(
        &'de self,
        seed: S,
        whole: bool,
    ) -> Result<S::Value, Error> {
        let raw: &RawValue = serde_json::from_slice(&self.json)?;
        RootSeed { payload: self, seed }.deserialize(ExactDeserializer { text: raw.get(), whole, depth: 0 })
    }
}

/// Whether JSON may contain an integer beyond 64 bits. Looks at every 19th byte, because the digits of such an integer include one of
/// them.
fn contains_large_integer(json: &[u8]) -> bool {
    let mut at = DIGITS - 1;
    while let Some(byte) = json.get(at) {
        if byte.is_ascii_digit() {
            let before = json[..at].iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
            let start = at - before;
            let end = start + json[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
            let is_fraction = start > 0 && json[start - 1] == b'.';
            let is_float = json.get(end).is_some_and(|byte| matches!(byte, b'.' | b'e' | b'E'));
            let sign = usize::from(start > 0 && json[start - 1] == b'-');
            if !is_fraction && !is_float && is_large_integer(&json[start - sign..end]) {
                return true;
            }
            at = end;
        }
        at += DIGITS;
    }
    false
}

/// Whether the text of a number is an integer that fits neither `i64` nor `u64`.
fn is_large_integer(number: &[u8]) -> bool {
    let text = str::from_utf8(number).unwrap_or_default();
    number.len() >= DIGITS
        && number.iter().all(|byte| byte.is_ascii_digit() || *byte == b'-')
        && text.parse::<i64>().is_err()
        && text.parse::<u64>().is_err()
}

/// The text of a value.
#[derive(Clone, Copy)]
struct ExactDeserializer<'a> {
    text: &'a str,
    whole: bool,
    depth: u8,
}

impl<'de> ExactDeserializer<'de> {
    fn plain(self) -> serde_json::Deserializer<serde_json::de::StrRead<'de>> {
        serde_json::Deserializer::from_str(self.text)
    }

    fn part(self, raw: &'de RawValue) -> Self {
        Self { text: raw.get(), depth: self.depth + 1, ..self }
    }

    fn check_depth(self) -> Result<(), Error> {
        if self.depth >= MAX_DEPTH { Err(Error::custom("recursion limit exceeded")) } else { Ok(()) }
    }

    fn starts_with(self, byte: u8) -> bool {
        self.text.as_bytes().first() == Some(&byte)
    }

    /// The value, if it is a number that is not written as an integer.
    fn float(self) -> Option<f64> {
        let is_number = self.text.starts_with(|first: char| first == '-' || first.is_ascii_digit());
        (is_number && self.text.contains(['.', 'e', 'E'])).then(|| self.text.parse().ok()).flatten()
    }

    fn visit_items<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.check_depth()?;
        let items: Vec<&RawValue> = serde_json::from_str(self.text)?;
        let mut items = SeqDeserializer::new(items.into_iter().map(|raw| self.part(raw)));
        let value = visitor.visit_seq(&mut items)?;
        items.end().map(|()| value)
    }

    fn entries(self) -> Result<impl Iterator<Item = (Key, Self)>, Error> {
        self.check_depth()?;
        let Entries(entries) = serde_json::from_str(self.text)?;
        Ok(entries.into_iter().map(move |(key, raw)| (Key(key), self.part(raw))))
    }

    fn visit_entries<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let mut entries = MapDeserializer::new(self.entries()?);
        let value = visitor.visit_map(&mut entries)?;
        entries.end().map(|()| value)
    }
}

/// The entries of an object, in their order.
struct Entries<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Entries<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor;

        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Entries<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }

        deserializer.deserialize_map(EntriesVisitor)
    }
}

impl<'de> IntoDeserializer<'de, Error> for ExactDeserializer<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

/// Passes integral floats as integers, if they are accepted.
macro_rules! integers {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            match self.float() {
                Some(number) if self.whole => visit_integer(number, visitor),
                _ => self.plain().$method(visitor),
            }
        })*
    };
}

macro_rules! plain {
    ($($method:ident($($argument:ident: $ty:ty),*))*) => {
        $(fn $method<V: Visitor<'de>>(self, $($argument: $ty,)* visitor: V) -> Result<V::Value, Error> {
            self.plain().$method($($argument,)* visitor)
        })*
    };
}

impl<'de> Deserializer<'de> for ExactDeserializer<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.text.as_bytes().first() {
            Some(b'[') => self.visit_items(visitor),
            Some(b'{') => self.visit_entries(visitor),
            _ if is_large_integer(self.text.as_bytes()) => {
                let mut shown: String = self.text.chars().take(40).collect();
                if shown.len() < self.text.len() {
                    shown.push_str("..");
                }
                Err(Error::custom(format!(
                    "the integer {shown} exceeds 64 bits, so a JSON value would round it; take it as `i128`, `f64` or `Payload`"
                )))
            }
            // As an integer, -0.0 would lose its sign.
            _ => match self.float() {
                Some(number) if self.whole && number != 0.0 => visit_integer(number, visitor),
                _ => self.plain().deserialize_any(visitor),
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
        if self.starts_with(b'"') {
            let text: String = serde_json::from_str(self.text)?;
            return match &*text {
                "NaN" => visitor.visit_f64(f64::NAN),
                "Infinity" => visitor.visit_f64(f64::INFINITY),
                "-Infinity" => visitor.visit_f64(f64::NEG_INFINITY),
                _ => visitor.visit_string(text),
            };
        }
        self.plain().deserialize_f64(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.text == "null" { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        match name {
            PAYLOAD => {
                let payload = Payload::with_base64(self.text);
                pass(payload.map_err(|problem| Error::custom(format!("it {problem}")))?, visitor)
            }
            RAW_VALUE => self.plain().deserialize_newtype_struct(name, visitor),
            _ => visitor.visit_newtype_struct(self),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        if !self.starts_with(b'{') {
            return self.plain().deserialize_enum(name, variants, visitor);
        }
        let entries: Vec<_> = self.entries()?.collect();
        if entries.len() != 1 {
            return Err(Error::custom("an enum takes a map with a single key"));
        }
        visitor.visit_enum(MapAccessDeserializer::new(MapDeserializer::new(entries.into_iter())))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_any(visitor)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_any(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_any(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_any(visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_any(visitor)
    }

    plain! {
        deserialize_bool()
        deserialize_char()
        deserialize_str()
        deserialize_string()
        deserialize_bytes()
        deserialize_byte_buf()
        deserialize_unit()
        deserialize_unit_struct(name: &'static str)
        deserialize_identifier()
        deserialize_ignored_any()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, marker::PhantomData};

    use serde::de::DeserializeOwned;
    use serde_json::Value;

    use super::*;

    const LARGE: &str = "18446744073709551616";

    fn read<T: DeserializeOwned>(json: &str) -> Result<T, String> {
        let payload = Payload::of_json(json.to_owned().into());
        payload.read_exact(PhantomData::<T>, true).map_err(|error| error.to_string())
    }

    #[test]
    fn finds_integers_beyond_64_bits() {
        for (json, expected) in [
            (LARGE.to_owned(), true),
            ("18446744073709551615".to_owned(), false),
            ("-9223372036854775808".to_owned(), false),
            ("-9223372036854775809".to_owned(), true),
            (format!("{LARGE}.5"), false),
            (format!("{LARGE}e3"), false),
            (format!("0.{LARGE}"), false),
            (format!("[0.5,{LARGE}]"), true),
            (format!(r#"{{"a": [1, 2, {{"b": -{LARGE}}}]}}"#), true),
            ("[1, 2, 3]".repeat(100), false),
        ] {
            assert_eq!(contains_large_integer(json.as_bytes()), expected, "{json}");
            let shifted = (0..DIGITS).all(|n| {
                let json = format!("{}{json}{}", " ".repeat(n), " ".repeat(DIGITS - n));
                contains_large_integer(json.as_bytes()) == expected
            });
            assert!(shifted, "{json}");
        }
        assert!(!Payload::of_json("\"18446744073709551616\"".into()).may_contain_large_integer());
    }

    #[test]
    fn only_types_without_a_hint_reject_large_integers() {
        let error = read::<Value>(LARGE).unwrap_err();
        assert!(error.contains("18446744073709551616 exceeds 64 bits"), "{error}");
        assert!(read::<Vec<Value>>(&format!("[1, {LARGE}]")).is_err());
        assert!(read::<BTreeMap<String, Value>>(&format!(r#"{{"a": [{LARGE}]}}"#)).is_err());
        assert!(read::<Value>(&"9".repeat(4300)).unwrap_err().len() < 200);

        assert_eq!(read::<i128>(LARGE), Ok(18_446_744_073_709_551_616));
        assert_eq!(
            read::<(f64, Option<i128>)>(&format!("[{LARGE}, -{LARGE}]")).unwrap().1,
            Some(-(1_i128 << 64))
        );
        let payload = read::<Vec<Payload>>(&format!("[{LARGE}]")).unwrap().remove(0);
        assert_eq!(&payload.json()[..], LARGE.as_bytes());
    }

    #[test]
    fn other_parts_of_the_value_read_as_usual() {
        #[derive(Debug, PartialEq, Deserialize)]
        enum Kind {
            Plain,
            With { count: u8, factor: f64 },
        }
        type Parts = (i128, Vec<Kind>, Option<bool>, Value, (f64, i64));
        let json = format!(
            r#"[{LARGE}, ["Plain", {{"With": {{"count": 2.0, "factor": "NaN"}}}}], null, {{"a": ["x\n", 1.5]}}, ["-Infinity", 3.0]]"#
        );
        let (large, kinds, none, value, numbers) = read::<Parts>(&json).unwrap();
        assert_eq!((large, none), (1 << 64, None));
        assert!(
            matches!(&kinds[..], [Kind::Plain, Kind::With { count: 2, factor }] if factor.is_nan()),
            "{kinds:?}"
        );
        assert_eq!(value, serde_json::json!({"a": ["x\n", 1.5]}));
        assert_eq!(numbers, (f64::NEG_INFINITY, 3));
        let deep = format!("{}{LARGE}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(read::<Value>(&deep).unwrap_err().contains("recursion limit"));
    }
}
