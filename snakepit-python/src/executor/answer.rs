//! Where a call's answer goes: first the reply, then, for a stream, its chunks and its end.

use std::sync::Arc;

use snakepit_registry::{ReplyBody, ToolError, ToolReply};
use snakepit_session::Payload;
use tokio::time::Instant;

use super::Answered;
use crate::{
    progress::Answers,
    sink::{self, Sink},
    state::CallState,
    tools::{CancelOnDrop, PythonTools, Reply, chunk_stream},
};

/// The way back to the caller of one call.
pub(super) struct Answer<'a> {
    reply: Option<Reply>,
    sink: Option<Sink>,
    tools: &'a PythonTools,
    state: Arc<CallState>,
    /// When the tool itself ended, before what it left behind was cleaned up.
    pub(super) ended: Option<Instant>,
}

impl<'a> Answer<'a> {
    pub(super) fn new(reply: Reply, tools: &'a PythonTools, state: Arc<CallState>) -> Self {
        Self { reply: Some(reply), sink: None, tools, state, ended: None }
    }

    /// Answers with a stream, whose chunks go into the sink. `None` when nobody waits for them any more.
    pub(super) fn open_stream(&mut self) -> Option<Sink> {
        let (sink, source) = sink::channel();
        if !self.state.attach(sink.clone()) {
            return None;
        }
        self.sink = Some(sink.clone());
        let guard = CancelOnDrop::new(self.tools.clone(), Arc::clone(&self.state));
        let reply = ToolReply::stream(chunk_stream(source, guard));
        // A reply that nobody takes is dropped here, and its guard cancels the call.
        self.reply.take()?.send(Ok(reply)).then_some(sink)
    }

    /// Says how the call ended. The caller may be gone, which is as well.
    pub(super) fn finish(
        self,
        outcome: Result<Option<Payload>, ToolError>,
        began: Instant,
        answers: Option<&mut Answers>,
    ) -> Answered {
        match (self.sink, self.reply) {
            (Some(sink), _) => {
                sink.finish(outcome.map(drop));
                Answered::Waits(None)
            }
            (None, Some(reply)) => {
                let answer = outcome.and_then(|value| match value {
                    Some(value) => Ok(ToolReply {
                        execution_time: self.ended.map(|ended| ended - began),
                        body: ReplyBody::Value(value),
                        metadata: std::collections::BTreeMap::new(),
                        worker: None,
                    }),
                    None => Err(ToolError::Internal { problem: "a stream ended before it began".to_owned() }),
                });
                reply.answer(answer, answers)
            }
            (None, None) => Answered::Waits(None),
        }
    }
}
