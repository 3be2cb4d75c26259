//! Fault windows: the periods in which an injected fault explains failures.

use std::{sync::Mutex, time::Duration};

use tokio::time::Instant;

use crate::faults::Fault;

/// The time after the recovery from a fault in which a call may begin, and still fail because of the fault.
const AFTERMATH: Duration = Duration::from_secs(1);

/// Callers that differ in the failures that a fault explains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Caller {
    /// A call without a session.
    Plain,
    /// A call, write or watch of a session, which needs Redis.
    Session,
    /// A call of the Python client, without a session.
    Python,
}

#[derive(Debug)]
struct Window {
    fault: Fault,
    /// The time of the recovery; `None` while the fault lasts.
    end: Option<Instant>,
}

/// The windows of a run. A window starts before its fault and ends when the daemon has recovered.
#[derive(Debug, Default)]
pub(crate) struct Windows(Mutex<Vec<Window>>);

impl Windows {
    pub(crate) fn open(&self, fault: Fault) {
        self.0.lock().unwrap().push(Window { fault, end: None });
    }

    /// Closes the window that was opened last.
    pub(crate) fn close(&self) {
        if let Some(window) = self.0.lock().unwrap().last_mut() {
            window.end = Some(Instant::now());
        }
    }

    /// Whether a fault explains a failure that happened between `began` and now.
    pub(crate) fn explain(&self, caller: Caller, reason: &str, began: Instant) -> bool {
        let windows = self.0.lock().unwrap();
        let overlapping =
            windows.iter().rev().filter(|window| window.end.is_none_or(|end| end + AFTERMATH >= began));
        overlapping.into_iter().any(|window| window.fault.explains(caller, reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_explains_only_its_own_failures_and_only_around_its_window() {
        let windows = Windows::default();
        let before = Instant::now();
        assert!(!windows.explain(Caller::Plain, "WORKER_LOST", before));
        windows.open(Fault::KillWorker);
        assert!(windows.explain(Caller::Plain, "WORKER_LOST", before));
        assert!(!windows.explain(Caller::Plain, "DEADLINE_EXCEEDED", before));
        windows.close();
        let later = Instant::now() + AFTERMATH * 2;
        assert!(windows.explain(Caller::Plain, "WORKER_LOST", before), "the call overlaps the window");
        assert!(!windows.explain(Caller::Plain, "WORKER_LOST", later));
        windows.open(Fault::FrozenRedis);
        assert!(windows.explain(Caller::Session, "BACKEND_FAILED", later));
        assert!(!windows.explain(Caller::Plain, "BACKEND_FAILED", later));
    }
}
