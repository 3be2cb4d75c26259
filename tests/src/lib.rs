//! Support for whole-system tests: [`Sandbox`] runs a real `snakepit serve` in a temporary directory.
//!
//! The tests are in `tests/tests/`, their Python adapters in `tests/adapters/`, and foreign workers in `tests/workers/`.
//! Tests wait for conditions with [`eventually`], which polls up to a bound, and never for a fixed time.

mod processes;
mod proxy;
mod redis;
mod sandbox;
mod wire;

pub use processes::{EVENT_TIMEOUT, Signal, eventually, is_alive, processes_with, signal};
pub use proxy::Proxy;
pub use redis::Redis;
pub use sandbox::{
    Sandbox, SandboxBuilder, StartFailure, StartingSandbox, daemon_binary, plain_calls, python, root,
};
pub use wire::{Client, arguments, execute, execute_within, result_of, tool_request};

/// The adapter that is part of the Python package.
pub const SHOWCASE: &str = "snakepit_bridge.adapters.showcase.showcase_adapter:ShowcaseAdapter";
