//! A place in JSON, from which values are read one after another.

use std::{borrow::Cow, ops::Range};

use serde::de::Error as _;
use serde_json::{Error, value::RawValue};

use super::{
    envelopes::{scalar_length, string_length},
    write::MAX_LEVELS,
};

/// A place in JSON.
pub(super) struct Cursor<'de> {
    json: &'de [u8],
    at: usize,
    /// The number of open lists and maps.
    levels: u8,
}

/// The text of a number.
pub(super) struct Number<'de>(&'de str);

impl<'de> Cursor<'de> {
    pub(super) const fn new(json: &'de [u8]) -> Self {
        Self { json, at: 0, levels: 0 }
    }

    pub(super) const fn json(&self) -> &'de [u8] {
        self.json
    }

    /// The place. After [`peek`](Self::peek), a value begins here.
    pub(super) const fn at(&self) -> usize {
        self.at
    }

    pub(super) const fn jump(&mut self, at: usize) {
        self.at = at;
    }

    /// The next byte that is not white space.
    pub(super) fn peek(&mut self) -> Option<u8> {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.json.get(self.at) {
            self.at += 1;
        }
        self.json.get(self.at).copied()
    }

    /// # Errors
    /// Another byte is next.
    pub(super) fn expect(&mut self, byte: u8) -> Result<(), Error> {
        if self.peek() != Some(byte) {
            return Err(self.unexpected(&format!("`{}`", char::from(byte))));
        }
        self.at += 1;
        Ok(())
    }

    #[cold]
    fn unexpected(&self, expected: &str) -> Error {
        match self.json.get(self.at) {
            Some(_) => Error::custom(format!("it is malformed: expected {expected} at byte {}", self.at)),
            None => Error::custom(format!("it is malformed: expected {expected} at its end")),
        }
    }

    /// Opens a list or map.
    pub(super) fn open(&mut self, bracket: u8) -> Result<(), Error> {
        self.expect(bracket)?;
        if self.levels == MAX_LEVELS {
            return Err(Error::custom(format!("it is nested deeper than {MAX_LEVELS} levels")));
        }
        self.levels += 1;
        Ok(())
    }

    /// Closes a list or map, all of whose items have been read.
    pub(super) fn close(&mut self, bracket: u8) -> Result<(), Error> {
        self.expect(bracket)?;
        self.leave();
        Ok(())
    }

    pub(super) const fn leave(&mut self) {
        self.levels -= 1;
    }

    /// Whether a list or map has another item. Moves to it.
    pub(super) fn has_next(&mut self, bracket: u8, is_first: &mut bool) -> Result<bool, Error> {
        if self.peek() == Some(bracket) {
            return Ok(false);
        }
        if !std::mem::take(is_first) {
            self.expect(b',')?;
        }
        Ok(true)
    }

    /// # Errors
    /// The value is not at its end.
    pub(super) fn end(&mut self) -> Result<(), Error> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.unexpected("the end")),
        }
    }

    /// Moves behind a value, and returns its place.
    pub(super) fn skip(&mut self) -> Result<Range<usize>, Error> {
        self.peek();
        let start = self.at;
        let mut values = serde_json::Deserializer::from_slice(&self.json[start..]).into_iter::<&RawValue>();
        values.next().unwrap_or_else(|| Err(self.unexpected("a value")))?;
        self.at = start + values.byte_offset();
        Ok(start..self.at)
    }

    pub(super) fn string(&mut self) -> Result<Cow<'de, str>, Error> {
        if self.peek() != Some(b'"') {
            return Err(self.unexpected("a string"));
        }
        let text = &self.json[self.at..self.at + string_length(&self.json[self.at..])];
        self.at += text.len();
        let content = text.get(1..text.len().saturating_sub(1)).unwrap_or_default();
        let is_plain = text.len() > 1 && content.iter().all(|byte| *byte >= b' ' && *byte != b'\\');
        match str::from_utf8(content) {
            Ok(content) if is_plain => Ok(Cow::Borrowed(content)),
            _ => serde_json::from_slice(text).map(Cow::Owned),
        }
    }

    pub(super) fn is_at_number(&mut self) -> bool {
        matches!(self.peek(), Some(b'-' | b'0'..=b'9'))
    }

    pub(super) fn number(&mut self) -> Result<Number<'de>, Error> {
        let text = self.scalar();
        // Checks the syntax.
        let raw: &RawValue = serde_json::from_slice(text)?;
        Ok(Number(raw.get()))
    }

    /// Reads `true`, `false`, or `null`, which is `None`.
    pub(super) fn name(&mut self) -> Result<Option<bool>, Error> {
        self.peek();
        let start = self.at;
        match self.scalar() {
            b"true" => Ok(Some(true)),
            b"false" => Ok(Some(false)),
            b"null" => Ok(None),
            _ => {
                self.at = start;
                Err(self.unexpected("a value"))
            }
        }
    }

    fn scalar(&mut self) -> &'de [u8] {
        let rest = &self.json[self.at..];
        let text = &rest[..scalar_length(rest)];
        self.at += text.len();
        text
    }
}

impl<'de> Number<'de> {
    pub(super) const fn text(&self) -> &'de str {
        self.0
    }

    /// Whether it has neither a fraction nor an exponent. -0 is a float.
    pub(super) fn is_integral(&self) -> bool {
        self.0 != "-0" && !self.0.bytes().any(|byte| matches!(byte, b'.' | b'e' | b'E'))
    }

    /// An integer of 64 bits, with or without a sign.
    pub(super) fn integer(&self) -> Option<Result<u64, i64>> {
        if !self.is_integral() {
            return None;
        }
        self.0.parse().map(Ok).ok().or_else(|| self.0.parse().map(Err).ok())
    }

    /// # Errors
    /// The number is beyond the range of a float.
    pub(super) fn float(&self) -> Result<f64, Error> {
        serde_json::from_str(self.0)
    }
}
