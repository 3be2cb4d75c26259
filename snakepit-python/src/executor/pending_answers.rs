//! [`PendingAnswers`]: tracks answers that must leave this process before the next call, which may kill it.

use pyo3::Python;
use snakepit_wire::mux::Replies;

use crate::{frames::AnswerState, io::Io, progress::Answers};

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

    pub(super) fn record(&mut self, answered: AnswerState) {
        if let AnswerState::Pending(replies) = answered {
            self.must_flush = true;
            self.replies = replies;
        }
    }

    /// Records that the IO was driven. Waiting answers have left, unless a reader is slow.
    pub(super) fn io_driven(&mut self, io: Io) {
        if let Some(answers) = &mut self.answers
            && !io.backpressure().is_full()
        {
            answers.mark_sent();
        }
    }

    /// Sends all answers, before work that may take long.
    pub(super) fn flush(&mut self, py: Python<'_>, io: Io) {
        if !self.flush_unstored(py, io) {
            io.turn();
            self.io_driven(io);
        }
    }

    /// Sends the answers that are not stored, before a call begins that may kill this process. Returns `false` if there
    /// are none.
    pub(super) fn flush_unstored(&mut self, py: Python<'_>, io: Io) -> bool {
        if !self.must_flush {
            return false;
        }
        loop {
            // A turn writes what the sockets accept. The rest needs the reader to read.
            io.turn();
            let backpressure = io.backpressure();
            let waits = self.replies.as_ref().filter(|replies| !replies.is_empty());
            if waits.is_none() && !backpressure.is_full() {
                break;
            }
            let left = async {
                if let Some(replies) = waits {
                    replies.emptied().await;
                }
                backpressure.released().await;
            };
            py.detach(|| io.drive(left));
        }
        self.must_flush = false;
        self.replies = None;
        self.io_driven(io);
        true
    }
}
