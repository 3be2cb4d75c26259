//! Drains a worker's stdout and stderr into tracing, line by line, and keeps the last lines for errors about the worker.
//!
//! Workers of this project attribute their output to calls with [frames](snakepit_proto::launch::output). A call whose caller
//! receives reports gets its lines and its progress from here. After a worker dies, the errors of its calls contain the
//! output in its [progress file](super::progress_file).
//!
//! A worker cannot flood the log: long lines are truncated, and lines beyond a rate limit are counted but not logged.

mod demux;
mod lines;
mod rate_limit;
mod report_receivers;

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
};

use serde::Deserialize;
use snakepit_proto::launch::{self, output::Key};
use snakepit_registry::{LogLine, ProgressReport};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::watch,
    time::Instant,
};

pub(super) use self::report_receivers::{ReceiverGuard, ReportReceivers};
use self::{
    demux::{Demux, Origin, OutputEvent},
    rate_limit::{DroppedOutput, RateLimit},
};
use crate::{WorkerId, escaping::escape};

/// The size of a read.
const READ_BYTES: usize = 8 * 1024;

/// A stream of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OutputStream {
    Stdout,
    Stderr,
}

impl OutputStream {
    const fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }

    const fn bit(self) -> u8 {
        match self {
            Self::Stdout => 0b01,
            Self::Stderr => 0b10,
        }
    }
}

/// The output of one worker, shared by the tasks that drain its two streams and by its supervisor.
#[derive(Debug, Clone)]
pub(super) struct WorkerOutput {
    worker: WorkerId,
    /// The key of the worker's frames. `None` if it does not write frames.
    key: Option<Key>,
    state: Arc<Mutex<OutputState>>,
    receivers: ReportReceivers,
    capacity: usize,
}

#[derive(Debug)]
struct OutputState {
    tail: VecDeque<String>,
    rate_limit: RateLimit,
}

impl WorkerOutput {
    pub(super) fn new(worker: WorkerId, key: Option<Key>, capacity: usize) -> Self {
        let state = OutputState { tail: VecDeque::new(), rate_limit: RateLimit::new(Instant::now()) };
        let (state, receivers) = (Arc::new(Mutex::new(state)), ReportReceivers::default());
        Self { worker, key, state, receivers, capacity }
    }

    /// The last lines of both streams, oldest first.
    pub(super) fn lines(&self) -> Vec<String> {
        self.with_state(|state| state.tail.iter().cloned().collect())
    }

    /// The calls whose callers receive reports. `None` if the worker does not attribute its output to calls.
    pub(super) fn report_receivers(&self) -> Option<ReportReceivers> {
        self.key.is_some().then(|| self.receivers.clone())
    }

    /// Handles an event in the output.
    fn handle(&self, stream: OutputStream, event: OutputEvent<'_>) {
        match event {
            OutputEvent::Line(origin, line) => self.record(stream, origin, line),
            OutputEvent::Truncated(origin, bytes) => {
                self.record(stream, origin, format!("[{bytes} more bytes of this line]").as_bytes());
            }
            OutputEvent::Progress(request_id, json) => self.report_progress(request_id, json),
            OutputEvent::End(request_id) => self.receivers.end_call(request_id, stream.bit()),
        }
    }

    /// Keeps a line, passes it to the caller, and logs it unless the worker exceeds the rate limit.
    fn record(&self, stream: OutputStream, origin: &Origin, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        let text = escape(text.trim_end());
        if origin.request_id != 0
            && let Some(reports) = self.receivers.reports_of(origin.request_id)
            && reports.wants_logs()
        {
            let line = LogLine::new(stream.name(), text.clone().into_owned());
            let line = line.with_level(origin.level, origin.logger.clone());
            reports.log(line);
        }
        let capacity = self.capacity;
        let (is_logged, dropped) = self.with_state(|state| {
            if state.tail.len() >= capacity {
                state.tail.pop_front();
            }
            if capacity > 0 {
                state.tail.push_back(text.clone().into_owned());
            }
            let now = Instant::now();
            let dropped = state.rate_limit.take_dropped_if_due(now);
            (state.rate_limit.admit(now, text.len()), dropped)
        });
        self.log_dropped(dropped);
        if is_logged {
            self.log(stream.name(), origin, &text);
        }
    }

    /// Passes a progress report to the caller of its call.
    fn report_progress(&self, request_id: u64, json: &[u8]) {
        #[derive(Deserialize)]
        struct Report {
            done: f64,
            total: Option<f64>,
            #[serde(default)]
            message: String,
        }
        let Some(reports) = self.receivers.reports_of(request_id) else { return };
        // Other code of the worker can write frames, too.
        let Ok(Report { done, total, message }) = serde_json::from_slice(json) else { return };
        reports.progress(ProgressReport::new(done, total, message));
    }

    /// Logs a line that belongs to no call.
    pub(super) fn log_line(&self, stream: &'static str, text: &str) {
        self.log(stream, &Origin::default(), text);
    }

    /// Logs one line. Catches panics, because a subscriber that panics must not stop the drain.
    fn log(&self, stream: &'static str, origin: &Origin, text: &str) {
        let (worker, pool) = (&self.worker, pool_of(&self.worker));
        let request_id = (origin.request_id != 0).then_some(origin.request_id);
        let [session, tool, logger] = [&origin.session, &origin.tool, &origin.logger]
            .map(|text| Some(text.as_str()).filter(|text| !text.is_empty()));
        macro_rules! log {
            ($level:ident) => {
                tracing::$level!(
                    target: "snakepit::worker::output", %worker, pool, stream, request_id, session, tool, logger, "{text}"
                )
            };
        }
        // The levels of Python's logging. Other output has none.
        let log = || match origin.level {
            40.. => log!(error),
            30.. => log!(warn),
            1..20 => log!(debug),
            _ => log!(info),
        };
        let _ = catch_unwind(AssertUnwindSafe(log));
    }

    fn log_dropped(&self, dropped: Option<DroppedOutput>) {
        let Some(DroppedOutput { lines, bytes }) = dropped else { return };
        let (worker, pool) = (&self.worker, pool_of(&self.worker));
        let log = || {
            tracing::warn!(
                target: "snakepit::worker::output",
                %worker,
                pool,
                lines,
                bytes,
                "dropped output above {} lines or {} bytes in a second",
                rate_limit::LINES_PER_SECOND,
                rate_limit::BYTES_PER_SECOND
            );
        };
        let _ = catch_unwind(AssertUnwindSafe(log));
    }

    fn with_state<T>(&self, run: impl FnOnce(&mut OutputState) -> T) -> T {
        run(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The pool of a worker. `None` if the id does not have the form of a pool's worker id.
fn pool_of(worker: &WorkerId) -> Option<&str> {
    let (rest, _) = worker.as_str().rsplit_once('-')?;
    rest.rsplit_once('-').map(|(pool, _)| pool)
}

/// Reads one stream to its end, and reports the port of a readiness line.
pub(super) async fn drain(
    mut stream: impl AsyncRead + Unpin,
    kind: OutputStream,
    output: WorkerOutput,
    ready_port: watch::Sender<Option<u16>>,
) {
    let mut demux = Demux::new(output.key);
    let mut buffer = vec![0; READ_BYTES];
    let handle = |event: OutputEvent<'_>| {
        if let OutputEvent::Line(_, line) = event
            && let Some(port) = readiness_port(&String::from_utf8_lossy(line))
        {
            ready_port
                .send_if_modified(|ready_port| ready_port.is_none() && ready_port.replace(port).is_none());
        }
        output.handle(kind, event);
    };
    loop {
        // The timer runs only if there are dropped lines to report, so an idle worker does not cause wakeups.
        let due = output.with_state(|state| state.rate_limit.report_due());
        let read = tokio::select! {
            read = stream.read(&mut buffer) => read,
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                let dropped = output.with_state(|state| state.rate_limit.take_dropped_if_due(Instant::now()));
                output.log_dropped(dropped);
                continue;
            }
        };
        match read {
            Ok(0) => break,
            Ok(length) => demux.push(&buffer[..length], handle),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => {
                let (worker, stream) = (&output.worker, kind.name());
                tracing::warn!(target: "snakepit::worker::output", %worker, stream, %error, "failed to read output");
                break;
            }
        }
    }
    demux.finish(handle);
    output.receivers.end_stream(kind.bit());
    let dropped = output.with_state(|state| state.rate_limit.take_dropped());
    output.log_dropped(dropped);
}

/// The port of a readiness line. The marker may follow other text, because loggers add prefixes.
fn readiness_port(line: &str) -> Option<u16> {
    let (_, rest) = line.split_once(launch::READY_PREFIX)?;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok().filter(|port| *port != 0)
}

#[cfg(test)]
mod tests {
    use super::{lines::MAX_LINE_BYTES, *};

    #[test]
    fn a_port_is_parsed_within_a_log_line() {
        assert_eq!(readiness_port("GRPC_READY:50123"), Some(50123));
        assert_eq!(readiness_port("2026-01-01 - worker - INFO - GRPC_READY:50123 now"), Some(50123));
        assert_eq!(readiness_port("GRPC_READY:"), None);
        assert_eq!(readiness_port("GRPC_READY:0"), None);
        assert_eq!(readiness_port("GRPC_READY:70000"), None);
        assert_eq!(readiness_port("not GRPC ready"), None);
    }

    #[tokio::test]
    async fn the_last_lines_are_kept_truncated_and_escaped() {
        let text =
            format!("first\nsecond\n\x1b[31mthird\r\n{}\nGRPC_READY:7", "x".repeat(MAX_LINE_BYTES + 10));
        let output = WorkerOutput::new(WorkerId::new("w"), None, 4);
        let (port, ready_port) = watch::channel(None);
        drain(text.as_bytes(), OutputStream::Stdout, output.clone(), port).await;
        let lines = output.lines();
        assert_eq!(lines[0], "\\u{1b}[31mthird");
        assert_eq!((lines[1].len(), lines[2].as_str()), (MAX_LINE_BYTES, "[10 more bytes of this line]"));
        assert_eq!((lines[3].as_str(), *ready_port.borrow()), ("GRPC_READY:7", Some(7)));
    }

    #[tokio::test(start_paused = true)]
    async fn lines_above_the_rate_limit_are_counted() {
        use std::io::Write;
        let log = Arc::new(Mutex::new(Vec::new()));
        #[derive(Clone)]
        struct Sink(Arc<Mutex<Vec<u8>>>);
        impl Write for Sink {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.lock().unwrap().write(bytes)
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let sink = Sink(Arc::clone(&log));
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || sink.clone()).finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        let flood = "a line of a flood\n".repeat(rate_limit::LINES_PER_SECOND + 500);
        let (port, _ready_port) = watch::channel(None);
        drain(flood.as_bytes(), OutputStream::Stdout, WorkerOutput::new(WorkerId::new("w"), None, 4), port)
            .await;
        let log = String::from_utf8(log.lock().unwrap().clone()).unwrap();
        assert_eq!(log.matches("a line of a flood").count(), rate_limit::LINES_PER_SECOND);
        assert!(log.contains("dropped output") && log.contains("lines=500 bytes=8500"), "{log}");
    }
}
