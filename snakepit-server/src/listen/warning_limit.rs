//! [`WarningLimit`]: bounds warnings that a client can cause at will.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// The minimum time between two warnings.
const INTERVAL: Duration = Duration::from_secs(10);

/// Permits one warning per interval, and counts the others.
#[derive(Debug, Default)]
pub(super) struct WarningLimit(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The time of the last warning.
    last: Option<Instant>,
    /// The number of warnings that were omitted since then.
    omitted: u64,
}

impl WarningLimit {
    /// Returns the number of warnings that were omitted since the last one. `None` if this one must be omitted, too.
    pub(super) fn take(&self) -> Option<u64> {
        let now = Instant::now();
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.last.is_some_and(|last| now.duration_since(last) < INTERVAL) {
            state.omitted += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.omitted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_warning_per_interval_counts_the_omitted_ones() {
        let limit = WarningLimit::default();
        assert_eq!([limit.take(), limit.take(), limit.take()], [Some(0), None, None]);
        tokio::time::advance(INTERVAL).await;
        assert_eq!([limit.take(), limit.take()], [Some(2), None]);
        tokio::time::advance(INTERVAL).await;
        assert_eq!(limit.take(), Some(1));
    }
}
