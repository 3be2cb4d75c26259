//! Runs the example of a web service, without Python.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests may panic and detach tasks")]

#[allow(dead_code, reason = "the test calls `serve`")]
#[path = "../examples/axum_service.rs"]
mod axum_service;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum_service::Pair;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use snakepit_server::{Client, FnTool, Snakepit, testing::InProcessWorkers};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
};

/// The limit for everything that must end.
const TEST_TIMEOUT: Duration = Duration::from_secs(8);

/// Sends an HTTP/1 request on a new connection.
async fn send(address: &str, method: &str, path: &str, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

/// Reads a response to its end.
async fn read(mut stream: TcpStream) -> String {
    let mut text = String::new();
    tokio::time::timeout(TEST_TIMEOUT, stream.read_to_string(&mut text))
        .await
        .expect("the response ends")
        .unwrap();
    text
}

#[tokio::test]
async fn the_example_serves_json_events_and_grpc_and_shuts_down_as_one() {
    let run_dir = tempfile::tempdir().unwrap();
    let add = FnTool::typed("add", |pair: Pair| async move {
        if pair.a < 0 { Err("a is negative") } else { Ok(pair.a + pair.b) }
    });
    // Counts to `n`, and then waits without end.
    let count = FnTool::new("count", |arguments: BTreeMap<String, u64>| {
        stream::iter(1..=arguments["n"]).chain(stream::pending())
    });
    let workers = InProcessWorkers::new().fn_tool(add).fn_tool(count);
    let snakepit = Snakepit::builder()
        .launcher(Arc::new(workers))
        .workers(4)
        .run_dir(run_dir.path())
        .start()
        .await
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = {
        let snakepit = snakepit.clone();
        tokio::spawn(async move {
            let served = axum_service::serve(snakepit, listener, async { drop(stopped.await) }).await;
            served.map_err(|error| error.to_string())
        })
    };

    let sum = read(send(&address, "POST", "/add", r#"{"a": 1, "b": 2}"#).await).await;
    assert!(sum.starts_with("HTTP/1.1 200") && sum.ends_with("\r\n\r\n3"), "{sum}");
    let failed = read(send(&address, "POST", "/add", r#"{"a": -1, "b": 2}"#).await).await;
    assert!(failed.starts_with("HTTP/1.1 500") && failed.contains("a is negative"), "{failed}");
    let unknown = read(send(&address, "GET", "/nothing", "").await).await;
    assert!(unknown.starts_with("HTTP/1.1 404"), "the routes of the host have no fallback: {unknown}");

    // Endless streams of each kind: events of a tool, a watch, and a call over gRPC.
    let mut events = send(&address, "GET", "/count/2", "").await;
    let mut start = String::new();
    while !start.contains("data: 2\n\n") {
        let mut buffer = [0; 512];
        let length = tokio::time::timeout(TEST_TIMEOUT, events.read(&mut buffer)).await.unwrap().unwrap();
        assert!(length > 0, "the events ended: {start}");
        start.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
    }
    let client = Client::connect(&address).await.unwrap();
    let doubled: i64 = client.execute("add", json!({"a": 4, "b": 4})).await.unwrap();
    assert_eq!(doubled, 8);
    let session = client.session("alice").await.unwrap();
    let mut watch = session.watch_all().await.unwrap();
    let mut items = client.execute_stream::<Value>("count", json!({"n": 1})).await.unwrap();
    assert_eq!(items.next().await.unwrap().unwrap(), 1);

    let stopping = snakepit.stopping();
    stop.send(()).unwrap();
    tokio::time::timeout(TEST_TIMEOUT, stopping).await.expect("the shutdown begins");
    // The drain would wait for the streams, so end their calls.
    let shutdown = snakepit.shutdown_within(Duration::ZERO);
    tokio::time::timeout(TEST_TIMEOUT, shutdown).await.expect("the host shuts down").unwrap();
    let last = tokio::time::timeout(TEST_TIMEOUT, items.next())
        .await
        .expect("the stream ends")
        .unwrap()
        .unwrap_err();
    assert_eq!(last.kind(), snakepit_server::ErrorKind::ShuttingDown, "{last:?}");
    let last =
        tokio::time::timeout(TEST_TIMEOUT, watch.next()).await.expect("the watch ends").unwrap().unwrap_err();
    assert_eq!(last.kind(), snakepit_server::ErrorKind::ShuttingDown, "{last:?}");
    let rest = read(events).await;
    assert!(rest.contains("event: error") && rest.contains("shutting down"), "{rest}");
    let served = tokio::time::timeout(TEST_TIMEOUT, serving).await.expect("the server ends");
    served.unwrap().unwrap();
    assert!(TcpStream::connect(&address).await.is_err(), "the port is closed");
}
