//! [`PythonTools`]: the tools of the adapter as a [`ToolHandler`], and the queue of calls for the executor.
//!
//! ```text
//!  gRPC, tokio task ──call──> PythonTools ──next_job──> Executor, Python's main thread
//!                   <─reply─              ──cancel──> Interrupter, a thread that interrupts the main thread
//! ```

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc},
    task::{Context, Poll, Waker},
};

use async_trait::async_trait;
use foldhash::fast::RandomState;
use futures_core::Stream;
use snakepit_registry::{CallId, Chunk, ChunkStream, ToolCall, ToolError, ToolHandler, ToolReply};
use tokio::sync::oneshot;

use crate::{
    executor::LoopWatchdog,
    frames::{FrameReply, QueuedAnswer},
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

/// The receiver of a call's answer.
#[derive(Debug)]
pub(crate) enum Reply {
    /// A task of this process.
    Task(oneshot::Sender<Result<ToolReply, ToolError>>),
    /// The other end of a multiplexed stream.
    Frame(FrameReply),
}

impl Reply {
    /// Sends the answer. Returns `false` if the receiving task has ended.
    pub(crate) fn send(self, outcome: Result<ToolReply, ToolError>) -> bool {
        match self {
            Self::Task(sender) => sender.send(outcome).is_ok(),
            Self::Frame(reply) => {
                reply.send(outcome);
                true
            }
        }
    }

    /// Queues the answer of a call that has ended, and stores it in `answers` if possible.
    pub(crate) fn queue(
        self,
        outcome: Result<ToolReply, ToolError>,
        answers: Option<&mut Answers>,
    ) -> QueuedAnswer {
        match self {
            Self::Task(sender) => {
                // Fails if the task has ended, which is not an error.
                let _ = sender.send(outcome);
                QueuedAnswer::with_task()
            }
            Self::Frame(reply) => reply.queue(outcome, answers),
        }
    }
}

/// The result of [`PythonTools::take`].
#[derive(Debug)]
pub(crate) enum Taken {
    Job(Box<Job>),
    /// No call may begin now. The waker is woken when another call arrives.
    Nothing,
    /// The queue is closed.
    Closed,
}

/// The tools of this worker's adapter. Clones share the queue.
#[derive(Clone)]
pub(crate) struct PythonTools(Arc<CallQueue>);

struct CallQueue {
    queue: Mutex<Queue>,
    /// Receives running calls that were cancelled.
    interrupter: mpsc::Sender<Arc<CallState>>,
    /// Examines the event loop of a worker that runs several calls.
    watchdog: OnceLock<Arc<LoopWatchdog>>,
}

#[derive(Debug, Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// The executor, while it waits for a job.
    executor: Option<Waker>,
    /// Calls that are queued or running.
    active: HashMap<CallId, Arc<CallState>, RandomState>,
    is_closed: bool,
}

impl PythonTools {
    /// Creates an open queue. Running calls that are cancelled are sent to `interrupter`.
    pub(crate) fn new(interrupter: mpsc::Sender<Arc<CallState>>) -> Self {
        Self(Arc::new(CallQueue { queue: Mutex::default(), interrupter, watchdog: OnceLock::new() }))
    }

    /// Sets the watchdog that examines the event loop after the cancellation of a queued call.
    pub(crate) fn set_watchdog(&self, watchdog: Arc<LoopWatchdog>) {
        let _ = self.0.watchdog.set(watchdog);
    }

    /// Waits for the next call. Returns `None` once the queue is closed. Cancel safe.
    pub(crate) async fn next_job(&self) -> Option<Job> {
        poll_fn(|cx| {
            let mut queue = self.queue();
            let job = queue.jobs.pop_front();
            if job.is_none() && !queue.is_closed {
                queue.executor = Some(cx.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(job)
        })
        .await
    }

    /// Removes a call that the executor has ended. Returns the next queued call, if any.
    pub(crate) fn finish(&self, state: &Arc<CallState>) -> Option<Job> {
        let next = {
            let mut queue = self.queue();
            queue.forget(state);
            queue.jobs.pop_front()
        };
        state.end();
        next
    }

    /// Takes the first call that may begin now, without waiting.
    pub(crate) fn take(&self, waker: &Waker, may_begin: impl FnMut(&Job) -> bool) -> Taken {
        let mut queue = self.queue();
        let index = queue.jobs.iter().position(may_begin);
        match index.and_then(|index| queue.jobs.remove(index)) {
            Some(job) => Taken::Job(Box::new(job)),
            None if queue.is_closed => Taken::Closed,
            None => {
                queue.executor = Some(waker.clone());
                Taken::Nothing
            }
        }
    }

    /// Removes a call that has ended.
    pub(crate) fn end(&self, state: &Arc<CallState>) {
        self.queue().forget(state);
        state.end();
    }

    /// Returns whether the queue is closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.queue().is_closed
    }

    /// Closes the queue: rejects queued and future calls. The running calls continue.
    pub(crate) fn close(&self) {
        let executor;
        let waiting = {
            let mut queue = self.queue();
            queue.is_closed = true;
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
            job.reply.send(Err(stopping_error()));
        }
    }

    /// Removes a call from the queue. Returns `None` if it is not queued.
    fn withdraw(&self, id: CallId) -> Option<Job> {
        let mut queue = self.queue();
        let index = queue.jobs.iter().position(|job| job.state.id == id)?;
        let job = queue.jobs.remove(index)?;
        queue.forget(&job.state);
        Some(job)
    }

    /// Returns the state of the call with this id, if it is queued or running.
    pub(crate) fn find(&self, id: CallId) -> Option<Arc<CallState>> {
        self.queue().active.get(&id).cloned()
    }

    /// Starts the cancellation of a call. Ends a queued call immediately, and interrupts a running one.
    fn abandon(&self, state: &Arc<CallState>) {
        match state.cancel() {
            Stage::Queued => {
                // If it is not queued, the executor has just taken it and will end it.
                if let Some(job) = self.withdraw(state.id) {
                    let tool = job.call.tool.to_string();
                    job.reply.send(Err(ToolError::cancelled(tool)));
                    if let Some(watchdog) = self.0.watchdog.get() {
                        watchdog.check();
                    }
                }
            }
            // Sending fails only while the process is ending, when the interrupter no longer exists.
            Stage::Running => drop(self.0.interrupter.send(Arc::clone(state))),
            Stage::Ended => {}
        }
    }

    /// Queues calls. Rejects them if the queue is closed or their id is in use.
    pub(crate) fn admit_all(&self, jobs: impl IntoIterator<Item = Job>) {
        let mut rejected = Vec::new();
        let executor = {
            let mut queue = self.queue();
            for job in jobs {
                if queue.is_closed {
                    rejected.push((job, stopping_error()));
                    continue;
                }
                match queue.active.entry(job.state.id) {
                    Entry::Occupied(_) => {
                        let problem = format!("the id of call {} is in use", job.state.id);
                        rejected.push((job, ToolError::internal(problem)));
                    }
                    Entry::Vacant(entry) => {
                        entry.insert(Arc::clone(&job.state));
                        queue.jobs.push_back(job);
                    }
                }
            }
            if queue.jobs.is_empty() { None } else { queue.executor.take() }
        };
        if let Some(executor) = executor {
            executor.wake();
        }
        for (job, error) in rejected {
            job.reply.send(Err(error));
        }
    }

    /// Returns whether calls are queued or running.
    pub(crate) fn is_busy(&self) -> bool {
        !self.queue().active.is_empty()
    }

    /// Starts the cancellation of a call, if it has not ended.
    pub(crate) fn abandon_call(&self, call: CallId) {
        if let Some(state) = self.find(call) {
            self.abandon(&state);
        }
    }

    /// Starts the cancellation of all calls.
    pub(crate) fn abandon_all(&self) {
        self.abandon_matching(|_| true);
    }

    /// Waits until each call that is queued or running now has ended or was cancelled. Cancel safe.
    pub(crate) async fn ended_or_cancelled(&self) {
        let states: Vec<_> = self.queue().active.values().map(Arc::clone).collect();
        for state in states {
            tokio::select! {
                () = state.cancelled() => {}
                () = state.ended() => {}
            }
        }
    }

    /// Starts the cancellation of all calls whose id matches.
    pub(crate) fn abandon_matching(&self, matches: impl Fn(CallId) -> bool) {
        let states: Vec<_> = {
            let queue = self.queue();
            queue
                .active
                .iter()
                .filter(|(call, _)| matches(**call))
                .map(|(_, state)| Arc::clone(state))
                .collect()
        };
        states.iter().for_each(|state| self.abandon(state));
    }

    /// Returns a call to the host, if it has not begun.
    pub(crate) fn return_call(&self, call: CallId) {
        if let Some(job) = self.withdraw(call) {
            job.state.cancel();
            let tool = job.call.tool.to_string();
            job.reply.send(Err(ToolError::recalled(tool)));
        }
    }

    /// Locks the queue. Ignores poisoning, because no code under the lock panics.
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    /// Removes a call, but not a later call with the same id.
    fn forget(&mut self, state: &Arc<CallState>) {
        if let Entry::Occupied(active) = self.active.entry(state.id)
            && Arc::ptr_eq(active.get(), state)
        {
            active.remove();
        }
    }
}

/// The error of a call that did not run because the worker stops. The host runs it elsewhere, and sends no more calls.
pub(crate) fn stopping_error() -> ToolError {
    ToolError::unavailable("the worker is stopping")
}

#[async_trait]
impl ToolHandler for PythonTools {
    async fn call(&self, call: ToolCall) -> Result<ToolReply, ToolError> {
        let state = Arc::new(CallState::of(&call));
        let tool = Arc::clone(&call.tool);
        let (reply, answer) = oneshot::channel();
        let guard = CancelOnDrop::new(self.clone(), Arc::clone(&state));
        self.admit_all([Job { call, state, reply: Reply::Task(reply) }]);
        let outcome = answer.await;
        // The reply of a streaming call contains another guard. A call with a value has ended.
        guard.disarm();
        // The executor drops the sender of a call that was cancelled before it began.
        outcome.unwrap_or_else(|_| Err(ToolError::cancelled(tool.to_string())))
    }

    async fn cancel(&self, call: CallId) -> Result<(), ToolError> {
        if let Some(state) = self.find(call) {
            self.abandon(&state);
            state.ended().await;
        }
        Ok(())
    }

    fn recall(&self, call: CallId) {
        self.return_call(call);
    }
}

impl fmt::Debug for PythonTools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.queue().fmt(f)
    }
}

/// Cancels a call when it is dropped before the end.
#[derive(Debug)]
pub(crate) struct CancelOnDrop {
    tools: PythonTools,
    state: Arc<CallState>,
    is_armed: bool,
}

impl CancelOnDrop {
    pub(crate) fn new(tools: PythonTools, state: Arc<CallState>) -> Self {
        Self { tools, state, is_armed: true }
    }

    fn disarm(mut self) {
        self.is_armed = false;
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if self.is_armed {
            self.tools.abandon(&self.state);
        }
    }
}

/// The chunks of a running call. Dropping them before the end cancels the call.
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

/// Returns the chunks of a call as a stream for its reply.
pub(crate) fn chunk_stream(source: Source, guard: CancelOnDrop) -> ChunkStream {
    Box::pin(GuardedChunks { source, _guard: guard })
}
