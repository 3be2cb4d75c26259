//! A worker's stdout and stderr: always drained, line by line, into tracing; the last lines are kept for errors.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use snakepit_proto::launch;
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, BufReader},
    sync::watch,
};

use crate::WorkerId;

/// Longer lines are cut into pieces of this many bytes.
const MAX_LINE: usize = 8 * 1024;

/// The last lines of a worker, shared by its two streams and whoever reports its end.
#[derive(Debug, Clone)]
pub(super) struct OutputTail {
    lines: Arc<Mutex<VecDeque<String>>>,
    capacity: usize,
}

impl OutputTail {
    pub(super) fn new(capacity: usize) -> Self {
        Self { lines: Arc::default(), capacity }
    }

    /// The kept lines, oldest first.
    pub(super) fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    fn push(&self, line: &str) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == self.capacity {
            lines.pop_front();
        }
        if self.capacity > 0 {
            lines.push_back(line.to_owned());
        }
    }
}

/// Reads one stream to its end. Reports the port of a readiness line.
pub(super) async fn drain(
    stream: impl AsyncRead + Unpin,
    name: &'static str,
    worker: WorkerId,
    tail: OutputTail,
    ready_port: watch::Sender<Option<u16>>,
) {
    let mut stream = BufReader::with_capacity(MAX_LINE, stream);
    let mut line = Vec::new();
    loop {
        match next_line(&mut stream, &mut line).await {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                tracing::warn!(target: "snakepit::worker::output", %worker, stream = name, %error, "failed to read output");
                return;
            }
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        tracing::info!(target: "snakepit::worker::output", %worker, stream = name, "{text}");
        tail.push(text);
        if let Some(port) = announced_port(text) {
            ready_port.send_if_modified(|known| known.is_none() && known.replace(port).is_none());
        }
        line.clear();
    }
}

/// Reads up to the end of a line, or of a full buffer; false at the end of the stream.
async fn next_line(stream: &mut (impl AsyncBufRead + Unpin), line: &mut Vec<u8>) -> std::io::Result<bool> {
    loop {
        let buffer = stream.fill_buf().await?;
        if buffer.is_empty() {
            return Ok(!line.is_empty());
        }
        let room = &buffer[..buffer.len().min(MAX_LINE - line.len())];
        let end = room.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(room.len(), |at| at + 1);
        line.extend_from_slice(&room[..taken]);
        stream.consume(taken);
        if end.is_some() || line.len() == MAX_LINE {
            return Ok(true);
        }
    }
}

/// The port of a readiness line, wherever in the line it stands: loggers put their own text before it.
fn announced_port(line: &str) -> Option<u16> {
    let (_, rest) = line.split_once(launch::READY_PREFIX)?;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok().filter(|port| *port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

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
    async fn the_last_lines_are_kept_and_long_ones_cut() {
        let text = format!("first\nsecond\nthird\n{}\nGRPC_READY:7", "x".repeat(MAX_LINE + 10));
        let tail = OutputTail::new(4);
        let (port, known) = watch::channel(None);
        drain(text.as_bytes(), "stdout", WorkerId::new("w"), tail.clone(), port).await;
        let lines = tail.lines();
        assert_eq!(lines.len(), 4);
        assert_eq!((lines[1].len(), lines[2].as_str()), (MAX_LINE, "xxxxxxxxxx"));
        assert_eq!(*known.borrow(), Some(7));
    }
}
