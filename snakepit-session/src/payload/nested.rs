//! Nested values: JSON that refers to bytes and arrays in a separate buffer.
//!
//! The JSON is `{"binary_format":"nested","value":VALUE}`. In VALUE, an [`Envelope`] stands for each buffer. [`Envelopes`] finds them.

use std::{borrow::Cow, ops::Range};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use serde_json::{Map, Value};

use super::{
    Payload, PayloadError, ValueType,
    array::ArrayMetadata,
    envelopes::{Content, EnvelopePlace, Envelopes, may_have_envelope},
};

/// The key that marks an envelope. Its value is the type.
pub(crate) const KEY: &str = "__snakepit__";
/// The first bytes of the JSON of a nested value.
const PREFIX: &[u8] = br#"{"binary_format":"nested","value":"#;
/// The maximum size of an envelope in bytes. A shape has at most 64 axes.
pub(super) const MAX_ENVELOPE_BYTES: usize = 4096;

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

    /// Reads the JSON of an envelope.
    ///
    /// # Errors
    /// Those of [`Envelope::parse`].
    pub(super) fn read(json: &[u8], buffers: &'a [u8]) -> Result<Self, String> {
        let map = serde_json::from_slice(json).map_err(|error| format!("is not valid JSON: {error}"))?;
        Self::parse(map, buffers)
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
            let text = map.get("data").and_then(Value::as_str);
            let text = text.ok_or_else(|| format!("contains {ty} without `data` as base64 text"))?;
            let data =
                BASE64.decode(text).map_err(|error| format!("contains {ty} with invalid base64: {error}"))?;
            Cow::Owned(data)
        };
        for key in ["offset", "length", "data"] {
            map.remove(key);
        }
        Ok(Self { ty, metadata: map, data })
    }

    /// Checks the shape and the data type of an array in numpy's format.
    ///
    /// # Errors
    /// The reason, which continues a message after "value".
    fn check_array(&self) -> Result<(), String> {
        if self.ty == ValueType::Bytes {
            return Ok(());
        }
        let metadata: ArrayMetadata = serde_json::from_value(Value::Object(self.metadata.clone()))
            .map_err(|error| format!("contains {} whose metadata cannot be read: {error}", self.ty))?;
        if !metadata.is_raw() {
            return Ok(());
        }
        let checked = metadata.array(self.data.len()).map(drop);
        checked.map_err(|problem| format!("contains {} that cannot be read: {problem}", self.ty))
    }

    /// The JSON of the metadata that accompanies a separate buffer.
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

/// Start and end of an envelope's buffer. `Some(None)` for invalid numbers.
fn range_of(map: &Map<String, Value>) -> Option<Option<(usize, usize)>> {
    let (offset, length) = (map.get("offset")?, map.get("length")?);
    let number = |value: &Value| usize::try_from(value.as_u64()?).ok();
    Some(
        number(offset)
            .zip(number(length))
            .and_then(|(offset, length)| Some((offset, offset.checked_add(length)?))),
    )
}

/// Returns the part of a nested value that is at this place of its JSON, with its own part of the buffers.
pub(super) fn part_at(json: &[u8], text: &Range<usize>, envelopes: &Envelopes, buffers: &Bytes) -> Payload {
    let envelopes = envelopes.within(text);
    let part = &json[text.clone()];
    let is_whole = matches!(envelopes, [only] if only.text == *text);
    let mut extent: Option<Range<usize>> = None;
    for envelope in envelopes {
        if let Content::Reference { part, .. } = &envelope.content {
            let extent = extent.get_or_insert_with(|| part.clone());
            *extent = extent.start.min(part.start)..extent.end.max(part.end);
        }
    }
    let Some(extent) = extent else {
        let base64 = if is_whole { Payload::envelope(part, &Bytes::new()) } else { None };
        return base64.unwrap_or_else(|| Payload::of_json(Bytes::copy_from_slice(part)));
    };
    if is_whole && let Some(whole) = Payload::envelope(part, buffers) {
        return whole;
    }
    let mut rebased = Vec::with_capacity(part.len());
    move_offsets(json, text, envelopes, extent.start.wrapping_neg(), &mut rebased);
    Payload::from_buffer(type_of(&rebased), wrap(&rebased), buffers.slice(extent))
}

/// Copies a part of the JSON of a nested value, and adds `base` to the offsets of its envelopes, with wrapping.
pub(super) fn move_offsets(
    json: &[u8],
    text: &Range<usize>,
    envelopes: &[EnvelopePlace],
    base: usize,
    out: &mut Vec<u8>,
) {
    let mut at = text.start;
    for envelope in envelopes {
        if let Content::Reference { part, offset } = &envelope.content {
            out.extend_from_slice(&json[at..offset.start]);
            out.extend_from_slice(part.start.wrapping_add(base).to_string().as_bytes());
            at = offset.end;
        }
    }
    out.extend_from_slice(&json[at..text.end]);
}

/// Returns the JSON of a chunk or a nested value, with base64 in place of its buffers.
///
/// # Errors
/// The reason, which continues a message after "the value".
pub(super) fn to_plain(json: &[u8], buffers: &[u8]) -> Result<Vec<u8>, String> {
    let json = value_in(json).unwrap_or(json);
    let envelopes = Envelopes::checked(json, buffers.len())?;
    let mut out = Vec::with_capacity(json.len() + buffers.len().div_ceil(3) * 4);
    let mut at = 0;
    for (envelope, _) in envelopes.references() {
        let text = &envelope.text;
        let plain = Envelope::read(&json[text.clone()], buffers)?.into_plain().to_string();
        out.extend_from_slice(&json[at..text.start]);
        out.extend_from_slice(plain.as_bytes());
        at = text.end;
    }
    out.extend_from_slice(&json[at..]);
    Ok(out)
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
    let envelopes = Envelopes::checked(json, buffers.len())?;
    let mut data = envelopes.all().iter().filter(|envelope| !matches!(envelope.content, Content::Map { .. }));
    data.try_for_each(|envelope| Envelope::read(&json[envelope.text.clone()], buffers)?.check_array())
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

fn type_of(json: &[u8]) -> ValueType {
    if json.first() == Some(&b'[') { ValueType::List } else { ValueType::Map }
}

impl Payload {
    /// Wraps JSON whose envelopes refer to parts of `buffers`.
    #[doc(hidden)]
    #[must_use]
    pub fn nested(json: &[u8], buffers: Bytes) -> Self {
        let is_short = json.len() <= MAX_ENVELOPE_BYTES && json.starts_with(b"{");
        let whole = if is_short { Self::envelope(json, &buffers) } else { None };
        whole.unwrap_or_else(|| Self::from_buffer(type_of(json), wrap(json), buffers))
    }

    /// Wraps JSON that may contain envelopes with base64.
    ///
    /// # Errors
    /// An envelope is invalid.
    pub(super) fn with_base64(json: &str) -> Result<Self, String> {
        if !may_have_envelope(json.as_bytes()) {
            return Ok(Self::of_json(Bytes::copy_from_slice(json.as_bytes())));
        }
        let envelopes = Envelopes::checked(json.as_bytes(), 0)?;
        Ok(part_at(json.as_bytes(), &(0..json.len()), &envelopes, &Bytes::new()))
    }

    /// Checks the parts of the buffers to which a value that arrived refers. Values of this process need no check.
    ///
    /// # Errors
    /// [`PayloadError::Nested`] if an envelope is invalid, refers to bytes that are not there, or to those of another one.
    #[doc(hidden)]
    pub fn check_buffers(json: &[u8], buffers: Option<&Bytes>) -> Result<(), PayloadError> {
        match (buffers, value_in(json)) {
            (Some(buffers), Some(value)) if may_have_envelope(value) => {
                let checked = Envelopes::checked(value, buffers.len());
                checked.map(drop).map_err(|problem| PayloadError::Nested { problem })
            }
            _ => Ok(()),
        }
    }

    /// Whether JSON may contain an envelope, whose key may be escaped.
    #[doc(hidden)]
    #[must_use]
    pub fn may_have_envelope(json: &[u8]) -> bool {
        may_have_envelope(json)
    }

    /// A value that is bytes or an array as a whole. `None` for other JSON.
    fn envelope(json: &[u8], buffers: &Bytes) -> Option<Self> {
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

    /// The JSON of a value as a chunk of a stream, with its buffers. It has no type, so its JSON contains everything.
    #[doc(hidden)]
    #[must_use]
    pub fn into_chunk_parts(self) -> (Bytes, Option<Bytes>) {
        match &self.binary {
            None => (self.json_part(), None),
            Some(_) if self.nested_json().is_some() => (self.json, self.binary),
            Some(buffer) => (wrap(&envelope_of(self.ty, &self.json, 0, buffer.len())), self.binary),
        }
    }

    /// The value of a chunk.
    #[doc(hidden)]
    #[must_use]
    pub fn of_chunk(json: Bytes, binary: Option<Bytes>) -> Self {
        let Some(buffers) = binary else { return Self::of_json(json) };
        match value_in(&json) {
            Some(value) => Self::nested(value, buffers),
            None => Self::from_buffer(ValueType::Bytes, json, buffers),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_arrays_have_a_known_type_and_shape() {
        let checked = |envelope: &str, bytes| {
            let json = format!(r#"[{{"__snakepit__":"tensor",{envelope},"offset":0,"length":{bytes}}}]"#);
            check(json.as_bytes(), &vec![0; bytes])
        };
        checked(r#""dtype":"float32","shape":[2]"#, 8).unwrap();
        checked(r#""dtype":"complex64","shape":[]"#, 8).unwrap();
        // The host does not know the format.
        checked(r#""binary_format":"own""#, 8).unwrap();
        for (envelope, expected) in [
            (r#""dtype":"wide","shape":[2]"#, "has dtype `wide`, which is unknown"),
            (r#""dtype":"float32","shape":[3]"#, "has 8 bytes, which does not match shape [3] of float32"),
            (r#""dtype":"float32""#, "its metadata has no shape"),
            (r#""dtype":"float32","shape":"two""#, "metadata cannot be read"),
        ] {
            let problem = checked(envelope, 8).unwrap_err();
            assert!(problem.starts_with("contains tensor ") && problem.contains(expected), "{problem}");
        }
    }
}
