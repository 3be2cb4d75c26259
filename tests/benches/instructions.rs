//! Runs a hot function a number of times. `cargo xtask bench instructions` counts the instructions.

#[allow(dead_code, reason = "each benchmark uses some of the functions")]
#[path = "functions.rs"]
mod functions;

use std::{hint::black_box, sync::Arc};

use snakepit_session::{MemoryBackend, NewSession, SessionBackend, SessionLimits};

/// The number of sessions.
const SESSIONS: usize = 1000;

type Function = fn(usize);

const FUNCTIONS: [(&str, Function); 7] = [
    ("any round trip", |repeats| {
        let payload = functions::payload();
        (0..repeats).for_each(|_| drop(black_box(functions::any_round_trip(payload.clone()))));
    }),
    ("value round trip", |repeats| {
        let payload = functions::payload();
        (0..repeats).for_each(|_| drop(black_box(functions::value_round_trip(payload.clone()))));
    }),
    ("batch round trip", |repeats| {
        let batch = functions::call_batch();
        (0..repeats).for_each(|_| drop(black_box(functions::batch_round_trip(&batch))));
    }),
    ("pool call", |repeats| {
        let pool = functions::FakePool::start();
        (0..repeats).for_each(|_| pool.call());
    }),
    ("session get", |repeats| {
        let sessions = functions::Sessions::with(SESSIONS);
        (0..repeats).for_each(|at| sessions.get(at));
    }),
    ("session update", |repeats| {
        let (sessions, worker) = (functions::Sessions::with(SESSIONS), Arc::from("worker-1"));
        (0..repeats).for_each(|at| sessions.update(at, &worker));
    }),
    ("session create", |repeats| {
        let backend = MemoryBackend::new(SessionLimits::default());
        for id in functions::ids(repeats) {
            black_box(functions::complete(backend.create(&id, NewSession::default())).unwrap());
        }
    }),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["list"] => FUNCTIONS.iter().for_each(|(name, _)| println!("{name}")),
        [name, repeats] => {
            let (_, function) =
                FUNCTIONS.iter().find(|(known, _)| *known == name).expect("a name that `list` prints");
            function(repeats.parse().expect("a number of repeats"));
        }
        _ => println!("usage: instructions list | instructions NAME REPEATS"),
    }
}
