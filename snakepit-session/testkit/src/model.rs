//! Compares backends with a model, under sequential and concurrent random operations.
//!
//! The model implements sessions in the simplest way. It ignores time, so nothing expires in these tests.

use std::future::Future;

use proptest::{
    strategy::Strategy,
    test_runner::{Config, RngSeed, TestCaseError, TestError, TestRunner},
};
use snakepit_session::{SessionBackend, SessionLimits};
use tokio::runtime::{Handle, Runtime};

mod generate;
mod operation;
mod race;
mod sequence;
mod state;
mod value;
mod watching;

/// Runs random operations in sequence, and compares every output, the final state, and the events of watches with a model.
///
/// `make` returns a new, empty backend with these limits. The suite creates a runtime, so call it from a plain `#[test]`. A case
/// has up to 200 operations. The environment variable `PROPTEST_CASES` overrides the number of cases.
///
/// # Panics
/// If the backend differs from the model. The message contains the shortest failing sequence that was found.
pub fn session_backend_matches_model<B, Make, Made>(make: Make, cases: u32)
where
    B: SessionBackend,
    Make: Fn(SessionLimits) -> Made,
    Made: Future<Output = B>,
{
    run(&sequence::case(), cases, |on, (limits, steps)| {
        on.block_on(async { sequence::check(&make(limits.clone()).await, limits, steps).await })
    });
}

/// Checks linearizability: runs concurrent clients on one session, each on a thread, and searches for an order of their operations
/// that explains all outputs and the events of a watch.
///
/// `make` and the number of cases have the same meaning as for [`session_backend_matches_model`]. A case has up to 150
/// operations.
///
/// # Panics
/// If such an order does not exist. The message contains the operations and their times.
pub fn session_backend_linearizes<B, Make, Made>(make: Make, cases: u32)
where
    B: SessionBackend,
    Make: Fn(SessionLimits) -> Made,
    Made: Future<Output = B>,
{
    run(&race::case(), cases, |on, (limits, case)| {
        let backend = on.block_on(make(limits.clone()));
        race::check(on, &backend, &limits, &case)
    });
}

fn run<S: Strategy>(strategy: &S, cases: u32, check: impl Fn(&Handle, S::Value) -> Result<(), String>) {
    let runtime = Runtime::new().expect("a runtime starts");
    let defaults = Config::default();
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { defaults.cases } else { cases };
    let seed = match defaults.rng_seed {
        RngSeed::Fixed(seed) => seed,
        RngSeed::Random => uuid::Uuid::new_v4().as_u64_pair().0,
    };
    let mut runner = TestRunner::new(Config {
        cases,
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        max_shrink_time: 60_000,
        ..defaults
    });
    let result = runner.run(strategy, |case| check(runtime.handle(), case).map_err(TestCaseError::fail));
    match result {
        Ok(()) => {}
        Err(TestError::Fail(reason, case)) => {
            panic!("{reason}\nin the case {case:?}\nSet PROPTEST_RNG_SEED={seed} to reproduce it.")
        }
        Err(TestError::Abort(reason)) => panic!("cannot generate a case: {reason}"),
    }
}
