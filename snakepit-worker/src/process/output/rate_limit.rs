//! [`RateLimit`]: limits the output that a worker may log per second, and counts the rest.

use std::time::Duration;

use tokio::time::Instant;

/// The limit of lines per second.
pub(super) const LINES_PER_SECOND: usize = 1000;
/// The limit of bytes per second.
pub(super) const BYTES_PER_SECOND: usize = 256 * 1024;

/// The length of a window.
const WINDOW: Duration = Duration::from_secs(1);

/// The rate limit of one worker, with fixed windows of one second.
#[derive(Debug)]
pub(super) struct RateLimit {
    window_start: Instant,
    /// The lines admitted in this window.
    lines: usize,
    /// The bytes admitted in this window.
    bytes: usize,
    /// The output dropped since the last report.
    dropped: DroppedOutput,
}

/// Output that was not logged.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct DroppedOutput {
    pub(super) lines: u64,
    pub(super) bytes: u64,
}

impl RateLimit {
    pub(super) fn new(now: Instant) -> Self {
        Self { window_start: now, lines: 0, bytes: 0, dropped: DroppedOutput::default() }
    }

    /// Returns whether a line of this length may be logged, and counts the line.
    pub(super) fn admit(&mut self, now: Instant, bytes: usize) -> bool {
        if now.saturating_duration_since(self.window_start) >= WINDOW {
            (self.window_start, self.lines, self.bytes) = (now, 0, 0);
        }
        let is_admitted = self.lines < LINES_PER_SECOND && self.bytes + bytes <= BYTES_PER_SECOND;
        if is_admitted {
            self.lines += 1;
            self.bytes += bytes;
        } else {
            self.dropped.lines += 1;
            self.dropped.bytes += bytes as u64;
        }
        is_admitted
    }

    /// The time at which dropped output must be reported, if there is any.
    pub(super) fn report_due(&self) -> Option<Instant> {
        (self.dropped.lines > 0).then(|| self.window_start + WINDOW)
    }

    /// Takes the unreported dropped output if the window is over.
    pub(super) fn take_dropped_if_due(&mut self, now: Instant) -> Option<DroppedOutput> {
        self.report_due().filter(|due| *due <= now).and_then(|_| self.take_dropped())
    }

    /// Takes the unreported dropped output.
    pub(super) fn take_dropped(&mut self) -> Option<DroppedOutput> {
        Some(std::mem::take(&mut self.dropped)).filter(|dropped| dropped.lines > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_limit_applies_to_each_second() {
        let mut now = Instant::now();
        let mut limit = RateLimit::new(now);
        for _ in 0..3 {
            assert!((0..LINES_PER_SECOND).all(|_| limit.admit(now, 1)));
            assert!(!limit.admit(now, 7));
            assert_eq!(limit.take_dropped_if_due(now), None, "the window is not over");
            now += WINDOW;
            assert_eq!(limit.take_dropped_if_due(now), Some(DroppedOutput { lines: 1, bytes: 7 }));
        }
        assert!(limit.admit(now, BYTES_PER_SECOND) && !limit.admit(now, 1));
    }
}
