//! [`Answer`]: sends the answer of a call. A streaming call sends its reply first, and then chunks and the end.

use std::sync::Arc;

use snakepit_registry::{ReplyBody, ToolError, ToolReply};
use snakepit_session::Payload;
use tokio::time::Instant;

use crate::{
    frames::QueuedAnswer,
    progress::Answers,
    sink::{self, Sink},
    state::CallState,
    tools::{CancelOnDrop, PythonTools, Reply, chunk_stream},
};

/// The receiver of one call's answer.
pub(super) struct Answer<'a> {
    reply: Option<Reply>,
    sink: Option<Sink>,
    tools: &'a PythonTools,
    state: Arc<CallState>,
    /// The time at which the tool ended, before the runtime cleaned up after it.
    pub(super) ended_at: Option<Instant>,
}

impl<'a> Answer<'a> {
    pub(super) fn new(reply: Reply, tools: &'a PythonTools, state: Arc<CallState>) -> Self {
        Self { reply: Some(reply), sink: None, tools, state, ended_at: None }
    }

    /// Answers with a stream and returns the sink for its chunks. Returns `None` if the caller is no longer waiting.
    pub(super) fn open_stream(&mut self) -> Option<Sink> {
        let (sink, source) = sink::channel();
        if !self.state.attach(sink.clone()) {
            return None;
        }
        self.sink = Some(sink.clone());
        let guard = CancelOnDrop::new(self.tools.clone(), Arc::clone(&self.state));
        let reply = ToolReply::stream(chunk_stream(source, guard));
        // If the receiver was dropped, this drops the reply, whose guard cancels the call.
        self.reply.take()?.send(Ok(reply)).then_some(sink)
    }

    /// Queues the outcome of the call, if the caller is still waiting.
    pub(super) fn finish(
        self,
        outcome: Result<Option<Payload>, ToolError>,
        began_at: Instant,
        answers: Option<&mut Answers>,
    ) -> QueuedAnswer {
        match (self.sink, self.reply) {
            (Some(sink), _) => {
                QueuedAnswer { waker: sink.finish(outcome.map(drop)), ..QueuedAnswer::with_task() }
            }
            (None, Some(reply)) => {
                let answer = outcome.and_then(|value| match value {
                    Some(value) => Ok(ToolReply {
                        execution_time: self.ended_at.map(|ended_at| ended_at - began_at),
                        body: ReplyBody::Value(value),
                        metadata: std::collections::BTreeMap::new(),
                        worker: None,
                    }),
                    None => Err(ToolError::internal("a stream ended before it began")),
                });
                reply.queue(answer, answers)
            }
            (None, None) => QueuedAnswer::with_task(),
        }
    }
}
