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

impl Connection {
    /// Runs a call, and repeats it for up to `limit` while the host is overloaded.
    pub(super) async fn call_when_there_is_room(
        &self,
        call: ToolCall,
        limit: Duration,
    ) -> Result<ToolReply, ToolError> {
        let start = Instant::now();
        loop {
            let error = match self.call(call.clone()).await {
                Err(error) if error.is_overloaded() && error.is_retryable() => error,
                result => return result,
            };
            let time_left = limit.saturating_sub(start.elapsed());
            let delay = error.retry_after().unwrap_or(DEFAULT_DELAY);
            let is_too_late =
                call.deadline.is_some_and(|at| at.saturating_duration_since(Instant::now()) <= delay);
            if delay > time_left || is_too_late {
                return Err(error);
            }
            sleep(with_jitter(delay).min(time_left)).await;
        }
    }
}

/// Extends a delay by up to half, so that clients that were rejected together do not return together.
fn with_jitter(delay: Duration) -> Duration {
    // Each state has other keys.
    let random = RandomState::new().hash_one(());
    let fraction = (random >> 40) as f64 / (1_u64 << 24) as f64;
    delay + delay.mul_f64(fraction / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_extends_a_delay_by_up_to_half() {
        let second = Duration::from_secs(1);
        let delays: Vec<_> = (0..100).map(|_| with_jitter(second)).collect();
        assert!(delays.iter().all(|delay| (second..=second * 3 / 2).contains(delay)), "{delays:?}");
        let spread = delays.iter().max().unwrap().abs_diff(*delays.iter().min().unwrap());
        assert!(spread > second / 10, "{spread:?}");
    }
}
