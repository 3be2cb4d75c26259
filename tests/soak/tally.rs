//! Counts how calls ended, and collects everything that must not happen.

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

/// The deadline of every call.
pub(crate) const DEADLINE: Duration = Duration::from_secs(3);
/// How much later than its deadline a call may end: two busy cores, a debug build.
const GRACE: Duration = Duration::from_secs(3);
/// Outcomes of a call whose worker died, by the wire's reason and by the Python client's class.
pub(crate) const LOST: [&str; 2] = ["WORKER_LOST", "WorkerLostError"];
/// Violations beyond this many are only counted, so that a broken product does not fill the terminal.
const SHOWN: usize = 40;

/// How calls ended, by kind of call and outcome.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    outcomes: Mutex<BTreeMap<(&'static str, Cow<'static, str>), u64>>,
    violations: Mutex<Vec<String>>,
    /// Nonces whose call succeeded: each must have run exactly once.
    succeeded: Mutex<Vec<u64>>,
    last_nonce: AtomicU64,
    stopping: AtomicBool,
}

impl Tally {
    /// A number that no other call has.
    pub(crate) fn nonce(&self) -> u64 {
        self.last_nonce.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Counts the end of a call that began then. `allowed` are the failures that the injected faults explain.
    pub(crate) fn ended(
        &self,
        kind: &'static str,
        began: Instant,
        outcome: impl Into<Cow<'static, str>>,
        allowed: &[&str],
        detail: impl FnOnce() -> String,
    ) {
        let outcome = outcome.into();
        let took = began.elapsed();
        if took > DEADLINE + GRACE {
            self.violation(format!("{kind}: took {took:.1?} to end as {outcome}"));
        }
        if outcome != "ok" && !allowed.contains(&&*outcome) {
            self.violation(format!("{kind}: ended as {outcome}: {}", detail()));
        }
        self.count(kind, outcome, 1);
    }

    pub(crate) fn count(&self, kind: &'static str, outcome: impl Into<Cow<'static, str>>, calls: u64) {
        *self.outcomes.lock().unwrap().entry((kind, outcome.into())).or_default() += calls;
    }

    pub(crate) fn succeeded(&self, nonce: u64) {
        self.succeeded.lock().unwrap().push(nonce);
    }

    pub(crate) fn take_succeeded(&self) -> Vec<u64> {
        std::mem::take(&mut self.succeeded.lock().unwrap())
    }

    pub(crate) fn violation(&self, what: String) {
        let mut violations = self.violations.lock().unwrap();
        if violations.len() < SHOWN {
            eprintln!("VIOLATION {what}");
        }
        violations.push(what);
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        self.violations.lock().unwrap().clone()
    }

    pub(crate) fn outcomes(&self) -> BTreeMap<(&'static str, Cow<'static, str>), u64> {
        self.outcomes.lock().unwrap().clone()
    }

    /// Tells every caller to end with its current call.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }
}
