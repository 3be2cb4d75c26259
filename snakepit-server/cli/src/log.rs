//! The daemon's log on stderr, which can neither stall nor end it: events are formatted where they happen, queued within bounds,
//! and written by a thread of its own. See ADR 19.
//!
//! Lines are lost when stderr is slow, closed or on a full disk; they are counted, and the count is written as soon as
//! something can be written again.

use std::{
    collections::VecDeque,
    fmt::Write as _,
    io::{ErrorKind, Write},
    sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use snakepit_worker::escaping::{EscapingWriter, escape_multiline};
use tracing_subscriber::{
    EnvFilter,
    field::MakeExt as _,
    fmt::{MakeWriter, format},
};

/// How many bytes of lines may wait.
const MAX_QUEUED_BYTES: usize = 8 * 1024 * 1024;
/// Longer lines are cut.
const MAX_LINE_BYTES: usize = 64 * 1024;
/// How long the end of the program waits for what is queued.
const FLUSH_WITHIN: Duration = Duration::from_secs(1);
/// How often a non-blocking sink that takes nothing is tried again.
const RETRY_EVERY: Duration = Duration::from_millis(20);

static LOG: OnceLock<Log> = OnceLock::new();

/// Sends what happens to the log from here on, panics included. Called once.
pub(crate) fn start(filter: EnvFilter, colours: bool) {
    let log = LOG.get_or_init(|| Log::to(std::io::stderr()));
    // Control characters are escaped field by field, because the colours of the rest are control characters too.
    let fields = format::debug_fn(|writer, field, value| match field.name() {
        "message" => write!(EscapingWriter(writer), "{value:?}"),
        name => {
            write!(writer, "{name}=")?;
            write!(EscapingWriter(writer), "{value:?}")
        }
    });
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colours)
        .fmt_fields(fields.delimited(" "))
        // These would be printed to stderr, and a failure to do so would panic.
        .log_internal_errors(false)
        .with_writer(log.clone())
        .init();
    std::panic::set_hook(Box::new(|panic| {
        let backtrace = std::backtrace::Backtrace::capture();
        match backtrace.status() {
            std::backtrace::BacktraceStatus::Captured => tracing::error!(%backtrace, "{panic}"),
            _ => tracing::error!("{panic}"),
        }
    }));
}

/// Says something to the user on stderr, in the order of the log if there is one. Where it cannot be said, that is no error.
pub(crate) fn say(text: &str) {
    let text = format!("{}\n", escape_multiline(text));
    match LOG.get() {
        Some(log) => log.push(text.into_bytes(), true),
        None => {
            let _ = std::io::stderr().write_all(text.as_bytes());
        }
    }
}

/// Waits until all is written that can be, for a bounded time.
pub(crate) fn flush() {
    if let Some(log) = LOG.get() {
        log.flush();
    }
}

/// A queue of lines, and the thread that writes them.
#[derive(Debug, Clone)]
struct Log(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// Something was queued.
    filled: Condvar,
    /// All is written or dropped.
    emptied: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Lines that were lost and not reported yet.
    dropped: u64,
    /// The thread writes a line that it took.
    is_writing: bool,
}

impl Log {
    fn to(sink: impl Write + Send + 'static) -> Self {
        let log = Self(Arc::default());
        let writer = Writer { shared: Arc::clone(&log.0), sink, torn: false };
        // Without the thread, lines are dropped once the queue is full.
        let _ = std::thread::Builder::new().name("snakepit-log".to_owned()).spawn(move || writer.run());
        log
    }

    fn push(&self, mut line: Vec<u8>, in_any_case: bool) {
        if line.len() > MAX_LINE_BYTES {
            line.truncate(MAX_LINE_BYTES);
            line.extend_from_slice(b" [cut]\n");
        }
        let mut queue = self.0.lock();
        if queue.bytes + line.len() > MAX_QUEUED_BYTES && !in_any_case {
            queue.dropped += 1;
            return;
        }
        queue.bytes += line.len();
        queue.lines.push_back(line);
        drop(queue);
        self.0.filled.notify_one();
    }

    fn flush(&self) {
        let queue = self.0.lock();
        let unfinished = |queue: &mut Queue| queue.is_writing || !queue.lines.is_empty();
        let _ = self.0.emptied.wait_timeout_while(queue, FLUSH_WITHIN, unfinished);
    }
}

/// Each event is one write.
impl Write for Log {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.push(line.to_vec(), false);
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Writer<W> {
    shared: Arc<Shared>,
    sink: W,
    /// The last line was written in part.
    torn: bool,
}

impl<W: Write> Writer<W> {
    /// Writes line by line, for ever.
    fn run(mut self) {
        loop {
            let (line, dropped) = self.next();
            let mut lost = u64::from(line.is_some());
            let reported = dropped == 0 || self.write(&report(dropped));
            if reported && line.is_none_or(|line| self.write(&line)) {
                lost = 0;
            }
            let mut queue = self.shared.lock();
            queue.is_writing = false;
            queue.dropped += lost + if reported { 0 } else { dropped };
            if queue.lines.is_empty() {
                self.shared.emptied.notify_all();
            }
        }
    }

    /// The next line, and how many were lost before it. After the last line, lost ones are reported alone, once: if that fails,
    /// the report waits for the next line.
    fn next(&self) -> (Option<Vec<u8>>, u64) {
        let nothing_to_write = |queue: &mut Queue| queue.lines.is_empty();
        let queue = self.shared.lock();
        let mut queue =
            self.shared.filled.wait_while(queue, nothing_to_write).unwrap_or_else(PoisonError::into_inner);
        let line = queue.lines.pop_front();
        queue.bytes -= line.as_ref().map_or(0, Vec::len);
        queue.is_writing = true;
        (line, std::mem::take(&mut queue.dropped))
    }

    fn write(&mut self, line: &[u8]) -> bool {
        let torn = std::mem::take(&mut self.torn);
        if torn && write_blocking(&mut self.sink, b"\n").is_err() {
            self.torn = true;
            return false;
        }
        match write_blocking(&mut self.sink, line) {
            Ok(()) => true,
            Err(written) => {
                self.torn = written > 0;
                false
            }
        }
    }
}

/// Writes to a sink that may be non-blocking, and blocks the thread until it takes everything. Returns the number of written
/// bytes if it fails.
pub(crate) fn write_blocking(sink: &mut impl Write, bytes: &[u8]) -> Result<(), usize> {
    let mut written = 0;
    while written < bytes.len() {
        match sink.write(&bytes[written..]) {
            Ok(0) => return Err(written),
            Ok(more) => written += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(RETRY_EVERY),
            Err(_) => return Err(written),
        }
    }
    Ok(())
}

fn report(dropped: u64) -> Vec<u8> {
    format!(" WARN snakepit: dropped {dropped} lines of the log: stderr was slow, closed or full\n")
        .into_bytes()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Takes each write when the test says what comes of it.
    struct Sink {
        outcomes: mpsc::Receiver<std::io::Result<usize>>,
        written: mpsc::Sender<String>,
    }

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let taken = self.outcomes.recv().unwrap_or(Ok(usize::MAX))?.min(bytes.len());
            let _ = self.written.send(String::from_utf8_lossy(&bytes[..taken]).into_owned());
            Ok(taken)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn log() -> (Log, mpsc::Sender<std::io::Result<usize>>, mpsc::Receiver<String>) {
        let ((outcome, outcomes), (written, seen)) = (mpsc::channel(), mpsc::channel());
        (Log::to(Sink { outcomes, written }), outcome, seen)
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted_and_told_later() {
        let (mut log, outcome, seen) = log();
        outcome.send(Err(ErrorKind::BrokenPipe.into())).unwrap();
        outcome.send(Ok(3)).unwrap();
        outcome.send(Err(ErrorKind::StorageFull.into())).unwrap();
        for line in ["one\n", "two\n"] {
            log.write_all(line.as_bytes()).unwrap();
            Log::flush(&log);
        }
        drop(outcome);
        log.write_all(b"three\n").unwrap();
        Log::flush(&log);
        let written: String = seen.try_iter().collect();
        assert!(written.starts_with(" WA\n WARN"), "a line that was torn is ended: {written:?}");
        assert!(
            written.ends_with("dropped 2 lines of the log: stderr was slow, closed or full\nthree\n"),
            "{written:?}"
        );
    }

    #[test]
    fn a_sink_that_stalls_blocks_nobody_and_costs_bounded_memory() {
        let (mut log, outcome, seen) = log();
        let line = [b'x'; 1024];
        for _ in 0..20_000 {
            log.write_all(&line).unwrap();
        }
        let start = tokio::time::Instant::now();
        Log::flush(&log);
        assert!(start.elapsed() < 3 * FLUSH_WITHIN, "the end does not wait for it either");
        assert!(log.0.lock().bytes <= MAX_QUEUED_BYTES);
        // The reader is back, and learns of each line or of its loss.
        drop(outcome);
        log.push(b"after\n".to_vec(), true);
        let lost =
            |line: &str| -> Option<usize> { line.split_once("dropped ")?.1.split(' ').next()?.parse().ok() };
        let told = seen.iter().take_while(|line| line != "after\n").map(|line| lost(&line).unwrap_or(1));
        assert_eq!(told.sum::<usize>(), 20_000);
    }
}
