//! The minimum speed at which a message must arrive.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};
use tonic::Status;

use crate::status::too_slow;

/// The longest pause within a message.
const STALL: Duration = Duration::from_secs(30);
/// The average rate after the first [`STALL`], in bytes per second.
const MIN_RATE: usize = 128 * 1024;

/// Measures how long a message has taken. It creates no timer until the host has to wait for data.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When the host first waited for the message.
    began: Option<Instant>,
    /// When data arrived last.
    progress: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    /// Records that data arrived.
    pub(super) fn progress(&mut self) {
        if self.began.is_some() {
            self.progress = Some(Instant::now());
        }
    }

    /// Records that the message is complete.
    pub(super) fn finish(&mut self) {
        *self = Self { timer: self.timer.take(), ..Self::default() };
    }

    /// Ready with a status once the message, of which `arrived` bytes have arrived, is too slow.
    pub(super) fn poll_too_slow(&mut self, cx: &mut Context<'_>, arrived: usize) -> Poll<Status> {
        let began = *self.began.get_or_insert_with(Instant::now);
        let earned = Duration::from_secs((arrived / MIN_RATE) as u64);
        let due = (began + STALL + earned).min(self.progress.unwrap_or(began) + STALL);
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
        if timer.deadline() != due {
            timer.as_mut().reset(due);
        }
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(too_slow(arrived, began.elapsed()))
    }
}
