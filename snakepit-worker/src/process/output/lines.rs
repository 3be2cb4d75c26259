//! [`LineReader`]: splits a stream into lines in bounded memory. It truncates long lines and counts the skipped bytes.

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

/// The number of bytes after which a line is truncated.
pub(super) const MAX_LINE_BYTES: usize = 8 * 1024;

/// Reads a stream line by line.
#[derive(Debug)]
pub(super) struct LineReader<R> {
    stream: BufReader<R>,
    line: Vec<u8>,
    /// Whether `next` has returned `line`, so the next byte begins a new one.
    is_line_returned: bool,
    /// The number of skipped bytes of a truncated line whose end has not been read.
    skipped: Option<u64>,
}

/// The outcome of a read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum LineEvent {
    /// [`LineReader::line`] holds a line, or the first [`MAX_LINE_BYTES`] bytes of a longer one.
    Line,
    /// The previous line was truncated by this many bytes.
    Truncated { bytes: u64 },
    /// The stream has ended.
    End,
}

impl<R: AsyncRead + Unpin> LineReader<R> {
    pub(super) fn new(stream: R) -> Self {
        let stream = BufReader::with_capacity(MAX_LINE_BYTES, stream);
        Self { stream, line: Vec::new(), is_line_returned: false, skipped: None }
    }

    /// The line that [`next`](Self::next) returned last.
    pub(super) fn line(&self) -> &[u8] {
        &self.line
    }

    /// Reads the next line. Cancel safe.
    pub(super) async fn next(&mut self) -> std::io::Result<LineEvent> {
        if std::mem::take(&mut self.is_line_returned) {
            self.line.clear();
        }
        loop {
            let buffer = self.stream.fill_buf().await?;
            if buffer.is_empty() {
                return Ok(match self.skipped.take() {
                    Some(bytes) if bytes > 0 => LineEvent::Truncated { bytes },
                    _ if self.line.is_empty() => LineEvent::End,
                    _ => self.return_line(),
                });
            }
            let newline = buffer.iter().position(|byte| *byte == b'\n');
            let line_end = newline.unwrap_or(buffer.len());
            if let Some(skipped) = &mut self.skipped {
                *skipped += line_end as u64;
                self.stream.consume(newline.map_or(line_end, |index| index + 1));
                if let Some(bytes) = self.skipped.filter(|_| newline.is_some()) {
                    self.skipped = None;
                    if bytes > 0 {
                        return Ok(LineEvent::Truncated { bytes });
                    }
                }
                continue;
            }
            let copied = line_end.min(MAX_LINE_BYTES - self.line.len());
            self.line.extend_from_slice(&buffer[..copied]);
            let is_complete = newline == Some(copied);
            self.stream.consume(if is_complete { copied + 1 } else { copied });
            if is_complete {
                return Ok(self.return_line());
            }
            if self.line.len() == MAX_LINE_BYTES {
                self.skipped = Some(0);
                return Ok(self.return_line());
            }
        }
    }

    fn return_line(&mut self) -> LineEvent {
        self.is_line_returned = true;
        LineEvent::Line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads all lines. Returns the length of each line, or the number of truncated bytes.
    async fn read_all(text: &str) -> Vec<(usize, u64)> {
        let mut lines = LineReader::new(text.as_bytes());
        let mut events = Vec::new();
        loop {
            match lines.next().await.unwrap() {
                LineEvent::Line => events.push((lines.line().len(), 0)),
                LineEvent::Truncated { bytes } => events.push((0, bytes)),
                LineEvent::End => return events,
            }
            assert!(lines.line.capacity() <= 2 * MAX_LINE_BYTES, "{}", lines.line.capacity());
        }
    }

    #[tokio::test]
    async fn lines_end_at_newlines_and_at_the_end_of_the_stream() {
        assert_eq!(read_all("").await, []);
        assert_eq!(read_all("a\n\nbc").await, [(1, 0), (0, 0), (2, 0)]);
        let longest = "x".repeat(MAX_LINE_BYTES);
        assert_eq!(
            read_all(&format!("{longest}\n{longest}")).await,
            [(MAX_LINE_BYTES, 0), (MAX_LINE_BYTES, 0)]
        );
        assert_eq!(read_all(&format!("{longest}yy\nz")).await, [(MAX_LINE_BYTES, 0), (0, 2), (1, 0)]);
    }

    #[tokio::test]
    async fn an_endless_line_needs_bounded_memory() {
        let long = "x".repeat(50 * MAX_LINE_BYTES + 3);
        assert_eq!(read_all(&long).await, [(MAX_LINE_BYTES, 0), (0, 49 * MAX_LINE_BYTES as u64 + 3)]);
        assert_eq!(read_all(&format!("{long}\nb")).await[1..], [(0, 49 * MAX_LINE_BYTES as u64 + 3), (1, 0)]);
    }
}
