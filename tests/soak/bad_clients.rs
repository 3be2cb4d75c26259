//! Misbehaving clients: silent connections, stalled readers, and callers that disconnect during their calls.

use std::time::Duration;

use serde_json::json;
use snakepit_tests::tool_request;
use tokio::{io::AsyncWriteExt, net::TcpStream, task::JoinSet};
use tonic::Request;

use crate::{daemon::Daemon, tally::DEADLINE};

/// The number of connections, which exceeds the daemon's descriptors.
const CONNECTIONS: usize = 320;
/// The HTTP/2 connection preface, of which each silent connection sends a prefix.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Opens connections that send nothing, or a prefix of the HTTP/2 preface.
pub(crate) async fn exhaust_descriptors(daemon: &Daemon) -> Vec<TcpStream> {
    let mut connections = Vec::new();
    for number in 0..CONNECTIONS {
        // When the daemon accepts no more connections and the backlog is full, connecting never ends.
        let connecting = TcpStream::connect(daemon.address());
        let Ok(Ok(mut stream)) = tokio::time::timeout(Duration::from_millis(500), connecting).await else {
            break;
        };
        // The daemon may already have closed the connection.
        let _ = stream.write_all(&PREFACE[..number % (PREFACE.len() + 1)]).await;
        connections.push(stream);
    }
    connections
}

/// Starts streams on a new connection, and does not read them for a while.
pub(crate) async fn stall_reading(daemon: &Daemon, time: Duration) {
    let client = daemon.client().await;
    let mut streams = Vec::new();
    for nonce in 0..4_u64 {
        let mut request = Request::new(tool_request("numbers", &json!({"nonce": nonce, "n": 3_000_000})));
        request.set_timeout(DEADLINE);
        if let Ok(stream) = client.clone().execute_streaming_tool(request).await {
            streams.push(stream);
        }
    }
    tokio::time::sleep(time).await;
}

/// Starts unary calls over per-call RPCs and the multiplexed stream, and closes the connections while they run.
pub(crate) async fn disconnect_during_calls(daemon: &Daemon) {
    for _ in 0..8 {
        let client = daemon.client().await;
        let multiplexed = snakepit_server::Client::connect(&daemon.url).await.ok();
        let mut calls = JoinSet::new();
        for _ in 0..4 {
            let mut client = client.clone();
            calls.spawn(async move {
                let _ = client.execute_tool(tool_request("nap", &json!({"seconds": 5}))).await;
            });
            if let Some(client) = multiplexed.clone() {
                calls.spawn(async move {
                    let _ = client.execute::<()>("nap", json!({"seconds": 5})).await;
                });
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        // This aborts the calls and drops the last clones of the clients, which closes the connections.
        drop(calls);
    }
}
