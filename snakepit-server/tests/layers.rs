//! Layers around the calls of a host: limits, timeouts, load shedding and retries, for every kind of call and caller.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests may panic and detach tasks")]

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use snakepit_server::{
    Builder, CallService, Client, Error, ErrorKind, FnTool, ReplyBody, Snakepit, ToolCall, ToolContext,
    ToolError, ToolHandler, ToolReply, ToolSpec, testing::InProcessWorkers,
};
use tokio::sync::Semaphore;
use tower::{
    Service, ServiceBuilder, ServiceExt, limit::ConcurrencyLimitLayer, timeout::TimeoutLayer,
    util::MapRequestLayer,
};

/// A handler whose calls wait for a permit of the test.
#[derive(Debug)]
struct GatedHandler {
    started: Arc<Semaphore>,
    permits: Arc<Semaphore>,
}

#[async_trait::async_trait]
impl ToolHandler for GatedHandler {
    async fn call(&self, call: ToolCall) -> Result<ToolReply, ToolError> {
        self.started.add_permits(1);
        self.permits.acquire().await.expect("the test keeps the semaphore").forget();
        let payload = snakepit_server::Payload::try_from_serde(&1).expect("a number serializes");
        if call.mode == snakepit_server::CallMode::Unary {
            return Ok(ToolReply::value(payload));
        }
        let chunk = snakepit_server::Chunk { data: "1".into(), ..snakepit_server::Chunk::default() };
        // The stream stays open.
        Ok(ToolReply::stream(stream::iter([Ok(chunk)]).chain(stream::pending()).boxed()))
    }
}

struct Fixture {
    snakepit: Snakepit,
    started: Arc<Semaphore>,
    permits: Arc<Semaphore>,
    _run_dir: tempfile::TempDir,
}

impl Fixture {
    async fn start(configure: impl FnOnce(Builder) -> Builder) -> Self {
        let run_dir = tempfile::tempdir().unwrap();
        let (started, permits) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let gated = GatedHandler { started: Arc::clone(&started), permits: Arc::clone(&permits) };
        let mut stream = ToolSpec::new("stream");
        stream.supports_streaming = true;
        let handler: Arc<dyn ToolHandler> = Arc::new(gated);
        let workers =
            InProcessWorkers::new().tool(ToolSpec::new("gated"), Arc::clone(&handler)).tool(stream, handler);
        let builder = Snakepit::builder().launcher(Arc::new(workers)).workers(4).run_dir(run_dir.path());
        let snakepit = configure(builder).start().await.unwrap();
        Self { snakepit, started, permits, _run_dir: run_dir }
    }

    /// Makes a call in a new task, and waits until its worker has begun it.
    async fn begin(&self, tool: &'static str) -> tokio::task::JoinHandle<Result<i64, Error>> {
        let caller = self.snakepit.clone();
        let call = tokio::spawn(async move { caller.execute::<i64>(tool, ()).await });
        self.started.acquire().await.unwrap().forget();
        call
    }

    async fn client(&self) -> Client {
        Client::connect(&format!("unix:{}", self.snakepit.socket().display())).await.unwrap()
    }
}

#[tokio::test]
async fn load_shedding_rejects_calls_of_programs_and_clients_with_the_right_status() {
    let fixture = Fixture::start(|b| b.layer(ServiceBuilder::new().load_shed().concurrency_limit(1))).await;
    let first = fixture.begin("gated").await;
    let client = fixture.client().await;
    for error in [
        fixture.snakepit.execute::<i64>("gated", ()).await.unwrap_err(),
        client.execute::<i64>("gated", ()).await.unwrap_err(),
        client.execute_stream::<i64>("stream", ()).await.map(drop).unwrap_err(),
    ] {
        assert!(error.is_overloaded() && error.is_retryable(), "{error:?}");
        assert_eq!(error.http_status(), 429);
        assert_eq!(error.to_string(), "a layer of the host ended the call: service overloaded");
    }
    fixture.permits.add_permits(1);
    first.await.unwrap().unwrap();
    fixture.permits.add_permits(1);
    client.execute::<i64>("gated", ()).await.unwrap();
    fixture.snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_timeout_reports_a_deadline_and_cancels_the_call() {
    let timeout = TimeoutLayer::new(Duration::from_millis(50));
    let fixture = Fixture::start(|b| b.workers(1).layer(timeout)).await;
    let client = fixture.client().await;
    let running = client.execute::<i64>("gated", ()).await.unwrap_err();
    assert!(running.is_timeout() && running.may_have_run(), "{running:?}");
    assert_eq!(running.to_string(), "a layer of the host ended the call: request timed out");
    // The worker is free again, and a stream outlives the timeout once it has begun.
    fixture.permits.add_permits(1);
    let mut items = client.execute_stream::<i64>("stream", ()).await.unwrap();
    assert_eq!(items.try_next().await.unwrap(), Some(1));
    assert!(
        tokio::time::timeout(Duration::from_millis(200), items.next()).await.is_err(),
        "the stream stays open"
    );
    let queued = fixture.snakepit.execute::<i64>("gated", ()).await.unwrap_err();
    assert!(queued.is_timeout() && queued.is_retryable(), "the stream occupies the worker: {queued:?}");
    drop(items);
    fixture.snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn calls_that_wait_for_a_limit_keep_their_deadline_and_can_be_dropped() {
    let fixture = Fixture::start(|b| b.layer(ConcurrencyLimitLayer::new(1))).await;
    let first = fixture.begin("gated").await;
    let client = fixture.client().await;
    let short = Duration::from_millis(50);
    for error in [
        fixture.snakepit.call("gated").timeout(short).unary::<i64>().await.unwrap_err(),
        client.call("gated").timeout(short).unary::<i64>().await.unwrap_err(),
    ] {
        let is_queued = matches!(
            &error,
            Error::Tool(ToolError::DeadlineExceeded { stage: snakepit_server::CallStage::Queued, .. })
        );
        assert!(is_queued && error.is_retryable(), "{error:?}");
    }
    let waiting = fixture.snakepit.execute::<i64>("gated", ());
    assert!(tokio::time::timeout(short, waiting).await.is_err(), "the limit is reached");
    // Dropping the running call frees its permit and its worker.
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    let next = fixture.begin("gated").await;
    // A shutdown ends the call that waits.
    let caller = fixture.snakepit.clone();
    let waiting = tokio::spawn(async move { caller.execute::<i64>("gated", ()).await });
    fixture.snakepit.shutdown_within(short).await.unwrap();
    for cut in [next, waiting] {
        assert_eq!(cut.await.unwrap().unwrap_err().kind(), ErrorKind::ShuttingDown);
    }
}

#[tokio::test]
async fn a_rate_limit_behind_a_buffer_spaces_calls() {
    let pause = Duration::from_millis(60);
    let limit = ServiceBuilder::new().buffer(8).rate_limit(1, pause);
    let fixture = Fixture::start(|b| b.layer(limit)).await;
    fixture.permits.add_permits(3);
    let start = tokio::time::Instant::now();
    let calls = (0..3).map(|_| fixture.snakepit.execute::<i64>("gated", ()));
    for reply in futures_util::future::join_all(calls).await {
        reply.unwrap();
    }
    assert!(start.elapsed() >= 2 * pause, "{:?}", start.elapsed());
    fixture.snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn host_tools_pass_the_layers_but_their_own_calls_do_not_pass_them_again() {
    let count = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&count);
    let counting = MapRequestLayer::new(move |mut call: ToolCall| {
        seen.fetch_add(1, Ordering::Relaxed);
        call.metadata.insert("tenant".to_owned(), "acme".to_owned());
        call
    });
    let handle: Arc<std::sync::OnceLock<Snakepit>> = Arc::default();
    let inner = Arc::clone(&handle);
    let outer = FnTool::new("outer", move |_: HashMap<String, Value>, context: ToolContext| {
        let snakepit = inner.get().unwrap().clone();
        async move {
            let sum: i64 = snakepit.execute("gated", ()).await.map_err(|error| error.to_string())?;
            Ok::<_, String>(json!({"sum": sum, "tenant": context.metadata["tenant"]}))
        }
    });
    let fixture =
        Fixture::start(|b| b.layer(counting).layer(ConcurrencyLimitLayer::new(1)).fn_tool(outer)).await;
    handle.set(fixture.snakepit.clone()).unwrap();
    fixture.permits.add_permits(2);
    // With the limit of 1, the inner call would wait for the outer one.
    let reply: Value = fixture.client().await.execute("outer", ()).await.unwrap();
    assert_eq!(reply, json!({"sum": 1, "tenant": "acme"}));
    assert_eq!(count.load(Ordering::Relaxed), 1);
    let missing = fixture.snakepit.execute::<i64>("no_such", ()).await.unwrap_err();
    assert_eq!((missing.kind(), count.load(Ordering::Relaxed)), (ErrorKind::ToolNotFound, 2));
    fixture.snakepit.shutdown().await.unwrap();
}

/// A layer that rejects every call.
fn rejecting_layer() -> impl tower::Layer<
    CallService,
    Service: Service<ToolCall, Response = ToolReply, Error = ToolError, Future: Send> + Clone + Send + Sync,
> + Send
+ Sync {
    tower::layer::layer_fn(|_| {
        tower::service_fn(|_: ToolCall| async { Err::<ToolReply, _>(ToolError::rejected("no calls")) })
    })
}

#[tokio::test]
async fn a_client_that_calls_a_host_tool_as_workers_do_passes_the_layers() {
    use snakepit_proto::pb;

    for (rejects, tool, code) in [
        (true, "one", tonic::Code::FailedPrecondition),
        (false, "one", tonic::Code::Ok),
        (false, "gated", tonic::Code::NotFound),
    ] {
        let fixture = Fixture::start(|b| {
            let b = b.host_tool("one", |_: Value| async { 1 });
            if rejects { b.layer(rejecting_layer()) } else { b.layer(ConcurrencyLimitLayer::new(1)) }
        })
        .await;
        let url = format!("unix://{}", fixture.snakepit.socket().display());
        let channel = tonic::transport::Endpoint::try_from(url).unwrap().connect().await.unwrap();
        let mut client = pb::bridge_service_client::BridgeServiceClient::new(channel);
        let request = pb::ExecuteElixirToolRequest { tool_name: tool.to_owned(), ..Default::default() };
        let reply = client.execute_elixir_tool(request).await;
        assert_eq!(reply.as_ref().err().map_or(tonic::Code::Ok, tonic::Status::code), code, "{reply:?}");
        fixture.snakepit.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn a_panic_of_a_layer_fails_only_its_call() {
    let panicking = MapRequestLayer::new(|call: ToolCall| {
        assert!(!call.metadata.contains_key("panic"), "on purpose");
        call
    });
    let fixture = Fixture::start(|b| b.layer(panicking)).await;
    let client = fixture.client().await;
    let caller = client.clone();
    let other = tokio::spawn(async move { caller.execute::<i64>("gated", ()).await });
    fixture.started.acquire().await.unwrap().forget();
    for error in [
        client.call("gated").metadata("panic", "1").unary::<i64>().await.unwrap_err(),
        fixture.snakepit.call("gated").metadata("panic", "1").unary::<i64>().await.unwrap_err(),
    ] {
        assert_eq!((error.kind(), error.may_have_run()), (ErrorKind::Rejected, false), "{error:?}");
        assert_eq!(error.to_string(), "a layer of the host ended the call: it panicked: on purpose");
    }
    fixture.permits.add_permits(1);
    assert_eq!(other.await.unwrap().unwrap(), 1, "the connection and its other call remain");
    fixture.snakepit.shutdown().await.unwrap();
}

/// Retries overloaded calls up to three times.
#[derive(Debug, Clone)]
struct RetryOverloaded(usize);

impl tower::retry::Policy<ToolCall, ToolReply, ToolError> for RetryOverloaded {
    type Future = std::future::Ready<()>;

    fn retry(&mut self, _: &mut ToolCall, result: &mut Result<ToolReply, ToolError>) -> Option<Self::Future> {
        let is_overloaded = result.as_ref().is_err_and(ToolError::is_overloaded);
        self.0 = self.0.checked_sub(1)?;
        is_overloaded.then(|| std::future::ready(()))
    }

    fn clone_request(&mut self, call: &ToolCall) -> Option<ToolCall> {
        Some(call.clone())
    }
}

#[tokio::test]
async fn a_retry_layer_sees_the_errors_of_the_layers_inside_of_it() {
    let attempts = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&attempts);
    let overloaded_twice = tower::util::MapResultLayer::new(move |result: Result<ToolReply, ToolError>| {
        if seen.fetch_add(1, Ordering::Relaxed) < 2 {
            return Err(tower::BoxError::from(tower::load_shed::error::Overloaded::new()));
        }
        Ok(result?)
    });
    let retry = tower::retry::RetryLayer::new(RetryOverloaded(3));
    let fixture = Fixture::start(|b| b.layer(retry).layer(overloaded_twice)).await;
    fixture.permits.add_permits(3);
    assert_eq!(fixture.snakepit.execute::<i64>("gated", ()).await.unwrap(), 1);
    assert_eq!(attempts.load(Ordering::Relaxed), 3);
    fixture.snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn calls_of_host_tools_through_the_service_pass_no_attempt_layers() {
    let count = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&count);
    let counting = MapRequestLayer::new(move |call: ToolCall| {
        seen.fetch_add(1, Ordering::Relaxed);
        call
    });
    let fixture =
        Fixture::start(|b| b.attempt_layer(counting).host_tool("one", |_: Value| async { 1 })).await;
    fixture.permits.add_permits(1);
    let mut service = ServiceBuilder::new().concurrency_limit(1).service(fixture.snakepit.service());
    for tool in ["gated", "one"] {
        let reply = service.ready().await.unwrap().call(ToolCall::new(tool)).await.unwrap();
        let ReplyBody::Value(value) = reply.body else { panic!("a stream") };
        assert_eq!(value.to_serde::<i64>().unwrap(), 1);
    }
    assert_eq!(count.load(Ordering::Relaxed), 1, "a host tool has no attempts");
    fixture.snakepit.shutdown().await.unwrap();
}
