//! A typed value as bytes, which are parsed only on demand.

use std::{fmt, marker::PhantomData, str::FromStr};

use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::SharedError;

mod array;
mod cursor;
mod dtype;
mod element;
mod envelopes;
mod error;
mod exact;
mod items;
#[cfg(feature = "ndarray")]
mod ndarray;
pub(crate) mod nested;
mod read;
mod root;
mod serde_form;
mod value_deserializer;
pub(crate) mod whole;
mod write;

pub(crate) use array::ArrayMetadata;
pub use dtype::Dtype;
pub use element::Element;
pub use error::PayloadError;

/// The type of a value. The names are those of the wire protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the variants are the names of the protocol")]
pub enum ValueType {
    Float,
    Integer,
    String,
    Boolean,
    Choice,
    Module,
    Embedding,
    Tensor,
    Map,
    List,
    Null,
    Bytes,
}

impl ValueType {
    const ALL: [Self; 12] = [
        Self::Float,
        Self::Integer,
        Self::String,
        Self::Boolean,
        Self::Choice,
        Self::Module,
        Self::Embedding,
        Self::Tensor,
        Self::Map,
        Self::List,
        Self::Null,
        Self::Bytes,
    ];

    /// The type's name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Float => "float",
            Self::Integer => "integer",
            Self::String => "string",
            Self::Boolean => "boolean",
            Self::Choice => "choice",
            Self::Module => "module",
            Self::Embedding => "embedding",
            Self::Tensor => "tensor",
            Self::Map => "map",
            Self::List => "list",
            Self::Null => "null",
            Self::Bytes => "bytes",
        }
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ValueType {
    type Err = PayloadError;

    fn from_str(name: &str) -> Result<Self, PayloadError> {
        Self::ALL
            .into_iter()
            .find(|known| known.as_str() == name)
            .ok_or_else(|| PayloadError::UnknownType { name: name.to_owned() })
    }
}

/// A typed value: JSON, and a raw buffer for arrays and bytes.
///
/// Clones are cheap and share the bytes. The JSON is validated when the value is read.
///
/// [`to_serde`](Self::to_serde) reads any value. [`shape`](Self::shape), [`dtype`](Self::dtype) and [`items`](Self::items)
/// read the buffer of an array in place.
///
/// As a part of another value, such as a `Vec<Payload>`, it serializes to its value, and a raw buffer stays one. Other
/// serializers of JSON, such as `serde_json`, write a buffer as base64. Binary formats, such as the MessagePack of stored
/// sessions, keep all parts.
///
/// ```
/// use snakepit_session::{Payload, ValueType};
///
/// let number = Payload::try_from_serde(&5)?;
/// assert_eq!((number.ty(), number.to_serde::<f64>()?), (ValueType::Integer, 5.0));
///
/// let misfit = number.to_serde::<String>().unwrap_err();
/// assert!(misfit.to_string().starts_with("integer value does not fit"));
/// // The sources of the error have the details.
/// assert!(snakepit_session::error_chain(&misfit).to_string().contains("expected a string"));
///
/// let buffer = Payload::bytes(bytes::Bytes::from_static(b"PNG"));
/// assert_eq!(buffer.binary().map(|bytes| &bytes[..]), Some(&b"PNG"[..]));
/// # Ok::<(), snakepit_session::PayloadError>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Payload {
    ty: ValueType,
    json: Bytes,
    binary: Option<Bytes>,
}

impl Payload {
    /// Wraps JSON of a known type.
    #[must_use]
    pub const fn from_json(ty: ValueType, json: Bytes) -> Self {
        Self { ty, json, binary: None }
    }

    /// Wraps JSON that a peer declared to have this type. Checks only the first character and the characters of numbers; reading
    /// the value finds other errors.
    ///
    /// # Errors
    /// [`PayloadError::Mismatch`] if the JSON has another type.
    #[inline]
    pub fn declared(ty: ValueType, json: Bytes) -> Result<Self, PayloadError> {
        if matches_type(ty, &json) { Ok(Self::from_json(ty, json)) } else { Err(mismatch(ty, &json)) }
    }

    /// Wraps a raw buffer that a peer declared to have this type.
    ///
    /// # Errors
    /// [`PayloadError::Mismatch`] if values of the type have no buffer, [`PayloadError::Nested`] if the value refers to bytes that
    /// are not in the buffer, or to the same bytes twice.
    pub fn declared_buffer(ty: ValueType, metadata: Bytes, buffer: Bytes) -> Result<Self, PayloadError> {
        if let Some(json) = nested::value_in(&metadata) {
            if !matches!(ty, ValueType::List | ValueType::Map) || !matches_type(ty, json) {
                return Err(mismatch(ty, json));
            }
            Self::check_buffers(&metadata, Some(&buffer))?;
            return Ok(Self::from_buffer(ty, metadata, buffer));
        }
        match ty {
            ValueType::Bytes | ValueType::Embedding | ValueType::Tensor | ValueType::Map => {
                Ok(Self::from_buffer(ty, metadata, buffer))
            }
            _ => Err(PayloadError::Mismatch { ty, found: "a raw buffer" }),
        }
    }

    /// Wraps a raw buffer. `metadata` is JSON that describes it (shape, dtype, format).
    #[must_use]
    pub const fn from_buffer(ty: ValueType, metadata: Bytes, buffer: Bytes) -> Self {
        Self { ty, json: metadata, binary: Some(buffer) }
    }

    /// Creates a value of raw bytes.
    #[must_use]
    pub const fn bytes(buffer: Bytes) -> Self {
        const METADATA: Bytes = Bytes::from_static(br#"{"type":"bytes","binary_format":"raw"}"#);
        Self::from_buffer(ValueType::Bytes, METADATA, buffer)
    }

    /// Creates a null.
    #[must_use]
    pub const fn null() -> Self {
        Self::from_json(ValueType::Null, Bytes::from_static(b"null"))
    }

    /// Creates a float. NaN and infinities, for which serde writes null, become the strings of the protocol.
    #[must_use]
    pub fn float(number: f64) -> Self {
        let name = match number {
            _ if number.is_nan() => r#""NaN""#,
            f64::INFINITY => r#""Infinity""#,
            f64::NEG_INFINITY => r#""-Infinity""#,
            // This cannot fail for a finite number.
            _ => {
                let json = serde_json::to_vec(&number).unwrap_or_default();
                return Self::from_json(ValueType::Float, json.into());
            }
        };
        Self::from_json(ValueType::Float, Bytes::from_static(name.as_bytes()))
    }

    /// Returns the number of a float or integer, including NaN and infinities. `None` for other values.
    #[must_use]
    pub fn to_float(&self) -> Option<f64> {
        match &self.json[..] {
            _ if self.binary.is_some() => None,
            br#""NaN""# => Some(f64::NAN),
            br#""Infinity""# => Some(f64::INFINITY),
            br#""-Infinity""# => Some(f64::NEG_INFINITY),
            json => serde_json::from_slice(json).ok(),
        }
    }

    /// Returns the number of an integer or of an integral float such as 5.0. `None` for other values, and for floats beyond 2^53,
    /// where one float stands for several integers.
    #[must_use]
    pub fn to_integer(&self) -> Option<i64> {
        if self.binary.is_some() {
            return None;
        }
        serde_json::from_slice(&self.json).ok().or_else(|| whole::integer(self.to_float()?))
    }

    /// Serializes a Rust value. The JSON determines the type. NaN and infinities at any depth become strings of the protocol.
    ///
    /// Bytes and arrays at any depth stay raw buffers: `bytes::Bytes`, other types that serialize as bytes, such as those of
    /// `serde_bytes`, and payloads of bytes and arrays. A `Vec<u8>` is a list of numbers.
    ///
    /// # Errors
    /// [`PayloadError::Serialize`] if serde fails, for example for a map whose keys are not strings, or if the value is nested
    /// deeper than 127 levels.
    pub fn try_from_serde<T: Serialize + ?Sized>(value: &T) -> Result<Self, PayloadError> {
        let (json, buffers) = write::to_json(value)
            .map_err(|error| PayloadError::Serialize { source: SharedError::new(error) })?;
        Ok(match buffers {
            Some(buffers) => Self::nested(&json, buffers.into()),
            None => Self::of_json(json.into()),
        })
    }

    /// Wraps JSON from serde, without surrounding white space. The JSON determines the type, even for NaN and infinities.
    #[must_use]
    pub fn of_json(json: Bytes) -> Self {
        if let Some(number) = write::marked(&json) {
            return Self::float(number);
        }
        let ty = match json.first() {
            Some(b'"') => ValueType::String,
            Some(b'{') => ValueType::Map,
            Some(b'[') => ValueType::List,
            Some(b't' | b'f') => ValueType::Boolean,
            Some(b'n') | None => ValueType::Null,
            Some(_) if json.iter().any(|b| matches!(b, b'.' | b'e' | b'E')) => ValueType::Float,
            Some(_) => ValueType::Integer,
        };
        Self::from_json(ty, json)
    }

    /// Deserializes the value.
    ///
    /// - The buffer of a tensor or embedding reads as nested lists of numbers, and that of bytes as a `Vec<u8>`.
    /// - NaN and infinities, which are strings in JSON, read as `f64`, even within lists and maps.
    /// - A tensor of the form `{"shape": .., "data": ..}` stays a map.
    /// - Bytes and arrays inside the value read in the same way, as `bytes::Bytes` or as a [`Payload`] with
    ///   [`items`](Self::items).
    ///
    /// # Errors
    /// [`PayloadError::Deserialize`] if the value is malformed or does not match `T`.
    pub fn to_serde<T: DeserializeOwned>(&self) -> Result<T, PayloadError> {
        let value = self.read(PhantomData).or_else(|_| self.read_whole(PhantomData));
        value.map_err(|error| PayloadError::Deserialize {
            ty: self.ty,
            target: std::any::type_name::<T>(),
            source: SharedError::new(error),
        })
    }

    /// The value's type.
    #[must_use]
    pub const fn ty(&self) -> ValueType {
        self.ty
    }

    /// The JSON of the value, or of its metadata if it has a buffer.
    #[must_use]
    pub const fn json(&self) -> &Bytes {
        &self.json
    }

    /// The raw buffer, if the value has one.
    #[must_use]
    pub const fn binary(&self) -> Option<&Bytes> {
        self.binary.as_ref()
    }

    /// Returns type, JSON and buffer.
    #[must_use]
    pub fn into_parts(self) -> (ValueType, Bytes, Option<Bytes>) {
        (self.ty, self.json, self.binary)
    }

    /// The size of the value in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.json.len() + self.binary.as_ref().map_or(0, Bytes::len)
    }
}

impl fmt::Debug for Payload {
    /// Shows the beginning of the JSON and the length of the buffer, because values can be large and private.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MAX_EXCERPT_BYTES: usize = 64;
        let head = String::from_utf8_lossy(&self.json[..self.json.len().min(MAX_EXCERPT_BYTES)]);
        let dots = if self.json.len() > MAX_EXCERPT_BYTES { "..." } else { "" };
        write!(f, "{}({head}{dots}", self.ty)?;
        if let Some(buffer) = &self.binary {
            write!(f, ", {} bytes", buffer.len())?;
        }
        f.write_str(")")
    }
}

/// Whether the beginning of the JSON matches this type.
#[inline]
fn matches_type(ty: ValueType, json: &[u8]) -> bool {
    // Compact JSON is not surrounded by white space.
    let is_trimmed = |edge: Option<&u8>| edge.is_some_and(|byte| *byte > b' ');
    let text = if is_trimmed(json.first()) && is_trimmed(json.last()) { json } else { json.trim_ascii() };
    let Some(&first) = text.first() else { return false };
    let is_number = first == b'-' || first.is_ascii_digit();
    match ty {
        // The reader checks whether the number is integral and accepts 5.0 as 5.
        ValueType::Integer => is_number,
        ValueType::Float => is_number || matches!(text, br#""NaN""# | br#""Infinity""# | br#""-Infinity""#),
        ValueType::String | ValueType::Choice | ValueType::Module => first == b'"',
        ValueType::Boolean => matches!(text, b"true" | b"false"),
        ValueType::Null => text == b"null",
        ValueType::Map => first == b'{',
        ValueType::List => first == b'[',
        // In a message without a binary field, an array is a map that contains the data.
        ValueType::Embedding | ValueType::Tensor => matches!(first, b'[' | b'{'),
        // These have a buffer.
        ValueType::Bytes => false,
    }
}

#[cold]
fn mismatch(ty: ValueType, json: &[u8]) -> PayloadError {
    let found = match json.trim_ascii() {
        b"null" => "null",
        b"true" | b"false" => "a boolean",
        [] => "empty",
        [b'"', ..] => "a string",
        [b'{', ..] => "a map",
        [b'[', ..] => "a list",
        [b'-' | b'0'..=b'9', ..] => "a number",
        _ => "malformed",
    };
    PayloadError::Mismatch { ty, found }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, error::Error};

    use super::*;

    #[test]
    fn the_type_follows_from_the_serialized_value() {
        let ty = |json: serde_json::Value| Payload::try_from_serde(&json).unwrap().ty();
        assert_eq!(ty(1.into()), ValueType::Integer);
        assert_eq!(ty(1.5.into()), ValueType::Float);
        assert_eq!(ty(1e300.into()), ValueType::Float);
        assert_eq!(ty("x".into()), ValueType::String);
        assert_eq!(ty(serde_json::json!({})), ValueType::Map);
        assert_eq!(ty(serde_json::json!([])), ValueType::List);
        assert_eq!(ty(serde_json::Value::Null), ValueType::Null);
        assert_eq!(ty(true.into()), ValueType::Boolean);
    }

    #[test]
    fn a_type_mismatch_names_both_types() {
        let error = Payload::try_from_serde("x").unwrap().to_serde::<u8>().unwrap_err();
        assert_eq!(error.to_string(), "string value does not fit u8");
        let source = error.source().unwrap();
        assert!(source.to_string().contains("expected u8"), "{source}");
        let keys = Payload::try_from_serde(&BTreeMap::from([(vec![1], 2)])).unwrap_err();
        assert!(matches!(&keys, PayloadError::Serialize { source } if source.is::<serde_json::Error>()));
    }

    #[test]
    fn every_float_round_trips() {
        for number in [0.1, -0.0, 1e300, f64::INFINITY, f64::NEG_INFINITY, f64::NAN] {
            let back = Payload::float(number).to_float().unwrap();
            assert_eq!((back.is_nan(), back.to_bits()), (number.is_nan(), number.to_bits()));
        }
        assert_eq!(Payload::try_from_serde("x").unwrap().to_float(), None);
    }

    #[test]
    fn json_of_another_type_than_declared_is_rejected() {
        use ValueType as T;
        let good: [(ValueType, &[&str]); 12] = [
            (T::Float, &["1", "-1.5", r#""NaN""#, r#""-Infinity""#]),
            (T::Integer, &["1", "-7", "5.0"]),
            (T::String, &[r#""x""#]),
            (T::Boolean, &["true", "false"]),
            (T::Choice, &[r#""x""#]),
            (T::Module, &[r#""x""#]),
            (T::Embedding, &["[1, 2]", r#"{"data": ""}"#]),
            (T::Tensor, &["[[1]]", r#"{"data": ""}"#]),
            (T::Map, &["{}", " { }"]),
            (T::List, &["[]", "\n[1]"]),
            (T::Null, &["null"]),
            (T::Bytes, &[]),
        ];
        let all = ["1", r#""x""#, "true", "[]", "{}", "null", "", "?"];
        let kind = |text: &str| match text.trim().bytes().next() {
            Some(b'-' | b'0'..=b'9') => Some(b'1'),
            Some(b't' | b'f') => Some(b't'),
            first => first,
        };
        for (ty, texts) in good {
            for text in texts {
                assert!(Payload::declared(ty, Bytes::from(*text)).is_ok(), "{ty} {text}");
            }
            for text in all {
                // Only a few strings are floats.
                let is_good =
                    texts.iter().any(|good| kind(good) == kind(text)) && (ty, text) != (T::Float, all[1]);
                assert_eq!(Payload::declared(ty, Bytes::from(text)).is_ok(), is_good, "{ty} {text}");
            }
        }
        let error = Payload::declared(T::Integer, Bytes::from(r#""abc""#)).unwrap_err().to_string();
        assert_eq!(error, "value is declared as integer, but it is a string");
    }

    #[test]
    fn names_round_trip() {
        for ty in ValueType::ALL {
            assert_eq!(ty.as_str().parse(), Ok(ty));
        }
        assert!("decimal".parse::<ValueType>().is_err());
    }
}
