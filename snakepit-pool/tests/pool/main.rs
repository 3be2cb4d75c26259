//! A whole pool over workers that the test plays itself, on the paused clock.
#![allow(clippy::unwrap_used, reason = "everything here is a test")]

mod calls;
mod cancellation;
mod deadlines;
mod lifecycle;
mod nested;
mod panics;
mod puppet;
mod shutdown;
mod streams;
mod stress;
