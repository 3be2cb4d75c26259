//! The frames by which a worker attributes its output to calls, within its standard output and standard error.
//!
//! A worker writes frames only if the host passes it a key in [`ENV_OUTPUT_KEY`], and only into the pipes of the host. All other
//! bytes in the pipes come from programs that the worker runs and from native code. Each frame fits into one atomic write, so other
//! writers cannot divide it. Written output arrives even if the worker dies, because the pipes outlive it.

use std::ops::Range;

/// Environment: the key of the frames, [`KEY_BYTES`] hexadecimal digits.
pub const ENV_OUTPUT_KEY: &str = "SNAKEPIT_OUTPUT_KEY";
/// The length of the key.
pub const KEY_BYTES: usize = 16;
/// The maximum size of a frame. Pipes write this many bytes atomically.
pub const MAX_FRAME_BYTES: usize = 4096;

/// The first byte of a frame. The key follows.
const MARK: u8 = 0x1e;
/// Mark and key.
const PREFIX_BYTES: usize = 1 + KEY_BYTES;
/// Prefix, kind, request id, level, writer, and four lengths.
const HEADER_BYTES: usize = PREFIX_BYTES + 1 + 8 + 4 + 8 + 4 * 2;
/// The maximum size of a string in the header. Longer strings are truncated.
const MAX_TEXT_BYTES: usize = 512;

/// The key with which the frames of one worker begin.
pub type Key = [u8; KEY_BYTES];

/// The kind of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    /// The body is output of the call.
    Text,
    /// The body is a progress report: JSON of `done`, `total` and `message`.
    Progress,
    /// From here on, other bytes in the pipe belong to the call.
    Begin,
    /// The call has ended. No further reports follow.
    End,
}

impl FrameKind {
    const ALL: [(Self, u8); 4] =
        [(Self::Text, b't'), (Self::Progress, b'p'), (Self::Begin, b'b'), (Self::End, b'e')];

    fn byte(self) -> u8 {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or(b't', |(_, byte)| *byte)
    }

    fn of(byte: u8) -> Option<Self> {
        Self::ALL.iter().find(|(_, other)| *other == byte).map(|(kind, _)| *kind)
    }
}

/// A part of a worker's output that belongs to a call, or that has a level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The kind.
    pub kind: FrameKind,
    /// The host's id of the call. 0 outside a call.
    pub request_id: u64,
    /// The level of a Python log record. 0 for other output.
    pub level: i32,
    /// The program of the call that wrote the text, so that the lines of several programs stay apart. 0 for the call itself.
    pub writer: u64,
    /// The session. May be empty.
    pub session: &'a str,
    /// The tool.
    pub tool: &'a str,
    /// The logger. May be empty.
    pub logger: &'a str,
    /// The content. Longer ones are divided into several frames.
    pub body: &'a [u8],
}

impl Frame<'_> {
    /// Calls `write` with each frame that the content needs, at least one.
    ///
    /// # Errors
    /// The first error of `write`.
    pub fn encode<E>(&self, key: &Key, mut write: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let [session, tool, logger] = [self.session, self.tool, self.logger].map(truncate);
        let header = HEADER_BYTES + session.len() + tool.len() + logger.len();
        let mut buffer = Vec::with_capacity(MAX_FRAME_BYTES.min(header + self.body.len()));
        let mut rest = self.body;
        loop {
            let (body, next) = rest.split_at(rest.len().min(MAX_FRAME_BYTES - header));
            buffer.clear();
            buffer.push(MARK);
            buffer.extend_from_slice(key);
            buffer.push(self.kind.byte());
            buffer.extend_from_slice(&self.request_id.to_le_bytes());
            buffer.extend_from_slice(&self.level.to_le_bytes());
            buffer.extend_from_slice(&self.writer.to_le_bytes());
            for length in [session.len(), tool.len(), logger.len(), body.len()] {
                // At most `MAX_FRAME_BYTES`.
                buffer.extend_from_slice(&u16::try_from(length).unwrap_or(u16::MAX).to_le_bytes());
            }
            for text in [session, tool, logger] {
                buffer.extend_from_slice(text.as_bytes());
            }
            buffer.extend_from_slice(body);
            write(&buffer)?;
            rest = next;
            if rest.is_empty() {
                return Ok(());
            }
        }
    }
}

/// The start of a string that fits into a header.
fn truncate(text: &str) -> &str {
    let end = (0..=MAX_TEXT_BYTES.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

/// Divides the bytes of a pipe into frames and other bytes, in bounded memory.
#[derive(Debug)]
pub struct Splitter {
    key: Option<Key>,
    buffer: Vec<u8>,
    /// The start of the bytes that were not returned.
    start: usize,
}

/// A part of a pipe's content.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Bytes outside of frames.
    Raw(&'a [u8]),
    /// A frame.
    Frame(Frame<'a>),
}

impl Splitter {
    /// Creates a splitter. Without a key, all bytes are raw.
    #[must_use]
    pub const fn new(key: Option<Key>) -> Self {
        Self { key, buffer: Vec::new(), start: 0 }
    }

    /// Adds bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// Returns the next part. Returns `None` if more bytes are needed. With `is_end`, no more bytes follow.
    pub fn next(&mut self, is_end: bool) -> Option<Piece<'_>> {
        let rest = self.start..self.buffer.len();
        if rest.is_empty() {
            return None;
        }
        let Some(key) = self.key else { return Some(self.raw(rest)) };
        // A frame, or the start of one.
        let mut search = rest.start;
        let frame = loop {
            let Some(offset) = self.buffer[search..].iter().position(|byte| *byte == MARK) else {
                break rest.end;
            };
            let at = search + offset;
            match parse(&key, &self.buffer[at..]) {
                Parsed::Frame(..) => break at,
                Parsed::Incomplete if !is_end => break at,
                Parsed::Incomplete | Parsed::Other => search = at + 1,
            }
        };
        if frame > rest.start {
            return Some(self.raw(rest.start..frame));
        }
        // Parsed again, because the borrow checker does not see that the loop above returns.
        let at = self.start;
        let Parsed::Frame(_, length) = parse(&key, &self.buffer[at..]) else { return None };
        self.start = at + length;
        match parse(&key, &self.buffer[at..]) {
            Parsed::Frame(frame, _) => Some(Piece::Frame(frame)),
            Parsed::Incomplete | Parsed::Other => None,
        }
    }

    fn raw(&mut self, range: Range<usize>) -> Piece<'_> {
        self.start = range.end;
        Piece::Raw(&self.buffer[range])
    }
}

enum Parsed<'a> {
    /// A frame of this length.
    Frame(Frame<'a>, usize),
    /// The bytes may be the start of a frame.
    Incomplete,
    /// The bytes are not a frame.
    Other,
}

fn parse<'a>(key: &Key, bytes: &'a [u8]) -> Parsed<'a> {
    let prefix = &bytes[..bytes.len().min(PREFIX_BYTES)];
    let expected = std::iter::once(&MARK).chain(key);
    if !prefix.iter().eq(expected.take(prefix.len())) {
        return Parsed::Other;
    }
    let Some((header, rest)) = bytes.split_at_checked(HEADER_BYTES) else { return Parsed::Incomplete };
    let number = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let lengths: [usize; 4] = std::array::from_fn(|index| number(HEADER_BYTES - 8 + 2 * index));
    let total = HEADER_BYTES + lengths.iter().sum::<usize>();
    let Some(kind) = FrameKind::of(header[PREFIX_BYTES]).filter(|_| total <= MAX_FRAME_BYTES) else {
        return Parsed::Other;
    };
    if bytes.len() < total {
        return Parsed::Incomplete;
    }
    let mut rest = rest;
    let mut take = |length: usize| {
        let (field, next) = rest.split_at(length);
        rest = next;
        field
    };
    let [session, tool, logger, body] = lengths.map(&mut take);
    let [Ok(session), Ok(tool), Ok(logger)] = [session, tool, logger].map(std::str::from_utf8) else {
        return Parsed::Other;
    };
    let mut request_id = [0; 8];
    request_id.copy_from_slice(&header[PREFIX_BYTES + 1..PREFIX_BYTES + 9]);
    let mut level = [0; 4];
    level.copy_from_slice(&header[PREFIX_BYTES + 9..PREFIX_BYTES + 13]);
    let mut writer = [0; 8];
    writer.copy_from_slice(&header[PREFIX_BYTES + 13..PREFIX_BYTES + 21]);
    let (request_id, level) = (u64::from_le_bytes(request_id), i32::from_le_bytes(level));
    let writer = u64::from_le_bytes(writer);
    Parsed::Frame(Frame { kind, request_id, level, writer, session, tool, logger, body }, total)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: Key = *b"0123456789abcdef";

    fn frame(body: &[u8]) -> Frame<'_> {
        Frame {
            kind: FrameKind::Text,
            request_id: 7,
            level: 20,
            writer: 3,
            session: "s",
            tool: "t",
            logger: "",
            body,
        }
    }

    fn encoded(frame: &Frame<'_>) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        frame
            .encode::<()>(&KEY, |bytes| {
                frames.push(bytes.to_vec());
                Ok(())
            })
            .unwrap();
        frames
    }

    /// The bytes outside of frames, and the bodies of the frames.
    fn split(key: Option<Key>, bytes: &[u8], step: usize) -> (Vec<u8>, Vec<u8>) {
        let mut splitter = Splitter::new(key);
        let (mut raw, mut bodies) = (Vec::new(), Vec::new());
        let mut take = |splitter: &mut Splitter, is_end| {
            while let Some(piece) = splitter.next(is_end) {
                match piece {
                    Piece::Raw(bytes) => raw.extend_from_slice(bytes),
                    Piece::Frame(found) => {
                        assert_eq!(Frame { body: b"", ..found }, frame(b""));
                        bodies.extend_from_slice(found.body);
                    }
                }
            }
        };
        for part in bytes.chunks(step) {
            splitter.push(part);
            take(&mut splitter, false);
            assert!(splitter.buffer.len() <= MAX_FRAME_BYTES + step);
        }
        take(&mut splitter, true);
        (raw, bodies)
    }

    #[test]
    fn long_output_is_divided_into_frames_that_are_written_atomically() {
        let body = vec![b'x'; 10_000];
        let frames = encoded(&Frame { session: &"é".repeat(1000), ..frame(&body) });
        assert!(frames.len() > 2 && frames.iter().all(|frame| frame.len() <= MAX_FRAME_BYTES));
        let lengths = frames.iter().map(|bytes| match parse(&KEY, bytes) {
            Parsed::Frame(frame, length) if length == bytes.len() => frame.body.len(),
            _ => panic!("expected a frame"),
        });
        assert_eq!(lengths.sum::<usize>(), body.len());
        assert_eq!(encoded(&frame(b"")).len(), 1);
    }

    #[test]
    fn bytes_that_only_look_like_a_frame_are_output() {
        let mut bytes = encoded(&frame(b"a")).concat();
        let (raw, bodies) = split(Some(*b"another key 1234"), &bytes, 3);
        assert_eq!((raw, bodies), (bytes.clone(), vec![]));
        assert_eq!(split(None, &bytes, 3).0, bytes);
        // Another kind, and a frame without an end.
        bytes[PREFIX_BYTES] = b'?';
        assert_eq!(split(Some(KEY), &bytes, 3).0, bytes);
        let cut = encoded(&frame(b"abc")).concat();
        assert_eq!(split(Some(KEY), &cut[..cut.len() - 1], 3).0, &cut[..cut.len() - 1]);
    }

    proptest! {
        #[test]
        fn frames_and_other_bytes_are_separated_at_any_division(
            parts in proptest::collection::vec((any::<bool>(), proptest::collection::vec(any::<u8>(), 0..60)), 0..20),
            step in 1_usize..200,
        ) {
            let (mut bytes, mut raw, mut bodies) = (Vec::new(), Vec::new(), Vec::new());
            for (is_frame, part) in parts {
                if is_frame {
                    bytes.extend(encoded(&frame(&part)).concat());
                    bodies.extend(part);
                } else {
                    bytes.extend_from_slice(&part);
                    raw.extend(part);
                }
            }
            prop_assert_eq!(split(Some(KEY), &bytes, step), (raw, bodies));
        }
    }
}
