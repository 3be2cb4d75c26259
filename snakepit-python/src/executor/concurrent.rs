//! Workers that run several calls concurrently: [`ConcurrentCalls`] hands the calls of the queue to the event loop, which runs
//! each in its own task (`_concurrent.py`).
//!
//! The event loop owns Python's main thread, and the second IO thread drives the IO all the time. Workers that run one call at a
//! time use the [`Runner`](super::Runner) instead, which needs no switch between threads.

mod call;
mod limits;
mod loop_signal;
mod loop_watchdog;
mod thread_call;
mod unsent_answers;

pub(crate) use self::{
    call::ConcurrentCall, limits::ConcurrencyLimits, loop_signal::LoopSignal, loop_watchdog::LoopWatchdog,
    thread_call::ThreadCall,
};

use std::{
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    task::Waker,
    thread::ThreadId,
};

use pyo3::prelude::*;

use self::unsent_answers::UnsentAnswers;
use super::{Executor, Fitness};
use crate::{io::Io, progress::Answers, tools::Taken};

/// The thread of the event loop that runs calls concurrently.
static LOOP_THREAD: OnceLock<ThreadId> = OnceLock::new();

/// Returns whether this thread runs the event loop of a worker that runs calls concurrently, so that blocking it blocks other calls.
pub(crate) fn is_loop_thread() -> bool {
    LOOP_THREAD.get().is_some_and(|thread| *thread == std::thread::current().id())
}

/// Returns whether this worker runs calls concurrently, so that its requests report which call makes them.
pub(crate) fn is_concurrent() -> bool {
    LOOP_THREAD.get().is_some()
}

/// The calls of a worker, for the event loop that runs them.
#[pyclass(frozen, module = "snakepit_bridge._native")]
#[derive(Debug)]
pub(crate) struct ConcurrentCalls(Arc<ConcurrentRunner>);

/// Runs several calls at a time, like the [`Runner`](super::Runner) runs one. All of its calls refer to it.
#[derive(Debug)]
struct ConcurrentRunner {
    executor: Executor,
    /// `None` in tests of adapters, whose callers receive the answers directly.
    io: Option<Io>,
    signal: Arc<LoopSignal>,
    waker: Waker,
    limits: Mutex<ConcurrencyLimits>,
    /// The store for answers that have not left this process. `None` without a progress file.
    answers: Mutex<Option<Answers>>,
    /// The answers that must leave this process before the next call begins.
    unsent_answers: UnsentAnswers,
    /// The number of calls that have begun, modulo its range. Shows whether a call was the only one in its time.
    begun: AtomicU32,
    watchdog: Arc<LoopWatchdog>,
}

impl ConcurrentRunner {
    /// Code under this lock does not panic.
    fn limits(&self) -> MutexGuard<'_, ConcurrencyLimits> {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Code under this lock neither panics nor runs Python code.
    fn answers(&self) -> MutexGuard<'_, Option<Answers>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ConcurrentCalls {
    /// Runs calls on the event loop until the queue is closed and all calls have ended.
    ///
    /// # Errors
    /// The exception of an event loop that cannot run.
    pub(crate) fn run(
        py: Python<'_>,
        mut executor: Executor,
        io: Io,
        answers: Option<Answers>,
        signal: &Arc<LoopSignal>,
    ) -> PyResult<()> {
        LOOP_THREAD.get_or_init(|| std::thread::current().id());
        executor.plan.context(py)?;
        executor.fitness = Some(Fitness::new(py)?);
        // This thread does not return to the IO before the last call has ended.
        io.hand_over();
        Self::new(executor, Some(io), answers, signal).serve(py)
    }

    /// Creates the calls of a worker, or of a test without IO.
    pub(crate) fn new(
        executor: Executor,
        io: Option<Io>,
        answers: Option<Answers>,
        signal: &Arc<LoopSignal>,
    ) -> Self {
        let watchdog = loop_watchdog::install(&executor.tools, signal, &executor.flags);
        Self(Arc::new(ConcurrentRunner {
            watchdog,
            limits: Mutex::new(executor.plan.concurrency_limits()),
            io,
            signal: Arc::clone(signal),
            waker: Waker::from(Arc::clone(signal)),
            answers: Mutex::new(answers),
            unsent_answers: UnsentAnswers::default(),
            begun: AtomicU32::new(0),
            executor,
        }))
    }

    /// Runs calls on the event loop of this thread until the queue is closed and all calls have ended.
    ///
    /// # Errors
    /// The exception of an event loop that cannot run.
    pub(crate) fn serve(&self, py: Python<'_>) -> PyResult<()> {
        let calls = Bound::new(py, Self(Arc::clone(&self.0)))?;
        self.0.executor.plan.serve.call1(py, (calls,)).map(drop)
    }
}

#[pymethods]
impl ConcurrentCalls {
    /// The descriptor that is readable while there are calls to begin or to cancel.
    fn fileno(&self) -> i32 {
        self.0.signal.fileno()
    }

    /// Resets the descriptor. Look for calls afterwards.
    fn clear(&self) {
        self.0.signal.clear();
    }

    /// Sets the watchdog of the event loop.
    fn watch(&self, watchdog: Py<PyAny>) {
        self.0.watchdog.set_python(watchdog);
    }

    /// Records that the event loop runs.
    fn note_probe(&self) {
        self.0.watchdog.note_probe();
    }

    /// A number that changes when the event loop looks for calls because of the descriptor.
    fn noticed(&self) -> u32 {
        self.0.signal.noticed()
    }

    /// Returns whether there are calls to begin or to cancel that the event loop has not noticed.
    fn is_signalled(&self) -> bool {
        self.0.signal.is_set()
    }

    /// Retires the worker, because its event loop runs but does not notice calls.
    fn retire_unresponsive(&self) {
        self.0.executor.retire_unresponsive();
    }

    /// Takes the next call that may begin now, if there is one. It counts as running until its `finish`.
    fn next(&self) -> Option<ConcurrentCall> {
        if !self.0.unsent_answers.is_empty() {
            // The signal is set when they have left.
            return None;
        }
        let mut limits = self.0.limits();
        let taken = self.0.executor.tools.take(&self.0.waker, |job| limits.has_room(&job.call.tool));
        let Taken::Job(job) = taken else { return None };
        limits.begin(&job.call.tool);
        self.0.begun.fetch_add(1, Relaxed);
        let was_alone = limits.running() == 1;
        drop(limits);
        Some(ConcurrentCall::new(Arc::clone(&self.0), *job, was_alone))
    }

    /// Returns whether the queue is closed, so that no further call begins.
    fn is_closed(&self) -> bool {
        self.0.executor.tools.is_closed()
    }

    /// Takes the ids of the running calls that were cancelled.
    fn cancelled(&self) -> Vec<u64> {
        self.0.signal.take_cancelled().into_iter().map(|call| call.as_u64()).collect()
    }

    /// Creates the base context whose copies calls run in, and a function to run first in each copy, or `None`.
    fn contexts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.0.executor.plan.contexts.bind(py).call0()
    }
}
