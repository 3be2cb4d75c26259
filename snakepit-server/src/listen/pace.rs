//! How slowly a message may arrive.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};
use tonic::Status;

use crate::status::too_slow;

/// How long a message may stall.
const STALL: Duration = Duration::from_secs(30);
/// How much of it must arrive in each second after the first [`STALL`], on average, in bytes.
const LEAST_RATE: usize = 128 * 1024;

/// The time that a message has taken so far. Costs nothing while nothing is waited for.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When it was first waited for.
    began: Option<Instant>,
    /// When more of it arrived last.
    progress: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    /// More of the message arrived.
    pub(super) fn progress(&mut self) {
        if self.began.is_some() {
            self.progress = Some(Instant::now());
        }
    }

    /// The message is complete.
    pub(super) fn finish(&mut self) {
        *self = Self { timer: self.timer.take(), ..Self::default() };
    }

    /// Waits for more of a message, of which so many bytes are here. Ready when it takes too long.
    pub(super) fn poll_too_slow(&mut self, cx: &mut Context<'_>, here: usize) -> Poll<Status> {
        let began = *self.began.get_or_insert_with(Instant::now);
        let earned = Duration::from_secs((here / LEAST_RATE) as u64);
        let due = (began + STALL + earned).min(self.progress.unwrap_or(began) + STALL);
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
        if timer.deadline() != due {
            timer.as_mut().reset(due);
        }
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(too_slow(here, began.elapsed()))
    }
}
