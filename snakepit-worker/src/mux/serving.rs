//! Calls of a stream, run by any [`ToolHandler`]: what a host serves to clients, and a worker to its host where chunks stream.
//!
//! All calls of one stream run on the stream's own task. Each stream of chunks has a credit of its own, so a reader that
//! pauses one of them holds up no other.

use std::{
    collections::HashMap,
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use futures_util::{
    StreamExt,
    future::{AbortHandle, Abortable},
    stream::FuturesUnordered,
    task::AtomicWaker,
};
use snakepit_proto::{
    mux::{Calls, Replies, chunk_cost},
    pb,
    status::{CANCELLED, INTERNAL, refuse},
};
use snakepit_registry::{
    CallId, CallMode, ChunkStream, ReplyBody, ToolCall, ToolError, ToolHandler, ToolReply,
};
use tonic::{Code, Status};

use super::{call_from_wire, failure_reply, status_reply, value_reply};
use crate::wire::bad_field;

/// What the two kinds of servers do differently.
pub trait MuxService: Send + Sync + 'static {
    /// What runs the calls.
    type Handler: ToolHandler;

    /// What runs the calls.
    fn handler(&self) -> &Self::Handler;

    /// Names a call towards the handler.
    fn call_id(&self, id: u64) -> CallId;

    /// Says what went wrong, unless it is the tool's own failure.
    fn status(&self, error: ToolError) -> Status;
}

/// The calls of one stream.
pub struct MuxCalls<S> {
    service: Arc<S>,
    replies: Replies,
    running: HashMap<u64, Running>,
    /// Each gives the id of the call that it ran to its end.
    tasks: FuturesUnordered<Pin<Box<dyn Future<Output = u64> + Send>>>,
}

struct Running {
    call: CallId,
    abort: AbortHandle,
    credit: Option<Arc<Credit>>,
}

/// How many bytes of chunks a stream may still send; see [`chunk_cost`].
#[derive(Debug)]
struct Credit {
    left: AtomicU64,
    /// The stream's task, while it waits for more.
    task: AtomicWaker,
}

impl<S: MuxService> MuxCalls<S> {
    /// No calls yet. They are answered into `replies`.
    pub fn new(service: Arc<S>, replies: Replies) -> Self {
        Self { service, replies, running: HashMap::new(), tasks: FuturesUnordered::new() }
    }

    /// Whether a call of this id runs.
    #[must_use]
    pub fn runs(&self, id: u64) -> bool {
        self.running.contains_key(&id)
    }

    fn start(&mut self, start: pb::CallStart) {
        let id = start.id;
        if self.running.contains_key(&id) {
            let problem = format!("{id} is in use; ids rise from call to call");
            return self.replies.reply(status_reply(id, bad_field("id", &problem)));
        }
        let (session_id, window) = (start.session_id.clone(), start.credit);
        let call = match call_from_wire(start, self.service.call_id(id)) {
            Ok(call) => call,
            Err(status) => return self.replies.reply(status_reply(id, status)),
        };
        let credit = (call.mode == CallMode::Streaming)
            .then(|| Arc::new(Credit { left: AtomicU64::new(window), task: AtomicWaker::new() }));
        let (abort, registration) = AbortHandle::new_pair();
        self.running.insert(id, Running { call: call.id, abort, credit: credit.clone() });
        let answer =
            Answer { id, session_id, service: Arc::clone(&self.service), replies: self.replies.clone() };
        let task = Abortable::new(answer.run(call, credit), registration);
        self.tasks.push(Box::pin(async move {
            // An aborted call is answered by whoever aborted it.
            let _ = task.await;
            id
        }));
    }

    fn cancel(&mut self, id: u64) {
        let Some(running) = self.running.get(&id) else { return };
        running.abort.abort();
        let (call, service, replies) = (running.call, Arc::clone(&self.service), self.replies.clone());
        self.tasks.push(Box::pin(async move {
            let status = match service.handler().cancel(call).await {
                Ok(()) => refuse(Code::Cancelled, CANCELLED, "the call was cancelled"),
                Err(error) => service.status(error),
            };
            replies.reply(status_reply(id, status));
            id
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
        let pb::CallBatch { calls, credits, cancels, recalls } = batch;
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
        while let Poll::Ready(Some(id)) = self.tasks.poll_next_unpin(cx) {
            self.running.remove(&id);
        }
        !self.tasks.is_empty()
    }
}

impl<S> fmt::Debug for MuxCalls<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MuxCalls").field("running", &self.running.len()).finish_non_exhaustive()
    }
}

impl Credit {
    fn grant(&self, bytes: u64) {
        self.left.fetch_add(bytes, Ordering::AcqRel);
        self.task.wake();
    }

    /// Ready once there is any credit.
    fn poll_any(&self, cx: &Context<'_>) -> Poll<()> {
        if self.left.load(Ordering::Acquire) > 0 {
            return Poll::Ready(());
        }
        self.task.register(cx.waker());
        // It may have been granted before the registration.
        if self.left.load(Ordering::Acquire) > 0 { Poll::Ready(()) } else { Poll::Pending }
    }

    /// A chunk may overdraw the credit once: it ends at zero, not below.
    fn spend(&self, bytes: u64) {
        // Only the stream's own task spends, so what was loaded can only have grown.
        let left = self.left.load(Ordering::Acquire);
        self.left.fetch_sub(bytes.min(left), Ordering::AcqRel);
    }
}

/// Where the answer of one call goes.
struct Answer<S> {
    id: u64,
    session_id: String,
    service: Arc<S>,
    replies: Replies,
}

impl<S: MuxService> Answer<S> {
    async fn run(self, call: ToolCall, credit: Option<Arc<Credit>>) {
        let id = self.id;
        let reply = match self.service.handler().call(call).await {
            Ok(ToolReply { body, metadata, worker, execution_time }) => {
                let worker_id = worker.map(|worker| worker.to_string()).unwrap_or_default();
                match (body, credit) {
                    (ReplyBody::Value(value), None) => {
                        pb::CallReply { metadata, worker_id, ..value_reply(id, value, execution_time) }
                    }
                    (ReplyBody::Stream(chunks), Some(credit)) => {
                        self.replies.opened(pb::CallOpened { id, worker_id: worker_id.clone() });
                        let forward = Forward { id, chunks, credit, replies: &self.replies };
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

/// Moves chunks from a stream into the replies as far as the credit goes.
struct Forward<'a> {
    id: u64,
    chunks: ChunkStream,
    credit: Arc<Credit>,
    replies: &'a Replies,
}

impl Future for Forward<'_> {
    type Output = Result<(), ToolError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let mut run = Vec::new();
        let outcome = loop {
            if this.credit.poll_any(cx).is_pending() {
                break Poll::Pending;
            }
            match this.chunks.as_mut().poll_next(cx) {
                Poll::Ready(Some(Ok(chunk))) => {
                    let chunk = pb::CallChunk { data: chunk.data, metadata: chunk.metadata };
                    this.credit.spend(chunk_cost(&chunk));
                    run.push(chunk);
                }
                Poll::Ready(Some(Err(error))) => break Poll::Ready(Err(error)),
                Poll::Ready(None) => break Poll::Ready(Ok(())),
                Poll::Pending => break Poll::Pending,
            }
        };
        if !run.is_empty() {
            this.replies.chunks(this.id, run);
        }
        outcome
    }
}
