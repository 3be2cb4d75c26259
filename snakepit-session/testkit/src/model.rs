//! Backends against a model: random operations, one after the other and several at once.
//!
//! The model says in the most obvious way what sessions are. It knows nothing of time: here nothing expires.

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

/// Does random operations one after the other, and compares every answer, all that there is at last, and all that
/// watches tell, with a model.
///
/// `make` gives a backend with these limits, without sessions and programs, of which nothing was counted yet. It runs on a
/// runtime of its own: call this from a plain `#[test]`. A case takes up to 200 operations. The environment
/// variable `PROPTEST_CASES` replaces the number of cases.
///
/// # Panics
/// When the backend strays from the model, with the shortest sequence of operations that was found.
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

/// Lets clients work on one session at the same time, each on a thread of its own, and looks for an order of their
/// operations that explains all answers and what a watch tells.
///
/// `make` and the number of cases are those of [`session_backend_matches_model`]. A case takes up to 150 operations.
///
/// # Panics
/// When there is no such order, with the operations and their times.
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
    let usual = Config::default();
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { usual.cases } else { cases };
    let seed = match usual.rng_seed {
        RngSeed::Fixed(seed) => seed,
        RngSeed::Random => uuid::Uuid::new_v4().as_u64_pair().0,
    };
    let mut runner = TestRunner::new(Config {
        cases,
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        max_shrink_time: 60_000,
        ..usual
    });
    let outcome = runner.run(strategy, |case| check(runtime.handle(), case).map_err(TestCaseError::fail));
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(reason, case)) => {
            panic!("{reason}\nin the case {case:?}\nwhich comes of PROPTEST_RNG_SEED={seed}")
        }
        Err(TestError::Abort(reason)) => panic!("no case could be made: {reason}"),
    }
}
