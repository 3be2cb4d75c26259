//! Round trips of a small message between two processes, with blocking reads and writes on a Unix socket.

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    time::{Duration, Instant},
};

use super::ServerProcess;
use crate::{
    load::Timing,
    sample::{Sample, Times},
};

/// The size of a message, which is about that of an `add` on the wire.
const MESSAGE: usize = 64;

/// Runs the server, which returns each message until the client closes the connection.
pub(crate) fn pong(socket: &Path) {
    let listener = UnixListener::bind(socket).expect("the socket can be bound");
    let (mut stream, _) = listener.accept().expect("the client connects");
    let mut message = [0; MESSAGE];
    while stream.read_exact(&mut message).is_ok() && stream.write_all(&message).is_ok() {}
}

/// Measures sequential round trips. Blocks the thread.
pub(crate) fn ping_pong(timing: Timing) -> Sample {
    let dir = tempfile::tempdir().expect("a temporary directory can be created");
    let socket = dir.path().join("pong.sock");
    let _server = ServerProcess::start("pong", &socket);
    let mut stream = connect(&socket);
    let (mut times, mut errors, mut number) = (Times::new(), 0.0, 0_u64);
    let began = Instant::now();
    while began.elapsed() < timing.warm_up + timing.measured {
        number += 1;
        let mut message = [0; MESSAGE];
        message[..8].copy_from_slice(&number.to_le_bytes());
        let sent = message;
        let due = Instant::now();
        stream.write_all(&message).expect("the server reads");
        stream.read_exact(&mut message).expect("the server answers");
        if message != sent {
            errors += 1.0;
        } else if began.elapsed() >= timing.warm_up {
            times.record(due.elapsed());
        }
    }
    let measured = (began.elapsed() - timing.warm_up).as_secs_f64();
    Sample::default().with("per_second", times.count() / measured).with("errors", errors).with_times(&times)
}

fn connect(socket: &Path) -> UnixStream {
    for _ in 0..2000 {
        if let Ok(stream) = UnixStream::connect(socket) {
            return stream;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("the ping-pong server does not accept");
}
