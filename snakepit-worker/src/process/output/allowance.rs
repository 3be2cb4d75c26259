//! How much of its output a worker may have logged in a second; the rest is counted.

use std::time::Duration;

use tokio::time::Instant;

/// Lines a second.
pub(super) const LINES: usize = 1000;
/// Bytes a second.
pub(super) const BYTES: usize = 256 * 1024;

const SECOND: Duration = Duration::from_secs(1);

/// The allowance of one worker: a fixed window of a second.
#[derive(Debug)]
pub(super) struct Allowance {
    since: Instant,
    lines: usize,
    bytes: usize,
    dropped: Dropped,
}

/// Output that was not logged.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Dropped {
    pub(super) lines: u64,
    pub(super) bytes: u64,
}

impl Allowance {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, lines: 0, bytes: 0, dropped: Dropped::default() }
    }

    /// Whether a line of this length may be logged.
    pub(super) fn take(&mut self, now: Instant, bytes: usize) -> bool {
        if now.saturating_duration_since(self.since) >= SECOND {
            (self.since, self.lines, self.bytes) = (now, 0, 0);
        }
        let fits = self.lines < LINES && self.bytes + bytes <= BYTES;
        if fits {
            self.lines += 1;
            self.bytes += bytes;
        } else {
            self.dropped.lines += 1;
            self.dropped.bytes += bytes as u64;
        }
        fits
    }

    /// When dropped output is to be reported, if there is any.
    pub(super) fn report_due(&self) -> Option<Instant> {
        (self.dropped.lines > 0).then(|| self.since + SECOND)
    }

    /// What was dropped, once the second is over.
    pub(super) fn report(&mut self, now: Instant) -> Option<Dropped> {
        self.report_due().filter(|due| *due <= now).and_then(|_| self.report_rest())
    }

    /// What was dropped and not reported yet.
    pub(super) fn report_rest(&mut self) -> Option<Dropped> {
        Some(std::mem::take(&mut self.dropped)).filter(|dropped| dropped.lines > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_second_has_an_allowance_of_its_own() {
        let mut now = Instant::now();
        let mut allowance = Allowance::new(now);
        for _ in 0..3 {
            assert!((0..LINES).all(|_| allowance.take(now, 1)));
            assert!(!allowance.take(now, 7));
            assert_eq!(allowance.report(now), None, "the second is not over");
            now += SECOND;
            assert_eq!(allowance.report(now), Some(Dropped { lines: 1, bytes: 7 }));
        }
        assert!(allowance.take(now, BYTES) && !allowance.take(now, 1));
    }
}
