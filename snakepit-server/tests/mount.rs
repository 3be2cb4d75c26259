//! The gRPC services of a host in another server: limits, deadlines, roles and the end of the host.
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
use futures_util::{StreamExt, stream};
use http_body::Frame;
use snakepit_proto::pb::{self, bridge_service_client::BridgeServiceClient};
use snakepit_server::{Builder, Client, FnTool, Snakepit, routes::Routes, testing::InProcessWorkers};
use tokio_util::task::TaskTracker;
use tonic::{Code, Request};
use tower::ServiceExt;

const SOON: Duration = Duration::from_secs(8);
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

/// A body that sends some bytes and never ends.
struct Unfinished(Option<Bytes>);

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
    request.body(Unfinished(Some(data.into()))).unwrap()
}

#[tokio::test]
async fn clients_of_a_tonic_server_use_the_host() {
    let fixture = Fixture::start(|builder| builder).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tonic::transport::Server::builder().add_routes(fixture.snakepit.routes());
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let signal = fixture.snakepit.shutdown_after(async { drop(stopped.await) });
    let tasks = TaskTracker::new();
    let serving = tasks.spawn(server.serve_with_incoming_shutdown(incoming, signal));
    let client = Client::connect(&address.to_string()).await.unwrap();
    let text = "x".repeat(8 << 20);
    let echoed: BTreeMap<String, String> =
        client.call("echo").arg("text", &text).unary().await.unwrap().value;
    assert!(echoed["text"] == text, "large messages pass");
    let session = client.session("alice").await.unwrap();
    let mut watch = session.watch_all().await.unwrap();
    stop.send(()).unwrap();
    let last = tokio::time::timeout(SOON, watch.next()).await.expect("the watch ends").unwrap().unwrap_err();
    assert_eq!(last.kind(), snakepit_server::ErrorKind::ShuttingDown, "{last:?}");
    tokio::time::timeout(SOON, serving).await.expect("the server ends").unwrap().unwrap();
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
    let late = tokio::time::timeout(SOON, fixture.client().execute_tool(request)).await.unwrap().unwrap_err();
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
    let response = tokio::time::timeout(SOON, &mut second).await.expect("the host answers").unwrap();
    assert_eq!(response.headers()["grpc-status"], "8", "{response:?}");
    // The budget is that of the listeners.
    let address = format!("unix:{}", fixture.snakepit.socket().display());
    let client = Client::connect(&address).await.unwrap();
    let large = "x".repeat(700 << 10);
    let error = client.call("echo").arg("text", &large).unary::<serde_json::Value>().await.unwrap_err();
    assert!(error.is_overloaded(), "{error:?}");
    assert!(futures_util::poll!(&mut first).is_pending());
    fixture.snakepit.shutdown().await.unwrap();
    let cut = tokio::time::timeout(SOON, first).await.expect("a shutdown ends requests that arrive").unwrap();
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
    let calls = fixture.snakepit.routes().oneshot(unfinished(MULTIPLEX, 100, 0)).await.unwrap();
    let reflection = fixture.snakepit.routes().oneshot(unfinished(REFLECTION, 100, 0)).await.unwrap();
    let shutdown = fixture.snakepit.shutdown_within(Duration::ZERO);
    tokio::time::timeout(SOON, shutdown).await.expect("the host shuts down").unwrap();
    for ended in [
        tokio::time::timeout(SOON, chunks.message()).await.expect("the chunks end").unwrap_err(),
        tokio::time::timeout(SOON, watch.message()).await.expect("the watch ends").unwrap_err(),
    ] {
        assert_eq!(ended.code(), Code::Unavailable, "{ended}");
    }
    for response in [calls, reflection] {
        let mut body = response.into_body();
        let end = std::future::poll_fn(|cx| http_body::Body::poll_frame(Pin::new(&mut body), cx));
        let end = tokio::time::timeout(SOON, end).await.expect("the stream ends").unwrap().unwrap();
        assert_eq!(end.into_trailers().unwrap()["grpc-status"], "14");
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
