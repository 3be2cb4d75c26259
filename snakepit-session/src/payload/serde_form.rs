//! The forms of a payload inside of other values: its JSON in text formats, and all of its parts in binary formats.

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _, ser::Error as _};
use serde_json::value::RawValue;

use super::{Payload, ValueType};

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
            return Err(S::Error::custom(format!(
                "a value of type {} with a raw buffer cannot be a part of another value; pass it alone, in a call by \
                 `.payload(name, value)`, or convert it with `to_serde`",
                self.ty
            )));
        }
        // Keeps the text of numbers that no Rust type can hold.
        let part = self.json_part();
        let json: &RawValue = serde_json::from_slice(&part).map_err(S::Error::custom)?;
        json.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let value = serde_json::Value::deserialize(deserializer)?;
            return Self::try_from_serde(&value).map_err(D::Error::custom);
        }
        let Parts { ty, json, binary } = Parts::<Bytes>::deserialize(deserializer)?;
        Ok(Self { ty, json, binary })
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
    }

    #[test]
    fn a_buffer_inside_of_another_value_is_an_error() {
        let error = Payload::try_from_serde(&[Payload::embedding(&[1.0_f32])]).unwrap_err();
        let chain = error_chain(&error).to_string();
        assert!(chain.contains("a value of type embedding with a raw buffer cannot be a part"), "{chain}");
    }
}
