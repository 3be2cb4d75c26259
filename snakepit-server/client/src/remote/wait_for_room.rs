//! Calls that wait for room in the full queue of a remote host.
//!
//! Only the host knows its queue, so the client repeats a rejected call after the delay that the host suggests.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use snakepit_registry::{ToolCall, ToolError, ToolReply};
use tokio::time::{Instant, sleep};

use super::Connection;

/// The delay if the host suggests none.
const DEFAULT_DELAY: Duration = Duration::from_millis(100);

/// The shortest delay.
const MIN_DELAY: Duration = Duration::from_millis(10);

/// The last attempt starts this long before the deadline.
const DEADLINE_MARGIN: Duration = Duration::from_millis(100);

impl Connection {
    /// Runs a call, and repeats it for up to `limit` while the host is overloaded.
    pub(super) async fn call_with_wait_for_room(
        &self,
        call: ToolCall,
        limit: Duration,
    ) -> Result<ToolReply, ToolError> {
        let end = last_attempt(Instant::now(), limit, call.deadline);
        loop {
            let error = match self.call(call.clone()).await {
                Err(error) if error.is_overloaded() && error.is_retryable() => error,
                result => return result,
            };
            match next_delay(&error, Instant::now(), end) {
                Some(delay) => sleep(delay).await,
                None => return Err(error),
            }
        }
    }
}

/// The time of the last attempt; `None` without a limit. An attempt at the deadline would fail before the host receives it.
fn last_attempt(now: Instant, limit: Duration, deadline: Option<Instant>) -> Option<Instant> {
    let before_deadline = deadline.map(|at| at.checked_sub(DEADLINE_MARGIN).unwrap_or(now));
    now.checked_add(limit).into_iter().chain(before_deadline).min()
}

/// The time until the next attempt. `None` if this error ended the last attempt.
fn next_delay(error: &ToolError, now: Instant, end: Option<Instant>) -> Option<Duration> {
    let delay = with_jitter(error.retry_after().unwrap_or(DEFAULT_DELAY).max(MIN_DELAY));
    let Some(end) = end else { return Some(delay) };
    let time_left = end.saturating_duration_since(now);
    (!time_left.is_zero()).then(|| delay.min(time_left))
}

/// Extends a delay by up to half, so that clients that were rejected together do not return together.
fn with_jitter(delay: Duration) -> Duration {
    // `RandomState` has random keys, so the hash of a constant is random.
    let random = RandomState::new().hash_one(());
    let fraction = (random >> 40) as f64 / (1_u64 << 24) as f64;
    delay + delay.mul_f64(fraction / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_keeps_to_the_limit_and_the_deadline_and_ends_with_an_attempt() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let overloaded = |retry_after| ToolError::overloaded(1, 1).with_retry_after(retry_after);
        let long = overloaded(Some(10 * second));
        let end = last_attempt(start, second, None);
        assert_eq!(next_delay(&long, start, end), Some(second), "a delay beyond the limit ends with it");
        assert_eq!(next_delay(&long, start + second, end), None);
        // With the jitter, the delay of 0.9 s could exceed the deadline.
        let end = last_attempt(start, 60 * second, Some(start + second));
        assert_eq!(
            next_delay(&overloaded(Some(second * 9 / 10)), start, end),
            Some(second - DEADLINE_MARGIN)
        );
        assert_eq!(next_delay(&long, start + second, end), None);
        assert_eq!(last_attempt(start, Duration::MAX, None), None);
        assert!(
            next_delay(&overloaded(Some(Duration::ZERO)), start, None) >= Some(MIN_DELAY),
            "no busy loop"
        );
    }

    #[test]
    fn jitter_extends_a_delay_by_up_to_half() {
        let second = Duration::from_secs(1);
        let delays: Vec<_> = (0..100).map(|_| with_jitter(second)).collect();
        assert!(delays.iter().all(|delay| (second..=second * 3 / 2).contains(delay)), "{delays:?}");
        let spread = delays.iter().max().unwrap().abs_diff(*delays.iter().min().unwrap());
        assert!(spread > second / 10, "{spread:?}");
    }
}
