//! Runs the test suites of all backends on the memory backend.

use std::sync::Arc;

use snakepit_session::{MemoryBackend, SessionBackend, SessionLimits};
use snakepit_session_testkit::{
    session_backend_contract, session_backend_linearizes, session_backend_matches_model,
};

#[tokio::test(start_paused = true)]
async fn memory_keeps_the_contract() {
    let config = SessionLimits::default().max_program_bytes(1024);
    let make = || async { MemoryBackend::new(config.clone()) };
    session_backend_contract(make, tokio::time::advance).await;
}

#[tokio::test(start_paused = true)]
async fn shared_backends_keep_the_contract() {
    let arc = || async { Arc::new(MemoryBackend::new(SessionLimits::default())) as Arc<dyn SessionBackend> };
    session_backend_contract(arc, tokio::time::advance).await;
    let boxed =
        || async { Box::new(MemoryBackend::new(SessionLimits::default())) as Box<dyn SessionBackend> };
    session_backend_contract(boxed, tokio::time::advance).await;
}

#[test]
fn random_operations_match_the_model() {
    let make = |limits| async { MemoryBackend::new(limits) };
    session_backend_matches_model(make, 400);
}

#[test]
fn concurrent_operations_are_linearizable() {
    let make = |limits| async { MemoryBackend::new(limits) };
    session_backend_linearizes(make, 300);
}
