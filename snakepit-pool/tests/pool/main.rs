//! Tests of a whole pool on the paused clock. The tests act as the workers.
#![allow(clippy::unwrap_used, reason = "everything here is a test")]

mod calls;
mod cancellation;
mod deadlines;
mod layers;
mod lifecycle;
mod nested;
mod panics;
mod puppet;
mod recycling;
mod restarts;
mod shutdown;
mod streams;
mod stress;
mod wait_for_room;
mod wakers;
