//! [`Sending`]: what has to leave this process before the next call begins, because that call may take the process down.

use pyo3::Python;
use snakepit_wire::mux::Replies;

use crate::{frames::Answered, io::Io, progress::Answers};

/// The answers that were given and may not have left yet.
#[derive(Debug)]
pub(crate) struct Sending {
    /// Where answers are kept; without it each is sent before the next call begins.
    pub(super) answers: Option<Answers>,
    is_due: bool,
    replies: Option<Replies>,
}

impl Sending {
    pub(crate) const fn new(answers: Option<Answers>) -> Self {
        Self { answers, is_due: false, replies: None }
    }

    pub(super) fn note(&mut self, answered: Answered) {
        if let Answered::Waits(replies) = answered {
            self.is_due = true;
            self.replies = replies;
        }
    }

    /// Records that the IO was driven. Waiting answers have left, unless a reader is slow.
    pub(super) fn turned(&mut self, io: Io) {
        if let Some(answers) = &mut self.answers
            && !io.backpressure().is_full()
        {
            answers.sent();
        }
    }

    /// Sends all answers, before work that may take long.
    pub(super) fn send(&mut self, py: Python<'_>, io: Io) {
        if !self.send_what_is_due(py, io) {
            io.turn();
            self.turned(io);
        }
    }

    /// Sends the answers that are not stored, before a call begins that may kill this process. Returns `false` if there
    /// are none.
    pub(super) fn send_what_is_due(&mut self, py: Python<'_>, io: Io) -> bool {
        if !self.is_due {
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
        self.is_due = false;
        self.replies = None;
        self.turned(io);
        true
    }
}
