//! Reads the keys of earlier versions in `tests/formats`.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use snakepit_session::SessionLimits;
use snakepit_session_redis::{RedisBackend, RedisConfig};
use snakepit_session_testkit::sample;

/// All folders, oldest first.
const FORMATS: [&str; 3] = ["1", "2", "3"];

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "not a worker")]
async fn keys_of_earlier_versions_in_redis_are_read() {
    let formats = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/formats");
    for format in FORMATS {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("redis");
        let mut server = Command::new("redis-server");
        server.args(["--save", "", "--appendonly", "no", "--port", "0", "--unixsocket"]).arg(&socket);
        server.arg("--dir").arg(directory.path()).stdin(Stdio::null()).stdout(Stdio::null());
        let mut server = server.spawn().expect("redis-server is installed");
        let began = Instant::now();
        let connection = loop {
            match UnixStream::connect(&socket) {
                Ok(connection) => break connection,
                Err(error) => assert!(began.elapsed() < Duration::from_secs(20), "{error}"),
            }
            std::thread::yield_now();
        };
        replay(&connection, &std::fs::read(formats.join(format).join("keys.resp")).unwrap());
        let url = format!("redis+unix://{}", socket.display());
        let limits = SessionLimits::default();
        let backend = RedisBackend::connect(&url, RedisConfig::default(), limits).await.unwrap();
        // The old format does not contain the worker's host.
        sample::check(&backend, None).await;
        drop(backend);
        server.kill().unwrap();
        server.wait().unwrap();
    }
}

/// Sends commands and checks that none fails.
fn replay(mut connection: &UnixStream, commands: &[u8]) {
    connection.write_all(commands).unwrap();
    connection.write_all(b"*1\r\n$4\r\nPING\r\n").unwrap();
    for reply in BufReader::new(connection).lines() {
        let reply = reply.unwrap();
        assert!(!reply.starts_with('-'), "{reply}");
        if reply == "+PONG" {
            return;
        }
    }
    panic!("the server closed the connection");
}
