//! The callee. It serves the calls of a stream with any [`ToolHandler`], in hosts for their clients, and in workers for streaming
//! calls of their host.
//!
//! All calls of one stream run on one task. Each stream of chunks has separate credit, so a paused reader does not delay other
//! calls.

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
    status::{CANCELLED, INTERNAL, error_status},
};
use snakepit_registry::{CallId, CallMode, ReplyBody, ToolCall, ToolError, ToolHandler, ToolReply};
use tokio::time::{Instant, sleep_until};
use tonic::{Code, Status};

mod credit;
mod forward;

use self::{
    credit::Credit,
    forward::{ForwardChunks, PrefetchTotal},
};
use super::{CallOrigin, call_from_wire, error_reply, status_reply, value_reply};
use crate::bad_field;

/// The maximum number of open calls per stream. It is well above the default queue of a host.
const MAX_CALLS: usize = 4096;

/// The maximum total size of the open calls of one stream, in bytes. A single call may exceed it.
const MAX_BYTES: usize = 256 * 1024 * 1024;

/// The maximum size of a call without a [reservation](MuxService::reserve), in bytes.
const SMALL_BYTES: usize = 4096;

/// The `retry_after` of rejected calls.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// The time after the deadline at which a stream that cannot send ends here. A handler that is polled enforces the deadline
/// before.
const DEADLINE_GRACE: Duration = Duration::from_millis(50);

/// Defines the differences between servers of multiplexed calls.
pub trait MuxService: Send + Sync + 'static {
    /// The type of the handler.
    type Handler: ToolHandler;

    /// The handler that runs the calls.
    fn handler(&self) -> &Self::Handler;

    /// The id under which the handler receives a call of the stream.
    fn call_id(&self, id: u64) -> CallId;

    /// Prepares a call before the handler receives it. The default ignores the reports that its caller asks for.
    fn prepare(&self, call: ToolCall, origin: &CallOrigin, replies: &Replies) -> ToolCall {
        let _ = (origin, replies);
        call
    }

    /// Reserves memory for a large call until [`release`](Self::release).
    ///
    /// # Errors
    /// The error of the call if there is not enough memory.
    fn reserve(&self, bytes: usize) -> Result<(), ToolError> {
        let _ = bytes;
        Ok(())
    }

    /// Releases memory that was [reserved](Self::reserve).
    fn release(&self, bytes: usize) {
        let _ = bytes;
    }

    /// Converts an error, other than a tool failure, to a status.
    fn status(&self, error: ToolError) -> Status;

    /// The time at which a stream of this tool must end even if its reader grants no credit, derived from deadline and start
    /// of the call. `None` if the handler enforces the deadline.
    fn stream_deadline(&self, tool: &str, deadline: Option<Instant>, started: Instant) -> Option<Instant> {
        let _ = (tool, deadline, started);
        None
    }
}

/// The calls of one stream.
pub struct MuxCalls<S: MuxService> {
    service: Arc<S>,
    replies: Replies,
    running: HashMap<u64, RunningCall>,
    /// Their approximate total size, in bytes.
    bytes: usize,
    /// The id of the last call that was received.
    last_id: u64,
    prefetch: PrefetchTotal,
    /// A task returns the id of the call that it ended, if it ended one.
    tasks: FuturesUnordered<Pin<Box<dyn Future<Output = Option<u64>> + Send>>>,
}

/// A call that has not ended.
struct RunningCall {
    call: CallId,
    abort: AbortHandle,
    credit: Option<Arc<Credit>>,
    bytes: usize,
    /// Whether a cancellation is in progress, which will end the call.
    is_cancelling: bool,
}

impl<S: MuxService> MuxCalls<S> {
    /// Creates a stream without calls, which sends its replies to `replies`.
    pub fn new(service: Arc<S>, replies: Replies) -> Self {
        let tasks = FuturesUnordered::new();
        let (running, prefetch) = (HashMap::new(), PrefetchTotal::default());
        Self { service, replies, running, bytes: 0, last_id: 0, prefetch, tasks }
    }

    /// Whether the call with this id is open.
    #[must_use]
    pub fn is_open(&self, id: u64) -> bool {
        self.running.contains_key(&id)
    }

    /// The number of open calls, their total size, and the cost of prefetched chunks.
    #[cfg(test)]
    pub(super) fn usage(&self) -> (usize, usize, u64) {
        (self.running.len(), self.bytes, self.prefetch.bytes())
    }

    fn start(&mut self, start: pb::CallStart) {
        let (id, last) = (start.id, self.last_id);
        if id <= last {
            // If a call with this id is open, the caller would take the rejection for its reply.
            if !self.running.contains_key(&id) {
                self.replies.send_reply(status_reply(id, non_increasing_id(id, last)));
            }
            return;
        }
        self.last_id = id;
        let (queued, bytes) = (self.running.len(), call_size(&start));
        let rejection = if queued >= MAX_CALLS {
            Some(ToolError::overloaded(queued, MAX_CALLS).with_retry_after(RETRY_AFTER))
        } else if queued > 0 && self.bytes + bytes > MAX_BYTES {
            let (holders, retry_after) = ("calls of this stream".to_owned(), Some(RETRY_AFTER));
            Some(ToolError::too_many_bytes(holders, self.bytes, MAX_BYTES).with_retry_after(retry_after))
        } else if bytes > SMALL_BYTES {
            self.service.reserve(bytes).err()
        } else {
            None
        };
        if let Some(rejection) = rejection {
            return self.replies.send_reply(status_reply(id, self.service.status(rejection)));
        }
        let session_id = start.session_id.clone();
        let window = if start.credit == 0 { STREAM_CREDIT } else { start.credit };
        let origin = CallOrigin::of(&start);
        let call = match call_from_wire(start, self.service.call_id(id)) {
            Ok(call) => self.service.prepare(call, &origin, &self.replies),
            Err(status) => {
                self.release(bytes);
                return self.replies.send_reply(status_reply(id, status));
            }
        };
        let credit = (call.mode == CallMode::Streaming).then(|| Arc::new(Credit::new(window)));
        let (abort, registration) = AbortHandle::new_pair();
        let running =
            RunningCall { call: call.id, abort, credit: credit.clone(), bytes, is_cancelling: false };
        self.running.insert(id, running);
        self.bytes += bytes;
        let call_task =
            CallTask { id, session_id, service: Arc::clone(&self.service), replies: self.replies.clone() };
        let flow = credit.map(|credit| (credit, self.prefetch.clone()));
        let task = Abortable::new(call_task.run(call, flow), registration);
        self.tasks.push(Box::pin(async move {
            // An aborted call ends with the task of its cancellation.
            task.await.is_ok().then_some(id)
        }));
    }

    /// Releases a call reservation of this size.
    fn release(&self, bytes: usize) {
        if bytes > SMALL_BYTES {
            self.service.release(bytes);
        }
    }

    fn cancel(&mut self, id: u64) {
        let Some(running) = self.running.get_mut(&id) else { return };
        if std::mem::replace(&mut running.is_cancelling, true) {
            return;
        }
        running.abort.abort();
        let (call, service, replies) = (running.call, Arc::clone(&self.service), self.replies.clone());
        self.tasks.push(Box::pin(async move {
            let status = match service.handler().cancel(call).await {
                Ok(()) => error_status(Code::Cancelled, CANCELLED, "the call was cancelled"),
                Err(error) => service.status(error),
            };
            replies.send_reply(status_reply(id, status));
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
            if let Some(RunningCall { credit: Some(credit), .. }) = self.running.get(&id) {
                credit.grant(bytes);
            }
        }
        cancels.into_iter().for_each(|id| self.cancel(id));
        recalls.into_iter().for_each(|id| self.recall(id));
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        // A worker polls often, and most of its calls are unary ones, which run elsewhere.
        if self.tasks.is_empty() {
            return false;
        }
        while let Poll::Ready(Some(ended_id)) = self.tasks.poll_next_unpin(cx) {
            if let Some(running) = ended_id.and_then(|id| self.running.remove(&id)) {
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

/// The status of a call whose id does not exceed the id of the previous call.
#[must_use]
pub fn non_increasing_id(id: u64, last: u64) -> Status {
    bad_field("id", &format!("is {id} after {last}; use ids that increase from call to call, starting at 1"))
}

/// Runs one call and sends its reply.
struct CallTask<S> {
    id: u64,
    session_id: String,
    service: Arc<S>,
    replies: Replies,
}

impl<S: MuxService> CallTask<S> {
    async fn run(self, call: ToolCall, flow: Option<(Arc<Credit>, PrefetchTotal)>) {
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
                        self.replies.send_opened(pb::CallOpened { id, worker_id: worker_id.clone() });
                        let deadline = self.service.stream_deadline(&tool, deadline, started);
                        let end = deadline.and_then(|deadline| deadline.checked_add(DEADLINE_GRACE));
                        let deadline_timer = end.map(|end| Box::pin(sleep_until(end)));
                        let ((credit, prefetch), replies) = (flow, &self.replies);
                        let forward = ForwardChunks {
                            id,
                            tool,
                            chunks,
                            prefetched: None,
                            prefetch,
                            credit,
                            replies,
                            deadline_timer,
                        };
                        match forward.await {
                            Ok(()) => pb::CallReply { id, worker_id, ..pb::CallReply::default() },
                            Err(error) => self.error_reply(error),
                        }
                    }
                    _ => {
                        let problem =
                            "the tool answered a unary call with a stream, or a streaming call with a value";
                        status_reply(id, error_status(Code::Internal, INTERNAL, problem))
                    }
                }
            }
            Err(ToolError::Recalled { .. }) => return self.replies.send_recalled(id),
            Err(error) => self.error_reply(error),
        };
        self.replies.send_reply(reply);
    }

    fn error_reply(&self, error: ToolError) -> pb::CallReply {
        error_reply(self.id, error, self.session_id.clone(), |error| self.service.status(error))
    }
}

#[cfg(test)]
mod tests;
