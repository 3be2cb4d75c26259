//! Replies of multiplexed unary calls.

use std::task::Waker;

use snakepit_registry::{ReplyBody, ToolError, ToolReply};
use snakepit_session::SessionId;
use snakepit_wire::mux::{Replies, error_reply, status_reply, value_reply};
use tonic::Status;

use crate::{progress::Answers, status::to_status};

/// Whether an answer survives the end of this process.
#[derive(Debug)]
pub(crate) enum AnswerState {
    /// Stored where the host finds it.
    Stored,
    /// Waiting to be sent, in these replies if the call was multiplexed.
    Pending(Option<Replies>),
}

/// An answer whose sending task was not woken yet.
#[derive(Debug)]
#[must_use = "the answer leaves only after its task was woken"]
pub(crate) struct QueuedAnswer {
    pub(crate) state: AnswerState,
    /// Wakes the task that sends the answer. `None` if the task runs already.
    pub(crate) waker: Option<Waker>,
}

impl QueuedAnswer {
    /// An answer that its task sends without a multiplexed stream.
    pub(crate) const fn with_task() -> Self {
        Self { state: AnswerState::Pending(None), waker: None }
    }
}

/// Sends the reply of one unary call.
#[derive(Debug)]
pub(crate) struct FrameReply {
    pub(crate) replies: Replies,
    pub(crate) id: u64,
    /// Whether the answer may be stored. Only one stream may store answers, because the ids of other streams denote
    /// other calls.
    pub(crate) is_stored: bool,
    pub(crate) session: Option<SessionId>,
}

impl FrameReply {
    /// Sends the reply. A value larger than the limit of a message becomes a failure.
    pub(crate) fn send(self, outcome: Result<ToolReply, ToolError>) {
        if let Some(waker) = self.queue(outcome, None).waker {
            waker.wake();
        }
    }

    /// Like [`send`](Self::send), but leaves it to the caller to wake the sending task. Stores the reply in `answers`
    /// if there is space, so that the host finds it even if this process dies.
    pub(crate) fn queue(
        self,
        outcome: Result<ToolReply, ToolError>,
        answers: Option<&mut Answers>,
    ) -> QueuedAnswer {
        let Self { replies, id, is_stored, session } = self;
        let reply = match outcome {
            Ok(ToolReply { body: ReplyBody::Value(value), execution_time, .. }) => {
                value_reply(id, value, execution_time)
            }
            Ok(_) => status_reply(id, Status::internal("a unary call was answered with a stream")),
            Err(ToolError::Recalled { .. }) => {
                replies.send_recalled(id);
                return QueuedAnswer { state: AnswerState::Pending(Some(replies)), waker: None };
            }
            Err(error) => {
                let session_id = session.map(|id| id.as_str().to_owned()).unwrap_or_default();
                error_reply(id, error, session_id, |error| to_status(error, String::new()))
            }
        };
        // Stores the reply before queueing it, because a reply that has been sent needs no further steps.
        let is_stored = is_stored && answers.is_some_and(|answers| answers.store(&reply));
        let waker = replies.queue_reply(reply);
        let state = if is_stored { AnswerState::Stored } else { AnswerState::Pending(Some(replies)) };
        QueuedAnswer { state, waker }
    }
}
