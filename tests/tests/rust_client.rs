//! The Rust client, which multiplexes its calls to a remote host on one stream.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use serde_json::{Value, json};
use snakepit_server::{Client, Error, Payload, SessionId, ToolError};
use snakepit_tests::{EVENT_TIMEOUT, SHOWCASE, Sandbox, eventually};

const MISBEHAVING: &str = "misbehaving:MisbehavingAdapter";

async fn connect(sandbox: &Sandbox) -> Client {
    Client::connect(sandbox.url()).await.unwrap()
}

#[tokio::test]
async fn calls_streams_and_sessions_work_over_tcp_and_unix_sockets() {
    let sandbox = Sandbox::adapter(SHOWCASE, 2).start().await;
    for address in [sandbox.url().to_owned(), format!("unix:{}", sandbox.socket().display())] {
        let client = Client::connect(&address).await.unwrap();
        let reply = client.call("add").args(json!({"a": 1, "b": 2})).unary::<i64>().await.unwrap();
        assert_eq!(reply.value, 3);
        assert!(reply.worker.unwrap().starts_with("default-"));
        let mut stream = client.execute_stream::<u64>("count", json!({"n": 5000})).await.unwrap();
        assert!(stream.worker().unwrap().starts_with("default-"));
        let mut count = 0;
        while let Some(number) = stream.try_next().await.unwrap() {
            count += 1;
            assert_eq!(number, count);
        }
        assert_eq!(count, 5000);
        let session = client.session("alice").await.unwrap();
        let who: Value = session.execute("whoami", json!({})).await.unwrap();
        assert_eq!(who["session_id"], "alice");
        session.delete().await.unwrap();
    }
}

#[tokio::test]
async fn each_failure_arrives_as_its_error_variant() {
    let sandbox = Sandbox::adapter(SHOWCASE, 1).start().await;
    let client = connect(&sandbox).await;
    let fail = |tool: &'static str, args: Value| client.execute::<Value>(tool, args);
    let tool_error = |error: Error| match error {
        Error::Tool(error) => error,
        other => panic!("{other}"),
    };
    let missing = tool_error(fail("ad", json!({})).await.unwrap_err());
    assert!(
        matches!(&missing, ToolError::NotFound { suggestion: Some(near), .. } if near == "add"),
        "{missing}"
    );
    let bad = tool_error(fail("add", json!({"a": "x", "b": 2})).await.unwrap_err());
    assert!(
        matches!(&bad, ToolError::InvalidArguments { violations, .. } if violations[0].field == "a"),
        "{bad}"
    );
    let raised = tool_error(fail("fail", json!({"message": "on purpose"})).await.unwrap_err());
    let ToolError::Failed(failure) = raised else { panic!("{raised}") };
    assert_eq!((failure.error_type.as_str(), failure.message.as_str()), ("ValueError", "on purpose"));
    assert!(failure.traceback.contains("in fail"));
    let expired = client.call("sleep_for").args(json!({"seconds": 60})).timeout(Duration::from_millis(200));
    let expired = tool_error(expired.unary::<Value>().await.unwrap_err());
    assert!(matches!(expired, ToolError::DeadlineExceeded { .. }), "{expired}");
    let missing_session = client.call("add").args(json!({"a": 1, "b": 2}));
    let missing_session =
        missing_session.session(SessionId::try_new("nosuch").unwrap()).unary::<Value>().await.unwrap_err();
    assert!(missing_session.to_string().contains("nosuch"), "{missing_session}");
    let rejected = Client::connect("http://127.0.0.1:1").await.unwrap_err().to_string();
    assert!(rejected.contains("127.0.0.1:1") && rejected.contains("snakepit serve"), "{rejected}");
}

#[tokio::test]
async fn the_death_of_a_worker_fails_only_its_call() {
    let sandbox = Sandbox::adapter(MISBEHAVING, 1).start().await;
    let client = connect(&sandbox).await;
    let error = client.execute::<Value>("crash", json!({})).await.unwrap_err();
    let Error::Tool(ToolError::WorkerLost { reason, output_lines, .. }) = error else { panic!("{error}") };
    assert!(reason.contains("code 7"), "{reason}");
    assert!(output_lines.iter().any(|line| line.contains("about to crash")), "{output_lines:?}");
    assert_eq!(client.execute::<String>("ping", json!({})).await.unwrap(), "pong");
}

#[tokio::test]
async fn dropping_a_call_frees_its_worker() {
    let sandbox = Sandbox::adapter(SHOWCASE, 1).start().await;
    let client = connect(&sandbox).await;
    let call = client.execute::<f64>("async_sleep", json!({"seconds": 600}));
    assert!(tokio::time::timeout(Duration::from_millis(100), call).await.is_err());
    let mut stream = client.execute_stream::<u64>("count", json!({"n": 1_000_000_000})).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), 1);
    drop(stream);
    eventually("the worker is idle", EVENT_TIMEOUT, async || sandbox.workers().await[0].state == "idle")
        .await;
    assert_eq!(sandbox.workers().await[0].restarts, 0);
}

#[tokio::test]
async fn an_unread_stream_delays_no_other_call() {
    let sandbox = Sandbox::adapter(SHOWCASE, 2).start().await;
    let client = connect(&sandbox).await;
    // More chunks than all flow-control windows hold.
    let mut stream = client.execute_stream::<u64>("count", json!({"n": 20_000_000})).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), 1);
    for number in 0..200 {
        let sum: i64 = client.execute("add", json!({"a": number, "b": 1})).await.unwrap();
        assert_eq!(sum, number + 1);
    }
    assert_eq!(stream.next().await.unwrap().unwrap(), 2, "the stream continues when it is read");
}

#[tokio::test]
async fn a_thousand_concurrent_calls_each_receive_their_own_result() {
    let sandbox = Sandbox::adapter(SHOWCASE, 2).args(&["--queue-limit", "2000"]).start().await;
    let client = connect(&sandbox).await;
    let calls = (0..1000_i64).map(|number| {
        let client = client.clone();
        async move { (number, client.execute::<i64>("add", json!({"a": number, "b": 7})).await) }
    });
    for (number, sum) in futures_util::future::join_all(calls).await {
        assert_eq!(sum.unwrap(), number + 7);
    }
}

#[tokio::test]
async fn an_unusually_long_call_of_a_brief_tool_delays_no_other_call() {
    let sandbox = Sandbox::adapter(SHOWCASE, 2).start().await;
    let client = connect(&sandbox).await;
    let nap = |seconds: f64| {
        let client = client.clone();
        async move { client.execute::<f64>("sleep_for", json!({"seconds": seconds})).await.unwrap() }
    };
    // The pool measures that the tool is brief, and then dispatches calls ahead.
    futures_util::future::join_all((0..200).map(|_| nap(0.0))).await;
    let long = tokio::spawn(nap(3.0));
    let began = tokio::time::Instant::now();
    // There are enough callers to keep all workers busy while the long call runs.
    let callers = (0..16).map(|_| async {
        let mut slowest = Duration::ZERO;
        while began.elapsed() < Duration::from_secs(2) {
            let called = tokio::time::Instant::now();
            nap(0.0).await;
            slowest = slowest.max(called.elapsed());
        }
        slowest
    });
    let slowest = futures_util::future::join_all(callers).await.into_iter().max().unwrap();
    assert!(slowest < Duration::from_millis(500), "a short call took {slowest:?}");
    assert!(!long.is_finished());
    long.await.unwrap();
}

#[tokio::test]
async fn arguments_of_all_sizes_are_echoed() {
    let sandbox = Sandbox::adapter(MISBEHAVING, 1).start().await;
    let client = connect(&sandbox).await;
    for size in [0, 1, 1024, 8 * 1024 * 1024] {
        let data = Bytes::from(vec![7_u8; size]);
        let reply =
            client.call("echo_bytes").payload("data", Payload::bytes(data.clone())).payload_reply().await;
        assert_eq!(reply.unwrap().value.binary(), Some(&data), "{size} bytes");
    }
}

#[tokio::test]
async fn calls_fail_with_an_error_if_the_server_dies() {
    let mut sandbox = Sandbox::adapter(SHOWCASE, 1).start().await;
    let client = connect(&sandbox).await;
    let call = tokio::spawn({
        let client = client.clone();
        async move { client.execute::<f64>("sleep_for", json!({"seconds": 600})).await }
    });
    eventually("the call runs", EVENT_TIMEOUT, async || sandbox.workers().await[0].state == "busy").await;
    snakepit_tests::signal(sandbox.pid(), snakepit_tests::Signal::SIGKILL);
    sandbox.wait(EVENT_TIMEOUT).await;
    let Error::Tool(error) = call.await.unwrap().unwrap_err() else {
        panic!("the call failed with another kind of error")
    };
    assert!(matches!(error, ToolError::ConnectionLost { .. }) && error.may_have_run(), "{error}");
    let after = client.execute::<f64>("add", json!({"a": 1, "b": 2})).await.unwrap_err();
    let Error::Tool(after) = after else { panic!("{after}") };
    assert!(matches!(after, ToolError::Unavailable { .. }) && !after.may_have_run(), "{after}");
}

#[tokio::test]
async fn the_client_reconnects_to_a_restarted_server() {
    let mut sandbox = Sandbox::adapter(SHOWCASE, 2).start().await;
    let client = connect(&sandbox).await;
    let add = || client.execute::<i64>("add", json!({"a": 1, "b": 2}));
    assert_eq!(add().await.unwrap(), 3);
    let address = sandbox.url().strip_prefix("http://").unwrap().to_owned();
    snakepit_tests::signal(sandbox.pid(), snakepit_tests::Signal::SIGKILL);
    sandbox.wait(EVENT_TIMEOUT).await;
    let (one, other) = tokio::join!(add(), add());
    assert!(one.is_err() && other.is_err(), "the server is down");

    let sandbox = Sandbox::adapter(SHOWCASE, 2).listen(address).after(sandbox).start().await;
    for sum in futures_util::future::join_all((0..20).map(|_| add())).await {
        assert_eq!(sum.unwrap(), 3);
    }
    let chunks = client.execute_stream::<u64>("count", json!({"n": 10})).await.unwrap();
    assert_eq!(chunks.try_collect::<Vec<_>>().await.unwrap().len(), 10);
    assert_eq!(sandbox.stop().await, Some(0));
}

#[tokio::test]
async fn deadlines_hold_if_the_server_is_frozen() {
    let sandbox = Sandbox::adapter(SHOWCASE, 1).start().await;
    let client = connect(&sandbox).await;
    let timeout = Duration::from_millis(300);
    // More chunks than the credit of a stream allows, so the stream does not end before the server is stopped.
    let count = client.call("count").args(json!({"n": 20_000_000}));
    let mut stream = count.timeout(Duration::from_secs(1)).stream::<u64>().await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), 1);
    snakepit_tests::signal(sandbox.pid(), snakepit_tests::Signal::SIGSTOP);
    let began = std::time::Instant::now();
    let expired = client.call("add").args(json!({"a": 1, "b": 2})).timeout(timeout).unary::<i64>().await;
    let expired = expired.unwrap_err();
    assert!(matches!(&expired, Error::Tool(ToolError::DeadlineExceeded { .. })), "{expired}");
    let bytes = Payload::bytes(Bytes::from(vec![7_u8; 8 * 1024 * 1024]));
    let large =
        client.call("echo").payload("value", bytes).timeout(timeout).payload_reply().await.unwrap_err();
    assert!(matches!(&large, Error::Tool(ToolError::DeadlineExceeded { .. })), "{large}");
    let last = loop {
        match stream.next().await.expect("the stream ends with an error") {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(&last, Error::Tool(ToolError::DeadlineExceeded { .. })), "{last}");
    assert!(stream.next().await.is_none());
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[tokio::test]
async fn requests_to_a_frozen_server_end_at_the_request_timeout() {
    let sandbox = Sandbox::adapter(SHOWCASE, 1).start().await;
    let limit = Duration::from_millis(300);
    let client = Client::builder().request_timeout(limit).connect(sandbox.url()).await.unwrap();
    let session = client.session("s").await.unwrap();
    let _watch = session.watch_all().await.unwrap();
    snakepit_tests::signal(sandbox.pid(), snakepit_tests::Signal::SIGSTOP);
    let errors = [
        client.session("s").await.unwrap_err(),
        session.variables("*").await.unwrap_err(),
        session.delete_variable("x").await.unwrap_err(),
        session.watch_all().await.unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(error, Error::TimedOut { within, .. } if within == limit), "{error}");
    }
    snakepit_tests::signal(sandbox.pid(), snakepit_tests::Signal::SIGCONT);
    assert_eq!(session.variables("*").await.unwrap().len(), 0);
}
