//! [`LineBuffer`]: collects the lines of a stream in bounded memory. It truncates long lines and counts the skipped bytes.

/// The number of bytes after which a line is truncated.
pub(super) const MAX_LINE_BYTES: usize = 8 * 1024;

/// The control sequence that moves the cursor of a terminal one line up.
const CURSOR_UP: &[u8] = b"\x1b[A";

/// The unfinished line of one writer.
///
/// A carriage return within a line starts it again, as on a terminal, so the line of a progress bar is its last state. The bars of
/// nested loops move up after each state, which makes them single lines, too.
#[derive(Debug, Default)]
pub(super) struct LineBuffer {
    line: Vec<u8>,
    /// Whether the last byte was a carriage return.
    has_returned: bool,
    /// The number of skipped bytes of the line.
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
                    if self.is_transient() {
                        self.clear();
                    } else {
                        self.finish(&mut emit);
                    }
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

    /// Whether the writer has moved up after the line and will write it again, as nested progress bars do.
    fn is_transient(&self) -> bool {
        self.skipped == 0 && self.line.ends_with(CURSOR_UP)
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

    /// The lines of a string that arrives in parts of this size. A truncated line ends with its number of skipped bytes.
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

    #[test]
    fn progress_bars_of_nested_loops_are_single_lines() {
        // The output of tqdm 4.70, with a bar of two steps in each of two steps of another bar.
        let outer = |percent: &str, step: usize| format!("\repochs: {percent}|{step}/2");
        let inner = |epoch: usize, step: usize| format!("\n\rbatches of {epoch}: {step}/2\x1b[A");
        let mut text = outer("  0%", 0);
        for epoch in 0..2 {
            text += &(0..2).map(|step| inner(epoch, step)).collect::<String>();
            text += &format!("\n\rbatches of {epoch}: 2/2\n");
            text += &outer(if epoch == 0 { " 50%" } else { "100%" }, epoch + 1);
        }
        text.push('\n');
        for step in [1, 2, 5, 1000] {
            let lines = lines_of(&text, step);
            assert_eq!(
                lines,
                [
                    "epochs:   0%|0/2",
                    "batches of 0: 2/2",
                    "epochs:  50%|1/2",
                    "batches of 1: 2/2",
                    "epochs: 100%|2/2"
                ]
            );
            // The last state of a program that ends in between is shown.
            assert_eq!(lines_of("a\n\rb 1\x1b[A\n\rb 2\x1b[A", step), ["a", "b 2\x1b[A"]);
        }
    }
}
