//! Test suites that any `SessionBackend` can run on itself.

mod contract;
mod model;
pub mod sample;

pub use contract::session_backend_contract;
pub use model::{session_backend_linearizes, session_backend_matches_model};
