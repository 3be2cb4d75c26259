//! [`LoopWatchdog`]: replaces a worker whose event loop no longer begins calls, for example because a tool closed its descriptors.
//!
//! The watchdog checks the loop only after the cancellation of a call that had not begun, so it costs a healthy worker nothing. It
//! ignores a loop that a tool blocks, as long as code of the tool runs.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{
            AtomicBool,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    thread,
    time::Duration,
};

use pyo3::prelude::*;
use tokio::time::Instant;

use super::LoopSignal;
use crate::{
    executor::{ExecutorFlags, warn},
    exit::exit_now,
    tools::PythonTools,
};

/// The time within which the loop must notice a signal. Afterwards, the watchdog probes the loop.
const NOTICE_WITHIN: Duration = Duration::from_secs(1);
/// The time within which a running loop that no tool blocks executes the probe.
const PROBE_WITHIN: Duration = Duration::from_secs(5);
/// The polling interval.
const INTERVAL: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(crate) struct LoopWatchdog {
    signal: Arc<LoopSignal>,
    flags: Arc<ExecutorFlags>,
    /// Python's `LoopWatchdog`.
    python: OnceLock<Py<PyAny>>,
    is_checking: AtomicBool,
    /// Whether the loop has executed the probe.
    probe_has_run: AtomicBool,
}

impl LoopWatchdog {
    pub(super) fn new(signal: Arc<LoopSignal>, flags: Arc<ExecutorFlags>) -> Arc<Self> {
        let (is_checking, probe_has_run) = (AtomicBool::new(false), AtomicBool::new(false));
        Arc::new(Self { signal, flags, python: OnceLock::new(), is_checking, probe_has_run })
    }

    /// Sets Python's `LoopWatchdog`.
    pub(super) fn set_python(&self, python: Py<PyAny>) {
        let _ = self.python.set(python);
    }

    /// Records that the loop has executed the probe.
    pub(super) fn note_probe(&self) {
        self.probe_has_run.store(true, Release);
    }

    /// Checks the loop on another thread, after the cancellation of a call that had not begun.
    pub(crate) fn check(self: &Arc<Self>) {
        let is_needed = self.signal.is_set() && !self.flags.is_retired.load(Relaxed);
        if !is_needed || self.python.get().is_none() || self.is_checking.swap(true, Acquire) {
            return;
        }
        let watchdog = Arc::clone(self);
        let check = move || {
            if watchdog.is_stuck() {
                warn(format_args!(
                    "the worker is replaced: its event loop waits, but notices no calls; a tool may have closed its descriptors"
                ));
                // Calls that run never end, because nothing wakes their tasks.
                exit_now(1);
            }
            watchdog.is_checking.store(false, Release);
        };
        if thread::Builder::new().name("snakepit-loop".to_owned()).spawn(check).is_err() {
            self.is_checking.store(false, Release);
        }
    }

    /// Whether the loop is idle. If it runs, but does not notice the signal, Python retires the worker.
    fn is_stuck(&self) -> bool {
        let noticed = self.signal.noticed();
        if Self::waits_until(NOTICE_WITHIN, || self.signal.noticed() != noticed) {
            return false;
        }
        self.probe_has_run.store(false, Release);
        let call = |name: &str| {
            Python::attach(|py| self.python.get()?.call_method0(py, name).ok()?.is_truthy(py).ok())
        };
        let _ = call("probe");
        let runs = || self.probe_has_run.load(Acquire) || self.signal.noticed() != noticed;
        if Self::waits_until(PROBE_WITHIN, runs) {
            return false;
        }
        let is_waiting = || call("is_stuck").unwrap_or_default() && !runs();
        // Checked twice, because the loop may have begun to run in between.
        is_waiting() && !Self::waits_until(NOTICE_WITHIN, runs) && is_waiting()
    }

    /// Waits until a condition holds. Returns `false` if it does not hold in time.
    fn waits_until(limit: Duration, condition: impl Fn() -> bool) -> bool {
        let end = Instant::now() + limit;
        while !condition() {
            if Instant::now() >= end {
                return false;
            }
            thread::sleep(INTERVAL);
        }
        true
    }
}

/// Installs the watchdog in the queue of a worker.
pub(super) fn install(
    tools: &PythonTools,
    signal: &Arc<LoopSignal>,
    flags: &Arc<ExecutorFlags>,
) -> Arc<LoopWatchdog> {
    let watchdog = LoopWatchdog::new(Arc::clone(signal), Arc::clone(flags));
    tools.set_watchdog(Arc::clone(&watchdog));
    watchdog
}
