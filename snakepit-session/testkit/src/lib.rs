//! Test suites for implementations of [`SessionBackend`](snakepit_session::SessionBackend).
//!
//! | suite | checks |
//! | --- | --- |
//! | [`session_backend_contract`] | the rules of every operation, including expiry, events and statistics |
//! | [`session_backend_matches_model`] | random operations against a simple model |
//! | [`session_backend_linearizes`] | that concurrent operations have a sequential order |
//! | [`sample`] | that a backend can read the sample sessions, for tests of storage formats |
//!
//! ```
//! use snakepit_session::{MemoryBackend, SessionLimits};
//! use snakepit_session_testkit::{session_backend_linearizes, session_backend_matches_model};
//!
//! let make = |limits| async { MemoryBackend::new(limits) };
//! session_backend_matches_model(make, 10);
//! session_backend_linearizes(make, 10);
//! ```
#![warn(missing_docs)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod contract;
mod model;
pub mod sample;

pub use contract::session_backend_contract;
pub use model::{session_backend_linearizes, session_backend_matches_model};

/// Runs the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
