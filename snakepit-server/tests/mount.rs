//! The gRPC services of a host, mounted in another server: limits, deadlines, roles and shutdown.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests may panic and detach tasks")]

use std::{
    collections::BTreeMap,
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream};
use http_body::Frame;
use snakepit_proto::pb::{self, bridge_service_client::BridgeServiceClient};
use snakepit_server::{
    Builder, Client, ErrorKind, FnTool, Principal, SessionErrorKind, Snakepit, ToolCall, ToolError,
    ToolFailure, ToolHandler, ToolReply, ToolSpec, TracebackPolicy, VariableType, routes::Routes,
    testing::InProcessWorkers,
};
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;
use tonic::{Code, Request};
use tower::ServiceExt;

const TEST_TIMEOUT: Duration = Duration::from_secs(8);
const EXECUTE: &str = "/snakepit.bridge.BridgeService/ExecuteTool";
const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
const MULTIPLEX: &str = "/snakepit.bridge.BridgeService/Multiplex";

struct Fixture {
    snakepit: Snakepit,
    _run_dir: tempfile::TempDir,
}

impl Fixture {
    async fn start(configure: impl FnOnce(Builder) -> Builder) -> Self {
        let run_dir = tempfile::tempdir().unwrap();
        let echo =
            FnTool::typed("echo", |arguments: BTreeMap<String, serde_json::Value>| async move { arguments });
        let endless =
            FnTool::new("endless", |_: BTreeMap<String, u64>| stream::iter([1]).chain(stream::pending()));
        let sleep = FnTool::typed("sleep", |_: BTreeMap<String, u64>| std::future::pending::<i64>());
        let workers = InProcessWorkers::new().fn_tool(echo).fn_tool(endless).fn_tool(sleep);
        let builder = Snakepit::builder().launcher(Arc::new(workers)).workers(2).run_dir(run_dir.path());
        Self { snakepit: configure(builder).start().await.unwrap(), _run_dir: run_dir }
    }

    /// A client of the mounted services, without a connection.
    fn client(&self) -> BridgeServiceClient<Routes> {
        BridgeServiceClient::new(self.snakepit.routes())
            .max_decoding_message_size(usize::MAX)
            .max_encoding_message_size(usize::MAX)
    }
}

fn call_of(tool: &str) -> pb::ExecuteToolRequest {
    pb::ExecuteToolRequest { tool_name: tool.to_owned(), ..Default::default() }
}

/// A body that sends some bytes and never ends. Dropping it drops the sender.
struct Unfinished(Option<Bytes>, Option<oneshot::Sender<()>>);

impl http_body::Body for Unfinished {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.take().map_or(Poll::Pending, |data| Poll::Ready(Some(Ok(Frame::data(data)))))
    }
}

/// A request that announces `announced` bytes and sends `sent` of them.
fn unfinished(path: &str, announced: u32, sent: usize) -> http::Request<Unfinished> {
    let mut data = vec![0];
    data.extend(announced.to_be_bytes());
    data.resize(sent, 7);
    let request =
        http::Request::post(format!("http://localhost{path}")).header("content-type", "application/grpc");
    request.body(Unfinished(Some(data.into()), None)).unwrap()
}

#[tokio::test]
async fn clients_of_a_tonic_server_use_the_host() {
    let fixture = Fixture::start(|builder| builder).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tonic::transport::Server::builder().add_routes(fixture.snakepit.routes());
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let signal = fixture.snakepit.shutdown_after(async { drop(stopped.await) }, Duration::from_millis(200));
    let tasks = TaskTracker::new();
    let serving = tasks.spawn(server.serve_with_incoming_shutdown(incoming, signal));
    let client = Client::connect(&address.to_string()).await.unwrap();
    let text = "x".repeat(8 << 20);
    let echoed: BTreeMap<String, String> =
        client.call("echo").arg("text", &text).unary().await.unwrap().value;
    assert!(echoed["text"] == text, "large messages pass");
    let session = client.session("alice").await.unwrap();
    let mut watch = session.watch_all().await.unwrap();
    // The call does not end within the drain.
    let sleeping = tokio::spawn(async move { client.call("sleep").unary::<i64>().await.map(drop) });
    while fixture.snakepit.status().in_flight == 0 {
        tokio::task::yield_now().await;
    }
    stop.send(()).unwrap();
    let last =
        tokio::time::timeout(TEST_TIMEOUT, watch.next()).await.expect("the watch ends").unwrap().unwrap_err();
    assert_eq!(last.kind(), snakepit_server::ErrorKind::ShuttingDown, "{last:?}");
    let cut_off =
        tokio::time::timeout(TEST_TIMEOUT, sleeping).await.expect("the drain is short").unwrap().unwrap_err();
    assert_eq!(cut_off.kind(), snakepit_server::ErrorKind::ShuttingDown, "{cut_off:?}");
    tokio::time::timeout(TEST_TIMEOUT, serving).await.expect("the server ends").unwrap().unwrap();
}

/// Answers as a host of an earlier version, which cannot delete several variables in one step.
async fn without_delete_variables(
    request: axum::extract::Request,
    next: axum::middleware::Next,
) -> axum::response::Response {
    if request.uri().path().ends_with("/DeleteVariables") {
        return tonic::Status::unimplemented("").into_http();
    }
    next.run(request).await
}

#[tokio::test]
async fn many_variables_are_deleted_one_by_one_on_hosts_of_earlier_versions() {
    let fixture = Fixture::start(|builder| builder).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let layer = axum::middleware::from_fn(without_delete_variables);
    let router = fixture.snakepit.routes().into_axum_router().route_layer(layer);
    let serving = tokio::spawn(axum::serve(listener, router).into_future());

    let session = Client::connect(&address.to_string()).await.unwrap().session("alice").await.unwrap();
    for name in ["a", "b"] {
        session.register(name, VariableType::integer(), 1).await.unwrap();
    }
    let deleted = session.delete_many(&["a", "missing", "a", "b"]).await.unwrap();
    assert_eq!(deleted, [true, false, false, true]);
    assert!(session.variables("").await.unwrap().is_empty());
    assert_eq!(session.delete_many(&[]).await.unwrap(), [false; 0]);
    session.clone().delete().await.unwrap();
    for identifiers in [&[][..], &["a"]] {
        let error = session.delete_many(identifiers).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Session(SessionErrorKind::SessionNotFound), "{error:?}");
    }
    serving.abort();
}

const TRACEBACK: &str = "File \"/srv/shop.py\"";

/// A tool that fails as a worker tool does.
#[derive(Debug)]
struct Raising;

#[async_trait::async_trait]
impl ToolHandler for Raising {
    async fn call(&self, _: ToolCall) -> Result<ToolReply, ToolError> {
        let failure = ToolFailure::new("", "no")
            .with_code("bad")
            .with_traceback(TRACEBACK.to_owned())
            .with_output_lines(vec!["a line".to_owned()])
            .with_notes(vec!["in /srv".to_owned()]);
        Err(ToolError::Failed(Box::new(failure)))
    }
}

/// A client of the program's own server that never reads its responses, over raw HTTP/2.
#[tokio::test]
async fn a_client_that_does_not_read_delays_only_itself() {
    const LARGE: usize = 3 << 20;
    let large = FnTool::new("large", || async { "x".repeat(LARGE) });
    let fixture = Fixture::start(|builder| builder.connection_bytes(4 << 20).fn_tool(large)).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = fixture.snakepit.routes().into_axum_router();
    let app = app.into_make_service_with_connect_info::<std::net::SocketAddr>();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let signal = fixture.snakepit.shutdown_after(async { drop(stopped.await) }, Duration::ZERO);
    let serving =
        tokio::spawn(async move { axum::serve(listener, app).with_graceful_shutdown(signal).await.unwrap() });

    let io = tokio::net::TcpStream::connect(address).await.unwrap();
    let (mut stalled, connection) = h2::client::handshake(io).await.unwrap();
    let connection = tokio::spawn(async move { drop(connection.await) });
    let mut unread = Vec::new();
    for _ in 0..20 {
        stalled = stalled.ready().await.unwrap();
        let request = http::Request::post(format!("http://localhost{EXECUTE}"));
        let request = request.header("content-type", "application/grpc").body(()).unwrap();
        let (response, mut send) = stalled.send_request(request, false).unwrap();
        let message = prost::Message::encode_to_vec(&call_of("large"));
        let mut data = vec![0];
        data.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
        data.extend(message);
        send.send_data(data.into(), true).unwrap();
        unread.push(response);
    }
    let first = tokio::time::timeout(TEST_TIMEOUT, unread.remove(0))
        .await
        .expect("the first response begins")
        .unwrap();
    let client = Client::connect(&address.to_string()).await.unwrap();
    for _ in 0..30 {
        let value: String = client.execute("large", ()).await.unwrap();
        assert_eq!(value.len(), LARGE, "another connection is not delayed");
    }
    // Values that cannot wait may use up to twice the limit of the connection. The others are dropped, or their calls wait.
    let begun: Vec<_> = unread.into_iter().filter_map(|response| response.now_or_never()?.ok()).collect();
    let values = begun.iter().filter(|response| !response.headers().contains_key("grpc-status")).count();
    assert!(!first.headers().contains_key("grpc-status") && values < 3, "{values} more values are unread");
    stop.send(()).unwrap();
    drop((begun, first, stalled));
    connection.abort();
    tokio::time::timeout(TEST_TIMEOUT, serving).await.expect("the server ends").unwrap();
}

#[tokio::test]
async fn clients_elsewhere_receive_errors_without_tracebacks() {
    let fixture = Fixture::start(|builder| builder.tool(ToolSpec::new("raising"), Arc::new(Raising))).await;
    for (principal, expected) in
        [(None, ""), (Some(Principal::new("alice", "token")), ""), (Some(Principal::user(7)), TRACEBACK)]
    {
        let mut request = Request::new(call_of("raising"));
        let mut streaming = Request::new(call_of("raising"));
        if let Some(principal) = principal {
            request.extensions_mut().insert(principal.clone());
            streaming.extensions_mut().insert(principal);
        }
        let failure = fixture.client().execute_tool(request).await.unwrap().into_inner().failure.unwrap();
        assert_eq!((&*failure.message, &*failure.code), ("no", "bad"));
        assert_eq!(
            (&*failure.traceback, failure.output_lines.len()),
            (expected, usize::from(!expected.is_empty()))
        );
        let status = fixture.client().execute_streaming_tool(streaming).await.unwrap_err();
        let failure = snakepit_proto::status::details_of(&status).failure.unwrap();
        assert_eq!((&*failure.message, &*failure.traceback), ("no", expected));
    }
    fixture.snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn the_policy_chooses_the_clients_that_receive_tracebacks() {
    let debuggers = TracebackPolicy::when(|principal| principal.has_grant("debug"));
    for (policy, expected) in [
        (TracebackPolicy::Always, [true, true, true]),
        (TracebackPolicy::Never, [false, false, false]),
        (debuggers, [false, false, true]),
    ] {
        let fixture = Fixture::start(|builder| {
            builder.tool(ToolSpec::new("raising"), Arc::new(Raising)).tracebacks(policy.clone())
        })
        .await;
        let alice = Principal::new("alice", "token");
        let principals = [Principal::user(7), alice.clone(), alice.with_grants(["debug"])];
        for (principal, shows) in principals.into_iter().zip(expected) {
            let mut request = Request::new(call_of("raising"));
            request.extensions_mut().insert(principal.clone());
            let failure = fixture.client().execute_tool(request).await.unwrap().into_inner().failure.unwrap();
            let has_internals = !failure.traceback.is_empty() && !failure.output_lines.is_empty();
            assert_eq!(has_internals, shows, "{policy:?}, {principal}");
            assert_eq!((failure.details_json.is_empty(), &*failure.message), (!shows, "no"));
        }
        fixture.snakepit.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn peers_are_clients_and_never_workers() {
    let fixture = Fixture::start(|builder| builder).await;
    let request = pb::RegisterToolsRequest {
        tools: vec![pb::ToolRegistration { name: "mine".to_owned(), ..Default::default() }],
        worker_id: "default-1-1".to_owned(),
        identity: Some(pb::WorkerIdentity::default()),
        ..Default::default()
    };
    let rejected = fixture.client().register_tools(request).await.unwrap_err();
    assert_eq!(rejected.code(), Code::PermissionDenied, "{rejected}");
    fixture.snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn deadlines_end_requests() {
    let fixture = Fixture::start(|builder| builder).await;
    let mut request = Request::new(call_of("sleep"));
    request.set_timeout(Duration::from_millis(200));
    let late = tokio::time::timeout(TEST_TIMEOUT, fixture.client().execute_tool(request))
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
    fixture.snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn requests_that_are_arriving_share_the_budget_of_the_host() {
    let fixture = Fixture::start(|builder| builder.queue_bytes(1 << 20)).await;
    let routes = fixture.snakepit.routes();
    // Each request is below the limit, and both together are above it.
    let first = routes.clone().oneshot(unfinished(EXECUTE, 900 << 10, 800 << 10));
    let second = routes.oneshot(unfinished(EXECUTE, 900 << 10, 800 << 10));
    tokio::pin!(first, second);
    assert!(futures_util::poll!(&mut first).is_pending());
    let response = tokio::time::timeout(TEST_TIMEOUT, &mut second).await.expect("the host answers").unwrap();
    assert_eq!(response.headers()["grpc-status"], "8", "{response:?}");
    // The budget is that of the listeners.
    let address = format!("unix:{}", fixture.snakepit.socket().display());
    let client = Client::connect(&address).await.unwrap();
    let large = "x".repeat(700 << 10);
    let error = client.call("echo").arg("text", &large).unary::<serde_json::Value>().await.unwrap_err();
    assert!(error.is_overloaded(), "{error:?}");
    assert!(futures_util::poll!(&mut first).is_pending());
    fixture.snakepit.shutdown().await.unwrap();
    let cut = tokio::time::timeout(TEST_TIMEOUT, first)
        .await
        .expect("a shutdown ends requests that arrive")
        .unwrap();
    assert_eq!(cut.headers()["grpc-status"], "14", "{cut:?}");
}

#[tokio::test]
async fn a_shutdown_ends_streams_and_rejects_later_requests() {
    let fixture = Fixture::start(|builder| builder).await;
    let mut client = fixture.client();
    let mut chunks = client.execute_streaming_tool(call_of("endless")).await.unwrap().into_inner();
    assert!(chunks.message().await.unwrap().is_some());
    let session = pb::InitializeSessionRequest { session_id: "s".to_owned(), ..Default::default() };
    client.initialize_session(session).await.unwrap();
    let watch = pb::WatchVariablesRequest { session_id: "s".to_owned(), ..Default::default() };
    let mut watch = client.watch_variables(watch).await.unwrap().into_inner();
    let mut open = Vec::new();
    for rpc in [MULTIPLEX, REFLECTION] {
        let (sender, dropped) = oneshot::channel();
        let mut request = unfinished(rpc, 100, 0);
        request.body_mut().1 = Some(sender);
        open.push((fixture.snakepit.routes().oneshot(request).await.unwrap(), dropped));
    }
    let shutdown = fixture.snakepit.shutdown_within(Duration::ZERO);
    tokio::time::timeout(TEST_TIMEOUT, shutdown).await.expect("the host shuts down").unwrap();
    for ended in [
        tokio::time::timeout(TEST_TIMEOUT, chunks.message()).await.expect("the chunks end").unwrap_err(),
        tokio::time::timeout(TEST_TIMEOUT, watch.message()).await.expect("the watch ends").unwrap_err(),
    ] {
        assert_eq!(ended.code(), Code::Unavailable, "{ended}");
    }
    for (response, request_dropped) in open {
        let mut body = response.into_body();
        let end = std::future::poll_fn(|cx| http_body::Body::poll_frame(Pin::new(&mut body), cx));
        let end = tokio::time::timeout(TEST_TIMEOUT, end).await.expect("the stream ends").unwrap().unwrap();
        assert_eq!(end.into_trailers().unwrap()["grpc-status"], "14");
        // A server drops the body of a response that has ended.
        drop(body);
        let dropped = tokio::time::timeout(TEST_TIMEOUT, request_dropped).await;
        assert!(dropped.expect("the request ends with its response").is_err());
    }
    // The program's server may still have open connections.
    let late = client.ping(pb::PingRequest::default()).await.unwrap_err();
    assert_eq!((late.code(), late.message()), (Code::Unavailable, "the host is shutting down"));
}

#[tokio::test]
async fn a_server_with_its_own_health_checks_mounts_the_bridge_alone() {
    let fixture = Fixture::start(|builder| builder).await;
    let own = axum::Router::new()
        .route("/grpc.health.v1.Health/{*rpc}", axum::routing::any(|| async { "mine" }))
        .merge(fixture.snakepit.bridge_routes().into_axum_router());
    let request =
        http::Request::post("/grpc.health.v1.Health/Check").body(axum::body::Body::empty()).unwrap();
    let response = own.clone().oneshot(request).await.unwrap();
    assert!(!response.headers().contains_key("grpc-status"));
    let pong = BridgeServiceClient::new(own).ping(pb::PingRequest { message: "a".to_owned() }).await.unwrap();
    assert_eq!(pong.into_inner().message, "pong: a");
    fixture.snakepit.shutdown().await.unwrap();
}
