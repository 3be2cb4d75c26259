//! Runs one hot piece so many times, for `cargo xtask bench instructions` to count what it takes.

#[allow(dead_code, reason = "each user of the pieces needs some of them")]
#[path = "pieces.rs"]
mod pieces;

use std::{hint::black_box, sync::Arc};

use snakepit_session::{MemoryBackend, NewSession, SessionBackend, SessionLimits};

/// How many sessions there are.
const SESSIONS: usize = 1000;

type Piece = fn(usize);

const PIECES: [(&str, Piece); 7] = [
    ("any round trip", |repeats| {
        let payload = pieces::payload();
        (0..repeats).for_each(|_| drop(black_box(pieces::any_round_trip(payload.clone()))));
    }),
    ("value round trip", |repeats| {
        let payload = pieces::payload();
        (0..repeats).for_each(|_| drop(black_box(pieces::value_round_trip(payload.clone()))));
    }),
    ("batch round trip", |repeats| {
        let batch = pieces::call_batch();
        (0..repeats).for_each(|_| drop(black_box(pieces::batch_round_trip(&batch))));
    }),
    ("pool call", |repeats| {
        let pool = pieces::FakePool::start();
        (0..repeats).for_each(|_| pool.call());
    }),
    ("session get", |repeats| {
        let sessions = pieces::Sessions::with(SESSIONS);
        (0..repeats).for_each(|at| sessions.get(at));
    }),
    ("session update", |repeats| {
        let (sessions, worker) = (pieces::Sessions::with(SESSIONS), Arc::from("worker-1"));
        (0..repeats).for_each(|at| sessions.update(at, &worker));
    }),
    ("session create", |repeats| {
        let backend = MemoryBackend::new(SessionLimits::default());
        for id in pieces::ids(repeats) {
            black_box(pieces::now(backend.create(&id, NewSession::default())).unwrap());
        }
    }),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["list"] => PIECES.iter().for_each(|(name, _)| println!("{name}")),
        [name, repeats] => {
            let (_, piece) =
                PIECES.iter().find(|(known, _)| *known == name).expect("a piece that `list` names");
            piece(repeats.parse().expect("a number of repeats"));
        }
        _ => println!("usage: instructions list | instructions PIECE REPEATS"),
    }
}
