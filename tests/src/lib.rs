//! The Sandbox: a real `snakepit serve` in a directory of its own, with everything a scenario needs to poke at it.
//!
//! Scenarios live in `tests/tests/`, misbehaving Python adapters in `tests/adapters/`, foreign workers in
//! `tests/workers/`. Nothing here waits by sleeping for a guess: [`eventually`] polls a condition up to a bound.

mod processes;
mod proxy;
mod redis;
mod sandbox;
mod wire;

pub use processes::{Signal, eventually, is_alive, processes_with, signal};
pub use proxy::Proxy;
pub use redis::Redis;
pub use sandbox::{
    Sandbox, SandboxBuilder, StartFailure, Starting, daemon_binary, plain_calls, python, root,
};
pub use wire::{Client, arguments, execute, execute_within, result_of, tool_request};

/// The adapter that the Python package ships.
pub const SHOWCASE: &str = "snakepit_bridge.adapters.showcase.showcase_adapter:ShowcaseAdapter";
