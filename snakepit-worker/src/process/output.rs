//! Drains a worker's stdout and stderr into tracing, line by line, and keeps the last lines for errors about the worker.
//!
//! A pipe does not show which call wrote to it. The worker therefore attributes output to calls itself, in its
//! [progress file](super::progress_file).
//!
//! A worker cannot flood the log: long lines are truncated, and lines above a rate limit are counted but not logged.

mod lines;
mod rate_limit;

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
};

use snakepit_proto::launch;
use tokio::{io::AsyncRead, sync::watch, time::Instant};

use self::{
    lines::{LineEvent, LineReader},
    rate_limit::{DroppedOutput, RateLimit},
};
use crate::{WorkerId, escaping::escape};

/// The output of one worker, shared by the tasks that drain its two streams and by its supervisor.
#[derive(Debug, Clone)]
pub(super) struct WorkerOutput {
    worker: WorkerId,
    state: Arc<Mutex<OutputState>>,
    capacity: usize,
}

#[derive(Debug)]
struct OutputState {
    tail: VecDeque<String>,
    rate_limit: RateLimit,
}

impl WorkerOutput {
    pub(super) fn new(worker: WorkerId, capacity: usize) -> Self {
        let state = OutputState { tail: VecDeque::new(), rate_limit: RateLimit::new(Instant::now()) };
        Self { worker, state: Arc::new(Mutex::new(state)), capacity }
    }

    /// The last lines of both streams, oldest first.
    pub(super) fn lines(&self) -> Vec<String> {
        self.with_state(|state| state.tail.iter().cloned().collect())
    }

    /// Keeps a line, and logs it unless the worker exceeds its rate limit.
    fn record(&self, stream: &'static str, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        let text = escape(text.trim_end());
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
            self.log(stream, &text);
        }
    }

    /// Logs one line. Catches panics, because a subscriber that panics must not stop the drain.
    pub(super) fn log(&self, stream: &'static str, text: &str) {
        let worker = &self.worker;
        let log = || tracing::info!(target: "snakepit::worker::output", %worker, stream, "{text}");
        let _ = catch_unwind(AssertUnwindSafe(log));
    }

    fn log_dropped(&self, dropped: Option<DroppedOutput>) {
        let Some(DroppedOutput { lines, bytes }) = dropped else { return };
        let worker = &self.worker;
        let log = || {
            tracing::warn!(
                target: "snakepit::worker::output",
                %worker,
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

/// Reads one stream to its end, and reports the port of a readiness line.
pub(super) async fn drain(
    stream: impl AsyncRead + Unpin,
    name: &'static str,
    output: WorkerOutput,
    ready_port: watch::Sender<Option<u16>>,
) {
    let mut lines = LineReader::new(stream);
    loop {
        // The timer runs only if there are dropped lines to report, so an idle worker causes no wakeups.
        let due = output.with_state(|state| state.rate_limit.report_due());
        let read = tokio::select! {
            read = lines.next() => read,
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                let dropped = output.with_state(|state| state.rate_limit.take_dropped_if_due(Instant::now()));
                output.log_dropped(dropped);
                continue;
            }
        };
        match read {
            Ok(LineEvent::Line) => {
                if let Some(port) = readiness_port(&String::from_utf8_lossy(lines.line())) {
                    ready_port.send_if_modified(|ready_port| {
                        ready_port.is_none() && ready_port.replace(port).is_none()
                    });
                }
                output.record(name, lines.line());
            }
            Ok(LineEvent::Truncated { bytes }) => {
                output.record(name, format!("[{bytes} more bytes of this line]").as_bytes());
            }
            Ok(LineEvent::End) => break,
            Err(error) => {
                let worker = &output.worker;
                tracing::warn!(target: "snakepit::worker::output", %worker, stream = name, %error, "failed to read output");
                break;
            }
        }
    }
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
        let output = WorkerOutput::new(WorkerId::new("w"), 4);
        let (port, ready_port) = watch::channel(None);
        drain(text.as_bytes(), "stdout", output.clone(), port).await;
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
        drain(flood.as_bytes(), "stdout", WorkerOutput::new(WorkerId::new("w"), 4), port).await;
        let log = String::from_utf8(log.lock().unwrap().clone()).unwrap();
        assert_eq!(log.matches("a line of a flood").count(), rate_limit::LINES_PER_SECOND);
        assert!(log.contains("dropped output") && log.contains("lines=500 bytes=8500"), "{log}");
    }
}
