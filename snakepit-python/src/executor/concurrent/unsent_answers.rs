//! [`UnsentAnswers`]: prevents calls from beginning while a finished answer could still be lost, because a call may
//! kill this process.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use snakepit_wire::mux::Replies;
use tokio::task::yield_now;

use super::ConcurrentRunner;
use crate::io::Io;

/// The number of answers that are neither stored nor sent.
#[derive(Debug, Default)]
pub(super) struct UnsentAnswers(AtomicUsize);

impl UnsentAnswers {
    pub(super) fn is_empty(&self) -> bool {
        self.0.load(SeqCst) == 0
    }
}

impl ConcurrentRunner {
    /// Lets no call begin until an answer has left this process. `replies` has it, if its call was multiplexed. Does not wait, so that
    /// the running calls continue.
    pub(super) fn send_before_next_call(self: &Arc<Self>, replies: Option<Replies>) {
        let Some(io) = self.io else { return };
        self.unsent_answers.0.fetch_add(1, SeqCst);
        let runner = Arc::clone(self);
        io.runtime().spawn(async move {
            sent(replies, io).await;
            // All earlier answers have left, too.
            if let Some(answers) = runner.answers().as_mut() {
                answers.mark_sent();
            }
            if runner.unsent_answers.0.fetch_sub(1, SeqCst) == 1 {
                runner.signal.set();
            }
        });
    }
}

/// Waits until the sockets have accepted all answers.
async fn sent(replies: Option<Replies>, io: Io) {
    let backpressure = io.backpressure();
    loop {
        // The tasks of the stream and of its connection run, and write as much as the sockets accept.
        yield_now().await;
        yield_now().await;
        let queued_replies = replies.as_ref().filter(|replies| !replies.is_empty());
        if queued_replies.is_none() && !backpressure.is_full() {
            return;
        }
        if let Some(replies) = queued_replies {
            replies.emptied().await;
        }
        backpressure.released().await;
    }
}
