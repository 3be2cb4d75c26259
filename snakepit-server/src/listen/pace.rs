//! The minimum speed at which a message must arrive.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};
use tonic::Status;

use crate::status::too_slow;

/// The longest pause within a message, and the time before its average rate counts.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// The minimum average rate after the first [`MAX_PAUSE`], in bytes per second.
const MIN_BYTES_PER_SECOND: usize = 128 * 1024;

/// Measures the time that a message takes to arrive. Creates no timer until the host has to wait for data.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// The time when the host first waited for the message.
    waiting_since: Option<Instant>,
    /// The time when data last arrived.
    last_data: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    /// Records that data arrived.
    pub(super) fn record_data(&mut self) {
        if self.waiting_since.is_some() {
            self.last_data = Some(Instant::now());
        }
    }

    /// Records that the message is complete.
    pub(super) fn finish(&mut self) {
        *self = Self { timer: self.timer.take(), ..Self::default() };
    }

    /// Ready with a status once the message, of which `arrived` bytes have arrived, is too slow.
    pub(super) fn poll_too_slow(&mut self, cx: &mut Context<'_>, arrived: usize) -> Poll<Status> {
        let since = *self.waiting_since.get_or_insert_with(Instant::now);
        let time_for_arrived = Duration::from_secs((arrived / MIN_BYTES_PER_SECOND) as u64);
        let due = (since + MAX_PAUSE + time_for_arrived).min(self.last_data.unwrap_or(since) + MAX_PAUSE);
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
        if timer.deadline() != due {
            timer.as_mut().reset(due);
        }
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(too_slow(arrived, since.elapsed()))
    }
}
