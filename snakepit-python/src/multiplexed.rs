//! The calls of a `Multiplex` stream: unary ones go straight into the queue and their answers straight into the outbox, with
//! no task in between; streams of chunks run on the stream's task.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Waker},
};

use snakepit_proto::{
    mux::{Calls, Replies},
    pb,
};
use snakepit_registry::{CallId, ReplyBody, ToolError, ToolReply};
use snakepit_session::SessionId;
use snakepit_wire::mux::{
    MuxCalls, MuxService, call_from_wire, failure_reply, not_rising, status_reply, value_reply,
};
use tonic::Status;

use crate::{
    executor::Answered,
    progress::{self, Answers},
    service::to_status,
    state::CallState,
    tools::{Job, PythonTools, Reply},
};

/// The calls of one stream.
pub(crate) struct WorkerCalls {
    tools: PythonTools,
    replies: Replies,
    stream: u64,
    /// Those that stream chunks.
    streaming: MuxCalls<Streaming>,
    /// The last call that was taken in.
    last_id: u64,
}

impl WorkerCalls {
    pub(crate) fn new(tools: PythonTools, replies: Replies) -> Self {
        static STREAMS: AtomicU64 = AtomicU64::new(0);
        let stream = STREAMS.fetch_add(1, Ordering::Relaxed);
        let service = Arc::new(Streaming { tools: tools.clone(), stream });
        let streaming = MuxCalls::new(service, replies.clone());
        Self { tools, replies, stream, streaming, last_id: 0 }
    }

    /// Ids rise: the file that tells which calls have begun holds but the last, and calls run in their order.
    fn takes_in(&mut self, id: u64) -> bool {
        let (last, name) = (self.last_id, progress::multiplexed(self.stream, id & progress::MAX_ID));
        if id > last && id <= progress::MAX_ID {
            self.last_id = id;
            return true;
        }
        // An answer would be taken for that of the other call, if there is one.
        if id > progress::MAX_ID || (self.tools.find(name).is_none() && !self.streaming.runs(id)) {
            self.replies.reply(status_reply(id, not_rising(id, last)));
        }
        false
    }

    fn job(&self, start: pb::CallStart) -> Option<Job> {
        let id = start.id;
        match call_from_wire(start, progress::multiplexed(self.stream, id)) {
            Ok(call) => {
                let state = Arc::new(CallState::new(call.id, call.deadline));
                let reply = FrameReply {
                    replies: self.replies.clone(),
                    id,
                    is_kept: progress::is_told(self.stream),
                    session: call.session.clone(),
                };
                Some(Job { call, state, reply: Reply::Frame(reply) })
            }
            Err(status) => {
                self.replies.reply(status_reply(id, status));
                None
            }
        }
    }
}

impl Calls for WorkerCalls {
    fn receive(&mut self, batch: pb::CallBatch) {
        let pb::CallBatch { calls, credits, cancels, recalls, .. } = batch;
        let mut jobs = Vec::with_capacity(calls.len());
        for start in calls {
            if !self.takes_in(start.id) {
                continue;
            }
            if start.stream {
                // Calls run in the order of their ids, whatever their kind: the progress file depends on it.
                self.tools.admit_all(jobs.drain(..));
                self.streaming.receive(pb::CallBatch { calls: vec![start], ..pb::CallBatch::default() });
                // The call joins the queue when its task is polled for the first time. The real waker is registered right
                // after this, with the next poll of the stream.
                self.streaming.poll(&mut Context::from_waker(Waker::noop()));
            } else {
                jobs.extend(self.job(start));
            }
        }
        self.tools.admit_all(jobs);
        let of_unary = |id: &&u64| !self.streaming.runs(**id);
        for id in cancels.iter().filter(of_unary) {
            self.tools.abandon_call(progress::multiplexed(self.stream, *id));
        }
        for id in recalls.iter().filter(of_unary) {
            self.tools.give_back(progress::multiplexed(self.stream, *id));
        }
        self.streaming.receive(pb::CallBatch { credits, cancels, recalls, ..pb::CallBatch::default() });
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        self.streaming.poll(cx) || self.tools.is_busy()
    }
}

impl Drop for WorkerCalls {
    fn drop(&mut self) {
        self.tools.abandon_stream(|call| progress::is_of_stream(call, self.stream));
    }
}

impl fmt::Debug for WorkerCalls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerCalls").field("stream", &self.stream).finish_non_exhaustive()
    }
}

/// The way back of one unary call.
#[derive(Debug)]
pub(crate) struct FrameReply {
    replies: Replies,
    id: u64,
    /// Whether its answer may be kept: the ids of other streams mean other calls.
    is_kept: bool,
    session: Option<SessionId>,
}

impl FrameReply {
    /// Answers; with a failure if the value is too large for any message. Keeps the answer where the host finds it whatever
    /// becomes of this process, if there is room.
    pub(crate) fn send(
        self,
        outcome: Result<ToolReply, ToolError>,
        answers: Option<&mut Answers>,
    ) -> Answered {
        let Self { replies, id, is_kept, session } = self;
        let reply = match outcome {
            Ok(ToolReply { body: ReplyBody::Value(value), execution_time, .. }) => {
                value_reply(id, value, execution_time)
            }
            Ok(_) => status_reply(id, Status::internal("a unary call was answered with a stream")),
            Err(ToolError::Recalled { .. }) => {
                replies.recalled(id);
                return Answered::Waits(Some(replies));
            }
            Err(ToolError::Failed(failure)) => {
                let session_id = session.map(|id| id.as_str().to_owned()).unwrap_or_default();
                failure_reply(id, *failure, session_id)
            }
            Err(error) => status_reply(id, to_status(error, String::new())),
        };
        // Kept first: from when it may be sent on, nothing is left to be done for it.
        let kept = is_kept && answers.is_some_and(|answers| answers.keep(&reply));
        replies.reply(reply);
        if kept { Answered::Kept } else { Answered::Waits(Some(replies)) }
    }
}

/// The tools as streams of chunks call them.
struct Streaming {
    tools: PythonTools,
    stream: u64,
}

impl MuxService for Streaming {
    type Handler = PythonTools;

    fn handler(&self) -> &PythonTools {
        &self.tools
    }

    fn call_id(&self, id: u64) -> CallId {
        progress::multiplexed(self.stream, id)
    }

    fn status(&self, error: ToolError) -> Status {
        to_status(error, String::new())
    }
}
