//! The embedding API against real workers: typed calls, streams, host tools called by Python, programs.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use futures_util::TryStreamExt;
use serde::Deserialize;
use serde_json::{Value, json};
use snakepit_server::{Error, Payload, Program, Snakepit, ToolError};
use snakepit_tests::{SHOWCASE, is_alive, python};

#[derive(Deserialize)]
struct Pair {
    a: i64,
    b: i64,
}

async fn start(run_dir: &tempfile::TempDir) -> Snakepit {
    Snakepit::builder()
        .adapter(SHOWCASE)
        .python(python())
        .run_dir(run_dir.path())
        .workers(2)
        .host_tool("multiply", |pair: Pair| async move { Ok::<_, Infallible>(pair.a * pair.b) })
        .host_tool("refuse", |_: Value| async move { Err::<Value, _>("not today") })
        .host_tool("panic", |_: Value| async move {
            if true {
                panic!("on purpose");
            }
            Ok::<_, Infallible>(())
        })
        .start()
        .await
        .unwrap()
}

#[tokio::test]
async fn typed_calls_streams_and_shutdown() {
    let dir = tempfile::tempdir().unwrap();
    let snakepit = start(&dir).await;
    let sum: i64 = snakepit.execute("add", json!({"a": 1, "b": 2})).await.unwrap();
    assert_eq!(sum, 3);
    let items: Vec<Value> =
        snakepit.execute_stream("count", json!({"n": 1000})).await.unwrap().try_collect().await.unwrap();
    assert_eq!(items.len(), 1000);

    let misfit = snakepit.execute::<String>("add", json!({"a": 1, "b": 2})).await.unwrap_err();
    assert!(matches!(misfit, Error::Payload(_)), "{misfit}");
    let late = snakepit.call("sleep_for").args(json!({"seconds": 9})).timeout(Duration::from_millis(200));
    let late = late.unary::<Value>().await.unwrap_err();
    assert!(matches!(late, Error::Tool(ToolError::DeadlineExceeded { .. })), "{late}");

    let pids: Vec<u32> = snakepit.status().workers.iter().filter_map(|worker| worker.pid).collect();
    snakepit.shutdown().await;
    assert!(pids.iter().all(|pid| !is_alive(*pid)));
    let after = snakepit.execute::<i64>("add", json!({"a": 1, "b": 2})).await.unwrap_err();
    assert!(matches!(after, Error::Tool(ToolError::Unavailable { .. })), "{after}");
    snakepit.shutdown().await;
}

#[tokio::test]
async fn python_calls_the_hosts_tools() {
    let dir = tempfile::tempdir().unwrap();
    let snakepit = start(&dir).await;
    let session = snakepit.session("s").await.unwrap();
    let call = |tool: &str, arguments: Value| {
        session.execute::<Value>("call_host", json!({"tool_name": tool, "arguments": arguments}))
    };
    assert_eq!(call("multiply", json!({"a": 6, "b": 7})).await.unwrap(), 42);
    // Each failure of a host tool is a typed exception in Python, and so a failure of the Python tool.
    for (tool, arguments, needle) in [
        ("refuse", json!({}), "not today"),
        ("panic", json!({}), "panicked"),
        ("multiply", json!({"a": 6}), "b"),
        ("no_such", json!({}), "no_such"),
    ] {
        let error = call(tool, arguments).await.unwrap_err();
        assert!(matches!(error, Error::Tool(ToolError::Failed(_))), "{tool}: {error}");
        assert!(error.to_string().contains(needle), "{tool}: {error}");
    }
    // The host's own tools are callable from Rust as well.
    assert_eq!(snakepit.execute::<i64>("multiply", json!({"a": 2, "b": 3})).await.unwrap(), 6);
    snakepit.shutdown().await;
}

#[tokio::test]
async fn programs_and_payloads_pass_through() {
    let dir = tempfile::tempdir().unwrap();
    let snakepit = start(&dir).await;
    let session = snakepit.session("s").await.unwrap();
    session.put_program("m", Program::new("weights", "text/plain")).await.unwrap();
    assert_eq!(session.program("m").await.unwrap().data, "weights");
    assert_eq!(session.info().await.unwrap().program_count, 1);
    session.clone().delete().await.unwrap();
    assert!(matches!(session.program("m").await, Err(Error::Session(_))));

    let bytes = Payload::bytes(Bytes::from_static(b"\x00\xff"));
    let reply = snakepit.call("echo").payload("data", bytes).payload_reply().await;
    // `echo` answers with a map, and a map cannot hold raw bytes: an error that says so, never a crash.
    let error = reply.unwrap_err().to_string();
    assert!(error.contains("bytes"), "{error}");
    snakepit.shutdown().await;
}

#[tokio::test]
async fn dropping_the_last_handle_kills_the_workers() {
    let dir = tempfile::tempdir().unwrap();
    let snakepit = start(&dir).await;
    let pids: Vec<u32> = snakepit.status().workers.iter().filter_map(|worker| worker.pid).collect();
    drop(snakepit);
    snakepit_tests::eventually("the workers are gone", Duration::from_secs(5), async || {
        pids.iter().all(|pid| !is_alive(*pid))
    })
    .await;
}
