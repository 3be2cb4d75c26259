//! [`Runner`]: the loop of the executor. Takes calls, runs each in its own Python context, and runs the worker's own
//! tasks between them.

use std::{
    os::fd::RawFd,
    sync::{Mutex, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

use pyo3::{exceptions::PyException, prelude::*};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::Instant,
};

use super::{Executor, Fitness, PendingAnswers};
use crate::{io::Io, tools::Job};

/// The maximum time between two turns of the IO while calls follow each other without a pause.
///
/// Answers and incoming messages wait at most that long. The delay is short so that the host handles the first answers
/// while the last calls run. Waiting answers survive a call that kills this process, because they are also stored in a
/// file.
const MAX_IO_DELAY: Duration = Duration::from_micros(30);

/// The maximum time for which uninterrupted calls delay the worker's own tasks.
const MAX_TASK_DELAY: Duration = Duration::from_millis(1);

/// The interval for polling an event loop that does not report its timers.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The time without a call after which a worker imports the modules that only calls need. The other workers have started by then.
const IMPORT_DELAY: Duration = Duration::from_millis(100);

/// Runs calls inside a Python context, until one of them changes it. Calling the object again continues with the next call
/// in another context.
#[pyclass(frozen, module = "snakepit_bridge._native")]
#[derive(Debug)]
pub(crate) struct Runner {
    executor: Executor,
    io: Io,
    /// Locked while calls run.
    pending: Mutex<PendingAnswers>,
    /// The next call, if the last one changed this context and the next one needs a new context.
    next: Mutex<Option<Job>>,
}

impl Runner {
    /// Runs calls until the queue is closed. Each starts with the current context variables.
    ///
    /// # Errors
    /// If Python cannot create a context.
    pub(crate) fn run(py: Python<'_>, executor: Executor, io: Io, pending: PendingAnswers) -> PyResult<()> {
        let (base, prepare): (Bound<'_, PyAny>, Option<Bound<'_, PyAny>>) =
            executor.plan.contexts.bind(py).call0()?.extract()?;
        let mut runner = Self { executor, io, pending: Mutex::new(pending), next: Mutex::default() };
        if runner.wait_for_first_job(py) {
            return Ok(());
        }
        runner.executor.fitness = Some(Fitness::new(py)?);
        let runner = Bound::new(py, runner)?;
        loop {
            let context = base.call_method0("copy")?;
            if let Some(prepare) = &prepare {
                context.call_method1("run", (prepare,))?;
            }
            // Both contexts share all unchanged parts, so comparing them costs one pointer comparison.
            let is_closed = context.call_method1("run", (&runner, &context, &base))?;
            if is_closed.is_truthy()? {
                return Ok(());
            }
        }
    }
}

#[pymethods]
impl Runner {
    /// Runs calls until one has changed the context or the queue is closed. Returns whether the queue is closed.
    fn __call__(&self, py: Python<'_>, context: &Bound<'_, PyAny>, base: &Bound<'_, PyAny>) -> bool {
        let mut first = self.next.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(job) = first.take().or_else(|| self.next_job(py, &mut pending)) {
            pending.flush_unstored(py, self.io);
            let mut io_driven_at = Instant::now();
            let mut tasks_run_at = io_driven_at;
            let (mut next, mut now) = self.executor.execute(py, job, io_driven_at, &mut pending);
            loop {
                // Values that cannot be compared count as changed.
                if !context.eq(base).unwrap_or(false) {
                    *self.next.lock().unwrap_or_else(PoisonError::into_inner) = next;
                    return false;
                }
                let Some(job) = next else { break };
                let flushed = pending.flush_unstored(py, self.io);
                if now - tasks_run_at >= MAX_TASK_DELAY && self.loop_has_tasks() {
                    self.turn_loop(py);
                    tasks_run_at = Instant::now();
                }
                if flushed || now - io_driven_at >= MAX_IO_DELAY {
                    if !flushed {
                        // Holding the GIL cannot cause a deadlock here, because no task of the turn waits for a thread
                        // that needs it.
                        self.io.turn();
                        pending.record_io_turn(self.io);
                    }
                    io_driven_at = Instant::now();
                    now = io_driven_at;
                }
                (next, now) = self.executor.execute(py, job, now, &mut pending);
            }
        }
        true
    }
}

impl Runner {
    /// Waits for the first call, but not longer than [`IMPORT_DELAY`], and then imports the modules that only calls need. Returns
    /// whether the queue is closed.
    fn wait_for_first_job(&self, py: Python<'_>) -> bool {
        if self.loop_has_tasks() {
            return false;
        }
        let taken = async { tokio::time::timeout(IMPORT_DELAY, self.executor.tools.next_job()).await };
        match py.detach(|| self.io.drive(taken)) {
            Ok(Some(job)) => *self.next.lock().unwrap_or_else(PoisonError::into_inner) = Some(job),
            Ok(None) => return true,
            // If the import fails, so does that of the first call, which reports the error.
            Err(_) => drop(self.executor.plan.context(py)),
        }
        false
    }

    fn next_job(&self, py: Python<'_>, pending: &mut PendingAnswers) -> Option<Job> {
        if self.loop_has_tasks() {
            // The worker's own tasks may kill the process, too.
            pending.flush_unstored(py, self.io);
            return self.next_job_beside_tasks(py);
        }
        py.detach(|| self.io.drive(self.executor.tools.next_job()))
    }

    fn loop_has_tasks(&self) -> bool {
        self.executor.flags.loop_has_tasks.load(Relaxed)
    }

    /// Waits for a call, and runs the event loop whenever it has work.
    fn next_job_beside_tasks(&self, py: Python<'_>) -> Option<Job> {
        loop {
            let next_timer = self.turn_loop(py);
            let fileno = self.executor.plan.loop_fileno.bind(py).call0();
            let fileno = fileno.and_then(|fileno| fileno.extract::<RawFd>()).unwrap_or(-1);
            let taken = py.detach(|| {
                self.io.drive(async {
                    tokio::select! {
                        biased;
                        job = self.executor.tools.next_job() => Some(job),
                        () = loop_has_work(fileno, next_timer) => None,
                    }
                })
            });
            if let Some(job) = taken {
                return job;
            }
        }
    }

    /// Runs the ready callbacks of the event loop. Returns the time until its next timer, or `None` if only its file
    /// descriptor signals further work.
    fn turn_loop(&self, py: Python<'_>) -> Option<Duration> {
        let plan = &self.executor.plan;
        let next_timer = plan.turn_async.bind(py).call0().and_then(|timer| timer.extract::<Option<f64>>());
        match next_timer {
            Ok(seconds) => seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
            // `SystemExit` comes from a task and ends only that task. Any other exception is an error of the loop.
            Err(error) => {
                let is_broken = error.is_instance_of::<PyException>(py);
                error.write_unraisable(py, Some(plan.turn_async.bind(py)));
                if is_broken {
                    self.executor.retire();
                }
                Some(POLL_INTERVAL)
            }
        }
    }
}

/// Waits until the event loop has work. Cancel safe.
#[allow(unsafe_code)]
async fn loop_has_work(fileno: RawFd, next_timer: Option<Duration>) {
    let timer = async {
        match next_timer {
            Some(after) => tokio::time::sleep(after).await,
            None => std::future::pending().await,
        }
    };
    let readable = async {
        // Registered again each time, so that a descriptor that is already readable is reported.
        // SAFETY: the descriptor belongs to the event loop, and only Python code on this thread closes it. None runs
        // until the registration is dropped here. The system rejects numbers that are not descriptors.
        let registered = unsafe { AsyncFd::register_with_interest(fileno, Interest::READABLE) };
        match registered {
            Ok(descriptor) => drop(descriptor.readable().await),
            Err(_) => tokio::time::sleep(POLL_INTERVAL).await,
        }
    };
    tokio::select! {
        () = timer => {}
        () = readable => {}
    }
}
