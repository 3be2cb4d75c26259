//! Escapes untrusted text for logs and terminals.
//!
//! Output of workers and text from clients may contain control characters that forge log lines or control a terminal.

use std::{
    borrow::Cow,
    fmt::{self, Write},
};

/// Escapes control characters, including line breaks, and characters that change the text direction. Keeps tabs.
///
/// ```
/// assert_eq!(snakepit_worker::escaping::escape("done\n\x1b[2J"), "done\\n\\u{1b}[2J");
/// ```
#[must_use]
pub fn escape(text: &str) -> Cow<'_, str> {
    escape_if(text, is_unsafe)
}

/// Like [`escape`], but keeps line breaks. For text with several lines, such as a traceback.
#[must_use]
pub fn escape_multiline(text: &str) -> Cow<'_, str> {
    escape_if(text, |c| c != '\n' && is_unsafe(c))
}

/// A [`Write`] adapter that passes all text through [`escape`].
#[derive(Debug)]
pub struct EscapingWriter<W>(pub W);

impl<W: Write> Write for EscapingWriter<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write_str(&escape(text))
    }
}

fn escape_if(text: &str, must_escape: impl Fn(char) -> bool) -> Cow<'_, str> {
    let Some(first) = text.find(&must_escape) else { return Cow::Borrowed(text) };
    let (safe, rest) = text.split_at(first);
    let mut escaped = String::with_capacity(text.len() + 16);
    escaped.push_str(safe);
    for c in rest.chars() {
        if must_escape(c) {
            escaped.extend(c.escape_default());
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}

fn is_unsafe(c: char) -> bool {
    // C0, DEL and C1; line and paragraph separators; bidirectional formatting characters.
    (c.is_control() && c != '\t')
        || matches!(c, '\u{2028}' | '\u{2029}')
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped() {
        for (text, expected) in [
            ("plain\ttext, ünïcode ✓", "plain\ttext, ünïcode ✓"),
            ("a\nb\r", "a\\nb\\r"),
            ("\x1b[2J\x07\x7f", "\\u{1b}[2J\\u{7}\\u{7f}"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("\u{202e}txt.exe\u{2066}", "\\u{202e}txt.exe\\u{2066}"),
            ("\u{2028}", "\\u{2028}"),
        ] {
            assert_eq!(escape(text), expected);
            let mut written = EscapingWriter(String::new());
            write!(written, "{text}").unwrap();
            assert_eq!(written.0, expected);
        }
        assert_eq!(escape_multiline("a\nb\x1b"), "a\nb\\u{1b}");
    }
}
