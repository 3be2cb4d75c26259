//! Clients that misbehave: silent connections, readers that stall, and callers that vanish in the middle of their calls.

use std::time::Duration;

use serde_json::json;
use snakepit_tests::tool_request;
use tokio::{io::AsyncWriteExt, net::TcpStream, task::JoinSet};
use tonic::Request;

use crate::{daemon::Daemon, tally::DEADLINE};

/// More than the daemon has descriptors.
const CONNECTIONS: usize = 320;
/// The first bytes of an HTTP/2 connection, which some of them stop after.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Opens connections that say nothing, or stop half way into their first words.
pub(crate) async fn exhaust(daemon: &Daemon) -> Vec<TcpStream> {
    let mut held = Vec::new();
    for number in 0..CONNECTIONS {
        // Once nothing is accepted any more, the backlog fills and connecting takes for ever.
        let connecting = TcpStream::connect(daemon.address());
        let Ok(Ok(mut stream)) = tokio::time::timeout(Duration::from_millis(500), connecting).await else {
            break;
        };
        // The daemon may close what it does not want; that is its right.
        let _ = stream.write_all(&PREFACE[..number % (PREFACE.len() + 1)]).await;
        held.push(stream);
    }
    held
}

/// Streams and answers that nobody reads, on a connection of their own, for a while.
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

/// Starts calls of all kinds and drops their connection while they run.
pub(crate) async fn vanish(daemon: &Daemon) {
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
        // Aborts the calls; with the last clones of the clients their connections close too.
        drop(calls);
    }
}
