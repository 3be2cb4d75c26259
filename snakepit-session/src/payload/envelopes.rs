//! Finds the envelopes of a value in one pass over its JSON, and checks the parts of the buffers that they refer to.

use std::ops::Range;

use super::{
    ValueType,
    nested::{KEY, MAX_ENVELOPE_BYTES},
    write::MAX_LEVELS,
};

/// The length of the longest text of a key that an envelope may have: each letter is escaped as `\u0000`.
const MAX_KEY_TEXT: usize = KEY.len() * 6 + 2;
/// How many characters of a number an error shows.
const MAX_EXCERPT: usize = 40;

/// The place of an envelope, which stands for bytes, an array, or a map with the key [`KEY`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EnvelopePlace {
    /// The bytes of the JSON that contain the envelope.
    pub(super) text: Range<usize>,
    pub(super) content: Content,
}

/// The value for which an envelope stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content {
    /// A part of the buffers.
    Reference {
        part: Range<usize>,
        /// The place of the offset in the JSON.
        offset: Range<usize>,
    },
    /// Base64 text.
    Base64,
    /// The entries of a map, as a list of lists that begins here.
    Map { items: usize },
}

/// Whether JSON may contain an envelope. Its key may be escaped.
pub(super) fn may_have_envelope(json: &[u8]) -> bool {
    memchr::memmem::find(json, KEY.as_bytes()).is_some()
        || (memchr::memchr(b'\\', json).is_some() && memchr::memmem::find(json, br"\u00").is_some())
}

/// The envelopes of a value, in order of their positions.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Envelopes {
    found: Vec<EnvelopePlace>,
}

impl Envelopes {
    /// Finds the envelopes. JSON that is malformed in other respects has any result.
    ///
    /// # Errors
    /// An envelope is invalid, or the JSON is nested too deep. The reason continues a message after "the value".
    pub(super) fn find(json: &[u8]) -> Result<Self, String> {
        let mut search = Search { json, at: 0, levels: Vec::new(), envelopes: Self::default() };
        search.run()?;
        let mut envelopes = search.envelopes;
        // An envelope ends after those inside it.
        if envelopes.found.iter().any(|envelope| matches!(envelope.content, Content::Map { .. })) {
            envelopes.found.sort_unstable_by_key(|envelope| envelope.text.start);
        }
        Ok(envelopes)
    }

    /// Finds the envelopes, and checks that each refers to its own part of buffers with this number of bytes. A small message
    /// can therefore not expand to a large value.
    ///
    /// # Errors
    /// The reason, which continues a message after "the value".
    pub(super) fn checked(json: &[u8], buffer_bytes: usize) -> Result<Self, String> {
        let envelopes = Self::find(json)?;
        let mut parts: Vec<&Range<usize>> = envelopes.references().map(|(_, part)| part).collect();
        if let Some(part) = parts.iter().find(|part| part.end > buffer_bytes) {
            return Err(format!(
                "refers to bytes {} to {} of its buffers, which have {buffer_bytes} bytes",
                part.start, part.end
            ));
        }
        // Writers use the buffers in the order of the envelopes.
        parts.retain(|part| !part.is_empty());
        if !parts.is_sorted_by_key(|part| part.start) {
            parts.sort_unstable_by_key(|part| part.start);
        }
        for (first, second) in parts.iter().zip(parts.iter().skip(1)) {
            if first.end > second.start {
                return Err(format!(
                    "refers to the same bytes of its buffers twice, from {} to {} and from {} to {}; each byte may be used once",
                    first.start, first.end, second.start, second.end
                ));
            }
        }
        Ok(envelopes)
    }

    /// The envelope that begins at this place.
    pub(super) fn at(&self, start: usize) -> Option<&EnvelopePlace> {
        let index = self.found.binary_search_by_key(&start, |envelope| envelope.text.start).ok()?;
        self.found.get(index)
    }

    /// The envelopes inside a part of the JSON.
    pub(super) fn within(&self, text: &Range<usize>) -> &[EnvelopePlace] {
        let first = self.found.partition_point(|envelope| envelope.text.start < text.start);
        let end = self.found.partition_point(|envelope| envelope.text.start < text.end);
        &self.found[first..end]
    }

    pub(super) fn all(&self) -> &[EnvelopePlace] {
        &self.found
    }

    /// The envelopes with a part of the buffers, and that part.
    pub(super) fn references(&self) -> impl Iterator<Item = (&EnvelopePlace, &Range<usize>)> {
        self.found.iter().filter_map(|envelope| match &envelope.content {
            Content::Reference { part, .. } => Some((envelope, part)),
            Content::Base64 | Content::Map { .. } => None,
        })
    }
}

/// A list or map whose end has not been reached.
struct Level {
    start: usize,
    is_map: bool,
    /// The number of envelopes before it.
    envelopes: usize,
    /// The value positions of some keys.
    kind: Option<Range<usize>>,
    offset: Option<Range<usize>>,
    length: Option<Range<usize>>,
    data: Option<Range<usize>>,
    items: Option<Range<usize>>,
    /// Whether one of these keys is there twice.
    has_duplicates: bool,
}

struct Search<'a> {
    json: &'a [u8],
    at: usize,
    levels: Vec<Level>,
    envelopes: Envelopes,
}

impl Search<'_> {
    fn run(&mut self) -> Result<(), String> {
        while let Some(byte) = self.json.get(self.at) {
            match byte {
                b'"' => {
                    let start = self.at;
                    self.at += string_length(&self.json[start..]);
                    if self.levels.last().is_some_and(|level| level.is_map) {
                        self.key(start..self.at);
                    }
                }
                b'{' | b'[' => {
                    self.open(*byte == b'{')?;
                    self.at += 1;
                }
                b'}' | b']' => {
                    self.at += 1;
                    if let Some(level) = self.levels.pop() {
                        self.close(level)?;
                    }
                }
                _ => self.at += 1,
            }
        }
        Ok(())
    }

    fn open(&mut self, is_map: bool) -> Result<(), String> {
        if self.levels.len() >= usize::from(MAX_LEVELS) {
            return Err(format!("is nested deeper than {MAX_LEVELS} levels; send a flatter structure"));
        }
        self.levels.push(Level {
            start: self.at,
            is_map,
            envelopes: self.envelopes.found.len(),
            kind: None,
            offset: None,
            length: None,
            data: None,
            items: None,
            has_duplicates: false,
        });
        Ok(())
    }

    /// Notes the place of the value, if this string is a key that an envelope may have.
    fn key(&mut self, text: Range<usize>) {
        let after =
            |at: usize| at + self.json[at..].iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        let colon = after(text.end);
        if self.json.get(colon) != Some(&b':') {
            return;
        }
        let key = &self.json[text];
        let Some(level) = self.levels.last_mut() else { return };
        let field = match &*unescaped(key) {
            br#""__snakepit__""# => &mut level.kind,
            br#""offset""# => &mut level.offset,
            br#""length""# => &mut level.length,
            br#""data""# => &mut level.data,
            br#""items""# => &mut level.items,
            _ => return,
        };
        let start = after(colon + 1);
        let value = start..start + scalar_length(&self.json[start..]);
        level.has_duplicates |= field.replace(value).is_some();
    }

    /// Adds a map if it is an envelope.
    fn close(&mut self, level: Level) -> Result<(), String> {
        let Some(kind) = level.kind.filter(|_| level.is_map) else { return Ok(()) };
        let text = level.start..self.at;
        let name = unescaped(&self.json[kind]);
        let ty = match &*name {
            br#""bytes""# => ValueType::Bytes,
            br#""tensor""# => ValueType::Tensor,
            br#""embedding""# => ValueType::Embedding,
            br#""map""# => {
                let items = level.items.map(|items| items.start).filter(|_| !level.has_duplicates);
                let items = items.ok_or("contains an escaped map without one list of `items`")?;
                self.envelopes.found.push(EnvelopePlace { text, content: Content::Map { items } });
                return Ok(());
            }
            _ => return Ok(()),
        };
        if self.envelopes.found.len() > level.envelopes {
            return Err(format!("contains {ty} with another envelope inside of it"));
        }
        if level.has_duplicates {
            return Err(format!("contains {ty} with a key that is there twice"));
        }
        let content = match (level.offset, level.length, level.data) {
            (Some(offset), Some(length), None) => {
                if text.len() > MAX_ENVELOPE_BYTES {
                    let found = text.len();
                    return Err(format!(
                        "contains {ty} whose envelope has {found} bytes, the limit is {MAX_ENVELOPE_BYTES}"
                    ));
                }
                let start = self.size(ty, "offset", &offset)?;
                let end = start.checked_add(self.size(ty, "length", &length)?);
                let end = end.ok_or_else(|| format!("contains {ty} beyond the size of any buffer"))?;
                Content::Reference { part: start..end, offset }
            }
            (None, None, Some(_)) => Content::Base64,
            _ => {
                return Err(format!(
                    "contains {ty} that needs either `data` as base64 text, or `offset` and `length`"
                ));
            }
        };
        self.envelopes.found.push(EnvelopePlace { text, content });
        Ok(())
    }

    fn size(&self, ty: ValueType, name: &str, place: &Range<usize>) -> Result<usize, String> {
        let text = &self.json[place.clone()];
        let digits =
            (!text.is_empty() && text.iter().all(u8::is_ascii_digit)).then(|| str::from_utf8(text).ok());
        digits.flatten().and_then(|digits| digits.parse().ok()).ok_or_else(|| {
            let shown = String::from_utf8_lossy(&text[..text.len().min(MAX_EXCERPT)]);
            format!("contains {ty} whose `{name}` is {shown}, expected a number of bytes")
        })
    }
}

/// The text of a short string without escapes, in its quotes. Longer strings are not those of an envelope.
fn unescaped(text: &[u8]) -> std::borrow::Cow<'_, [u8]> {
    if text.len() <= MAX_KEY_TEXT
        && memchr::memchr(b'\\', text).is_some()
        && let Ok(decoded) = serde_json::from_slice::<String>(text)
    {
        return format!("\"{decoded}\"").into_bytes().into();
    }
    text.into()
}

/// The length of the string that begins here, with its quotes.
pub(super) fn string_length(json: &[u8]) -> usize {
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

/// The length of the string, number or name that begins here. 0 for lists and maps.
pub(super) fn scalar_length(json: &[u8]) -> usize {
    if json.first() == Some(&b'"') {
        return string_length(json);
    }
    let is_end = |byte: &u8| {
        matches!(byte, b',' | b':' | b'"' | b'[' | b']' | b'{' | b'}' | b' ' | b'\n' | b'\r' | b'\t')
    };
    json.iter().position(is_end).unwrap_or(json.len())
}
