//! The daemon's log on stderr, which can neither block nor end the daemon. The thread that logs an event formats it and appends it to
//! a bounded queue. A separate thread writes the queue to stderr. See ADR 19.
//!
//! If stderr is slow, closed or on a full disk, lines are lost. The log counts them, and reports the count as soon as stderr accepts
//! data again.

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

/// The capacity of the queue, in bytes.
const MAX_QUEUED_BYTES: usize = 8 * 1024 * 1024;
/// The longest line, in bytes. Longer lines are truncated.
const MAX_LINE_BYTES: usize = 64 * 1024;
/// The time that the program waits for the queue when it ends.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// The time between two attempts to write to a full non-blocking sink.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

static LOG: OnceLock<Log> = OnceLock::new();

/// Installs the log for events and panics. Must be called once.
pub(crate) fn start(filter: EnvFilter, with_colors: bool) {
    let log = LOG.get_or_init(|| Log::to(std::io::stderr()));
    // Only fields are escaped, because the colors around them are control characters too.
    let fields = format::debug_fn(|writer, field, value| match field.name() {
        "message" => write!(EscapingWriter(writer), "{value:?}"),
        name => {
            write!(writer, "{name}=")?;
            write!(EscapingWriter(writer), "{value:?}")
        }
    });
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(with_colors)
        .fmt_fields(fields.delimited(" "))
        // Internal errors would be printed to stderr, and a failure to do so would panic.
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

/// Prints an error on stderr. If the log is installed, its lines and the error keep their order. Ignores failures.
pub(crate) fn print_error(text: &str) {
    print(text, true);
}

/// Prints a report on stderr, such as one for each call. If the queue of the log is full, the report is lost.
pub(crate) fn print_report(text: &str) {
    print(text, false);
}

fn print(text: &str, ignores_limit: bool) {
    let text = format!("{}\n", escape_multiline(text));
    match LOG.get() {
        Some(log) => log.push(text.into_bytes(), ignores_limit),
        None => {
            let _ = std::io::stderr().write_all(text.as_bytes());
        }
    }
}

/// Waits until the queue is written, for a bounded time.
pub(crate) fn flush() {
    if let Some(log) = LOG.get() {
        log.flush();
    }
}

/// A handle of the queue. One thread writes its lines to the sink.
#[derive(Debug, Clone)]
struct Log(Arc<LogQueue>);

#[derive(Debug, Default)]
struct LogQueue {
    state: Mutex<QueueState>,
    /// Notified when a line is queued.
    line_queued: Condvar,
    /// Notified when every line is written or dropped.
    all_written: Condvar,
}

#[derive(Debug, Default)]
struct QueueState {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// The number of lost lines that are not reported yet.
    dropped: u64,
    /// Whether the thread is writing a line that it has taken.
    is_writing: bool,
}

impl Log {
    fn to(sink: impl Write + Send + 'static) -> Self {
        let log = Self(Arc::default());
        let writer = Writer { queue: Arc::clone(&log.0), sink, is_torn: false };
        // Without the thread, lines are dropped once the queue is full.
        let _ = std::thread::Builder::new().name("snakepit-log".to_owned()).spawn(move || writer.run());
        log
    }

    /// Queues a line. Drops the line if the queue is full, unless `ignores_limit` is set.
    fn push(&self, mut line: Vec<u8>, ignores_limit: bool) {
        if line.len() > MAX_LINE_BYTES {
            line.truncate(MAX_LINE_BYTES);
            line.extend_from_slice(b" [cut]\n");
        }
        let mut queue = self.0.lock();
        if queue.bytes + line.len() > MAX_QUEUED_BYTES && !ignores_limit {
            queue.dropped += 1;
            return;
        }
        queue.bytes += line.len();
        queue.lines.push_back(line);
        drop(queue);
        self.0.line_queued.notify_one();
    }

    fn flush(&self) {
        let queue = self.0.lock();
        let unfinished = |queue: &mut QueueState| queue.is_writing || !queue.lines.is_empty();
        let _ = self.0.all_written.wait_timeout_while(queue, FLUSH_TIMEOUT, unfinished);
    }
}

/// `tracing_subscriber` writes each event with one call.
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

impl LogQueue {
    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes the queue to the sink, on a separate thread.
struct Writer<W> {
    queue: Arc<LogQueue>,
    sink: W,
    /// Whether the last line was only partly written.
    is_torn: bool,
}

impl<W: Write> Writer<W> {
    /// Writes line by line, forever.
    fn run(mut self) {
        loop {
            let (line, dropped) = self.next();
            let mut lost = u64::from(line.is_some());
            let reported = dropped == 0 || self.write(&report(dropped));
            if reported && line.is_none_or(|line| self.write(&line)) {
                lost = 0;
            }
            let mut queue = self.queue.lock();
            queue.is_writing = false;
            queue.dropped += lost + if reported { 0 } else { dropped };
            if queue.lines.is_empty() {
                self.queue.all_written.notify_all();
            }
        }
    }

    /// Waits for the next line. Returns it with the number of lines that were lost before it.
    fn next(&self) -> (Option<Vec<u8>>, u64) {
        let nothing_to_write = |queue: &mut QueueState| queue.lines.is_empty();
        let queue = self.queue.lock();
        let mut queue = self
            .queue
            .line_queued
            .wait_while(queue, nothing_to_write)
            .unwrap_or_else(PoisonError::into_inner);
        let line = queue.lines.pop_front();
        queue.bytes -= line.as_ref().map_or(0, Vec::len);
        queue.is_writing = true;
        (line, std::mem::take(&mut queue.dropped))
    }

    fn write(&mut self, line: &[u8]) -> bool {
        let was_torn = std::mem::take(&mut self.is_torn);
        if was_torn && write_blocking(&mut self.sink, b"\n").is_err() {
            self.is_torn = true;
            return false;
        }
        match write_blocking(&mut self.sink, line) {
            Ok(()) => true,
            Err(written) => {
                self.is_torn = written > 0;
                false
            }
        }
    }
}

/// Writes everything to a sink that may be non-blocking. Blocks the thread until the sink has accepted all bytes.
///
/// # Errors
/// The number of bytes that were written before the failure.
pub(crate) fn write_blocking(sink: &mut impl Write, bytes: &[u8]) -> Result<(), usize> {
    let mut written = 0;
    while written < bytes.len() {
        match sink.write(&bytes[written..]) {
            Ok(0) => return Err(written),
            Ok(count) => written += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(RETRY_PAUSE),
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

    /// A sink for which the test determines the result of each write.
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
        let ((outcome, outcomes), (written, writes)) = (mpsc::channel(), mpsc::channel());
        (Log::to(Sink { outcomes, written }), outcome, writes)
    }

    #[test]
    fn lost_lines_are_counted_and_reported_later() {
        let (mut log, outcome, writes) = log();
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
        let written: String = writes.try_iter().collect();
        assert!(written.starts_with(" WA\n WARN"), "the torn line is terminated: {written:?}");
        assert!(
            written.ends_with("dropped 2 lines of the log: stderr was slow, closed or full\nthree\n"),
            "{written:?}"
        );
    }

    #[test]
    fn reports_for_a_stalled_sink_cost_bounded_memory() {
        let (log, _outcome, _writes) = log();
        let log = LOG.get_or_init(|| log);
        let report = "x".repeat(MAX_LINE_BYTES / 2);
        for _ in 0..2 * MAX_QUEUED_BYTES / report.len() {
            print_report(&report);
        }
        assert!(log.0.lock().bytes <= MAX_QUEUED_BYTES);
    }

    #[test]
    fn a_stalled_sink_does_not_block_and_costs_bounded_memory() {
        let (mut log, outcome, writes) = log();
        let line = [b'x'; 1024];
        for _ in 0..20_000 {
            log.write_all(&line).unwrap();
        }
        let start = tokio::time::Instant::now();
        Log::flush(&log);
        assert!(start.elapsed() < 3 * FLUSH_TIMEOUT, "a flush does not wait for it either");
        assert!(log.0.lock().bytes <= MAX_QUEUED_BYTES);
        // The sink accepts data again, and receives every line or the report of its loss.
        drop(outcome);
        log.push(b"after\n".to_vec(), true);
        let lost =
            |line: &str| -> Option<usize> { line.split_once("dropped ")?.1.split(' ').next()?.parse().ok() };
        let reported =
            writes.iter().take_while(|line| line != "after\n").map(|line| lost(&line).unwrap_or(1));
        assert_eq!(reported.sum::<usize>(), 20_000);
    }
}
