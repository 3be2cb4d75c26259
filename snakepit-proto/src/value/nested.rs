//! Replaces references to buffers in JSON with base64. Copies all other text unchanged, in one pass.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Map, Value};

/// The key that marks a reference, with its quotes.
const KEY: &[u8] = br#""__snakepit__""#;
/// The maximum size of a reference in bytes. A shape has at most 64 axes.
const MAX_REFERENCE_BYTES: usize = 4096;
/// The maximum number of open maps that are remembered. Values have at most 127 levels, so a map inside more maps has no
/// references.
const MAX_OPEN_MAPS: usize = 127;

/// A map whose end has not been reached.
struct OpenMap {
    /// The position of its brace in the JSON.
    start: usize,
    /// The position of its brace in the output.
    out_start: usize,
    is_reference: bool,
}

/// Returns the JSON with base64 in place of references.
pub(super) fn inline(json: &[u8], buffers: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(json.len() + buffers.len().div_ceil(3) * 4);
    // Each byte of the buffers may appear once, so that a small message cannot expand to a large value.
    let mut remaining = buffers.len();
    let mut maps: Vec<OpenMap> = Vec::new();
    // The number of open maps that are not in `maps`.
    let mut deeper = 0_usize;
    let mut at = 0;
    while let Some(byte) = json.get(at) {
        let end = if *byte == b'"' { at + string_length(&json[at..]) } else { at + 1 };
        match byte {
            b'{' if maps.len() == MAX_OPEN_MAPS => deeper += 1,
            b'{' => maps.push(OpenMap { start: at, out_start: out.len(), is_reference: false }),
            b'"' if deeper == 0 && may_be_key(&json[at..end]) => {
                if let Some(map) = maps.last_mut() {
                    map.is_reference = true;
                }
            }
            _ => {}
        }
        out.extend_from_slice(&json[at..end]);
        at = end;
        if *byte == b'}' && deeper > 0 {
            deeper -= 1;
        } else if *byte == b'}'
            && let Some(map) = maps.pop()
            && map.is_reference
            && at - map.start <= MAX_REFERENCE_BYTES
            && let Some(inlined) = inline_reference(&json[map.start..at], buffers, &mut remaining)
        {
            out.truncate(map.out_start);
            out.extend_from_slice(inlined.as_bytes());
        }
    }
    out
}

fn inline_reference(json: &[u8], buffers: &[u8], remaining: &mut usize) -> Option<String> {
    let mut map: Map<String, Value> = serde_json::from_slice(json).ok()?;
    if !matches!(map.get("__snakepit__")?.as_str()?, "bytes" | "tensor" | "embedding") {
        return None;
    }
    let number = |key: &str| usize::try_from(map.get(key)?.as_u64()?).ok();
    let (offset, length) = (number("offset")?, number("length")?);
    let buffer = buffers.get(offset..offset.checked_add(length)?)?;
    *remaining = remaining.checked_sub(length)?;
    map.remove("offset");
    map.remove("length");
    map.insert("data".to_owned(), BASE64.encode(buffer).into());
    Some(Value::Object(map).to_string())
}

/// Whether a string may be the key of a reference. Its letters may be escaped.
fn may_be_key(text: &[u8]) -> bool {
    const MAX_ESCAPED_BYTES: usize = KEY.len() * 6;
    text == KEY || (text.len() <= MAX_ESCAPED_BYTES && memchr::memmem::find(text, br"\u00").is_some())
}

/// The length of the string that starts here, including its quotes.
fn string_length(json: &[u8]) -> usize {
    let mut at = 1;
    while let Some(found) = memchr::memchr2(b'"', b'\\', json.get(at..).unwrap_or_default()) {
        at += found;
        if json[at] == b'"' {
            return at + 1;
        }
        at += 2;
    }
    json.len()
}

#[cfg(test)]
mod tests {
    use super::inline;

    fn inlined(json: &str) -> String {
        String::from_utf8(inline(json.as_bytes(), b"12345678")).unwrap()
    }

    #[test]
    fn references_become_base64() {
        let json = r#"{"a":[{"__snakepit__":"bytes","offset":0,"length":3},"\"__snakepit__\"",1.50,{"b":{"__snakepit__":"tensor","dtype":"int8","shape":[5],"offset":3,"length":5}}]}"#;
        let expected = r#"{"a":[{"__snakepit__":"bytes","data":"MTIz"},"\"__snakepit__\"",1.50,{"b":{"__snakepit__":"tensor","data":"NDU2Nzg=","dtype":"int8","shape":[5]}}]}"#;
        assert_eq!(inlined(json), expected);
    }

    #[test]
    fn the_key_of_a_reference_may_be_escaped() {
        let json = r#"[{"\u005f_snakep\u0069t__":"bytes","offset":0,"length":3}]"#;
        assert_eq!(inlined(json), r#"[{"__snakepit__":"bytes","data":"MTIz"}]"#);
    }

    #[test]
    fn other_text_is_unchanged() {
        for json in [
            r#"{"a": ["\u004eaN", 123456789012345678901234567890, "}{\\"]}"#,
            r#"{"__snakepit__":"bytes","offset":0,"length":9}"#,
            r#"{"__snakepit__":"bytes","offset":18446744073709551615,"length":1}"#,
            r#"{"__snakepit__":"map","items":[["a",1]]}"#,
            r#"{"__snakepit__":"other","offset":0,"length":3}"#,
            r#"{"name":"__snakepit__","offset":0,"length":3}"#,
            r#"{"\u006e":"__snakepit__","offset":0,"length":3}"#,
            r#"{"__snakepit__":"bytes","#,
            r#"}}"__snakepit__"}"#,
            r#"["\"#,
            "",
        ] {
            assert_eq!(inlined(json), json);
        }
    }

    #[test]
    fn deep_maps_are_unchanged() {
        let nested = |levels: usize, inner: &str| {
            format!("{}{inner}{}", r#"{"a":"#.repeat(levels), "}".repeat(levels))
        };
        let reference = r#"{"__snakepit__":"bytes","offset":0,"length":3}"#;
        let base64 = r#"{"__snakepit__":"bytes","data":"MTIz"}"#;
        assert_eq!(inlined(&nested(126, reference)), nested(126, base64));
        assert_eq!(inlined(&nested(127, reference)), nested(127, reference));
        // The levels after deep maps count again.
        let after = format!("[{},{reference}]", nested(1000, "1"));
        assert_eq!(inlined(&after), format!("[{},{base64}]", nested(1000, "1")));
        assert_eq!(inlined(&"{".repeat(100_000)), "{".repeat(100_000));
    }

    #[test]
    fn a_buffer_is_inlined_once() {
        let json = r#"[{"__snakepit__":"bytes","offset":0,"length":8},{"__snakepit__":"bytes","offset":0,"length":8}]"#;
        let expected = r#"[{"__snakepit__":"bytes","data":"MTIzNDU2Nzg="},{"__snakepit__":"bytes","offset":0,"length":8}]"#;
        assert_eq!(inlined(json), expected);
    }
}
