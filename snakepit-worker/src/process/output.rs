//! A worker's stdout and stderr: always drained, line by line, into tracing; the last lines are kept for reports on the worker
//! itself. What a call printed is told by the [worker](super::progress), because a pipe does not say who wrote into it.
//!
//! Draining never waits for a log, and a worker cannot flood one: lines are cut, and a worker has an allowance a second.

mod allowance;
mod lines;

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
};

use snakepit_proto::launch;
use tokio::{io::AsyncRead, sync::watch, time::Instant};

use self::{
    allowance::{Allowance, Dropped},
    lines::{LineReader, Read},
};
use crate::{WorkerId, printable::escape};

/// The output of one worker, shared by its two streams and the task that reports its end.
#[derive(Debug, Clone)]
pub(super) struct WorkerOutput {
    worker: WorkerId,
    shared: Arc<Mutex<Shared>>,
    capacity: usize,
}

#[derive(Debug)]
struct Shared {
    tail: VecDeque<String>,
    allowance: Allowance,
}

impl WorkerOutput {
    pub(super) fn new(worker: WorkerId, capacity: usize) -> Self {
        let shared = Shared { tail: VecDeque::new(), allowance: Allowance::new(Instant::now()) };
        Self { worker, shared: Arc::new(Mutex::new(shared)), capacity }
    }

    /// The last lines, oldest first, whoever printed them.
    pub(super) fn lines(&self) -> Vec<String> {
        self.with(|shared| shared.tail.iter().cloned().collect())
    }

    /// Keeps a line, and logs it unless the worker has used up its allowance.
    fn take(&self, stream: &'static str, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        let text = escape(text.trim_end());
        let capacity = self.capacity;
        let (logged, dropped) = self.with(|shared| {
            if shared.tail.len() >= capacity {
                shared.tail.pop_front();
            }
            if capacity > 0 {
                shared.tail.push_back(text.clone().into_owned());
            }
            let now = Instant::now();
            let dropped = shared.allowance.report(now);
            (shared.allowance.take(now, text.len()), dropped)
        });
        self.log_dropped(dropped);
        if logged {
            self.log(stream, &text);
        }
    }

    /// Logs one line. Subscribers are the program's own, and one that panics must not stop the draining.
    pub(super) fn log(&self, stream: &'static str, text: &str) {
        let worker = &self.worker;
        let log = || tracing::info!(target: "snakepit::worker::output", %worker, stream, "{text}");
        let _ = catch_unwind(AssertUnwindSafe(log));
    }

    fn log_dropped(&self, dropped: Option<Dropped>) {
        let Some(Dropped { lines, bytes }) = dropped else { return };
        let worker = &self.worker;
        let log = || {
            tracing::warn!(
                target: "snakepit::worker::output",
                %worker,
                lines,
                bytes,
                "dropped output above {} lines or {} bytes in a second",
                allowance::LINES,
                allowance::BYTES
            );
        };
        let _ = catch_unwind(AssertUnwindSafe(log));
    }

    fn with<T>(&self, run: impl FnOnce(&mut Shared) -> T) -> T {
        run(&mut self.shared.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Reads one stream to its end. Reports the port of a readiness line.
pub(super) async fn drain(
    stream: impl AsyncRead + Unpin,
    name: &'static str,
    output: WorkerOutput,
    ready_port: watch::Sender<Option<u16>>,
) {
    let mut lines = LineReader::new(stream);
    loop {
        // Only while there is something to report, so an idle worker wakes nobody.
        let due = output.with(|shared| shared.allowance.report_due());
        let read = tokio::select! {
            read = lines.next() => read,
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                let dropped = output.with(|shared| shared.allowance.report(Instant::now()));
                output.log_dropped(dropped);
                continue;
            }
        };
        match read {
            Ok(Read::Line) => {
                if let Some(port) = announced_port(&String::from_utf8_lossy(lines.line())) {
                    ready_port.send_if_modified(|known| known.is_none() && known.replace(port).is_none());
                }
                output.take(name, lines.line());
            }
            Ok(Read::Cut { bytes }) => {
                output.take(name, format!("[{bytes} more bytes of this line]").as_bytes());
            }
            Ok(Read::End) => break,
            Err(error) => {
                let worker = &output.worker;
                tracing::warn!(target: "snakepit::worker::output", %worker, stream = name, %error, "failed to read output");
                break;
            }
        }
    }
    let dropped = output.with(|shared| shared.allowance.report_rest());
    output.log_dropped(dropped);
}

/// The port of a readiness line, wherever in the line it stands: loggers put their own text before it.
fn announced_port(line: &str) -> Option<u16> {
    let (_, rest) = line.split_once(launch::READY_PREFIX)?;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok().filter(|port| *port != 0)
}

#[cfg(test)]
mod tests {
    use super::{lines::MAX_LINE, *};

    #[test]
    fn a_port_is_found_within_a_log_line() {
        assert_eq!(announced_port("GRPC_READY:50123"), Some(50123));
        assert_eq!(announced_port("2026-01-01 - worker - INFO - GRPC_READY:50123 now"), Some(50123));
        assert_eq!(announced_port("GRPC_READY:"), None);
        assert_eq!(announced_port("GRPC_READY:0"), None);
        assert_eq!(announced_port("GRPC_READY:70000"), None);
        assert_eq!(announced_port("not GRPC ready"), None);
    }

    #[tokio::test]
    async fn the_last_lines_are_kept_cut_and_escaped() {
        let text = format!("first\nsecond\n\x1b[31mthird\r\n{}\nGRPC_READY:7", "x".repeat(MAX_LINE + 10));
        let output = WorkerOutput::new(WorkerId::new("w"), 4);
        let (port, known) = watch::channel(None);
        drain(text.as_bytes(), "stdout", output.clone(), port).await;
        let lines = output.lines();
        assert_eq!(lines[0], "\\u{1b}[31mthird");
        assert_eq!((lines[1].len(), lines[2].as_str()), (MAX_LINE, "[10 more bytes of this line]"));
        assert_eq!((lines[3].as_str(), *known.borrow()), ("GRPC_READY:7", Some(7)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_logged_in_part_and_its_rest_counted() {
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
        let flood = "a line of a flood\n".repeat(allowance::LINES + 500);
        let (port, _known) = watch::channel(None);
        drain(flood.as_bytes(), "stdout", WorkerOutput::new(WorkerId::new("w"), 4), port).await;
        let log = String::from_utf8(log.lock().unwrap().clone()).unwrap();
        assert_eq!(log.matches("a line of a flood").count(), allowance::LINES);
        assert!(log.contains("dropped output") && log.contains("lines=500 bytes=8500"), "{log}");
    }
}
