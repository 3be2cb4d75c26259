//! Serializes values to JSON that every reader accepts: NaN and infinities as marked strings, and at most 127 levels.

use std::cell::RefCell;

use serde::{
    Serialize, Serializer,
    ser::{
        Error as _, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
        SerializeTupleStruct, SerializeTupleVariant,
    },
};
use serde_json::{Error, value::RawValue};

use super::{
    Payload, ValueType,
    envelopes::Envelopes,
    nested,
    serde_form::{self, PAYLOAD},
};

/// The maximum number of nested lists and maps. Readers accept as many, and Python tools may return as many.
pub(super) const MAX_LEVELS: u8 = 127;

/// The strings for floats without a JSON number. An escaped letter distinguishes them from text: no JSON writer escapes it by
/// default, and every reader decodes it to the same string. Python writes the same ones.
const NAN: &str = r#""\u004eaN""#;
const INFINITY: &str = r#""\u0049nfinity""#;
const NEGATIVE_INFINITY: &str = r#""-\u0049nfinity""#;

/// Returns the number that a marked string stands for.
pub(super) fn marked(json: &[u8]) -> Option<f64> {
    match json {
        _ if json.len() > NEGATIVE_INFINITY.len() => None,
        _ if json == NAN.as_bytes() => Some(f64::NAN),
        _ if json == INFINITY.as_bytes() => Some(f64::INFINITY),
        _ if json == NEGATIVE_INFINITY.as_bytes() => Some(f64::NEG_INFINITY),
        _ => None,
    }
}

/// Returns the marked string for a float without a JSON number.
pub(super) const fn mark(number: f64) -> Option<&'static str> {
    match number {
        _ if number.is_nan() => Some(NAN),
        f64::INFINITY => Some(INFINITY),
        f64::NEG_INFINITY => Some(NEGATIVE_INFINITY),
        _ => None,
    }
}

/// The buffers of a value. `None` before the first one.
type Buffers = RefCell<Option<Vec<u8>>>;

/// Serializes a value to JSON and its buffers.
pub(super) fn to_json<T: Serialize + ?Sized>(value: &T) -> Result<(Vec<u8>, Option<Vec<u8>>), Error> {
    let (mut json, buffers) = (Vec::with_capacity(64), Buffers::default());
    Part { value, levels: 0, buffers: &buffers }.serialize(&mut serde_json::Serializer::new(&mut json))?;
    let buffers = buffers.into_inner();
    if let Some(buffers) = &buffers {
        // A map of the program could look like an envelope.
        Envelopes::checked(&json, buffers.len()).map_err(|problem| Error::custom(format!("it {problem}")))?;
    }
    Ok((json, buffers))
}

/// The alignment of arrays in the buffers of a value, which suffices for all types of items.
const ARRAY_ALIGNMENT: usize = 8;

/// Adds a buffer. Returns its offset.
fn add(buffers: &Buffers, buffer: &[u8], alignment: usize) -> usize {
    let mut buffers = buffers.borrow_mut();
    let buffers = buffers.get_or_insert_default();
    let offset = buffers.len().next_multiple_of(alignment);
    buffers.resize(offset, 0);
    buffers.extend_from_slice(buffer);
    offset
}

/// The JSON of a payload with a buffer, which refers to a copy in `buffers`.
fn reference(payload: &Payload, buffers: &Buffers) -> Result<Box<RawValue>, Error> {
    let buffer = payload.binary().map_or(&[][..], |buffer| buffer);
    let json = match payload.nested_json() {
        Some(inner) => {
            let envelopes = Envelopes::checked(inner, buffer.len());
            let envelopes = envelopes.map_err(|problem| Error::custom(format!("it {problem}")))?;
            let mut json = Vec::with_capacity(inner.len() + 64);
            let base = add(buffers, buffer, ARRAY_ALIGNMENT);
            nested::move_offsets(inner, &(0..inner.len()), envelopes.all(), base, &mut json);
            json
        }
        None => {
            let alignment = if payload.ty() == ValueType::Bytes { 1 } else { ARRAY_ALIGNMENT };
            let offset = add(buffers, buffer, alignment);
            nested::envelope_of(payload.ty(), payload.json(), offset, buffer.len())
        }
    };
    RawValue::from_string(String::from_utf8(json).map_err(Error::custom)?)
}

impl Payload {
    /// The JSON of the value as a part of another value, or of a stream. It differs from [`json`](Self::json) for NaN and
    /// infinities, which only their type distinguishes from text.
    #[doc(hidden)]
    #[must_use]
    pub fn json_part(&self) -> bytes::Bytes {
        let is_text = self.ty == ValueType::Float && self.json.starts_with(b"\"");
        match self.to_float().filter(|_| is_text).and_then(mark) {
            Some(mark) => bytes::Bytes::from_static(mark.as_bytes()),
            None => self.json.clone(),
        }
    }
}

/// A value that is nested in this many lists and maps.
struct Part<'a, T: ?Sized> {
    value: &'a T,
    levels: u8,
    buffers: &'a Buffers,
}

impl<T: Serialize + ?Sized> Serialize for Part<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value.serialize(Writer { inner: serializer, levels: self.levels, buffers: self.buffers })
    }
}

/// A serializer that marks floats without a JSON number, collects buffers and counts levels. The inner serializer does the rest.
struct Writer<'a, S> {
    inner: S,
    levels: u8,
    buffers: &'a Buffers,
}

impl<'a, S: Serializer> Writer<'a, S> {
    /// Opens a list or map.
    fn open<T>(self, open: impl FnOnce(S) -> Result<T, S::Error>) -> Result<Writer<'a, T>, S::Error> {
        if self.levels == MAX_LEVELS {
            return Err(S::Error::custom(format_args!(
                "it is nested deeper than {MAX_LEVELS} levels; return a flatter structure"
            )));
        }
        Ok(Writer { inner: open(self.inner)?, levels: self.levels + 1, buffers: self.buffers })
    }

    /// Opens the content of a variant, which is inside a map with the name of the variant.
    fn open_variant<T>(
        mut self,
        open: impl FnOnce(S) -> Result<T, S::Error>,
    ) -> Result<Writer<'a, T>, S::Error> {
        self.levels = (self.levels + 1).min(MAX_LEVELS);
        self.open(open)
    }
}

macro_rules! forward {
    ($($method:ident($($argument:ident: $ty:ty),*);)*) => {
        $(fn $method(self, $($argument: $ty),*) -> Result<S::Ok, S::Error> {
            self.inner.$method($($argument),*)
        })*
    };
}

impl<'a, S: Serializer> Serializer for Writer<'a, S> {
    type Ok = S::Ok;
    type Error = S::Error;
    type SerializeSeq = Writer<'a, S::SerializeSeq>;
    type SerializeTuple = Writer<'a, S::SerializeTuple>;
    type SerializeTupleStruct = Writer<'a, S::SerializeTupleStruct>;
    type SerializeTupleVariant = Writer<'a, S::SerializeTupleVariant>;
    type SerializeMap = Writer<'a, S::SerializeMap>;
    type SerializeStruct = Writer<'a, S::SerializeStruct>;
    type SerializeStructVariant = Writer<'a, S::SerializeStructVariant>;

    forward! {
        serialize_bool(v: bool);
        serialize_i8(v: i8);
        serialize_i16(v: i16);
        serialize_i32(v: i32);
        serialize_i64(v: i64);
        serialize_i128(v: i128);
        serialize_u8(v: u8);
        serialize_u16(v: u16);
        serialize_u32(v: u32);
        serialize_u64(v: u64);
        serialize_u128(v: u128);
        serialize_char(v: char);
        serialize_str(v: &str);
        serialize_none();
        serialize_unit();
        serialize_unit_struct(name: &'static str);
        serialize_unit_variant(name: &'static str, index: u32, variant: &'static str);
    }

    fn serialize_f32(self, v: f32) -> Result<S::Ok, S::Error> {
        // An f64 would have more digits in its text.
        if v.is_finite() { self.inner.serialize_f32(v) } else { self.serialize_f64(v.into()) }
    }

    fn serialize_f64(self, v: f64) -> Result<S::Ok, S::Error> {
        match mark(v) {
            Some(mark) => {
                serde_json::from_str::<&RawValue>(mark).map_err(S::Error::custom)?.serialize(self.inner)
            }
            None => self.inner.serialize_f64(v),
        }
    }

    fn serialize_bytes(self, v: &[u8]) -> Result<S::Ok, S::Error> {
        let mut envelope = self.inner.serialize_map(Some(3))?;
        let offset = add(self.buffers, v, 1);
        envelope.serialize_entry(nested::KEY, "bytes")?;
        envelope.serialize_entry("offset", &offset)?;
        envelope.serialize_entry("length", &v.len())?;
        envelope.end()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<S::Ok, S::Error> {
        self.inner.serialize_some(&Part { value, levels: self.levels, buffers: self.buffers })
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        if name == PAYLOAD
            && let Some(payload) = serde_form::take()
        {
            return reference(&payload, self.buffers).map_err(S::Error::custom)?.serialize(self.inner);
        }
        self.inner.serialize_newtype_struct(name, &Part { value, levels: self.levels, buffers: self.buffers })
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        let Writer { inner, levels, buffers } = self.open(Ok)?;
        inner.serialize_newtype_variant(name, index, variant, &Part { value, levels, buffers })
    }

    fn serialize_seq(self, len: Option<usize>) -> Result<Self::SerializeSeq, S::Error> {
        self.open(|inner| inner.serialize_seq(len))
    }

    fn serialize_tuple(self, len: usize) -> Result<Self::SerializeTuple, S::Error> {
        self.open(|inner| inner.serialize_tuple(len))
    }

    fn serialize_tuple_struct(
        self,
        name: &'static str,
        len: usize,
    ) -> Result<Self::SerializeTupleStruct, S::Error> {
        self.open(|inner| inner.serialize_tuple_struct(name, len))
    }

    fn serialize_tuple_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Self::SerializeTupleVariant, S::Error> {
        self.open_variant(|inner| inner.serialize_tuple_variant(name, index, variant, len))
    }

    fn serialize_map(self, len: Option<usize>) -> Result<Self::SerializeMap, S::Error> {
        self.open(|inner| inner.serialize_map(len))
    }

    fn serialize_struct(self, name: &'static str, len: usize) -> Result<Self::SerializeStruct, S::Error> {
        self.open(|inner| inner.serialize_struct(name, len))
    }

    fn serialize_struct_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Self::SerializeStructVariant, S::Error> {
        self.open_variant(|inner| inner.serialize_struct_variant(name, index, variant, len))
    }

    fn collect_str<T: std::fmt::Display + ?Sized>(self, value: &T) -> Result<S::Ok, S::Error> {
        self.inner.collect_str(value)
    }

    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

macro_rules! compound_of_items {
    ($($compound:ident::$method:ident)*) => {
        $(impl<C: $compound> $compound for Writer<'_, C> {
            type Ok = C::Ok;
            type Error = C::Error;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), C::Error> {
                self.inner.$method(&Part { value, levels: self.levels, buffers: self.buffers })
            }

            fn end(self) -> Result<C::Ok, C::Error> {
                self.inner.end()
            }
        })*
    };
}

compound_of_items! {
    SerializeSeq::serialize_element
    SerializeTuple::serialize_element
    SerializeTupleStruct::serialize_field
    SerializeTupleVariant::serialize_field
}

macro_rules! compound_of_fields {
    ($($compound:ident)*) => {
        $(impl<C: $compound> $compound for Writer<'_, C> {
            type Ok = C::Ok;
            type Error = C::Error;

            fn serialize_field<T: Serialize + ?Sized>(
                &mut self,
                key: &'static str,
                value: &T,
            ) -> Result<(), C::Error> {
                self.inner.serialize_field(key, &Part { value, levels: self.levels, buffers: self.buffers })
            }

            fn skip_field(&mut self, key: &'static str) -> Result<(), C::Error> {
                self.inner.skip_field(key)
            }

            fn end(self) -> Result<C::Ok, C::Error> {
                self.inner.end()
            }
        })*
    };
}

compound_of_fields! { SerializeStruct SerializeStructVariant }

impl<C: SerializeMap> SerializeMap for Writer<'_, C> {
    type Ok = C::Ok;
    type Error = C::Error;

    /// JSON keys are strings, so the inner serializer converts or rejects them.
    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), C::Error> {
        self.inner.serialize_key(key)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), C::Error> {
        self.inner.serialize_value(&Part { value, levels: self.levels, buffers: self.buffers })
    }

    fn end(self) -> Result<C::Ok, C::Error> {
        self.inner.end()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;
    use serde_json::{Value, json};

    use super::*;
    use crate::error_chain;

    #[derive(Debug, Serialize, Deserialize)]
    enum Reading {
        Unknown,
        Exact(f64),
        Pair(f64, f32),
        Range { least: f64, most: Option<f32> },
    }

    #[derive(Debug, Serialize, Deserialize)]
    struct Wrapped(f64);

    #[test]
    fn nan_and_infinities_are_marked_at_any_depth() {
        let readings = [
            Reading::Unknown,
            Reading::Exact(f64::NAN),
            Reading::Pair(f64::INFINITY, f32::NEG_INFINITY),
            Reading::Range { least: f64::NEG_INFINITY, most: Some(f32::NAN) },
        ];
        let payload = Payload::try_from_serde(&readings).unwrap();
        let text = str::from_utf8(payload.json()).unwrap();
        let expected = r#"["Unknown",{"Exact":"\u004eaN"},{"Pair":["\u0049nfinity","-\u0049nfinity"]},{"Range":{"least":"-\u0049nfinity","most":"\u004eaN"}}]"#;
        assert_eq!(text, expected);
        let back: Vec<Reading> = payload.to_serde().unwrap();
        assert!(matches!(back[1], Reading::Exact(number) if number.is_nan()), "{back:?}");
        assert!(matches!(back[3], Reading::Range { least: f64::NEG_INFINITY, .. }), "{back:?}");

        for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let payload = Payload::try_from_serde(&Some(Wrapped(number))).unwrap();
            assert_eq!((payload.ty(), &payload), (ValueType::Float, &Payload::float(number)));
            assert_eq!(payload.to_serde::<Wrapped>().unwrap().0.to_bits(), number.to_bits());
            // As a part of another value, or a chunk of a stream, it is marked.
            let parts = Payload::try_from_serde(&[&payload]).unwrap();
            assert_eq!(&parts.json()[1..parts.json().len() - 1], &payload.json_part()[..]);
            assert_eq!(Payload::of_json(payload.json_part()), payload);
        }
        let text = Payload::try_from_serde("NaN").unwrap();
        assert_eq!((text.ty(), &text.json_part()[..]), (ValueType::String, &br#""NaN""#[..]));
    }

    #[test]
    fn other_values_are_those_of_serde_json() {
        let raw: Box<RawValue> = serde_json::from_str("123456789012345678901234567890").unwrap();
        let value = (
            json!({"a": [1, -2, 0.5, "x\n", null, true, {}, []]}),
            (i128::MIN, u64::MAX, 0.1_f32, 'c', ()),
            (raw, BTreeMap::from([(1, Some("one"))]), Reading::Unknown, Reading::Exact(1.0)),
            std::net::Ipv4Addr::LOCALHOST,
        );
        assert_eq!(to_json(&value).unwrap(), (serde_json::to_vec(&value).unwrap(), None));
    }

    #[test]
    fn deep_values_are_rejected_before_they_overflow_the_stack() {
        #[derive(Serialize)]
        enum Chain {
            End,
            Next(Box<Chain>),
            Named { next: Box<Chain> },
        }
        let lists = |levels| (0..levels).fold(json!(1), |inner, _| Value::Array(vec![inner]));
        let accepted = Payload::try_from_serde(&lists(127)).unwrap();
        assert_eq!(accepted.to_serde::<Value>().unwrap(), lists(127), "readers accept what writers accept");
        for levels in [128, 5000] {
            let error = Payload::try_from_serde(&lists(levels)).unwrap_err();
            let problem = "value cannot be serialized to JSON: it is nested deeper than 127 levels; return a flatter structure";
            assert_eq!(error_chain(&error).to_string(), problem);
        }
        let chain = |levels| (0..levels).fold(Chain::End, |inner, _| Chain::Next(Box::new(inner)));
        assert!(
            Payload::try_from_serde(&chain(127)).is_ok() && Payload::try_from_serde(&chain(128)).is_err()
        );
        // Each of these has two levels.
        let named = |levels| (0..levels).fold(Chain::End, |next, _| Chain::Named { next: Box::new(next) });
        let deepest = Payload::try_from_serde(&named(63)).unwrap();
        assert!(deepest.to_serde::<Value>().is_ok() && Payload::try_from_serde(&named(64)).is_err());
    }
}
