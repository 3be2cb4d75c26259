//! [`Retries`]: the repetition of requests that only read after a transient error.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use snakepit_proto::{
    proxy,
    status::{OVERLOADED, details_of},
};
use tokio::time::Instant;
use tonic::Code;

use crate::errors::{BACKEND_FAILED, HostError};

/// The pause before the first retry. It doubles with each retry. The same values apply to calls, see `_attempts.py`.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The maximum pause, unless the host asks for a longer one.
const MAX_PAUSE: Duration = Duration::from_secs(10);
/// The maximum pause for which a host can ask.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// Decides whether a failed request is sent again. One object for each request.
#[derive(Debug)]
pub(crate) struct Retries {
    left: u32,
    pause: Duration,
    deadline: Option<Instant>,
}

impl Retries {
    /// Permits this number of retries, whose pauses end before the deadline.
    pub(crate) const fn new(limit: u32, deadline: Option<Instant>) -> Self {
        Self { left: limit, pause: FIRST_PAUSE, deadline }
    }

    /// Waits until the next attempt. Returns `false` immediately if this error ends the request. Cancel safe.
    pub(crate) async fn wait_after(&mut self, error: &HostError) -> bool {
        let Some(pause) = self.pause_after(error) else { return false };
        tokio::time::sleep(pause).await;
        true
    }

    fn pause_after(&mut self, error: &HostError) -> Option<Duration> {
        if self.left == 0 || !error.is_transient() {
            return None;
        }
        let pause = self.pause.max(error.retry_after().unwrap_or_default().min(MAX_RETRY_AFTER));
        let pause = with_jitter(pause);
        if self.deadline.is_some_and(|deadline| Instant::now() + pause >= deadline) {
            return None;
        }
        self.left -= 1;
        self.pause = (2 * self.pause).min(MAX_PAUSE);
        Some(pause)
    }
}

impl HostError {
    /// Returns whether the cause may disappear, such as a full queue or a lost connection: `is_transient` of its exception, without
    /// the errors of deadlines.
    fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable(_)
            | Self::ConnectTimeout(_)
            | Self::ConnectionLost(_)
            | Self::WatchEnded
            | Self::NotBegun(_) => true,
            Self::Status(status) | Self::StreamRejected(status) => {
                let status = proxy::clarify(status.clone());
                let reason = details_of(&status).reason.unwrap_or_default();
                match status.code() {
                    Code::Unavailable => true,
                    Code::ResourceExhausted => matches!(&*reason, OVERLOADED | ""),
                    _ => reason == BACKEND_FAILED,
                }
            }
            _ => false,
        }
    }

    /// The time after which the host expects a retry to succeed.
    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status(status) | Self::StreamRejected(status) | Self::NotBegun(status) => {
                details_of(status).retry_after
            }
            _ => None,
        }
    }
}

/// Extends a pause by up to half, so that clients that were rejected together do not return together.
fn with_jitter(pause: Duration) -> Duration {
    // Each state has random keys.
    let random = RandomState::new().hash_one(0_u8) as f64 / u64::MAX as f64;
    pause.mul_f64(1.0 + random / 2.0)
}

#[cfg(test)]
mod tests {
    use snakepit_proto::status::{StatusParts, error_status, status_with_details};
    use tonic::Status;

    use super::*;

    fn down() -> HostError {
        HostError::Unreachable("down".to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_up_to_a_maximum_and_end_with_the_retries() {
        let mut retries = Retries::new(12, None);
        let mut least = FIRST_PAUSE;
        for _ in 0..12 {
            let pause = retries.pause_after(&down()).unwrap();
            assert!(least <= pause && pause <= least.mul_f64(1.5), "{pause:?}, at least {least:?}");
            least = (2 * least).min(MAX_PAUSE);
        }
        assert_eq!(retries.pause_after(&down()), None);
        let mut late = Retries::new(1, Some(Instant::now() + FIRST_PAUSE / 2));
        assert_eq!(late.pause_after(&down()), None, "the next attempt would begin after the deadline");
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_cannot_ask_for_an_endless_pause() {
        let parts = StatusParts {
            reason: OVERLOADED,
            retry: Some(Some(Duration::from_secs(i64::MAX as u64))),
            ..StatusParts::default()
        };
        let status = status_with_details(Code::ResourceExhausted, "full".to_owned(), parts);
        let error = HostError::Status(status);
        let deadline = Instant::now() + Duration::from_secs(60);
        assert_eq!(Retries::new(1, Some(deadline)).pause_after(&error), None);
        let pause = Retries::new(1, None).pause_after(&error).unwrap();
        assert!((MAX_RETRY_AFTER..=2 * MAX_RETRY_AFTER).contains(&pause), "{pause:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn only_transient_errors_are_retried() {
        for (error, expected) in [
            (down(), true),
            (HostError::ConnectTimeout("late".to_owned()), true),
            (HostError::ConnectionLost("reset".to_owned()), true),
            (HostError::Status(Status::unavailable("no worker")), true),
            (HostError::StreamRejected(error_status(Code::ResourceExhausted, OVERLOADED, "full")), true),
            (HostError::Status(error_status(Code::Internal, "BACKEND_FAILED", "disk")), true),
            (HostError::Status(Status::not_found("no such variable")), false),
            (HostError::Status(error_status(Code::ResourceExhausted, "SESSION_FULL", "full")), false),
            (HostError::Deadline, false),
            (HostError::Closed, false),
        ] {
            assert_eq!(Retries::new(1, None).wait_after(&error).await, expected, "{error:?}");
        }
        assert!(!Retries::new(0, None).wait_after(&down()).await);
    }
}
