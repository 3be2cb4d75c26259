//! Calls of a stream, run by any [`ToolHandler`]: what a host serves to clients, and a worker to its host where chunks stream.
//!
//! All calls of one stream run on one task. Each stream of chunks has a credit of its own, so a reader that
//! pauses one of them holds up no other.

use std::{
    collections::HashMap,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{
    StreamExt,
    future::{AbortHandle, Abortable},
    stream::FuturesUnordered,
};
use snakepit_proto::{
    mux::{Calls, Replies, STREAM_CREDIT, call_size},
    pb,
    status::{CANCELLED, INTERNAL, refuse},
};
use snakepit_registry::{CallId, CallMode, ReplyBody, ToolCall, ToolError, ToolHandler, ToolReply};
use tokio::time::{Instant, sleep_until};
use tonic::{Code, Status};

mod credit;
mod forward;

use self::{
    credit::Credit,
    forward::{Ahead, Forward},
};
use super::{call_from_wire, failure_reply, status_reply, value_reply};
use crate::bad_field;

/// How many calls of one stream run or wait at once; more are refused. Well above what a host queues by default.
const MAX_CALLS: usize = 4096;

/// How many bytes the calls of one stream may have while they run or wait, except that one may always run.
const MAX_BYTES: usize = 256 * 1024 * 1024;

/// Calls up to this size, in bytes, are bounded by their number alone.
const SMALL_BYTES: usize = 4096;

/// When one of the calls may have ended.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// How long after its deadline a stream that cannot send is ended here: whatever runs it says so first if it is polled.
const DEADLINE_GRACE: Duration = Duration::from_millis(50);

/// What the two kinds of servers do differently.
pub trait MuxService: Send + Sync + 'static {
    /// What runs the calls.
    type Handler: ToolHandler;

    /// What runs the calls.
    fn handler(&self) -> &Self::Handler;

    /// Names a call towards the handler.
    fn call_id(&self, id: u64) -> CallId;

    /// Sets bytes aside for a large call, until [`release`](Self::release); refuses it when there are too many already.
    ///
    /// # Errors
    /// What the call is to be answered with.
    fn reserve(&self, bytes: usize) -> Result<(), ToolError> {
        let _ = bytes;
        Ok(())
    }

    /// Gives back what was [reserved](Self::reserve).
    fn release(&self, bytes: usize) {
        let _ = bytes;
    }

    /// Says what went wrong, unless it is the tool's own failure.
    fn status(&self, error: ToolError) -> Status;

    /// When a stream of this tool has to end even if its reader grants no credit, from the call's own deadline and its start.
    /// `None`: whoever runs it sees to that.
    fn stream_deadline(&self, tool: &str, deadline: Option<Instant>, started: Instant) -> Option<Instant> {
        let _ = (tool, deadline, started);
        None
    }
}

/// The calls of one stream.
pub struct MuxCalls<S: MuxService> {
    service: Arc<S>,
    replies: Replies,
    running: HashMap<u64, Running>,
    /// About how many bytes those have.
    bytes: usize,
    /// The last call that was taken in.
    last_id: u64,
    ahead: Ahead,
    /// Each gives the id of the call that it answered, if it did.
    tasks: FuturesUnordered<Pin<Box<dyn Future<Output = Option<u64>> + Send>>>,
}

/// A call that was not answered yet.
struct Running {
    call: CallId,
    abort: AbortHandle,
    credit: Option<Arc<Credit>>,
    bytes: usize,
    /// Its cancellation is under way, and will answer it.
    cancelled: bool,
}

impl<S: MuxService> MuxCalls<S> {
    /// No calls yet. They are answered into `replies`.
    pub fn new(service: Arc<S>, replies: Replies) -> Self {
        let tasks = FuturesUnordered::new();
        let (running, ahead) = (HashMap::new(), Ahead::default());
        Self { service, replies, running, bytes: 0, last_id: 0, ahead, tasks }
    }

    /// Whether a call of this id runs.
    #[must_use]
    pub fn runs(&self, id: u64) -> bool {
        self.running.contains_key(&id)
    }

    /// How many calls, bytes of calls, and bytes of chunks that were read ahead there are.
    #[cfg(test)]
    pub(super) fn holds(&self) -> (usize, usize, u64) {
        (self.running.len(), self.bytes, self.ahead.bytes())
    }

    fn start(&mut self, start: pb::CallStart) {
        let (id, last) = (start.id, self.last_id);
        if id <= last {
            // An answer would be taken for that of the other call, if there is one.
            if !self.running.contains_key(&id) {
                self.replies.reply(status_reply(id, not_rising(id, last)));
            }
            return;
        }
        self.last_id = id;
        let (queued, bytes) = (self.running.len(), call_size(&start));
        let refusal = if queued >= MAX_CALLS {
            Some(ToolError::Overloaded { queued, limit: MAX_CALLS, retry_after: Some(RETRY_AFTER) })
        } else if queued > 0 && self.bytes + bytes > MAX_BYTES {
            let (whose, retry_after) = ("calls of this stream".to_owned(), Some(RETRY_AFTER));
            Some(ToolError::TooMuchAtOnce { whose, used: self.bytes, limit: MAX_BYTES, retry_after })
        } else if bytes > SMALL_BYTES {
            self.service.reserve(bytes).err()
        } else {
            None
        };
        if let Some(refusal) = refusal {
            return self.replies.reply(status_reply(id, self.service.status(refusal)));
        }
        let session_id = start.session_id.clone();
        let window = if start.credit == 0 { STREAM_CREDIT } else { start.credit };
        let call = match call_from_wire(start, self.service.call_id(id)) {
            Ok(call) => call,
            Err(status) => {
                self.release(bytes);
                return self.replies.reply(status_reply(id, status));
            }
        };
        let credit = (call.mode == CallMode::Streaming).then(|| Arc::new(Credit::new(window)));
        let (abort, registration) = AbortHandle::new_pair();
        let running = Running { call: call.id, abort, credit: credit.clone(), bytes, cancelled: false };
        self.running.insert(id, running);
        self.bytes += bytes;
        let answer =
            Answer { id, session_id, service: Arc::clone(&self.service), replies: self.replies.clone() };
        let flow = credit.map(|credit| (credit, self.ahead.clone()));
        let task = Abortable::new(answer.run(call, flow), registration);
        self.tasks.push(Box::pin(async move {
            // An aborted call is answered by whoever aborted it.
            task.await.is_ok().then_some(id)
        }));
    }

    /// Gives back what a call of this size may have reserved.
    fn release(&self, bytes: usize) {
        if bytes > SMALL_BYTES {
            self.service.release(bytes);
        }
    }

    fn cancel(&mut self, id: u64) {
        let Some(running) = self.running.get_mut(&id) else { return };
        if std::mem::replace(&mut running.cancelled, true) {
            return;
        }
        running.abort.abort();
        let (call, service, replies) = (running.call, Arc::clone(&self.service), self.replies.clone());
        self.tasks.push(Box::pin(async move {
            let status = match service.handler().cancel(call).await {
                Ok(()) => refuse(Code::Cancelled, CANCELLED, "the call was cancelled"),
                Err(error) => service.status(error),
            };
            replies.reply(status_reply(id, status));
            Some(id)
        }));
    }

    fn recall(&mut self, id: u64) {
        if let Some(running) = self.running.get(&id) {
            self.service.handler().recall(running.call);
        }
    }
}

impl<S: MuxService> Calls for MuxCalls<S> {
    fn receive(&mut self, batch: pb::CallBatch) {
        let pb::CallBatch { calls, credits, cancels, recalls, .. } = batch;
        calls.into_iter().for_each(|call| self.start(call));
        for pb::CallCredit { id, bytes } in credits {
            if let Some(Running { credit: Some(credit), .. }) = self.running.get(&id) {
                credit.grant(bytes);
            }
        }
        cancels.into_iter().for_each(|id| self.cancel(id));
        recalls.into_iter().for_each(|id| self.recall(id));
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        while let Poll::Ready(Some(answered)) = self.tasks.poll_next_unpin(cx) {
            if let Some(running) = answered.and_then(|id| self.running.remove(&id)) {
                self.bytes -= running.bytes;
                self.release(running.bytes);
            }
        }
        !self.tasks.is_empty()
    }
}

impl<S: MuxService> Drop for MuxCalls<S> {
    fn drop(&mut self) {
        for running in self.running.values() {
            self.release(running.bytes);
        }
    }
}

impl<S: MuxService> fmt::Debug for MuxCalls<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MuxCalls").field("running", &self.running.len()).finish_non_exhaustive()
    }
}

/// Says that a call's id is not above the one before it.
#[must_use]
pub fn not_rising(id: u64, last: u64) -> Status {
    bad_field("id", &format!("is {id} after {last}; ids rise from call to call, from 1"))
}

/// Where the answer of one call goes.
struct Answer<S> {
    id: u64,
    session_id: String,
    service: Arc<S>,
    replies: Replies,
}

impl<S: MuxService> Answer<S> {
    async fn run(self, call: ToolCall, flow: Option<(Arc<Credit>, Ahead)>) {
        let (id, deadline) = (self.id, call.deadline);
        let flow = flow.map(|flow| (flow, Arc::clone(&call.tool), Instant::now()));
        let reply = match self.service.handler().call(call).await {
            Ok(ToolReply { body, metadata, worker, execution_time }) => {
                let worker_id = worker.map(|worker| worker.to_string()).unwrap_or_default();
                match (body, flow) {
                    (ReplyBody::Value(value), None) => {
                        pb::CallReply { metadata, worker_id, ..value_reply(id, value, execution_time) }
                    }
                    (ReplyBody::Stream(chunks), Some((flow, tool, started))) => {
                        self.replies.opened(pb::CallOpened { id, worker_id: worker_id.clone() });
                        let until = self.service.stream_deadline(&tool, deadline, started);
                        let late = until.and_then(|at| at.checked_add(DEADLINE_GRACE));
                        let late = late.map(|at| Box::pin(sleep_until(at)));
                        let ((credit, ahead), replies) = (flow, &self.replies);
                        let forward = Forward { id, tool, chunks, held: None, ahead, credit, replies, late };
                        match forward.await {
                            Ok(()) => pb::CallReply { id, worker_id, ..pb::CallReply::default() },
                            Err(error) => self.failed(error),
                        }
                    }
                    _ => {
                        let problem = "a value was answered by a stream, or a stream by a value";
                        status_reply(id, refuse(Code::Internal, INTERNAL, problem))
                    }
                }
            }
            Err(ToolError::Recalled { .. }) => return self.replies.recalled(id),
            Err(error) => self.failed(error),
        };
        self.replies.reply(reply);
    }

    fn failed(&self, error: ToolError) -> pb::CallReply {
        match error {
            ToolError::Failed(failure) => failure_reply(self.id, *failure, self.session_id.clone()),
            error => status_reply(self.id, self.service.status(error)),
        }
    }
}

#[cfg(test)]
mod tests;
