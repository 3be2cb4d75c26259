//! Serves the `Multiplex` stream of the host.
//!
//! Unary calls go directly into the queue of the executor, and their replies directly into the outbox, without a task in
//! between. Streaming calls run on the task of the stream, by [`MuxCalls`].

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Waker},
};

use snakepit_proto::pb;
use snakepit_registry::{CallId, ToolCall, ToolError};
use snakepit_wire::mux::{
    CallOrigin, Calls, MuxCalls, MuxService, Replies, call_from_wire, non_increasing_id, status_reply,
};
use tonic::Status;

use crate::{
    frames::FrameReply,
    progress,
    reports::ReportRequest,
    state::CallState,
    status::to_status,
    tools::{Job, PythonTools, Reply},
};

/// The calls of one stream.
pub(crate) struct WorkerCalls {
    tools: PythonTools,
    replies: Replies,
    stream: u64,
    /// The streaming calls.
    streaming: MuxCalls<StreamingCalls>,
    /// The id of the last call that was received.
    last_id: u64,
}

impl WorkerCalls {
    pub(crate) fn new(tools: PythonTools, replies: Replies) -> Self {
        static STREAMS: AtomicU64 = AtomicU64::new(0);
        let stream = STREAMS.fetch_add(1, Ordering::Relaxed);
        let service = Arc::new(StreamingCalls { tools: tools.clone(), stream });
        let streaming = MuxCalls::new(service, replies.clone());
        Self { tools, replies, stream, streaming, last_id: 0 }
    }

    /// Checks that ids rise. Calls run in order of their ids, because the progress file stores only the last one
    /// that began.
    fn accept_id(&mut self, id: u64) -> bool {
        let (last_id, call_id) = (self.last_id, progress::multiplexed_id(self.stream, id & progress::MAX_ID));
        if id > last_id && id <= progress::MAX_ID {
            self.last_id = id;
            return true;
        }
        // The caller would take a reply for that of the open call with this id.
        if id > progress::MAX_ID || (self.tools.find(call_id).is_none() && !self.streaming.is_open(id)) {
            self.replies.send_reply(status_reply(id, non_increasing_id(id, last_id)));
        }
        false
    }

    fn job(&self, start: pb::CallStart) -> Option<Job> {
        let (id, origin) = (start.id, CallOrigin::of(&start));
        match call_from_wire(start, progress::multiplexed_id(self.stream, id)) {
            Ok(call) => {
                let state = Arc::new(CallState::of(&call).with_origin(&origin));
                let reply = FrameReply {
                    replies: self.replies.clone(),
                    id,
                    is_stored: progress::is_recorded(self.stream),
                    session: call.session.clone(),
                };
                Some(Job { call, state, reply: Reply::Frame(reply) })
            }
            Err(status) => {
                self.replies.send_reply(status_reply(id, status));
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
            if !self.accept_id(start.id) {
                continue;
            }
            if start.stream {
                // Unary and streaming calls run in order of their ids, as the progress file requires.
                self.tools.admit_all(jobs.drain(..));
                self.streaming.receive(pb::CallBatch { calls: vec![start], ..pb::CallBatch::default() });
                // The first poll of its task queues the call. The next poll of the stream, which follows immediately,
                // registers the real waker.
                self.streaming.poll(&mut Context::from_waker(Waker::noop()));
            } else {
                jobs.extend(self.job(start));
            }
        }
        self.tools.admit_all(jobs);
        let is_unary = |id: &&u64| !self.streaming.is_open(**id);
        for id in cancels.iter().filter(is_unary) {
            self.tools.abandon_call(progress::multiplexed_id(self.stream, *id));
        }
        for id in recalls.iter().filter(is_unary) {
            self.tools.return_call(progress::multiplexed_id(self.stream, *id));
        }
        if !(credits.is_empty() && cancels.is_empty() && recalls.is_empty()) {
            self.streaming.receive(pb::CallBatch { credits, cancels, recalls, ..pb::CallBatch::default() });
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        self.streaming.poll(cx) || self.tools.is_busy()
    }
}

impl Drop for WorkerCalls {
    fn drop(&mut self) {
        self.tools.abandon_matching(|call| progress::is_of_stream(call, self.stream));
    }
}

impl fmt::Debug for WorkerCalls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerCalls").field("stream", &self.stream).finish_non_exhaustive()
    }
}

/// Serves the streaming calls.
struct StreamingCalls {
    tools: PythonTools,
    stream: u64,
}

impl MuxService for StreamingCalls {
    type Handler = PythonTools;

    fn handler(&self) -> &PythonTools {
        &self.tools
    }

    fn call_id(&self, id: u64) -> CallId {
        progress::multiplexed_id(self.stream, id)
    }

    fn prepare(&self, mut call: ToolCall, origin: &CallOrigin, _: &Replies) -> ToolCall {
        let (request_id, wanted) = (origin.request_id, origin.reports);
        if request_id != 0 {
            call.extensions.insert(ReportRequest { request_id, wanted });
        }
        call
    }

    fn status(&self, error: ToolError) -> Status {
        to_status(error, String::new())
    }
}
