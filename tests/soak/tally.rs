//! Counts the outcomes of calls, and collects violations.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::windows::{Caller, Windows};

/// The deadline of every call.
pub(crate) const DEADLINE: Duration = Duration::from_secs(3);
/// The time that a call may take beyond its deadline, with a debug build on two busy cores.
const GRACE: Duration = Duration::from_secs(3);
/// Outcomes of a call whose worker died: the reason on the wire, and the class of the Python client.
pub(crate) const WORKER_LOST_OUTCOMES: [&str; 2] = ["WORKER_LOST", "WorkerLostError"];
/// The number of violations that are printed. All are counted.
const PRINTED: usize = 40;

/// The outcomes of calls by kind of call, and the violations.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    outcomes: Mutex<BTreeMap<(&'static str, Cow<'static, str>), u64>>,
    violations: Mutex<Vec<String>>,
    /// The nonces of calls that succeeded. Each must have run exactly once.
    nonces_of_successes: Mutex<Vec<u64>>,
    last_nonce: AtomicU64,
    is_stopping: AtomicBool,
    pub(crate) windows: Windows,
}

impl Tally {
    /// Returns a new nonce.
    pub(crate) fn nonce(&self) -> u64 {
        self.last_nonce.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Counts a call that succeeded.
    pub(crate) fn record_success(&self, kind: &'static str, began: Instant) {
        self.check_duration(kind, began, "ok");
        self.count(kind, "ok", 1);
    }

    /// Counts a call that failed. The failure is a violation unless a fault explains it.
    pub(crate) fn record_failure(
        &self,
        kind: &'static str,
        caller: Caller,
        began: Instant,
        reason: impl Into<Cow<'static, str>>,
        detail: &str,
    ) {
        let reason = reason.into();
        self.check_duration(kind, began, &reason);
        self.check_explained(kind, caller, began, &reason, detail);
        self.count(kind, reason, 1);
    }

    fn check_duration(&self, kind: &str, began: Instant, outcome: &str) {
        let took = began.elapsed();
        if took > DEADLINE + GRACE {
            self.violation(format!("{kind}: took {took:.1?} to end as {outcome}"));
        }
    }

    /// Records a violation if no fault explains a failure between `began` and now.
    pub(crate) fn check_explained(
        &self,
        kind: &str,
        caller: Caller,
        began: Instant,
        reason: &str,
        detail: &str,
    ) {
        if !self.windows.explain(caller, reason, began) {
            self.violation(format!("{kind}: no fault explains {reason}: {detail}"));
        }
    }

    pub(crate) fn count(&self, kind: &'static str, outcome: impl Into<Cow<'static, str>>, calls: u64) {
        *self.outcomes.lock().unwrap().entry((kind, outcome.into())).or_default() += calls;
    }

    /// Records the success of a call whose tool writes its nonce.
    pub(crate) fn must_have_run(&self, nonce: u64) {
        self.nonces_of_successes.lock().unwrap().push(nonce);
    }

    pub(crate) fn take_nonces_of_successes(&self) -> Vec<u64> {
        std::mem::take(&mut self.nonces_of_successes.lock().unwrap())
    }

    pub(crate) fn violation(&self, problem: String) {
        let mut violations = self.violations.lock().unwrap();
        if violations.len() < PRINTED {
            eprintln!("VIOLATION {problem}");
        }
        violations.push(problem);
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        self.violations.lock().unwrap().clone()
    }

    pub(crate) fn outcomes(&self) -> BTreeMap<(&'static str, Cow<'static, str>), u64> {
        self.outcomes.lock().unwrap().clone()
    }

    /// Makes every caller stop after its current call.
    pub(crate) fn stop(&self) {
        self.is_stopping.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Relaxed)
    }
}
