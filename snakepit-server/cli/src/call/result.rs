//! Results that contain bytes or arrays: writes them to a file, or describes them for people.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde::Deserialize;
use serde_json::value::RawValue;
use snakepit_proto::{
    pb,
    value::{self, TypedValue},
};
use snakepit_server::Reason;

use super::{destination::Destination, npy};
use crate::{Failure, entries::Entries, output::to_readable_json};

/// The key of the maps that stand for bytes and arrays in plain JSON.
const KEY: &str = "\"__snakepit__\"";

/// The maximum depth of described values: the recursion limit of `serde_json`.
const MAX_DEPTH: usize = 128;

/// Converts an item of a stream to the content of a file: bytes as they are, and other values as a line of JSON.
pub(super) fn item_to_file(json: &RawValue) -> Result<Vec<u8>, Failure> {
    match Buffer::parse(json.get()) {
        Some(buffer) if buffer.kind == "bytes" => buffer.content(),
        _ => Ok(format!("{}\n", json.get()).into_bytes()),
    }
}

/// Converts a result to the content of a file: bytes as they are, an array as `.npy` if the file has that extension, and other
/// values as JSON.
pub(super) fn to_file(
    destination: &Destination,
    any: pb::Any,
    binary: bytes::Bytes,
) -> Result<Vec<u8>, Failure> {
    let buffer = (!binary.is_empty()).then(|| binary.clone());
    match value::decode(any.clone(), buffer) {
        Ok(TypedValue { type_name, binary: Some(buffer), .. }) if type_name == "bytes" => {
            return Ok(buffer.to_vec());
        }
        Ok(TypedValue { json, binary: Some(buffer), .. }) if destination.is_npy() => {
            if let Some(content) = encode_npy(&json, &buffer) {
                return Ok(content);
            }
        }
        _ => {}
    }
    // Hosts send bytes as base64 to clients that cannot receive buffers.
    item_to_file(&to_readable_json(any, binary)?)
}

#[derive(Deserialize)]
struct ArrayMetadata {
    shape: Vec<u64>,
    dtype: String,
}

fn encode_npy(metadata: &[u8], buffer: &[u8]) -> Option<Vec<u8>> {
    let ArrayMetadata { shape, dtype } = serde_json::from_slice(metadata).ok()?;
    npy::write(&shape, &dtype, buffer)
}

/// Describes a whole result that is bytes or an array. Returns `None` for JSON.
pub(super) fn describe_whole(any: &pb::Any, binary: &bytes::Bytes) -> Option<String> {
    let buffer = (!binary.is_empty()).then(|| binary.clone());
    let TypedValue { type_name, json, binary } = value::decode(any.clone(), buffer).ok()?;
    let buffer = binary.filter(|_| !json.starts_with(br#"{"binary_format":"nested""#))?;
    Some(saved_by_output(&describe_buffer(&type_name, &json, &buffer)))
}

/// Describes an item of a stream that is bytes or an array. Returns `None` for other JSON.
pub(super) fn describe_item(json: &RawValue) -> Option<String> {
    let buffer = Buffer::parse(json.get())?;
    let content = buffer.content().ok()?;
    Some(saved_by_output(&describe_buffer(buffer.kind, json.get().as_bytes(), &content)))
}

fn saved_by_output(description: &str) -> String {
    format!("<{description}; --output FILE saves it>")
}

fn describe_buffer(type_name: &str, metadata: &[u8], content: &[u8]) -> String {
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Encoding {
        format: Option<String>,
        class: Option<String>,
    }
    let size = match content.len() {
        1 => "1 byte".to_owned(),
        count => format!("{count} bytes"),
    };
    if type_name != "bytes"
        && let Ok(ArrayMetadata { shape, dtype }) = serde_json::from_slice(metadata)
    {
        let shape: Vec<String> = shape.iter().map(ToString::to_string).collect();
        return format!("array of {dtype}, shape ({}), {size}", shape.join(", "));
    }
    let Encoding { format, class } = serde_json::from_slice(metadata).unwrap_or_default();
    let format = format.or_else(|| kind_of_file(content).map(str::to_owned));
    match (class, format) {
        (Some(class), Some(format)) => format!("{class} as {format}, {size}"),
        (_, Some(format)) => format!("{format}, {size}"),
        _ => size,
    }
}

/// Recognizes frequent kinds of files by their first bytes.
fn kind_of_file(content: &[u8]) -> Option<&'static str> {
    const KINDS: [(&[u8], &str); 9] = [
        (b"\x89PNG\r\n\x1a\n", "png"),
        (b"\xff\xd8\xff", "jpeg"),
        (b"GIF8", "gif"),
        (b"%PDF-", "pdf"),
        (b"PK\x03\x04", "zip"),
        (b"\x1f\x8b", "gzip"),
        (b"PAR1", "parquet"),
        (b"ARROW1", "arrow"),
        (b"\x93NUMPY", "npy"),
    ];
    KINDS.iter().find(|(start, _)| content.starts_with(start)).map(|(_, name)| *name)
}

/// Bytes or an array inside plain JSON, with its content as base64.
#[derive(Deserialize)]
struct Buffer<'a> {
    #[serde(rename = "__snakepit__")]
    kind: &'a str,
    data: &'a str,
}

impl<'a> Buffer<'a> {
    fn parse(json: &'a str) -> Option<Self> {
        if !json.contains(KEY) {
            return None;
        }
        let buffer: Self = serde_json::from_str(json).ok()?;
        matches!(buffer.kind, "bytes" | "tensor" | "embedding").then_some(buffer)
    }

    fn content(&self) -> Result<Vec<u8>, Failure> {
        let problem = |error| {
            Failure::new(Reason::Rejected, format!("the bytes of the result are not base64: {error}"))
        };
        BASE64.decode(self.data).map_err(problem)
    }
}

/// Replaces bytes and arrays in plain JSON with descriptions. Returns `None` for JSON without any.
pub(super) fn describe_nested(json: &RawValue) -> Option<Box<RawValue>> {
    if !json.get().contains(KEY) {
        return None;
    }
    RawValue::from_string(describe_buffers(json.get(), 0)).ok()
}

fn describe_buffers(json: &str, depth: usize) -> String {
    if depth >= MAX_DEPTH || !json.contains(KEY) {
        return json.to_owned();
    }
    if let Some(buffer) = Buffer::parse(json)
        && let Ok(content) = buffer.content()
    {
        let text = describe_buffer(buffer.kind, json.as_bytes(), &content);
        return serde_json::Value::from(format!("<{text}>")).to_string();
    }
    if let Ok(Entries(entries)) = serde_json::from_str(json) {
        let entries: Vec<String> = entries
            .into_iter()
            .map(|(key, value)| {
                format!("{}:{}", serde_json::Value::from(key), describe_buffers(value.get(), depth + 1))
            })
            .collect();
        return format!("{{{}}}", entries.join(","));
    }
    match serde_json::from_str::<Vec<&RawValue>>(json) {
        Ok(items) => {
            let items: Vec<String> =
                items.into_iter().map(|item| describe_buffers(item.get(), depth + 1)).collect();
            format!("[{}]", items.join(","))
        }
        Err(_) => json.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_arrays_are_described() {
        let whole = |value: TypedValue| {
            let (any, buffer) = value::encode(value);
            describe_whole(&any, &buffer.unwrap_or_default())
        };
        let bytes = |content: &'static [u8]| whole(value::bytes_value(bytes::Bytes::from_static(content)));
        assert_eq!(bytes(b"x").unwrap(), "<1 byte; --output FILE saves it>");
        assert_eq!(bytes(b"%PDF-1.7").unwrap(), "<pdf, 8 bytes; --output FILE saves it>");
        let array = TypedValue {
            type_name: "tensor".into(),
            json: br#"{"type":"tensor","shape":[2,1],"dtype":"float32","binary_format":"raw"}"#[..].into(),
            binary: Some(bytes::Bytes::from_static(&[0; 8])),
        };
        assert_eq!(
            whole(array).unwrap(),
            "<array of float32, shape (2, 1), 8 bytes; --output FILE saves it>"
        );
        let json = TypedValue { type_name: "string".into(), json: br#""x""#[..].into(), binary: None };
        assert_eq!(whole(json), None);
    }

    #[test]
    fn items_of_streams_are_described_as_results_are() {
        let describe = |json: &str| describe_item(&RawValue::from_string(json.to_owned()).unwrap());
        let bytes = r#"{"__snakepit__":"bytes","data":"AAEC"}"#;
        assert_eq!(describe(bytes).unwrap(), "<3 bytes; --output FILE saves it>");
        assert_eq!(describe(&format!("[{bytes}]")), None);
    }

    #[test]
    fn bytes_inside_json_are_described_and_the_rest_is_unchanged() {
        let json = r#"{"n":123456789012345678901234567890,"parts":[{"__snakepit__":"bytes","data":"AAEC"},1.50],
            "image":{"__snakepit__":"bytes","format":"png","class":"PIL.Image.Image","data":"AA=="},
            "a":{"__snakepit__":"tensor","shape":[1],"dtype":"int8","data":"AA=="}}"#;
        let described = describe_nested(&RawValue::from_string(json.to_owned()).unwrap()).unwrap();
        let expected = r#"{"n":123456789012345678901234567890,"parts":["<3 bytes>",1.50],"image":"<PIL.Image.Image as png, 1 byte>","a":"<array of int8, shape (1), 1 byte>"}"#;
        assert_eq!(described.get(), expected);
        assert!(describe_nested(&RawValue::from_string("[1]".to_owned()).unwrap()).is_none());
    }
}
