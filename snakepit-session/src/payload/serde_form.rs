//! The forms of a payload inside other values: its JSON in text formats, and all of its parts in binary formats.

use std::{cell::RefCell, fmt};

use bytes::Bytes;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{
        MapAccess, SeqAccess, Visitor,
        value::{MapAccessDeserializer, SeqAccessDeserializer},
    },
    ser::Error as _,
};
use serde_json::{Value, value::RawValue};

use super::{
    Payload, ValueType,
    envelopes::{Envelopes, may_have_envelope},
    nested,
};

/// The name of the newtype by which the serializer and the deserializers of this crate recognize a payload. They pass it through
/// [`HANDOVER`], so that its buffer is not copied.
pub(super) const PAYLOAD: &str = "$snakepit::Payload";

thread_local! {
    static HANDOVER: RefCell<Option<Payload>> = const { RefCell::new(None) };
}

/// Takes the payload that is being serialized.
pub(super) fn take() -> Option<Payload> {
    HANDOVER.take()
}

/// Passes a payload to its visitor.
pub(super) fn pass<'de, V: Visitor<'de>, E: serde::de::Error>(
    payload: Payload,
    visitor: V,
) -> Result<V::Value, E> {
    HANDOVER.set(Some(payload));
    visitor.visit_unit()
}

/// The form in binary formats. Stored sessions contain it, so it must not change.
#[derive(Serialize, Deserialize)]
struct Parts<J> {
    ty: ValueType,
    json: J,
    binary: Option<J>,
}

impl Serialize for Payload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if !serializer.is_human_readable() {
            let Self { ty, json, binary } = self;
            return Parts { ty: *ty, json, binary: binary.as_ref() }.serialize(serializer);
        }
        if self.binary.is_some() {
            HANDOVER.set(Some(self.clone()));
            let serialized = serializer.serialize_newtype_struct(PAYLOAD, &Plain(self));
            HANDOVER.set(None);
            return serialized;
        }
        // Keeps the text of numbers that no Rust type can hold.
        let part = self.json_part();
        // A peer may have sent an envelope for a buffer that it did not send. Inside of another value, it would refer to that of
        // another part.
        if matches!(self.ty, ValueType::List | ValueType::Map) && may_have_envelope(&part) {
            Envelopes::checked(&part, 0).map_err(|problem| S::Error::custom(format!("it {problem}")))?;
        }
        let json: &RawValue = serde_json::from_slice(&part).map_err(S::Error::custom)?;
        json.serialize(serializer)
    }
}

/// The form of a payload with a buffer in JSON of other serializers.
struct Plain<'a>(&'a Payload);

impl Serialize for Plain<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (json, buffers) = self.0.clone().into_chunk_parts();
        let plain = nested::to_plain(&json, &buffers.unwrap_or_default()).map_err(S::Error::custom)?;
        let plain: Value = serde_json::from_slice(&plain).map_err(S::Error::custom)?;
        plain.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            return deserializer.deserialize_newtype_struct(PAYLOAD, PayloadVisitor);
        }
        let Parts { ty, json, binary } = Parts::<Bytes>::deserialize(deserializer)?;
        Ok(Self { ty, json, binary })
    }
}

/// Any value.
#[cfg(feature = "schemars")]
impl schemars::JsonSchema for Payload {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Payload".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        true.into()
    }
}

/// Reads a value that its deserializer does not pass as text.
fn read_value<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Payload, D::Error> {
    let value = Value::deserialize(deserializer)?;
    of_text(&value.to_string())
}

fn of_text<E: serde::de::Error>(text: &str) -> Result<Payload, E> {
    Payload::with_base64(text).map_err(|problem| E::custom(format!("it {problem}")))
}

/// Reads a payload from a deserializer of this crate, or any value from others.
struct PayloadVisitor;

/// Visits a value whose text is JSON, from a deserializer that passes on newtypes as the value in them.
macro_rules! visit_plain {
    ($($visit:ident: $ty:ty),*) => {$(
        fn $visit<E: serde::de::Error>(self, value: $ty) -> Result<Payload, E> {
            of_text(&value.to_string())
        }
    )*};
}

impl<'de> Visitor<'de> for PayloadVisitor {
    type Value = Payload;

    visit_plain!(visit_bool: bool, visit_i64: i64, visit_i128: i128, visit_u64: u64, visit_u128: u128);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Payload, E> {
        Ok(HANDOVER.take().unwrap_or_else(Payload::null))
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<Payload, E> {
        Ok(Payload::null())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Payload, D::Error> {
        Payload::deserialize(deserializer)
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Payload, E> {
        // `Value` has no NaN and no infinities.
        Ok(Payload::float(value))
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Payload, E> {
        of_text(&Value::from(value).to_string())
    }

    fn visit_bytes<E: serde::de::Error>(self, value: &[u8]) -> Result<Payload, E> {
        Ok(Payload::bytes(Bytes::copy_from_slice(value)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<Payload, A::Error> {
        read_value(SeqAccessDeserializer::new(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Payload, A::Error> {
        read_value(MapAccessDeserializer::new(map))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Payload, D::Error> {
        deserializer.deserialize_newtype_struct(RAW_VALUE, TextVisitor)
    }
}

/// The name by which `serde_json` recognizes its `RawValue`. It then passes the text of a value. Otherwise, the value is parsed, which
/// rounds integers of more than 64 bits.
pub(super) const RAW_VALUE: &str = "$serde_json::private::RawValue";

/// Reads the text of a value, or the value itself from other deserializers.
struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Payload;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Payload, D::Error> {
        read_value(deserializer)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Payload, A::Error> {
        let _: Option<String> = map.next_key()?;
        of_text(&map.next_value::<String>()?)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use crate::error_chain;

    #[test]
    fn a_payload_inside_of_another_value_is_that_value_in_json() {
        let huge = Payload::of_json("123456789012345678901234567890".into());
        let parts = BTreeMap::from([("a", Payload::try_from_serde("x").unwrap()), ("b", Payload::null())]);
        let outer = Payload::try_from_serde(&(vec![huge], parts)).unwrap();
        assert_eq!(&outer.json()[..], br#"[[123456789012345678901234567890],{"a":"x","b":null}]"#);
        let (_, parts): (serde_json::Value, BTreeMap<String, Payload>) = outer.to_serde().unwrap();
        assert_eq!(parts["a"].to_serde::<String>().unwrap(), "x");
        assert_eq!(Payload::try_from_serde(&json!([1])).unwrap(), serde_json::from_str("[1]").unwrap());
        // The text of a part stays the same.
        let [exact] =
            serde_json::from_str::<[Payload; 1]>(r#"[{"b":1e2,"a":18446744073709551616}]"#).unwrap();
        assert_eq!(&exact.json()[..], br#"{"b":1e2,"a":18446744073709551616}"#);
        // A whole value is that value, with its type and buffer.
        for whole in [
            Payload::embedding(&[1.0]),
            Payload::float(f64::NAN),
            Payload::from_json(ValueType::Tensor, "[1]".into()),
        ] {
            assert_eq!(whole.to_serde::<Payload>().unwrap(), whole);
            assert_eq!(whole.to_serde::<Option<Payload>>().unwrap(), Some(whole));
        }
        assert_eq!(Payload::null().to_serde::<Option<Payload>>().unwrap(), None);
    }

    #[test]
    fn buffers_inside_of_another_value_stay_buffers() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Frame {
            name: String,
            image: Bytes,
            boxes: Option<Payload>,
            scores: Vec<f32>,
        }
        let boxes = Payload::tensor(&[2, 2], &[1.5_f32, f32::NAN, -3.0, 4.0]).unwrap();
        let frame = Frame {
            name: "a".to_owned(),
            image: Bytes::from_static(b"PNG"),
            boxes: Some(boxes.clone()),
            scores: vec![0.5],
        };
        let payload = Payload::try_from_serde(&[&frame]).unwrap();
        assert_eq!(
            (payload.ty(), payload.binary().map(Bytes::len)),
            (ValueType::List, Some(24)),
            "the array is aligned"
        );
        let [back] = payload.to_serde::<[Frame; 1]>().unwrap();
        assert_eq!((&back.name, &back.image, &back.scores), (&frame.name, &frame.image, &frame.scores));
        let read = back.boxes.unwrap();
        assert_eq!((read.shape(), read.binary()), (Some(vec![2, 2]), boxes.binary()));
        // The array shares the memory of the whole value.
        let (whole, part) = (payload.binary().unwrap().as_ptr_range(), read.binary().unwrap().as_ptr());
        assert!(whole.contains(&part));

        // A nested payload inside another value.
        let outer = Payload::try_from_serde(&(Bytes::from_static(b"first"), &payload, f64::NAN)).unwrap();
        let (first, inner, nan): (Bytes, Payload, f64) = outer.to_serde().unwrap();
        assert!(nan.is_nan() && first == "first");
        assert_eq!(inner.to_serde::<[Frame; 1]>().unwrap()[0].image, frame.image);

        // Other writers and readers of JSON use base64.
        let json = serde_json::to_value([&boxes]).unwrap();
        assert_eq!(json[0]["data"], "AADAPwAAwH8AAEDAAACAQA==");
        let [plain] = serde_json::from_value::<[Payload; 1]>(json).unwrap();
        assert_eq!(plain.binary(), boxes.binary());
    }

    #[test]
    fn deserializers_that_do_not_pass_on_newtypes_are_read() {
        use serde::de::value::{Error, MapDeserializer, SeqDeserializer};

        fn read<'de, I: serde::de::IntoDeserializer<'de, Error>>(value: I) -> Payload {
            Payload::deserialize(value.into_deserializer()).unwrap()
        }
        assert_eq!((read("text"), read(true)), (json_payload("\"text\""), json_payload("true")));
        assert_eq!(
            (read(-7_i64), read(u64::MAX)),
            (json_payload("-7"), json_payload("18446744073709551615"))
        );
        assert_eq!(&read(u128::MAX).json()[..], u128::MAX.to_string().as_bytes());
        assert_eq!((read(()), read(2.5_f64)), (Payload::null(), Payload::float(2.5)));
        assert!(read(f64::NAN).to_serde::<f64>().unwrap().is_nan());
        let list = SeqDeserializer::<_, Error>::new([1, 2].into_iter());
        assert_eq!(Payload::deserialize(list).unwrap(), json_payload("[1,2]"));
        let map = MapDeserializer::<_, Error>::new([("a", "x"), ("b", "y")].into_iter());
        assert_eq!(Payload::deserialize(map).unwrap(), json_payload(r#"{"a":"x","b":"y"}"#));
    }

    fn json_payload(text: &str) -> Payload {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn items_of_streams_keep_their_buffers() {
        let array = Payload::embedding(&[1.0_f32, 2.0]);
        let list = Payload::try_from_serde(&[&array]).unwrap();
        for value in [array, list, Payload::bytes(Bytes::new()), Payload::float(f64::NAN), Payload::null()] {
            let (json, binary) = value.clone().into_chunk_parts();
            let back = Payload::of_chunk(json, binary);
            assert_eq!((back.ty(), back.binary(), back.shape()), (value.ty(), value.binary(), value.shape()));
        }
    }

    #[test]
    fn references_beyond_the_buffers_are_rejected() {
        let value = |json: &str| Payload::nested(json.as_bytes(), Bytes::from_static(b"12345678"));
        for (json, problem) in [
            (r#"[{"__snakepit__":"bytes","offset":1,"length":8}]"#, "refers to bytes 1 to 9 of its buffers"),
            (
                r#"[{"__snakepit__":"bytes","offset":1,"length":18446744073709551615}]"#,
                "beyond the size of any buffer",
            ),
            (
                r#"[{"__snakepit__":"bytes","offset":0,"length":8},{"__snakepit__":"bytes","offset":0,"length":1}]"#,
                "refers to the same bytes of its buffers twice",
            ),
            (r#"[{"__snakepit__":"bytes","data":"!"}]"#, "invalid base64"),
        ] {
            let error = value(json).to_serde::<Vec<Bytes>>().unwrap_err();
            assert!(error_chain(&error).to_string().contains(problem), "{}", error_chain(&error));
        }
    }
}
