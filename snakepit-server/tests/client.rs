//! The options, the operations and the closing of a client, with hosts in this process.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests may panic and detach tasks")]

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    extract::Request,
    http::StatusCode,
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt, TryStreamExt};
use serde_json::{Value, json};
use snakepit_server::{
    Client, ClientBuilder, Error, ErrorKind, FnTool, PageRequest, Payload, Program, SessionError,
    SessionEventKind, SessionWatchEvent, Snakepit, ToolCall, ToolError, ToolHandler, ToolReply, ToolSpec,
    status::{from_session_error, from_write_error},
    testing::InProcessWorkers,
    transport::HttpService,
};
use tokio::{net::TcpListener, sync::Semaphore, time::Instant};
use tower::{layer::layer_fn, util::MapRequestLayer};

const TEST_TIMEOUT: Duration = Duration::from_secs(8);

/// The number of calls that have begun, and the permits for their answers.
#[derive(Debug)]
struct Semaphores(Semaphore, Semaphore);

impl Default for Semaphores {
    fn default() -> Self {
        Self(Semaphore::new(0), Semaphore::new(0))
    }
}

/// A handler whose calls wait for permits of the test, even before a stream begins. The reply has the metadata of the call.
#[derive(Debug, Clone, Default)]
struct Gated(Arc<Semaphores>);

impl Gated {
    /// Waits until a call has begun.
    async fn started(&self) {
        tokio::time::timeout(TEST_TIMEOUT, self.0.0.acquire())
            .await
            .expect("the call begins")
            .unwrap()
            .forget();
    }

    fn permit(&self) {
        self.0.1.add_permits(1);
    }
}

#[async_trait::async_trait]
impl ToolHandler for Gated {
    async fn call(&self, call: ToolCall) -> Result<ToolReply, ToolError> {
        self.0.0.add_permits(1);
        self.0.1.acquire().await.expect("the test keeps the semaphore").forget();
        let mut reply = ToolReply::value(Payload::try_from_serde(&1).expect("a number serializes"));
        reply.metadata = call.metadata;
        Ok(reply)
    }
}

struct Fixture {
    snakepit: Snakepit,
    gated: Gated,
    _run_dir: tempfile::TempDir,
}

impl Fixture {
    /// Starts a host whose tool `name` returns this name.
    async fn start(name: &'static str) -> Self {
        Self::listen(name, ([127, 0, 0, 1], 0).into()).await
    }

    async fn listen(name: &'static str, address: std::net::SocketAddr) -> Self {
        let (run_dir, gated) = (tempfile::tempdir().unwrap(), Gated::default());
        let endless = FnTool::new("endless", |_: BTreeMap<String, Value>| {
            futures_util::stream::iter([1]).chain(futures_util::stream::pending())
        });
        let mut opens_late = ToolSpec::new("opens_late");
        opens_late.supports_streaming = true;
        let workers = InProcessWorkers::new()
            .fn_tool(FnTool::typed("name", move |_: BTreeMap<String, Value>| async move { name }))
            .fn_tool(endless)
            .tool(ToolSpec::new("gated"), Arc::new(gated.clone()))
            .tool(opens_late, Arc::new(gated.clone()));
        let snakepit = Snakepit::builder()
            .launcher(Arc::new(workers))
            .workers(8)
            .run_dir(run_dir.path())
            .listen(address)
            .start()
            .await
            .unwrap();
        Self { snakepit, gated, _run_dir: run_dir }
    }

    fn address(&self) -> String {
        self.snakepit.address().unwrap().to_string()
    }

    async fn client(&self) -> Client {
        Client::connect(&self.address()).await.unwrap()
    }
}

async fn name_from(client: &Client) -> Result<String, Error> {
    tokio::time::timeout(TEST_TIMEOUT, client.execute::<String>("name", ())).await.expect("the call ends")
}

/// The service of a program that requires a token.
async fn require_token(request: Request, next: Next) -> Response {
    match request.headers().get("authorization").map(|token| token.as_bytes()) {
        Some(b"Bearer secret") => next.run(request).await,
        Some(_) => StatusCode::FORBIDDEN.into_response(),
        None => StatusCode::UNAUTHORIZED.into_response(),
    }
}

#[tokio::test]
async fn layers_see_the_token_and_a_missing_token_is_denied() {
    let host = Fixture::start("a").await;
    let guarded = host.snakepit.routes().into_axum_router().layer(middleware::from_fn(require_token));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let record = |name: &'static str| {
        let seen = Arc::clone(&seen);
        MapRequestLayer::new(move |request: http::Request<snakepit_server::transport::Body>| {
            let header = |key: &str| {
                request.headers().get(key).map(|value: &http::HeaderValue| value.to_str().unwrap().to_owned())
            };
            let both = (name, header("authorization"), header("tenant"));
            seen.lock().unwrap().push(both);
            request
        })
    };
    let builder = Client::builder().bearer_token("secret").metadata("tenant", "acme");
    let client =
        builder.layer(record("first")).layer(record("second")).connect_over(guarded.clone()).await.unwrap();
    assert_eq!(name_from(&client).await.unwrap(), "a");
    let expected = |name| (name, Some("Bearer secret".to_owned()), Some("acme".to_owned()));
    assert_eq!(seen.lock().unwrap()[..2], [expected("first"), expected("second")]);
    for (builder, status) in [(Client::builder(), "401"), (Client::builder().bearer_token("old"), "403")] {
        let denied = builder.connect_over(guarded.clone()).await.unwrap_err();
        assert_eq!((denied.kind(), denied.is_retryable()), (ErrorKind::AccessDenied, false), "{denied:?}");
        assert!(
            denied.to_string().contains(status) && denied.to_string().contains("bearer_token"),
            "{denied}"
        );
    }
    host.snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_permission_that_is_revoked_denies_access_to_each_kind_of_request() {
    let host = Fixture::start("a").await;
    let allowed = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let flag = Arc::clone(&allowed);
    let check = middleware::from_fn(move |request: Request, next: Next| {
        let is_allowed = flag.load(std::sync::atomic::Ordering::Relaxed);
        async move { if is_allowed { next.run(request).await } else { StatusCode::FORBIDDEN.into_response() } }
    });
    let client =
        Client::builder().connect_over(host.snakepit.routes().into_axum_router().layer(check)).await.unwrap();
    let session = client.session("s").await.unwrap();
    allowed.store(false, std::sync::atomic::Ordering::Relaxed);
    let large = "x".repeat(1 << 20);
    for denied in [
        client.call("name").arg("large", large).unary::<String>().await.unwrap_err(),
        session.info().await.unwrap_err(),
        session.watch_all().await.unwrap().next().await.unwrap().unwrap_err(),
        client.tools().await.map(drop).unwrap_err(),
    ] {
        assert_eq!((denied.kind(), denied.may_have_run()), (ErrorKind::AccessDenied, false), "{denied:?}");
    }
    host.snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn the_client_fails_over_when_a_host_is_lost() {
    let (first, second) = (Fixture::start("first").await, Fixture::start("second").await);
    let second_address = format!("unix:{}", second.snakepit.socket().display());
    let client = Client::builder().fallback(second_address).connect(&first.address()).await.unwrap();
    assert_eq!(name_from(&client).await.unwrap(), "first");
    first.snakepit.shutdown().await.unwrap();
    assert_eq!(name_from(&client).await.unwrap(), "second");
    client.session("s").await.unwrap();
    assert_eq!(second.snakepit.sessions().stats().await.unwrap().live, 1);
    second.snakepit.shutdown().await.unwrap();
    let error = name_from(&client).await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
}

#[tokio::test]
async fn requests_other_than_calls_fail_over_too() {
    let (first, second) = (Fixture::start("first").await, Fixture::start("second").await);
    let client = Client::builder().fallback(second.address()).connect(&first.address()).await.unwrap();
    first.snakepit.shutdown().await.unwrap();
    // A connection that was closed gracefully may fail the first request, and the second cannot connect, because the listener
    // is closed.
    let large = "x".repeat(1 << 20);
    client.session("s").await.unwrap();
    let reply = client.call("name").arg("large", large).unary::<String>().await.unwrap();
    assert_eq!(reply.value, "second");
    second.snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn calls_move_on_from_a_host_that_drains_and_running_ones_stay() {
    let (first, second) = (Fixture::start("first").await, Fixture::start("second").await);
    let clients = async || {
        let builder = Client::builder().fallback(second.address());
        builder.connect(&first.address()).await.unwrap()
    };
    let (client, other, alone) = (clients().await, clients().await, first.client().await);
    let large = "x".repeat(1 << 20);
    // On the shared stream, and as a separate RPC.
    let calls = [client.call("gated"), client.call("gated").arg("large", &large)];
    let mut running = Vec::new();
    for call in calls {
        running.push(tokio::spawn(call.unary::<i64>()));
        first.gated.started().await;
    }
    let (mut readiness, draining) = (first.snakepit.readiness(), first.snakepit.clone());
    let draining = tokio::spawn(async move { draining.shutdown_within(TEST_TIMEOUT).await });
    let begun = readiness.wait_for(|readiness| !readiness.serves_calls());
    tokio::time::timeout(TEST_TIMEOUT, begun).await.expect("the shutdown begins").unwrap();

    let rejected = name_from(&alone).await.unwrap_err();
    assert!(rejected.kind() == ErrorKind::ShuttingDown && !rejected.may_have_run(), "{rejected:?}");
    let names = futures_util::future::join_all((0..100).map(|_| name_from(&client))).await;
    assert!(names.iter().all(|name| name.as_deref().is_ok_and(|name| name == "second")), "{names:?}");
    let separate = other.call("name").arg("large", &large).unary::<String>().await.unwrap();
    assert_eq!(separate.value, "second");
    assert!(!draining.is_finished() && running.iter().all(|call| !call.is_finished()));
    for call in running {
        first.gated.permit();
        assert_eq!(tokio::time::timeout(TEST_TIMEOUT, call).await.unwrap().unwrap().unwrap().value, 1);
    }
    tokio::time::timeout(TEST_TIMEOUT, draining).await.expect("the host ends").unwrap().unwrap();
    assert_eq!(name_from(&client).await.unwrap(), "second");
    second.snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_failed_backend_may_have_written_but_not_read() {
    let failing = layer_fn(|_: HttpService| {
        tower::service_fn(|request: http::Request<snakepit_server::transport::Body>| async move {
            let (error, path) = (SessionError::backend("reset"), request.uri().path());
            let is_write = path.ends_with("PutProgram");
            let status = if is_write { from_write_error(&error) } else { from_session_error(&error) };
            Ok::<_, tonic::Status>(status.into_http::<snakepit_server::transport::Body>())
        })
    });
    let client = Client::builder().layer(failing).connect_lazily("127.0.0.1:1").unwrap();
    let programs = client.global_programs();
    let write = programs.put("model", Program::new("weights", "text/plain")).await.unwrap_err();
    let read = programs.get("model").await.unwrap_err();
    assert_eq!((read.kind(), read.to_string()), (write.kind(), write.to_string()));
    assert!(write.may_have_run() && !write.is_retryable(), "{write:?}");
    assert!(!read.may_have_run() && read.is_retryable(), "{read:?}");
}

#[tokio::test]
async fn each_address_gets_a_share_of_the_time_for_connecting() {
    let host = Fixture::start("a").await;
    // Accepts connections and sends nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = silent.local_addr().map(|address| (silent, address.to_string())).unwrap();
    let start = Instant::now();
    let builder = Client::builder().connect_timeout(Duration::from_secs(2)).fallback("127.0.0.1:1");
    let client = builder.clone().fallback(host.address()).connect(&silent.1).await.unwrap();
    assert_eq!(name_from(&client).await.unwrap(), "a");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    let error = builder.connect(&silent.1).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&format!("{}: it did not answer within 1s; 127.0.0.1:1: ", silent.1)), "{text}");
    assert!(error.is_retryable(), "{error:?}");
    host.snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_lazy_client_connects_with_its_first_request() {
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let client = Client::builder().connect_lazily(&port.to_string()).unwrap();
    let error = name_from(&client).await.unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("refused"), "{error}");
    let host = Fixture::listen("late", port).await;
    assert_eq!(name_from(&client).await.unwrap(), "late");
    host.snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn calls_have_the_default_timeout_and_the_earlier_of_two_deadlines() {
    let host = Fixture::start("a").await;
    let short = Duration::from_millis(150);
    let client = Client::builder().default_timeout(short).connect(&host.address()).await.unwrap();
    let start = Instant::now();
    for call in [
        client.call("gated"),
        client.call("gated").timeout(Duration::from_secs(60)).deadline(Instant::now() + short),
        client.call("gated").timeout(short).deadline(Instant::now() + Duration::from_secs(60)),
    ] {
        let late = tokio::time::timeout(TEST_TIMEOUT, call.unary::<i64>()).await.unwrap().unwrap_err();
        assert!(late.is_timeout(), "{late:?}");
    }
    assert!(start.elapsed() < TEST_TIMEOUT);
    host.snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_reply_has_the_metadata_of_the_tool() {
    let host = Fixture::start("a").await;
    host.gated.permit();
    let reply = host.client().await.call("gated").metadata("key", "value").unary::<i64>().await.unwrap();
    assert_eq!(reply.metadata().get("key").map(String::as_str), Some("value"));
    host.snakepit.shutdown().await.unwrap();
}

fn is_closed(error: &Error, may_have_run: bool) -> bool {
    error.kind() == ErrorKind::ClientClosed && error.may_have_run() == may_have_run
}

#[tokio::test]
async fn a_close_waits_for_calls_in_flight_and_rejects_new_ones() {
    let host = Fixture::start("a").await;
    let client = host.client().await;
    let session = client.session("s").await.unwrap();
    let mut watch = session.watch_all().await.unwrap();
    let caller = client.clone();
    let call = tokio::spawn(async move { caller.execute::<i64>("gated", ()).await });
    host.gated.started().await;
    let closer = client.clone();
    let closing = tokio::spawn(async move { closer.close(TEST_TIMEOUT).await });
    // The watch ends when the close begins.
    let last = tokio::time::timeout(TEST_TIMEOUT, watch.next()).await.unwrap().unwrap().unwrap_err();
    assert!(is_closed(&last, false), "{last:?}");
    assert!(watch.next().await.is_none());
    for rejected in [
        client.execute::<i64>("gated", ()).await.unwrap_err(),
        client.execute_stream::<i64>("endless", ()).await.map(drop).unwrap_err(),
        session.info().await.unwrap_err(),
        client.session("t").await.map(drop).unwrap_err(),
        session.watch_all().await.map(drop).unwrap_err(),
    ] {
        assert!(is_closed(&rejected, false), "{rejected:?}");
    }
    assert!(!closing.is_finished());
    host.gated.permit();
    assert_eq!(call.await.unwrap().unwrap(), 1);
    assert!(tokio::time::timeout(TEST_TIMEOUT, closing).await.unwrap().unwrap(), "no call was cut");
    assert!(client.close(Duration::ZERO).await, "a second close finds nothing");
    host.snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_close_cuts_calls_and_streams_after_the_limit() {
    let host = Fixture::start("a").await;
    let client = host.client().await;
    let large = || "x".repeat(1 << 20);
    // On the shared stream, and as separate RPCs.
    let mut shared = client.execute_stream::<i64>("endless", ()).await.unwrap();
    let mut separate = client.call("endless").arg("large", large()).stream::<i64>().await.unwrap();
    assert_eq!((shared.next().await.unwrap().unwrap(), separate.next().await.unwrap().unwrap()), (1, 1));
    let mut waiting = Vec::new();
    for is_large in [false, true] {
        for streams in [false, true] {
            let call = client.call(if streams { "opens_late" } else { "gated" });
            let call = if is_large { call.arg("large", large()) } else { call };
            waiting.push(tokio::spawn(async move {
                if streams {
                    call.stream::<i64>().await.map(drop)
                } else {
                    call.unary::<i64>().await.map(drop)
                }
            }));
            host.gated.started().await;
        }
    }
    let ended = tokio::time::timeout(TEST_TIMEOUT, client.close(Duration::from_millis(50))).await.unwrap();
    assert!(!ended, "calls were cut");
    for call in waiting {
        let cut =
            tokio::time::timeout(TEST_TIMEOUT, call).await.expect("the call is cut").unwrap().unwrap_err();
        assert!(is_closed(&cut, true), "{cut:?}");
    }
    for stream in [&mut shared, &mut separate] {
        let last =
            tokio::time::timeout(TEST_TIMEOUT, stream.next()).await.expect("the stream is cut").unwrap();
        assert!(is_closed(&last.unwrap_err(), true));
        assert!(stream.next().await.is_none());
    }
    // The streams released what they held, although they were not dropped.
    assert!(client.close(TEST_TIMEOUT).await);
    let idle = || host.snakepit.status().in_flight == 0;
    let start = Instant::now();
    while !idle() {
        assert!(start.elapsed() < TEST_TIMEOUT, "the host cancels the calls");
        tokio::task::yield_now().await;
    }
    host.snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn operations_of_the_host() {
    let host = Fixture::start("a").await;
    let client = host.client().await;
    assert!(client.ping().await.unwrap() < TEST_TIMEOUT);
    let mut tools = client.tools().await.unwrap();
    tools.sort_by(|(one, _), (other, _)| one.name.cmp(&other.name));
    let names: Vec<_> =
        tools.iter().map(|(spec, provider)| (spec.name.as_str(), provider.as_str())).collect();
    let all = ["endless", "gated", "name", "opens_late"].map(|name| (name, "default"));
    assert_eq!(names, all);
    assert!(tools[0].0.supports_streaming && !tools[1].0.supports_streaming);
    let workers = client.workers().await.unwrap();
    assert_eq!((workers.len(), workers[0].state.as_str(), workers[0].pid), (8, "idle", None));
    name_from(&client).await.unwrap();
    // Remote and local programs read the same values.
    let (remote, local) = (client.status().await.unwrap(), host.snakepit.status());
    assert_eq!((remote.calls.succeeded, remote.in_flight, remote.workers.len()), (1, 0, 8));
    assert_eq!(serde_json::to_value(&remote).unwrap(), serde_json::to_value(&local).unwrap());

    let mut events = client.session_events().await.unwrap();
    for id in ["a", "b", "c"] {
        client.session(id).await.unwrap();
    }
    let event = tokio::time::timeout(TEST_TIMEOUT, events.next()).await.unwrap().unwrap().unwrap();
    assert!(
        matches!(&event, SessionWatchEvent::Session(event) if event.id.as_str() == "a" && event.kind == SessionEventKind::Created),
        "{event:?}"
    );
    let first = client.sessions(PageRequest { size: 2, token: None }).await.unwrap();
    let rest = client.sessions(PageRequest { size: 2, token: first.next.clone() }).await.unwrap();
    let ids: Vec<_> = first.items.iter().chain(&rest.items).map(|session| session.id.as_str()).collect();
    assert_eq!((ids, rest.next), (vec!["a", "b", "c"], None));
    assert!(first.items[0].expires_at > first.items[0].created_at);
    assert_eq!(client.session_stats().await.unwrap().live, 3);

    let programs = client.global_programs();
    programs.put("model", Program::new("weights", "text/plain")).await.unwrap();
    assert_eq!(programs.get("model").await.unwrap().data, "weights");
    assert_eq!(programs.list().await.unwrap()[0].size, 7);
    programs.delete("model").await.unwrap();
    assert_eq!(programs.get("model").await.unwrap_err().http_status(), 404);
    client.close(TEST_TIMEOUT).await;
    let last = tokio::time::timeout(TEST_TIMEOUT, events.try_collect::<Vec<_>>()).await.unwrap().unwrap_err();
    assert!(is_closed(&last, false), "{last:?}");
    host.snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_layer_can_end_requests_with_a_status() {
    let host = Fixture::start("a").await;
    let rejecting = layer_fn(|_: HttpService| {
        tower::service_fn(|_: http::Request<snakepit_server::transport::Body>| async {
            Err::<http::Response<snakepit_server::transport::Body>, _>(tonic::Status::permission_denied(
                "not today",
            ))
        })
    });
    let builder: ClientBuilder = Client::builder().layer(rejecting);
    let error = builder.connect(&host.address()).await.unwrap_err();
    assert!(error.kind() == ErrorKind::AccessDenied && error.to_string().contains("not today"), "{error:?}");
    let client = host.client().await;
    let sum: Value = client.execute("name", json!({})).await.unwrap();
    assert_eq!(sum, "a");
    host.snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_call_at_most_once_is_not_repeated_although_its_tool_is_idempotent() {
    let run_dir = tempfile::tempdir().unwrap();
    let one = FnTool::typed("one", |_: BTreeMap<String, Value>| async { 1 }).describe(ToolSpec::idempotent);
    let workers = InProcessWorkers::new().fn_tool(one);
    let builder = Snakepit::builder().launcher(Arc::new(workers.clone())).workers(2).run_dir(run_dir.path());
    let snakepit = builder.start().await.unwrap();
    let client = Client::connect(&format!("unix:{}", snakepit.socket().display())).await.unwrap();
    let large = "x".repeat(1 << 20);
    for call in [
        client.call("one").at_most_once(),
        client.call("one").arg("large", &large).idempotent().at_most_once(),
    ] {
        workers.crash_in_calls("one", 1);
        let lost = call.unary::<i64>().await.unwrap_err();
        assert_eq!((lost.kind(), lost.may_have_run()), (ErrorKind::WorkerLost, true), "{lost:?}");
    }
    for call in [client.call("one"), client.call("one").at_most_once().idempotent()] {
        workers.crash_in_calls("one", 1);
        assert_eq!(call.unary::<i64>().await.unwrap().value, 1);
    }
    snakepit.shutdown().await.unwrap();
}
