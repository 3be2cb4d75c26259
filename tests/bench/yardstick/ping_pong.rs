//! The bare socket round trip: two processes, one Unix socket, blocking reads and writes of a small message.

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    time::{Duration, Instant},
};

use super::Helper;
use crate::{
    load::Spell,
    sample::{Sample, Times},
};

/// About what an `add` is on the wire.
const MESSAGE: usize = 64;

/// The answering process: sends back what it gets, until the other side closes.
pub(crate) fn pong(socket: &Path) {
    let listener = UnixListener::bind(socket).expect("the socket can be bound");
    let (mut stream, _) = listener.accept().expect("somebody connects");
    let mut message = [0; MESSAGE];
    while stream.read_exact(&mut message).is_ok() && stream.write_all(&message).is_ok() {}
}

/// Round trips, one at a time. Blocks.
pub(crate) fn ping_pong(spell: Spell) -> Sample {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let socket = dir.path().join("pong.sock");
    let _server = Helper::start("pong", &socket);
    let mut stream = connect(&socket);
    let (mut times, mut errors, mut number) = (Times::new(), 0.0, 0_u64);
    let began = Instant::now();
    while began.elapsed() < spell.warm_up + spell.counted {
        number += 1;
        let mut message = [0; MESSAGE];
        message[..8].copy_from_slice(&number.to_le_bytes());
        let sent = message;
        let due = Instant::now();
        stream.write_all(&message).expect("the other side reads");
        stream.read_exact(&mut message).expect("the other side answers");
        if message != sent {
            errors += 1.0;
        } else if began.elapsed() >= spell.warm_up {
            times.record(due.elapsed());
        }
    }
    let counted = (began.elapsed() - spell.warm_up).as_secs_f64();
    Sample::default().with("per_second", times.count() / counted).with("errors", errors).with_times(&times)
}

fn connect(socket: &Path) -> UnixStream {
    for _ in 0..2000 {
        if let Ok(stream) = UnixStream::connect(socket) {
            return stream;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("the yardstick server does not accept");
}
