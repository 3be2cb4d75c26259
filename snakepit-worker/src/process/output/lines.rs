//! [`LineBuffer`]: collects the lines of a stream in bounded memory. It truncates long lines and counts the skipped bytes.

/// The number of bytes after which a line is truncated.
pub(super) const MAX_LINE_BYTES: usize = 8 * 1024;

/// The unfinished line of one writer.
///
/// A carriage return within a line starts it again, as on a terminal, so the line of a progress bar is its last state.
#[derive(Debug, Default)]
pub(super) struct LineBuffer {
    line: Vec<u8>,
    /// Whether the last byte was a carriage return.
    has_returned: bool,
    /// The number of bytes of the line that were skipped.
    skipped: u64,
}

/// A complete line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Line<'a> {
    /// The line, or the first [`MAX_LINE_BYTES`] bytes of a longer one.
    Text(&'a [u8]),
    /// The previous line was truncated by this many bytes.
    Truncated(u64),
}

impl LineBuffer {
    /// Adds bytes, and passes on the lines that are complete.
    pub(super) fn push(&mut self, bytes: &[u8], mut emit: impl FnMut(Line<'_>)) {
        let mut rest = bytes;
        while let Some((first, tail)) = rest.split_first() {
            match first {
                b'\n' => {
                    self.finish(&mut emit);
                    rest = tail;
                }
                b'\r' => {
                    self.has_returned = true;
                    rest = tail;
                }
                _ => {
                    if std::mem::take(&mut self.has_returned) {
                        self.clear();
                    }
                    let end =
                        rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')).unwrap_or(rest.len());
                    self.extend(&rest[..end]);
                    rest = &rest[end..];
                }
            }
        }
    }

    /// Passes on the unfinished line, if there is one.
    pub(super) fn flush(&mut self, mut emit: impl FnMut(Line<'_>)) {
        if !self.is_empty() {
            self.finish(&mut emit);
        }
    }

    /// Whether the last line is finished.
    pub(super) const fn is_empty(&self) -> bool {
        self.line.is_empty() && self.skipped == 0
    }

    fn finish(&mut self, emit: &mut impl FnMut(Line<'_>)) {
        emit(Line::Text(&self.line));
        if self.skipped > 0 {
            emit(Line::Truncated(self.skipped));
        }
        self.clear();
    }

    fn extend(&mut self, bytes: &[u8]) {
        let copied = bytes.len().min(MAX_LINE_BYTES - self.line.len());
        self.line.extend_from_slice(&bytes[..copied]);
        self.skipped += (bytes.len() - copied) as u64;
    }

    fn clear(&mut self) {
        self.line.clear();
        self.skipped = 0;
        self.has_returned = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines of a text that arrives in parts of this size. A truncated line ends with its number of skipped bytes.
    fn lines_of(text: &str, step: usize) -> Vec<String> {
        let mut buffer = LineBuffer::default();
        let mut lines: Vec<String> = Vec::new();
        let mut emit = |line: Line<'_>| match line {
            Line::Text(line) => lines.push(String::from_utf8(line.to_vec()).unwrap()),
            Line::Truncated(bytes) => lines.last_mut().unwrap().push_str(&format!("+{bytes}")),
        };
        for part in text.as_bytes().chunks(step) {
            buffer.push(part, &mut emit);
            assert!(buffer.line.len() <= MAX_LINE_BYTES);
        }
        buffer.flush(&mut emit);
        assert!(buffer.is_empty());
        lines
    }

    #[test]
    fn lines_end_at_newlines_and_at_the_end_of_the_stream() {
        let longest = "x".repeat(MAX_LINE_BYTES);
        for step in [1, 3, 100_000] {
            assert_eq!(lines_of("", step), [""; 0]);
            assert_eq!(lines_of("a\n\nbc", step), ["a", "", "bc"]);
            assert_eq!(lines_of(&format!("{longest}\n{longest}"), step), [longest.clone(), longest.clone()]);
            assert_eq!(lines_of(&format!("{longest}yy\nz"), step), [format!("{longest}+2"), "z".to_owned()]);
            assert_eq!(lines_of(&format!("{longest}yyy"), step), [format!("{longest}+3")]);
        }
    }

    #[test]
    fn a_carriage_return_starts_the_line_again() {
        for step in [1, 2, 100] {
            assert_eq!(lines_of("a\r\nb\r\n", step), ["a", "b"]);
            assert_eq!(lines_of("\r 10%\r 20%\rdone\n", step), ["done"]);
            assert_eq!(lines_of("\r 10%\r 20%\r", step), [" 20%"]);
            assert_eq!(lines_of(&"\r0123456789".repeat(2000), step), ["0123456789"]);
        }
    }
}
