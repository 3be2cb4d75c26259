//! [`PythonTools`]: the adapter's tools as a [`ToolHandler`]. Calls wait here for the one Python thread that runs them.
//!
//! ```text
//!  gRPC, tokio task ──call──> PythonTools ──next_job──> Executor, Python's main thread
//!                   <─reply─              ──cancel──> Interrupter, a thread that knocks on the main thread
//! ```

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    task::{Context, Poll, Waker},
};

use async_trait::async_trait;
use futures_core::Stream;
use snakepit_registry::{CallId, Chunk, ChunkStream, ToolCall, ToolError, ToolHandler, ToolReply};
use tokio::sync::oneshot;

use crate::{
    executor::Answered,
    multiplexed::FrameReply,
    progress::Answers,
    sink::Source,
    state::{CallState, Stage},
};

/// A call that waits for the executor.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) call: ToolCall,
    pub(crate) state: Arc<CallState>,
    pub(crate) reply: Reply,
}

/// Who waits for the answer of a call.
#[derive(Debug)]
pub(crate) enum Reply {
    /// A task of this process.
    Task(oneshot::Sender<Result<ToolReply, ToolError>>),
    /// The other end of a multiplexed stream.
    Frame(FrameReply),
}

impl Reply {
    /// Answers; nobody may be left to hear it, which is as well. `false` when a task surely does not hear it.
    pub(crate) fn send(self, outcome: Result<ToolReply, ToolError>) -> bool {
        match self {
            Self::Task(sender) => sender.send(outcome).is_ok(),
            Self::Frame(reply) => {
                reply.send(outcome, None);
                true
            }
        }
    }

    /// Answers a call that has ended, and keeps the answer if it can.
    pub(crate) fn answer(
        self,
        outcome: Result<ToolReply, ToolError>,
        answers: Option<&mut Answers>,
    ) -> Answered {
        match self {
            Self::Task(sender) => {
                // Nobody may be left to hear it, which is as well.
                let _ = sender.send(outcome);
                Answered::Waits(None)
            }
            Self::Frame(reply) => reply.send(outcome, answers),
        }
    }
}

/// The tools of this worker's adapter. Clones share the queue.
#[derive(Clone)]
pub(crate) struct PythonTools(Arc<Shared>);

struct Shared {
    queue: Mutex<Queue>,
    /// Takes running calls that were cancelled.
    interrupter: mpsc::Sender<Arc<CallState>>,
}

#[derive(Debug, Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// The executor, while it waits for a job.
    executor: Option<Waker>,
    /// Calls that are queued or running.
    active: HashMap<CallId, Arc<CallState>>,
    closed: bool,
}

impl PythonTools {
    /// An open queue. Calls that must be interrupted are sent to `interrupter`.
    pub(crate) fn new(interrupter: mpsc::Sender<Arc<CallState>>) -> Self {
        Self(Arc::new(Shared { queue: Mutex::default(), interrupter }))
    }

    /// Waits for a call to run; `None` once the queue is closed. Cancel safe.
    pub(crate) async fn next_job(&self) -> Option<Job> {
        poll_fn(|cx| {
            let mut queue = self.queue();
            let job = queue.jobs.pop_front();
            if job.is_none() && !queue.closed {
                queue.executor = Some(cx.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(job)
        })
        .await
    }

    /// The executor is done with a call. Returns the next one, if one waits.
    pub(crate) fn finish(&self, state: &Arc<CallState>) -> Option<Job> {
        let next = {
            let mut queue = self.queue();
            queue.forget(state);
            queue.jobs.pop_front()
        };
        state.end();
        next
    }

    /// Refuses calls from now on, those that wait included. What runs goes on.
    pub(crate) fn close(&self) {
        let executor;
        let waiting = {
            let mut queue = self.queue();
            queue.closed = true;
            executor = queue.executor.take();
            let waiting = std::mem::take(&mut queue.jobs);
            for job in &waiting {
                queue.forget(&job.state);
            }
            waiting
        };
        if let Some(executor) = executor {
            executor.wake();
        }
        for job in waiting {
            job.state.cancel();
            job.reply.send(Err(stopping()));
        }
    }

    /// Takes a call out of the queue; `None` when it is not there any more.
    fn withdraw(&self, id: CallId) -> Option<Job> {
        let mut queue = self.queue();
        let index = queue.jobs.iter().position(|job| job.state.id == id)?;
        let job = queue.jobs.remove(index)?;
        queue.forget(&job.state);
        Some(job)
    }

    /// The call of this id, if it is queued or running.
    pub(crate) fn find(&self, id: CallId) -> Option<Arc<CallState>> {
        self.queue().active.get(&id).cloned()
    }

    /// Cancels a call and returns at once. A queued one is gone then; a running one will be interrupted.
    fn abandon(&self, state: &Arc<CallState>) {
        match state.cancel() {
            Stage::Queued => {
                // If it is not there any more, the executor has just taken it, and will answer it.
                if let Some(job) = self.withdraw(state.id) {
                    let tool = job.call.tool.to_string();
                    job.reply.send(Err(ToolError::Cancelled { tool }));
                }
            }
            // Without an interrupter the process is ending anyway.
            Stage::Running => drop(self.0.interrupter.send(Arc::clone(state))),
            Stage::Ended => {}
        }
    }

    /// Puts calls into the queue, or refuses them.
    pub(crate) fn admit_all(&self, jobs: impl IntoIterator<Item = Job>) {
        let mut refused = Vec::new();
        let executor = {
            let mut queue = self.queue();
            for job in jobs {
                if queue.closed {
                    refused.push((job, stopping()));
                    continue;
                }
                match queue.active.entry(job.state.id) {
                    Entry::Occupied(_) => {
                        let problem = format!("the id of call {} is in use", job.state.id);
                        refused.push((job, ToolError::Internal { problem }));
                    }
                    Entry::Vacant(place) => {
                        place.insert(Arc::clone(&job.state));
                        queue.jobs.push_back(job);
                    }
                }
            }
            if queue.jobs.is_empty() { None } else { queue.executor.take() }
        };
        if let Some(executor) = executor {
            executor.wake();
        }
        for (job, error) in refused {
            job.reply.send(Err(error));
        }
    }

    /// Whether calls are queued or running.
    pub(crate) fn is_busy(&self) -> bool {
        !self.queue().active.is_empty()
    }

    /// Cancels a call, if it has not ended, and returns at once.
    pub(crate) fn abandon_call(&self, call: CallId) {
        if let Some(state) = self.find(call) {
            self.abandon(&state);
        }
    }

    /// Cancels all calls.
    pub(crate) fn abandon_all(&self) {
        self.abandon_stream(|_| true);
    }

    /// Cancels all calls of which this is true.
    pub(crate) fn abandon_stream(&self, is_of_stream: impl Fn(CallId) -> bool) {
        let states: Vec<_> = {
            let queue = self.queue();
            queue
                .active
                .iter()
                .filter(|(call, _)| is_of_stream(**call))
                .map(|(_, state)| Arc::clone(state))
                .collect()
        };
        states.iter().for_each(|state| self.abandon(state));
    }

    /// Gives a call back that has not begun.
    pub(crate) fn give_back(&self, call: CallId) {
        if let Some(job) = self.withdraw(call) {
            job.state.cancel();
            let tool = job.call.tool.to_string();
            job.reply.send(Err(ToolError::Recalled { tool }));
        }
    }

    /// No code that could panic runs under the lock, so a poisoned one still holds sound data.
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    /// Forgets a call, but not another one that came under the same id.
    fn forget(&mut self, state: &Arc<CallState>) {
        if self.active.get(&state.id).is_some_and(|active| Arc::ptr_eq(active, state)) {
            self.active.remove(&state.id);
        }
    }
}

/// Refuses a call that did not run: the host takes it elsewhere, and hands no more calls to this worker.
pub(crate) fn stopping() -> ToolError {
    ToolError::Unavailable { reason: "the worker is stopping".to_owned(), retry_after: None }
}

#[async_trait]
impl ToolHandler for PythonTools {
    async fn call(&self, call: ToolCall) -> Result<ToolReply, ToolError> {
        let state = Arc::new(CallState::new(call.id, call.deadline));
        let tool = Arc::clone(&call.tool);
        let (reply, answer) = oneshot::channel();
        let guard = CancelOnDrop::new(self.clone(), Arc::clone(&state));
        self.admit_all([Job { call, state, reply: Reply::Task(reply) }]);
        let outcome = answer.await;
        // A stream brings its own guard; a value has ended already.
        guard.disarm();
        // The executor drops the sender of a call that was cancelled before it began.
        outcome.unwrap_or_else(|_| Err(ToolError::Cancelled { tool: tool.to_string() }))
    }

    async fn cancel(&self, call: CallId) -> Result<(), ToolError> {
        if let Some(state) = self.find(call) {
            self.abandon(&state);
            state.ended().await;
        }
        Ok(())
    }

    fn recall(&self, call: CallId) {
        self.give_back(call);
    }
}

impl fmt::Debug for PythonTools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.queue().fmt(f)
    }
}

/// Cancels its call when dropped: nobody waits for the answer any more.
#[derive(Debug)]
pub(crate) struct CancelOnDrop {
    tools: PythonTools,
    state: Arc<CallState>,
    armed: bool,
}

impl CancelOnDrop {
    pub(crate) fn new(tools: PythonTools, state: Arc<CallState>) -> Self {
        Self { tools, state, armed: true }
    }

    fn disarm(mut self) {
        self.armed = false;
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if self.armed {
            self.tools.abandon(&self.state);
        }
    }
}

/// The chunks of a running call; dropping them early cancels it.
struct GuardedChunks {
    source: Source,
    _guard: CancelOnDrop,
}

impl Stream for GuardedChunks {
    type Item = Result<Chunk, ToolError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.source).poll_next(context)
    }
}

/// The chunks of a call as its answer.
pub(crate) fn chunk_stream(source: Source, guard: CancelOnDrop) -> ChunkStream {
    Box::pin(GuardedChunks { source, _guard: guard })
}
