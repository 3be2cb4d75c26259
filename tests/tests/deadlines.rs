//! Deadlines with a stalled backend, a frozen host, a runtime that has ended, and nested calls.

use std::{
    convert::Infallible,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use snakepit_registry::{CallStage, FnTool as Tool};
use snakepit_server::{
    Builder, Client, Error, FnTool, NewSession, NewVariable, Note, Payload, PoolError, SessionLimits,
    Snakepit, StartError, ToolContext, ToolError, TraceContext, ValueType, VariableType,
};
use snakepit_session_redis::{RedisBackend, RedisConfig};
use snakepit_tests::{Redis, SHOWCASE, Sandbox, Signal, python, root, signal};
use snakepit_worker::testing::InProcessWorkers;

const SECOND: Duration = Duration::from_secs(1);

fn builder(dir: &tempfile::TempDir) -> Builder {
    Snakepit::builder()
        .adapter("endings:EndingsAdapter")
        .python(python())
        .env("PYTHONPATH", root().join("tests/adapters").display().to_string())
        .run_dir(dir.path())
        .workers(1)
}

/// Configures a host without worker processes.
fn without_python(dir: &tempfile::TempDir) -> Builder {
    let tool = Tool::typed("unit", |(): ()| async { Ok::<_, Infallible>(()) });
    Snakepit::builder()
        .launcher(Arc::new(InProcessWorkers::new().fn_tool(tool)))
        .run_dir(dir.path())
        .workers(1)
        .host_tool("echo", |args: Value| async move { Ok::<_, Infallible>(args) })
        .host_tool("hang", |_: Value| std::future::pending::<Result<(), Infallible>>())
}

fn tool_error(error: Error) -> ToolError {
    match error {
        Error::Tool(error) => error,
        other => panic!("{other:?}"),
    }
}

async fn redis_host(dir: &tempfile::TempDir, redis: &Redis) -> Snakepit {
    let backend = RedisBackend::connect(&redis.url(), RedisConfig::default(), SessionLimits::default()).await;
    builder(dir).adapter(SHOWCASE).sessions(Arc::new(backend.unwrap())).start().await.unwrap()
}

#[tokio::test]
async fn a_stalled_backend_delays_neither_replies_nor_deadlines() {
    let (dir, redis) = (tempfile::tempdir().unwrap(), Redis::start().await);
    let snakepit = redis_host(&dir, &redis).await;
    let session = snakepit.session("s").await.unwrap();

    // The session has no affinity yet, so the host stores it when the call ends.
    let call = session.call("sleep_for").args(json!({"seconds": 0.5})).unary::<Value>();
    let stall = async {
        snakepit_tests::eventually("the call runs", 10 * SECOND, async || snakepit.status().in_flight == 1)
            .await;
        redis.signal(Signal::SIGSTOP);
    };
    let start = Instant::now();
    let (reply, ()) = tokio::join!(call, stall);
    reply.unwrap();
    assert!(start.elapsed() < 3 * SECOND, "the reply waited for the backend: {:?}", start.elapsed());

    let start = Instant::now();
    let expired = session.call("whoami").timeout(SECOND / 5).unary::<Value>().await.unwrap_err();
    let expired = tool_error(expired);
    assert!(matches!(expired, ToolError::DeadlineExceeded { stage: CallStage::Queued, .. }), "{expired}");
    assert!(start.elapsed() < 2 * SECOND, "{:?}", start.elapsed());
    redis.signal(Signal::SIGCONT);
    session.execute::<Value>("whoami", json!({})).await.unwrap();
    snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_deadline_that_passes_in_a_request_to_the_host_is_no_failure_of_the_tool() {
    let dir = tempfile::tempdir().unwrap();
    let snakepit = builder(&dir).start().await.unwrap();
    let session = snakepit.session("s").await.unwrap();
    for tool in ["writes", "writes_in_threads", "writes_and_hides"] {
        for attempt in 0..15 {
            let timeout = Duration::from_millis(40 + attempt);
            let error = session.call(tool).timeout(timeout).unary::<Value>().await.unwrap_err();
            let error = tool_error(error);
            assert!(matches!(error, ToolError::DeadlineExceeded { .. }), "{tool} {attempt}: {error}");
        }
    }
    snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn commands_end_at_their_timeout_if_redis_or_the_daemon_stalls() {
    let redis = Redis::start().await;
    let sandbox = Sandbox::adapter(SHOWCASE, 1).args(&["--sessions", &redis.url()]).start().await;
    let expect_timeout = async |args: &[&str]| {
        let start = Instant::now();
        let output = sandbox.cli(args).await;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(start.elapsed() < 3 * SECOND, "{args:?}: {:?}", start.elapsed());
        assert_eq!(output.status.code(), Some(3), "{args:?}: {stderr}");
        assert!(stderr.to_lowercase().contains("deadline"), "{args:?}: {stderr}");
    };
    redis.signal(Signal::SIGSTOP);
    expect_timeout(&["call", "whoami", "--session", "s", "--timeout", "1s"]).await;
    expect_timeout(&["sessions", "--timeout", "1s"]).await;
    redis.signal(Signal::SIGCONT);
    signal(sandbox.pid(), Signal::SIGSTOP);
    for command in ["tools", "workers", "sessions"] {
        expect_timeout(&[command, "--timeout", "300ms"]).await;
    }
    expect_timeout(&["stream", "count", "--args", r#"{"n": 3}"#, "--timeout", "300ms"]).await;
    signal(sandbox.pid(), Signal::SIGCONT);
    sandbox.cli_ok(&["tools"]).await;
}

#[tokio::test]
async fn a_session_does_not_expire_during_a_call_that_uses_it() {
    let redis = Redis::start().await;
    for in_redis in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let snakepit = match in_redis {
            true => redis_host(&dir, &redis).await,
            false => builder(&dir).adapter(SHOWCASE).start().await.unwrap(),
        };
        let new = NewSession { ttl: Some(SECOND), ..NewSession::default() };
        let session = snakepit.session_with("s", new).await.unwrap();
        let ty = VariableType::with_constraints(ValueType::Integer, "").unwrap();
        let value = Payload::try_from_serde(&7).unwrap();
        session.register_with("n", NewVariable { ty, value, note: Note::default() }).await.unwrap();
        session.execute::<Value>("sleep_for", json!({"seconds": 2.5})).await.unwrap();
        assert_eq!(session.get::<i64>("n").await.unwrap(), 7, "in Redis: {in_redis}");
        snakepit.shutdown().await.unwrap();
    }
}

#[test]
fn a_host_in_a_static_reports_that_its_runtime_has_ended() {
    static HOST: OnceLock<Snakepit> = OnceLock::new();
    let dir = tempfile::tempdir().unwrap();
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let first = runtime();
    let session = first.block_on(async {
        let host = without_python(&dir).start().await.unwrap();
        let session = host.session("s").await.unwrap();
        HOST.set(host).unwrap();
        session
    });
    drop(first);
    let host = HOST.get().unwrap();
    runtime().block_on(async {
        let start = Instant::now();
        let errors = [
            host.execute::<Value>("echo", json!({})).await.unwrap_err(),
            host.call("hang").timeout(60 * SECOND).unary::<Value>().await.unwrap_err(),
            session.execute::<Value>("echo", json!({})).await.unwrap_err(),
        ];
        for error in errors.map(tool_error) {
            assert!(
                error.to_string().contains("the tokio runtime that started this host has shut down"),
                "{error}"
            );
        }
        let error = tool_error(host.shutdown().await.unwrap_err());
        assert!(matches!(error, ToolError::RuntimeEnded { .. }), "{error}");
        assert!(start.elapsed() < 5 * SECOND);
    });
}

#[test]
fn outside_a_runtime_operations_return_errors_instead_of_panicking() {
    let dir = tempfile::tempdir().unwrap();
    let rejected = without_python(&dir).start().now_or_never().unwrap().unwrap_err();
    assert!(matches!(rejected, StartError::Pool(PoolError::NoRuntime)), "{rejected:?}");
    let rejected = Client::connect("127.0.0.1:1").now_or_never().unwrap().unwrap_err();
    assert!(matches!(rejected, Error::NoRuntime), "{rejected:?}");

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let host = runtime.block_on(without_python(&dir).start()).unwrap();
    let echoed = host.call("echo").args(json!({"a": 1})).timeout(SECOND).unary::<Value>();
    assert_eq!(echoed.now_or_never().unwrap().unwrap().value, json!({"a": 1}));
    let hanging = host.call("hang").timeout(SECOND).unary::<Value>().now_or_never().unwrap().unwrap_err();
    assert!(matches!(tool_error(hanging), ToolError::NoRuntime { .. }));
    let session = host.session("s").now_or_never().unwrap().unwrap();
    session.call("echo").unary::<Value>().now_or_never().unwrap().unwrap();
    let watch = session.watch_all().into_future().now_or_never().unwrap().unwrap();
    drop(watch);
    let _ = host.shutdown().now_or_never();
    runtime.block_on(host.shutdown()).unwrap();
}

#[derive(Deserialize, JsonSchema)]
struct Depth {
    depth: u32,
}

/// Starts a host whose tool `relay` calls the Python tool `relay_py`, which calls `relay` again until `depth` is 0.
async fn start_relay_host(dir: &tempfile::TempDir, workers: usize) -> Snakepit {
    let host = Arc::new(OnceLock::<Snakepit>::new());
    let shared = Arc::clone(&host);
    let relay = move |Depth { depth }: Depth| {
        let host = shared.get().cloned();
        async move { host.expect("it has started").execute::<i64>("relay_py", json!({"depth": depth})).await }
    };
    let snakepit = builder(dir).workers(workers).host_tool("relay", relay).start().await.unwrap();
    host.set(snakepit.clone()).unwrap();
    snakepit
}

#[tokio::test]
async fn nested_calls_fail_immediately_if_they_would_wait_for_themselves() {
    for (workers, depth) in [(1, 1), (2, 2), (3, 5)] {
        let dir = tempfile::tempdir().unwrap();
        let snakepit = start_relay_host(&dir, workers).await;
        let deepest = snakepit.execute::<i64>("relay_py", json!({"depth": workers - 1})).await.unwrap();
        assert_eq!(deepest, i64::try_from(workers).unwrap() - 1, "a chain may use all workers");
        let start = Instant::now();
        let error =
            tool_error(snakepit.execute::<i64>("relay_py", json!({"depth": depth})).await.unwrap_err());
        assert!(error.to_string().contains("call of tool `relay_py` would wait for itself"), "{error}");
        assert!(start.elapsed() < 10 * SECOND, "{:?}", start.elapsed());
        assert_eq!(
            snakepit.execute::<i64>("relay_py", json!({"depth": 0})).await.unwrap(),
            0,
            "the worker is free again"
        );
        snakepit.shutdown_within(Duration::ZERO).await.unwrap();
    }
}

#[tokio::test]
async fn deadlocks_between_two_chains_of_nested_calls_are_detected() {
    let dir = tempfile::tempdir().unwrap();
    let snakepit = start_relay_host(&dir, 2).await;
    let chain = || snakepit.call("relay_py").args(json!({"depth": 1})).timeout(30 * SECOND).unary::<i64>();
    let start = Instant::now();
    for _ in 0..5 {
        // If the chains block each other, one of them fails so that the other can continue.
        let (a, b) = tokio::join!(chain(), chain());
        assert!(a.is_ok() || b.is_ok(), "{a:?} {b:?}");
        for error in [a, b].into_iter().filter_map(Result::err) {
            assert!(error.to_string().contains("would wait for itself"), "{error}");
        }
    }
    assert!(start.elapsed() < 25 * SECOND, "{:?}", start.elapsed());
    snakepit.shutdown_within(Duration::ZERO).await.unwrap();
}

#[tokio::test]
async fn traceparent_and_tracestate_reach_python_and_host_tools() {
    let dir = tempfile::tempdir().unwrap();
    let trace = FnTool::new("trace", |context: ToolContext| async move {
        let trace = context.trace.map(|trace| (trace.traceparent, trace.tracestate));
        Ok::<_, Infallible>(trace)
    });
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    for multiplex in [true, false] {
        let snakepit = builder(&dir).multiplex(multiplex).fn_tool(trace.clone()).start().await.unwrap();
        for state in [Some("vendor=1,other=2"), None] {
            let context =
                TraceContext { traceparent: parent.to_owned(), tracestate: state.map(str::to_owned) };
            let traces = snakepit.call("traces").trace(context).unary::<Value>().await.unwrap().value;
            assert_eq!(traces, json!([parent, state, [parent, state]]));
        }
        snakepit.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn the_type_of_an_exception_has_its_qualified_python_name() {
    let dir = tempfile::tempdir().unwrap();
    let snakepit = builder(&dir).start().await.unwrap();
    let error = tool_error(snakepit.execute::<Value>("empty", json!({})).await.unwrap_err());
    let ToolError::Failed(failure) = error else { panic!("{error}") };
    assert_eq!(failure.error_type, "endings.Shelf.EmptyError");
    assert!(
        failure.traceback.trim_end().ends_with("endings.Shelf.EmptyError: nothing left"),
        "{}",
        failure.traceback
    );
    snakepit.shutdown().await.unwrap();
}
