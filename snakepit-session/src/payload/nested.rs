//! Nested values: JSON with bytes and arrays inside of it, whose buffers travel beside the JSON.
//!
//! The JSON is `{"binary_format":"nested","value":VALUE}`. In VALUE, an [`Envelope`] stands for each buffer.

use std::{borrow::Cow, fmt};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::{Map, Value, value::RawValue};

use super::{Payload, ValueType};

/// The key that marks an envelope. Its value is the type.
pub(crate) const KEY: &str = "__snakepit__";
/// The first bytes of the JSON of a nested value.
const PREFIX: &[u8] = br#"{"binary_format":"nested","value":"#;
/// The maximum size of an envelope in bytes. A shape has at most 64 axes.
const MAX_ENVELOPE_BYTES: usize = 4096;

/// A map that stands for bytes or an array.
#[derive(Debug)]
pub(super) struct Envelope<'a> {
    pub(super) ty: ValueType,
    /// The metadata of the buffer, without its type.
    pub(super) metadata: Map<String, Value>,
    pub(super) data: Cow<'a, [u8]>,
}

impl<'a> Envelope<'a> {
    /// Whether a map is an envelope.
    pub(super) fn is_in(map: &Map<String, Value>) -> bool {
        map.get(KEY)
            .and_then(Value::as_str)
            .is_some_and(|name| matches!(name, "bytes" | "tensor" | "embedding"))
    }

    /// Reads an envelope whose buffer is a part of `buffers`, or base64.
    ///
    /// # Errors
    /// The reason, which continues a message after "the value".
    pub(super) fn parse(mut map: Map<String, Value>, buffers: &'a [u8]) -> Result<Self, String> {
        let name = map.remove(KEY).unwrap_or_default();
        let ty = name.as_str().and_then(|name| name.parse().ok()).unwrap_or(ValueType::Bytes);
        let data = if let Some(range) = range_of(&map) {
            let (start, end) = range.filter(|(_, end)| *end <= buffers.len()).ok_or_else(|| {
                format!("contains {ty} outside of its buffers, which have {} bytes", buffers.len())
            })?;
            Cow::Borrowed(&buffers[start..end])
        } else {
            let text = map.get("data").and_then(Value::as_str).unwrap_or_default();
            let data =
                BASE64.decode(text).map_err(|error| format!("contains {ty} with invalid base64: {error}"))?;
            Cow::Owned(data)
        };
        for key in ["offset", "length", "data"] {
            map.remove(key);
        }
        Ok(Self { ty, metadata: map, data })
    }

    /// The JSON of the metadata beside a separate buffer.
    pub(super) fn metadata_json(&self) -> Bytes {
        let mut metadata = self.metadata.clone();
        metadata.insert("type".to_owned(), self.ty.as_str().into());
        metadata.entry("binary_format").or_insert_with(|| "raw".into());
        Value::Object(metadata).to_string().into()
    }

    /// The envelope as plain JSON, with the buffer as base64.
    pub(super) fn into_plain(self) -> Value {
        let mut map = self.metadata;
        map.insert(KEY.to_owned(), self.ty.as_str().into());
        map.insert("data".to_owned(), BASE64.encode(&self.data).into());
        Value::Object(map)
    }
}

/// Start and end of the buffer of an envelope. `Some(None)` for invalid numbers.
fn range_of(map: &Map<String, Value>) -> Option<Option<(usize, usize)>> {
    let (offset, length) = (map.get("offset")?, map.get("length")?);
    let number = |value: &Value| usize::try_from(value.as_u64()?).ok();
    Some(
        number(offset)
            .zip(number(length))
            .and_then(|(offset, length)| Some((offset, offset.checked_add(length)?))),
    )
}

/// Checks that the envelopes of a value refer to no more bytes than there are, so that a small message cannot expand to a large
/// value.
///
/// # Errors
/// The reason, which continues a message after "the value".
pub(super) fn check_references(value: &Value, buffers: &[u8]) -> Result<(), String> {
    fn referenced(value: &Value) -> usize {
        match value {
            Value::Array(items) => items.iter().map(referenced).fold(0, usize::saturating_add),
            Value::Object(map) if Envelope::is_in(map) => {
                range_of(map).flatten().map_or(0, |(start, end)| end - start)
            }
            Value::Object(map) => map.values().map(referenced).fold(0, usize::saturating_add),
            _ => 0,
        }
    }
    let bytes = referenced(value);
    if bytes > buffers.len() {
        return Err(format!("refers to {bytes} bytes of buffers, but has only {}", buffers.len()));
    }
    Ok(())
}

/// Converts a value to a payload. Its envelopes refer to `buffers`.
///
/// # Errors
/// The reason, which continues a message after "the value".
pub(super) fn of_value(value: &Value, buffers: &Bytes) -> Result<Payload, String> {
    if !contains_envelope(value) {
        return Payload::try_from_serde(value).map_err(|error| error.to_string());
    }
    Ok(Payload::nested_part(&value.to_string(), buffers))
}

/// The part of the buffers that the envelopes of a value refer to.
fn extent(value: &Value) -> Option<(usize, usize)> {
    let union = |one: Option<(usize, usize)>, other: Option<(usize, usize)>| match (one, other) {
        (Some((start, end)), Some(other)) => Some((start.min(other.0), end.max(other.1))),
        (one, other) => one.or(other),
    };
    match value {
        Value::Array(items) => items.iter().map(extent).fold(None, union),
        Value::Object(map) if Envelope::is_in(map) => range_of(map).flatten(),
        Value::Object(map) => map.values().map(extent).fold(None, union),
        _ => None,
    }
}

fn contains_envelope(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.iter().any(contains_envelope),
        Value::Object(map) => Envelope::is_in(map) || map.values().any(contains_envelope),
        _ => false,
    }
}

/// Converts an item of a stream, or a nested value, to JSON with base64.
///
/// # Errors
/// The reason, which continues a message after "the value".
pub(super) fn to_plain(json: &[u8], buffers: &[u8]) -> Result<Value, String> {
    fn convert(value: Value, buffers: &[u8]) -> Result<Value, String> {
        Ok(match value {
            Value::Array(items) => {
                items.into_iter().map(|item| convert(item, buffers)).collect::<Result<Vec<_>, _>>()?.into()
            }
            Value::Object(map) if Envelope::is_in(&map) => Envelope::parse(map, buffers)?.into_plain(),
            Value::Object(map) => {
                let entries = map.into_iter().map(|(key, value)| Ok((key, convert(value, buffers)?)));
                Value::Object(entries.collect::<Result<_, String>>()?)
            }
            plain => plain,
        })
    }
    let json = value_in(json).unwrap_or(json);
    let value = serde_json::from_slice(json).map_err(|error| format!("is not valid JSON: {error}"))?;
    check_references(&value, buffers)?;
    convert(value, buffers)
}

/// Copies the JSON of a nested value, and adds `base` to the offsets of its envelopes, with wrapping.
///
/// # Errors
/// The JSON is malformed.
pub(super) fn rebase(json: &[u8], base: usize, out: &mut Vec<u8>) -> Result<(), serde_json::Error> {
    if memchr::memmem::find(json, KEY.as_bytes()).is_none() {
        out.extend_from_slice(json);
        return Ok(());
    }
    match json.first() {
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_slice(json)?;
            out.push(b'[');
            for (index, item) in items.into_iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                rebase(item.get().as_bytes(), base, out)?;
            }
            out.push(b']');
        }
        Some(b'{') => {
            let Entries(entries) = serde_json::from_slice(json)?;
            let is_envelope = entries.iter().any(|(key, _)| key == KEY);
            for (index, (key, value)) in entries.iter().enumerate() {
                out.push(if index > 0 { b',' } else { b'{' });
                serde_json::to_writer(&mut *out, key)?;
                out.push(b':');
                match value.get().parse::<usize>() {
                    Ok(offset) if is_envelope && key == "offset" => {
                        out.extend_from_slice(base.wrapping_add(offset).to_string().as_bytes());
                    }
                    _ => rebase(value.get().as_bytes(), base, out)?,
                }
            }
            out.push(b'}');
        }
        _ => out.extend_from_slice(json),
    }
    Ok(())
}

/// The entries of a map in their order.
struct Entries<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Entries<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor;

        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Vec<(String, &'de RawValue)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(entries)
            }
        }
        deserializer.deserialize_map(EntriesVisitor).map(Self)
    }
}

/// The value in the JSON of a nested value.
pub(super) fn value_in(json: &[u8]) -> Option<&[u8]> {
    json.strip_prefix(PREFIX)?.strip_suffix(b"}")
}

/// Checks that all envelopes of a value can be read.
///
/// # Errors
/// The reason, which continues a message after "value".
pub(crate) fn check(json: &[u8], buffers: &[u8]) -> Result<(), String> {
    fn check_envelopes(value: &Value, buffers: &[u8]) -> Result<(), String> {
        match value {
            Value::Array(items) => items.iter().try_for_each(|item| check_envelopes(item, buffers)),
            Value::Object(map) if Envelope::is_in(map) => Envelope::parse(map.clone(), buffers).map(drop),
            Value::Object(map) => map.values().try_for_each(|item| check_envelopes(item, buffers)),
            _ => Ok(()),
        }
    }
    let value = serde_json::from_slice(json).map_err(|error| format!("is not valid JSON: {error}"))?;
    check_references(&value, buffers)?;
    check_envelopes(&value, buffers)
}

/// Writes the envelope of a whole value with these metadata.
pub(super) fn envelope_of(ty: ValueType, metadata: &[u8], offset: usize, length: usize) -> Vec<u8> {
    let metadata: Map<String, Value> = serde_json::from_slice(metadata).unwrap_or_default();
    let mut json = format!("{{\"{KEY}\":\"{ty}\"");
    for (key, value) in metadata {
        if key != "type" && (key != "binary_format" || value != "raw") {
            json.push_str(&format!(",{}:{value}", Value::String(key)));
        }
    }
    json.push_str(&format!(",\"offset\":{offset},\"length\":{length}}}"));
    json.into_bytes()
}

fn wrap(json: &[u8]) -> Bytes {
    let mut wrapped = Vec::with_capacity(PREFIX.len() + json.len() + 1);
    wrapped.extend_from_slice(PREFIX);
    wrapped.extend_from_slice(json);
    wrapped.push(b'}');
    wrapped.into()
}

impl Payload {
    /// Wraps JSON whose envelopes refer to parts of `buffers`.
    #[doc(hidden)]
    #[must_use]
    pub fn nested(json: &[u8], buffers: Bytes) -> Self {
        Self::root(json, &buffers).unwrap_or_else(|| {
            let ty = if json.first() == Some(&b'[') { ValueType::List } else { ValueType::Map };
            Self::from_buffer(ty, wrap(json), buffers)
        })
    }

    /// Wraps JSON that is a part of a nested value with these buffers. Keeps only its own part of the buffers.
    #[doc(hidden)]
    #[must_use]
    pub fn nested_part(json: &str, buffers: &Bytes) -> Self {
        if !json.contains(KEY) {
            return Self::of_json(Bytes::copy_from_slice(json.as_bytes()));
        }
        let extent = serde_json::from_str(json).ok().and_then(|value| extent(&value));
        let (start, end) =
            extent.filter(|(start, end)| start <= end && *end <= buffers.len()).unwrap_or_default();
        let mut rebased = Vec::with_capacity(json.len());
        match rebase(json.as_bytes(), start.wrapping_neg(), &mut rebased) {
            Ok(()) => Self::nested(&rebased, buffers.slice(start..end)),
            Err(_) => Self::nested(json.as_bytes(), buffers.clone()),
        }
    }

    /// A value that is bytes or an array as a whole.
    fn root(json: &[u8], buffers: &Bytes) -> Option<Self> {
        if json.len() > MAX_ENVELOPE_BYTES || !json.starts_with(b"{") {
            return None;
        }
        let map = serde_json::from_slice(json).ok().filter(Envelope::is_in)?;
        let envelope = Envelope::parse(map, buffers).ok()?;
        let metadata = envelope.metadata_json();
        let buffer = match envelope.data {
            Cow::Borrowed(data) => buffers.slice_ref(data),
            Cow::Owned(data) => data.into(),
        };
        Some(match envelope.ty {
            ValueType::Bytes if envelope.metadata.is_empty() => Self::bytes(buffer),
            ty => Self::from_buffer(ty, metadata, buffer),
        })
    }

    /// The JSON of a nested value. `None` for other values.
    #[doc(hidden)]
    #[must_use]
    pub fn nested_json(&self) -> Option<&[u8]> {
        self.binary.as_ref()?;
        value_in(&self.json)
    }

    /// The JSON of a value as an item of a stream, with its buffers. It has no type, so its JSON contains everything.
    #[doc(hidden)]
    #[must_use]
    pub fn into_item(self) -> (Bytes, Option<Bytes>) {
        match &self.binary {
            None => (self.json_part(), None),
            Some(_) if self.nested_json().is_some() => (self.json, self.binary),
            Some(buffer) => (wrap(&envelope_of(self.ty, &self.json, 0, buffer.len())), self.binary),
        }
    }

    /// The value of an item of a stream.
    #[doc(hidden)]
    #[must_use]
    pub fn of_item(json: Bytes, binary: Option<Bytes>) -> Self {
        let Some(buffers) = binary else { return Self::of_json(json) };
        match value_in(&json) {
            Some(value) => Self::nested(value, buffers),
            None => Self::from_buffer(ValueType::Bytes, json, buffers),
        }
    }
}
