//! The validation of values: a simple, independent implementation of the `VariableType` rules.

use regex::Regex;
use serde_json::{Number, Value as Json};
use snakepit_session::{Payload, ValueType};

/// A value that a client sends or a variable stores.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Value {
    /// The declared or stored type.
    pub(super) ty: ValueType,
    pub(super) json: Json,
    pub(super) buffer: Option<Vec<u8>>,
}

impl Value {
    pub(super) fn of(payload: &Payload) -> Self {
        Self {
            ty: payload.ty(),
            json: serde_json::from_slice(payload.json()).expect("stored values are JSON"),
            buffer: payload.binary().map(|buffer| buffer.to_vec()),
        }
    }

    pub(super) fn payload(&self) -> Payload {
        let json = self.json.to_string().into();
        match &self.buffer {
            Some(buffer) => Payload::from_buffer(self.ty, json, buffer.clone().into()),
            None => Payload::from_json(self.ty, json),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.json.to_string().len() + self.buffer.as_ref().map_or(0, Vec::len)
    }

    /// Returns the stored form of the value in a variable of this type, or `None` if it is invalid. The declared type does not matter.
    pub(super) fn to_stored(&self, ty: ValueType, constraints: &str) -> Option<Self> {
        let constraints: Json = match constraints {
            "" => Json::Null,
            json => serde_json::from_str(json).expect("the constraints used here are JSON"),
        };
        if self.buffer.is_some() && !matches!(ty, ValueType::Embedding | ValueType::Tensor | ValueType::Bytes)
        {
            return None;
        }
        let json = self.validate(ty, &constraints)?;
        Some(Self { ty, json, buffer: self.buffer.clone() })
    }

    fn validate(&self, ty: ValueType, constraints: &Json) -> Option<Json> {
        let json = &self.json;
        let at_least = |key: &str, number: f64| constraints[key].as_f64().is_none_or(|min| number >= min);
        let at_most = |key: &str, number: f64| constraints[key].as_f64().is_none_or(|max| number <= max);
        let one_of = |key: &str| constraints[key].as_array().is_none_or(|allowed| allowed.contains(json));
        let is_valid = match ty {
            ValueType::Float => {
                let number = json.as_f64().or_else(|| match json.as_str()? {
                    "NaN" => Some(f64::NAN),
                    "Infinity" => Some(f64::INFINITY),
                    "-Infinity" => Some(f64::NEG_INFINITY),
                    _ => None,
                })?;
                if !at_least("min", number) || !at_most("max", number) {
                    return None;
                }
                return Some(Number::from_f64(number).map_or_else(|| json.clone(), Json::Number));
            }
            ValueType::Integer => {
                let number = json.as_f64().filter(|number| number.fract() == 0.0)?;
                if !at_least("min", number) || !at_most("max", number) {
                    return None;
                }
                #[allow(clippy::cast_possible_truncation, reason = "all numbers used here are small")]
                return Some(Json::from(number as i64));
            }
            ValueType::String => {
                let text = json.as_str()?;
                #[allow(clippy::cast_precision_loss, reason = "all texts used here are short")]
                let length = text.chars().count() as f64;
                let pattern = constraints["pattern"].as_str().unwrap_or("");
                at_least("min_length", length)
                    && at_most("max_length", length)
                    && Regex::new(pattern).expect("the patterns used here are valid").is_match(text)
                    && one_of("enum")
            }
            ValueType::Boolean => json.is_boolean(),
            ValueType::Choice => !json.as_str()?.is_empty() && one_of("choices"),
            ValueType::Module => !json.as_str()?.is_empty() && one_of("allowed_modules"),
            ValueType::Embedding => {
                let shape = self.shape(false)?;
                shape.len() == 1 && constraints["dimensions"].as_u64().is_none_or(|n| shape[0] == n)
            }
            ValueType::Tensor => {
                let shape = Json::from(self.shape(true)?);
                constraints["shape"].is_null() || constraints["shape"] == shape
            }
            ValueType::Map => json.is_object(),
            ValueType::List => json.is_array(),
            ValueType::Bytes => self.ty == ValueType::Bytes && self.buffer.is_some(),
            ValueType::Null => false,
        };
        is_valid.then(|| json.clone())
    }

    /// The shape of an array. `may_declare_shape` allows an object with `shape` and `data`. All buffers in these tests contain
    /// float32.
    fn shape(&self, may_declare_shape: bool) -> Option<Vec<u64>> {
        let declared = || self.json["shape"].as_array()?.iter().map(Json::as_u64).collect::<Option<Vec<_>>>();
        if let Some(buffer) = &self.buffer {
            let shape = declared()?;
            return (shape.iter().product::<u64>() * 4 == buffer.len() as u64).then_some(shape);
        }
        if self.json.is_array() {
            return shape_of(&self.json);
        }
        let (shape, nested) = (declared().filter(|_| may_declare_shape)?, shape_of(&self.json["data"])?);
        (shape == nested || nested == [shape.iter().product::<u64>()]).then_some(shape)
    }
}

fn shape_of(json: &Json) -> Option<Vec<u64>> {
    let Some(items) = json.as_array() else {
        return (json.is_number() || json.is_boolean()).then(Vec::new);
    };
    let inner: Vec<_> = items.iter().map(shape_of).collect::<Option<_>>()?;
    let first = inner.first().cloned().unwrap_or_default();
    inner.iter().all(|shape| *shape == first).then(|| [vec![items.len() as u64], first].concat())
}
