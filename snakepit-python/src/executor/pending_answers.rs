//! [`PendingAnswers`]: tracks answers that must leave this process before the next call, because that call may kill it.

use pyo3::Python;
use snakepit_wire::mux::Replies;

use crate::{
    frames::{AnswerState, QueuedAnswer},
    io::Io,
    progress::Answers,
};

/// The answers that may not have left yet.
#[derive(Debug)]
pub(crate) struct PendingAnswers {
    /// The store for answers. Without it, each answer is sent before the next call begins.
    pub(super) answers: Option<Answers>,
    must_flush: bool,
    replies: Option<Replies>,
}

impl PendingAnswers {
    pub(crate) const fn new(answers: Option<Answers>) -> Self {
        Self { answers, must_flush: false, replies: None }
    }

    /// Records an answer, and lets the next turn of the IO send it.
    pub(super) fn record(&mut self, QueuedAnswer { state, waker }: QueuedAnswer, io: Option<Io>) {
        if let AnswerState::Pending(replies) = state {
            self.must_flush = true;
            self.replies = replies;
        }
        match (waker, io) {
            (Some(waker), Some(io)) => io.wake_later(waker),
            (Some(waker), None) => waker.wake(),
            (None, _) => {}
        }
    }

    /// Records that the IO was driven, which sends the waiting answers unless a reader is slow.
    pub(super) fn record_io_turn(&mut self, io: Io) {
        if let Some(answers) = &mut self.answers
            && !io.backpressure().is_full()
        {
            answers.mark_sent();
        }
    }

    /// Sends all answers. Called before work that may take a long time.
    pub(super) fn flush(&mut self, py: Python<'_>, io: Io) {
        if !self.flush_unstored(py, io) {
            io.turn();
            self.record_io_turn(io);
        }
    }

    /// Sends the answers that are not stored. Called before a call begins, because it may kill this process. Returns
    /// `false` if there are none.
    pub(super) fn flush_unstored(&mut self, py: Python<'_>, io: Io) -> bool {
        if !self.must_flush {
            return false;
        }
        loop {
            // A turn writes as much as the sockets accept. The rest waits until the reader reads.
            io.turn();
            let backpressure = io.backpressure();
            let queued_replies = self.replies.as_ref().filter(|replies| !replies.is_empty());
            if queued_replies.is_none() && !backpressure.is_full() {
                break;
            }
            let sent = async {
                if let Some(replies) = queued_replies {
                    replies.emptied().await;
                }
                backpressure.released().await;
            };
            py.detach(|| io.drive(sent));
        }
        self.must_flush = false;
        self.replies = None;
        self.record_io_turn(io);
        true
    }
}
