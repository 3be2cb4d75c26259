//! Workers that run several calls: nested calls that could not begin, answers before a crash, and replacements of busy workers.

use std::time::Duration;

use futures_util::TryStreamExt;
use nix::{sys::signal::kill, unistd::Pid};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use snakepit_server::{CallBuilder, Error, Host, Snakepit};
use snakepit_tests::{EVENT_TIMEOUT, eventually, python, root};
use tempfile::TempDir;

/// The time after which a call that waits for itself fails.
const LIMIT: Duration = Duration::from_secs(20);

async fn start(class: &str, workers: usize) -> (Snakepit, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let builder = Snakepit::builder()
        .adapter(format!("crowded:{class}"))
        .env("PYTHONPATH", root().join("tests/adapters").display().to_string())
        .python(python())
        .run_dir(dir.path())
        .multiplex(!snakepit_tests::plain_calls())
        .host_tool("quick", || async { 1 })
        .host_tool("relay", |host: Host| async move { host.execute::<Value>("pid", ()).await })
        .workers(workers);
    (builder.start().await.unwrap(), dir)
}

fn call(snakepit: &Snakepit, tool: &str, args: Value) -> CallBuilder {
    snakepit.call(tool).args(args).timeout(LIMIT)
}

async fn run<T: DeserializeOwned>(snakepit: &Snakepit, tool: &str, args: Value) -> Result<T, Error> {
    Ok(call(snakepit, tool, args).unary::<T>().await?.value)
}

async fn value(snakepit: &Snakepit, tool: &str, args: Value) -> Value {
    run(snakepit, tool, args).await.unwrap()
}

fn is_refused(answer: &Value) -> bool {
    answer.as_str().is_some_and(|text| text.contains("would wait for itself"))
}

#[tokio::test]
async fn a_nested_call_that_would_wait_for_the_limit_of_its_tool_is_refused() {
    let (snakepit, _dir) = start("Crowded", 1).await;
    let refused = value(&snakepit, "alone", json!({"depth": 1})).await;
    assert!(is_refused(&refused), "{refused}");
    assert!(value(&snakepit, "alone", json!({"depth": 0})).await.is_number(), "the limit is free again");
    snakepit.shutdown().await.unwrap();

    let (snakepit, _dir) = start("Crowded", 2).await;
    assert!(value(&snakepit, "alone", json!({"depth": 1})).await.is_number(), "the other worker runs it");
    let refused = value(&snakepit, "alone", json!({"depth": 2})).await;
    assert!(is_refused(&refused), "{refused}");
    snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_nested_call_that_its_caller_keeps_from_beginning_is_refused() {
    let (snakepit, _dir) = start("Crowded", 1).await;
    for (tool, name) in [("ask", "relay"), ("read", "pids")] {
        let refused = value(&snakepit, tool, json!({"name": name})).await;
        assert!(is_refused(&refused), "{tool}: {refused}");
    }
    assert_eq!(value(&snakepit, "ask", json!({"name": "quick"})).await, 1);
    let pid = value(&snakepit, "pid", json!({})).await;
    assert_eq!(value(&snakepit, "ask_politely", json!({"name": "relay"})).await, pid, "it blocks no longer");
    snakepit.shutdown().await.unwrap();

    let (snakepit, _dir) = start("Crowded", 2).await;
    assert!(value(&snakepit, "ask", json!({"name": "relay"})).await.is_number(), "the other worker runs it");
    assert!(value(&snakepit, "read", json!({"name": "pids"})).await.is_array());
    snakepit.shutdown().await.unwrap();
}

/// Sends a call that kills the worker while another call runs on it, and lets that call go on once both are on the worker.
async fn die_next(snakepit: &Snakepit) -> Result<(), Error> {
    let in_flight = async |count| {
        let description = format!("{count} calls are on the worker");
        eventually(&description, EVENT_TIMEOUT, async || snakepit.status().in_flight == count).await;
    };
    in_flight(1).await;
    let proceed = async {
        in_flight(2).await;
        value(snakepit, "proceed", json!({})).await
    };
    let (died, _) = tokio::join!(run::<()>(snakepit, "die", json!({})), proceed);
    died
}

#[tokio::test]
async fn a_finished_answer_survives_the_next_call() {
    let (snakepit, _dir) = start("Serial", 1).await;
    for _ in 0..5 {
        let large = run::<String>(&snakepit, "large", json!({"count": 5_000_000}));
        // An error of the first call ends the test, instead of the wait for it.
        let (text, died) = tokio::try_join!(large, async { Ok(die_next(&snakepit).await) }).unwrap();
        assert_eq!(text.len(), 5_000_000);
        died.unwrap_err();
    }
    snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_worker_that_retires_is_replaced_before_its_last_call_ends() {
    let (snakepit, _dir) = start("Crowded", 1).await;
    let pid: i32 = run(&snakepit, "pid", json!({})).await.unwrap();
    let mut long = Box::pin(snakepit.call("hang").unary::<()>());
    let blocked = snakepit.call("block_and_replace").timeout(Duration::from_millis(200)).unary::<()>();
    tokio::select! {
        _ = &mut long => panic!("it hangs"),
        blocked = blocked => drop(blocked.unwrap_err()),
    }
    let later = tokio::select! {
        _ = &mut long => panic!("it hangs"),
        later = run::<i32>(&snakepit, "pid", json!({})) => later.unwrap(),
    };
    assert_ne!(later, pid, "the replacement runs it");
    assert!(kill(Pid::from_raw(pid), None).is_ok(), "the first worker still runs its call");
    assert_eq!(snakepit.status().workers[0].restarts, 1);
    drop(long);
    eventually("the first worker exits", EVENT_TIMEOUT, async || kill(Pid::from_raw(pid), None).is_err())
        .await;
    assert_eq!(run::<i32>(&snakepit, "pid", json!({})).await.unwrap(), later);
    snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_shutdown_ends_retired_workers() {
    let (snakepit, _dir) = start("Crowded", 1).await;
    let pid: i32 = run(&snakepit, "pid", json!({})).await.unwrap();
    let long = snakepit.call("hang").unary::<()>();
    let stop = async {
        let blocked = snakepit.call("block_and_replace").timeout(Duration::from_millis(200)).unary::<()>();
        blocked.await.unwrap_err();
        assert_ne!(run::<i32>(&snakepit, "pid", json!({})).await.unwrap(), pid);
        snakepit.shutdown_within(Duration::ZERO).await.unwrap();
    };
    let (long, ()) = tokio::join!(long, stop);
    assert!(long.is_err(), "{long:?}");
    assert!(kill(Pid::from_raw(pid), None).is_err(), "the first worker has exited");
}

#[tokio::test]
async fn the_end_of_a_stream_survives_the_next_call() {
    let (snakepit, _dir) = start("Serial", 1).await;
    for _ in 0..3 {
        let items = async {
            let stream = call(&snakepit, "items", json!({"count": 5})).stream::<String>().await?;
            stream.try_collect::<Vec<_>>().await
        };
        let (items, died) = tokio::try_join!(items, async { Ok(die_next(&snakepit).await) }).unwrap();
        assert_eq!(items.len(), 5);
        died.unwrap_err();
    }
    snakepit.shutdown().await.unwrap();
}
