//! [`Demux`]: divides one stream of a worker into the lines of its calls.

use snakepit_proto::launch::output::{Frame, FrameKind, Key, Piece, Splitter};

use super::lines::{Line, LineBuffer};

/// The maximum number of unfinished lines of calls. The oldest one is then passed on as it is.
const MAX_UNFINISHED: usize = 64;
/// The maximum number of calls that may write outside of frames. The oldest one is then removed, because its end is probably
/// missing.
const MAX_RAW_OWNERS: usize = 1024;

/// The call that wrote a line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Origin {
    /// The host's id of the call. 0 outside a call.
    pub(super) request_id: u64,
    pub(super) session: String,
    pub(super) tool: String,
    pub(super) level: i32,
    pub(super) logger: String,
}

impl Origin {
    fn of(frame: &Frame<'_>) -> Self {
        Self {
            request_id: frame.request_id,
            session: frame.session.to_owned(),
            tool: frame.tool.to_owned(),
            level: frame.level,
            logger: frame.logger.to_owned(),
        }
    }
}

/// An event in the output of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OutputEvent<'a> {
    Line(&'a Origin, &'a [u8]),
    /// The previous line was truncated by this many bytes.
    Truncated(&'a Origin, u64),
    /// A progress report of a call, as JSON.
    Progress(u64, &'a [u8]),
    /// No further output of this call follows in this stream.
    End(u64),
}

/// The unfinished line of a call, or of one of its subprocesses.
#[derive(Debug)]
struct Unfinished {
    origin: Origin,
    writer: u64,
    line: LineBuffer,
}

impl Unfinished {
    fn flush(mut self, emit: &mut impl FnMut(OutputEvent<'_>)) {
        let origin = &self.origin;
        self.line.flush(|line| emit(event(origin, line)));
    }
}

/// Divides one stream.
#[derive(Debug)]
pub(super) struct Demux {
    splitter: Splitter,
    /// The unfinished line outside of frames.
    raw: LineBuffer,
    /// The calls to which output outside of frames may belong. It belongs to a call only if there is exactly one.
    raw_owners: Vec<Origin>,
    /// The origin of output outside of frames.
    raw_origin: Origin,
    /// Unfinished lines of calls and their programs, oldest first.
    unfinished: Vec<Unfinished>,
}

impl Demux {
    /// Creates a demux. Without a key, all output belongs to the worker.
    pub(super) fn new(key: Option<Key>) -> Self {
        Self {
            splitter: Splitter::new(key),
            raw: LineBuffer::default(),
            raw_owners: Vec::new(),
            raw_origin: Origin::default(),
            unfinished: Vec::new(),
        }
    }

    /// Adds bytes, and passes on the events in them.
    pub(super) fn push(&mut self, bytes: &[u8], mut emit: impl FnMut(OutputEvent<'_>)) {
        self.splitter.push(bytes);
        self.take(false, &mut emit);
    }

    /// Passes on the unfinished lines at the end of the stream.
    pub(super) fn finish(&mut self, mut emit: impl FnMut(OutputEvent<'_>)) {
        self.take(true, &mut emit);
        self.unfinished.drain(..).for_each(|unfinished| unfinished.flush(&mut emit));
        self.raw.flush(|line| emit(event(&self.raw_origin, line)));
    }

    fn take(&mut self, is_end: bool, emit: &mut impl FnMut(OutputEvent<'_>)) {
        let Self { splitter, raw, raw_owners, raw_origin, unfinished } = self;
        while let Some(piece) = splitter.next(is_end) {
            let frame = match piece {
                Piece::Raw(bytes) => {
                    raw.push(bytes, |line| emit(event(raw_origin, line)));
                    continue;
                }
                Piece::Frame(frame) => frame,
            };
            let request_id = frame.request_id;
            match frame.kind {
                FrameKind::Text => push_text(unfinished, &frame, emit),
                FrameKind::Progress => emit(OutputEvent::Progress(request_id, frame.body)),
                FrameKind::Begin | FrameKind::End => {
                    let is_begin = frame.kind == FrameKind::Begin;
                    let is_owner = raw_owners.iter().any(|owner| owner.request_id == request_id);
                    if is_owner != is_begin {
                        raw.flush(|line| emit(event(raw_origin, line)));
                        if is_begin {
                            if raw_owners.len() >= MAX_RAW_OWNERS {
                                raw_owners.remove(0);
                            }
                            raw_owners.push(Origin::of(&frame));
                        } else {
                            raw_owners.retain(|owner| owner.request_id != request_id);
                        }
                        *raw_origin = match raw_owners.as_slice() {
                            [owner] => owner.clone(),
                            _ => Origin::default(),
                        };
                    }
                    if !is_begin {
                        let ended = unfinished.extract_if(.., |line| line.origin.request_id == request_id);
                        ended.for_each(|line| line.flush(emit));
                        emit(OutputEvent::End(request_id));
                    }
                }
            }
        }
    }
}

fn push_text(unfinished: &mut Vec<Unfinished>, frame: &Frame<'_>, emit: &mut impl FnMut(OutputEvent<'_>)) {
    let of_writer =
        |line: &Unfinished| (line.origin.request_id, line.writer) == (frame.request_id, frame.writer);
    let new = || Unfinished { origin: Origin::of(frame), writer: frame.writer, line: LineBuffer::default() };
    let mut current = match unfinished.iter().position(of_writer) {
        Some(index) => unfinished.remove(index),
        None => new(),
    };
    // A record of a logger begins a line.
    if (current.origin.level, current.origin.logger.as_str()) != (frame.level, frame.logger) {
        std::mem::replace(&mut current, new()).flush(emit);
    }
    let Unfinished { origin, line, .. } = &mut current;
    line.push(frame.body, |line| emit(event(origin, line)));
    if line.is_empty() {
        return;
    }
    if unfinished.len() >= MAX_UNFINISHED {
        unfinished.remove(0).flush(emit);
    }
    unfinished.push(current);
}

fn event<'a>(origin: &'a Origin, line: Line<'a>) -> OutputEvent<'a> {
    match line {
        Line::Text(text) => OutputEvent::Line(origin, text),
        Line::Truncated(bytes) => OutputEvent::Truncated(origin, bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = *b"0123456789abcdef";

    fn frame(kind: FrameKind, request_id: u64, body: &str) -> Vec<u8> {
        let frame = Frame {
            kind,
            request_id,
            level: 0,
            writer: 0,
            session: "s",
            tool: "t",
            logger: "",
            body: body.as_bytes(),
        };
        encoded(&frame)
    }

    fn encoded(frame: &Frame<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        frame
            .encode::<()>(&KEY, |part| {
                bytes.extend_from_slice(part);
                Ok(())
            })
            .unwrap();
        bytes
    }

    /// The events of a stream, each as the id of its call and a string.
    fn events_of(parts: &[Vec<u8>]) -> Vec<String> {
        let mut demux = Demux::new(Some(KEY));
        let mut events = Vec::new();
        let mut emit = |event: OutputEvent<'_>| {
            events.push(match event {
                OutputEvent::Line(origin, text) => {
                    format!("{} {}", origin.request_id, String::from_utf8_lossy(text))
                }
                OutputEvent::Truncated(origin, bytes) => format!("{} +{bytes}", origin.request_id),
                OutputEvent::Progress(id, body) => format!("{id} progress {}", String::from_utf8_lossy(body)),
                OutputEvent::End(id) => format!("{id} end"),
            });
        };
        for part in parts {
            demux.push(part, &mut emit);
        }
        demux.finish(&mut emit);
        events
    }

    #[test]
    fn lines_of_concurrent_calls_and_of_the_worker_are_kept_apart() {
        use FrameKind::{End, Progress, Text};
        let events = events_of(&[
            frame(Text, 1, "one, "),
            b"from a ".to_vec(),
            frame(Text, 2, "two\n"),
            frame(Progress, 2, "{}"),
            b"library\n".to_vec(),
            frame(Text, 1, "more\nand "),
            frame(End, 1, ""),
            frame(Text, 2, "unfinished"),
        ]);
        let expected =
            ["2 two", "2 progress {}", "0 from a library", "1 one, more", "1 and ", "1 end", "2 unfinished"];
        assert_eq!(events, expected);
    }

    #[test]
    fn other_output_belongs_to_the_only_call_that_may_write_it() {
        use FrameKind::{Begin, End};
        let events = events_of(&[
            b"before\n".to_vec(),
            frame(Begin, 1, ""),
            b"a child\nunfinished".to_vec(),
            frame(End, 1, ""),
            b"after\n".to_vec(),
            frame(Begin, 2, ""),
            frame(Begin, 3, ""),
            b"of 2 or 3\n".to_vec(),
            frame(End, 2, ""),
            b"of 3\n".to_vec(),
        ]);
        let expected =
            ["0 before", "1 a child", "1 unfinished", "1 end", "0 after", "0 of 2 or 3", "2 end", "3 of 3"];
        assert_eq!(events, expected);
    }

    #[test]
    fn lines_of_the_programs_of_a_call_are_kept_apart() {
        let part = |writer, body: &str| {
            let (kind, body) = (FrameKind::Text, body.as_bytes());
            encoded(&Frame {
                kind,
                request_id: 1,
                level: 0,
                writer,
                session: "s",
                tool: "t",
                logger: "",
                body,
            })
        };
        let events = events_of(&[
            part(0, "of the "),
            part(7, "of a "),
            part(8, "of another "),
            part(0, "call\n"),
            part(8, "program\n"),
            part(7, "program"),
            frame(FrameKind::End, 1, ""),
        ]);
        assert_eq!(events, ["1 of the call", "1 of another program", "1 of a program", "1 end"]);
    }

    #[test]
    fn calls_without_an_end_are_bounded() {
        use FrameKind::{Begin, End};
        let count = MAX_RAW_OWNERS as u64 + 2;
        let mut parts: Vec<_> = (1..=count).map(|id| frame(Begin, id, "")).collect();
        // Of the calls 3 to `count`, only the last one remains.
        parts.extend((3..count).map(|id| frame(End, id, "")));
        parts.push(b"of the last\n".to_vec());
        assert_eq!(events_of(&parts).pop().unwrap(), format!("{count} of the last"));
    }

    #[test]
    fn unfinished_lines_are_bounded() {
        let parts: Vec<_> = (0..100).map(|id| frame(FrameKind::Text, id, "x")).collect();
        let events = events_of(&parts);
        assert_eq!(events, (0..100).map(|id| format!("{id} x")).collect::<Vec<_>>());
    }
}
