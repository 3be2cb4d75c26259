//! Integers beyond 64 bits. `serde_json` passes such an integer as a rounded float to a type without a type hint, such as
//! [`serde_json::Value`]. [`Payload::read_exact`] reports an error instead.

use serde::de::DeserializeSeed;
use serde_json::Error;

use super::{Payload, value_deserializer::AnyOptions};
use crate::ValueType;

/// The number of digits from which an integer can exceed 64 bits.
const DIGITS: usize = 19;

impl Payload {
    /// Whether the value may contain an integer that exceeds 64 bits. [`read_exact`](Self::read_exact) does not round such integers.
    #[doc(hidden)]
    #[must_use]
    pub fn may_contain_large_integer(&self) -> bool {
        let json = match &self.binary {
            None if matches!(self.ty, ValueType::Integer | ValueType::List | ValueType::Map) => {
                Some(&self.json[..])
            }
            None => None,
            Some(_) => self.nested_json(),
        };
        json.is_some_and(contains_large_integer)
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
        self.read_with(seed, AnyOptions { whole, exact: true })
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

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, marker::PhantomData};

    use bytes::Bytes;
    use serde::{Deserialize, de::DeserializeOwned};
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
    fn envelopes_next_to_a_large_integer_read_as_usual() {
        type Parts = (i128, BTreeMap<String, u8>, Bytes);
        let json = format!(
            r#"[{LARGE}, {{"__snakepit__":"map","items":[["__snakepit__",1]]}}, {{"__snakepit__":"bytes","data":"AP8="}}]"#
        );
        let expected =
            (1 << 64, BTreeMap::from([("__snakepit__".to_owned(), 1)]), Bytes::from_static(b"\x00\xff"));
        assert_eq!(read::<Parts>(&json), Ok(expected));

        let nested = Payload::try_from_serde(&(1_i128 << 64, Bytes::from_static(b"ab"))).unwrap();
        assert!(nested.may_contain_large_integer());
        let error = nested.read_exact(PhantomData::<(Value, Bytes)>, true).unwrap_err().to_string();
        assert!(error.contains("18446744073709551616 exceeds 64 bits"), "{error}");
        let (large, bytes): (i128, Bytes) = nested.read_exact(PhantomData, true).unwrap();
        assert_eq!((large, &bytes[..]), (1 << 64, &b"ab"[..]));
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
        assert!(read::<Value>(&deep).unwrap_err().contains("deeper than 127 levels"));
    }
}
