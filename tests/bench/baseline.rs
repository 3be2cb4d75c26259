//! Baselines: minimal servers in separate processes, which respond immediately.

mod ping_pong;
mod server;

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use snakepit_proto::mux::{CallEnd, CallEvent};
use tokio::net::UnixStream;

pub(crate) use ping_pong::{ping_pong, pong};
pub(crate) use server::serve;

use crate::{
    connect::{call_of, connect, multiplex},
    cpu::Processes,
    load::{Timing, closed_loop},
    sample::Sample,
};

/// A running echo server. Dropping it kills the process.
#[derive(Debug)]
pub(crate) struct Echo {
    server: ServerProcess,
    socket: PathBuf,
    _dir: tempfile::TempDir,
}

impl Echo {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be created");
        let socket = dir.path().join("echo.sock");
        let server = ServerProcess::start("echo", &socket);
        for _ in 0..2000 {
            if UnixStream::connect(&socket).await.is_ok() {
                return Self { server, socket, _dir: dir };
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("the echo server does not accept");
    }

    fn processes(&self) -> Processes {
        Processes { host: vec![self.server.0.id()], workers: Vec::new() }
    }

    /// Measures unary calls on one connection.
    pub(crate) async fn unary(&self, in_flight: usize, timing: Timing) -> Sample {
        let client = connect(&self.socket).await;
        closed_loop(in_flight, timing, &self.processes(), move |number| {
            let mut client = client.clone();
            async move {
                let request = snakepit_tests::tool_request("add", &serde_json::json!({"a": number, "b": 1}));
                let sent = request.parameters["a"].clone();
                let response = client.execute_tool(request).await;
                response.is_ok_and(|response| response.into_inner().result == Some(sent))
            }
        })
        .await
    }

    /// Measures calls multiplexed on one stream.
    pub(crate) async fn multiplexed(&self, in_flight: usize, timing: Timing) -> Sample {
        let (multiplexer, _tasks) = multiplex(&self.socket).await;
        let multiplexer = Arc::new(multiplexer);
        closed_loop(in_flight, timing, &self.processes(), move |number| {
            let multiplexer = Arc::clone(&multiplexer);
            async move {
                let call = call_of("add", [("a", number), ("b", 1)]);
                let sent = call.arguments[0].value.clone();
                let event = multiplexer.start(call, number).event().await;
                matches!(event, CallEvent::End(CallEnd::Reply(reply)) if reply.value == sent)
            }
        })
        .await
    }
}

/// A second process of this program that serves a socket. Dropping it kills the process.
#[derive(Debug)]
struct ServerProcess(Child);

impl ServerProcess {
    fn start(verb: &str, socket: &Path) -> Self {
        let binary = std::env::current_exe().expect("this program has a path");
        let child = Command::new(binary).arg(verb).arg(socket).stdin(Stdio::null()).spawn();
        Self(child.expect("the server starts"))
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
