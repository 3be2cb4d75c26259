//! Tests of mounted clients that do not read their responses, over raw HTTP/2 to the program's own server.

use std::net::SocketAddr;

use axum::extract::ConnectInfo;
use h2::client::ResponseFuture;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use snakepit_session::{Program, ProgramName, ProgramOwner, SessionBackend};
use tower::Service;

use super::*;
use crate::listen::mount::RequestLimits;

const GET: &str = "/snakepit.bridge.BridgeService/GetProgram";
const STREAM: &str = "/snakepit.bridge.BridgeService/ExecuteStreamingTool";
const MIB: usize = 1 << 20;
const PROGRAM_BYTES: usize = 3 * MIB;
/// The time after which the host has dropped a response that the client does not read.
const STALLED: Duration = Duration::from_secs(36);

/// Limits of requests that no test reaches.
const MANY: RequestLimits = RequestLimits { total: 1000, per_client: 1000 };

/// The program's own server, which mounts a host with a large stored program.
struct ProgramServer {
    host: TestServer,
    mount: Mount,
    /// The unread responses of all clients.
    unread: Arc<ResponseBudget>,
    get: Bytes,
}

impl ProgramServer {
    async fn new(connection_bytes: usize, budget: usize, limits: RequestLimits) -> Self {
        let host = TestServer::new(connection_bytes).await;
        let (owner, name) = (ProgramOwner::Global, ProgramName::try_new("large").unwrap());
        let program = Program::new(vec![7; PROGRAM_BYTES], "x");
        host.sessions.put_program(&owner, &name, program).await.unwrap();
        let get = pb::GetProgramRequest { name: "large".to_owned(), global: true, ..Default::default() };
        let unread = Arc::new(ResponseBudget::new(budget));
        let arriving = ArrivalBudgets::new(1 << 30);
        let connections =
            Connections::new(0, connection_bytes, arriving, Arc::clone(&unread), Weak::new(), false);
        let (tasks, services) = (TaskTracker::new(), host.services.clone());
        let mount = Mount::with_limits(&tasks, services, connections, limits, host.stop.clone());
        Self { host, mount, unread, get: message(&get) }
    }

    /// Connects a client from this address, if the server provides addresses.
    async fn client(&mut self, address: Option<SocketAddr>) -> SendRequest<Bytes> {
        let (client, server) = duplex(1 << 20);
        let mount = self.mount.clone();
        let service = service_fn(move |mut request: http::Request<Incoming>| {
            if let Some(address) = address {
                request.extensions_mut().insert(ConnectInfo(address));
            }
            mount.clone().call(request.map(axum::body::Body::new))
        });
        self.host.tasks.spawn(async move {
            let http = http2::Builder::new(TokioExecutor::new());
            drop(http.serve_connection(TokioIo::new(server), service).await);
        });
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(64 * 1024).initial_connection_window_size(1 << 24);
        let (client, connection) = builder.handshake(client).await.unwrap();
        self.host.tasks.spawn(async move { drop(connection.await) });
        client.ready().await.unwrap()
    }

    /// Begins a request without reading its response.
    async fn begin(client: &SendRequest<Bytes>, path: &str, body: Bytes) -> ResponseFuture {
        let mut client = client.clone().ready().await.unwrap();
        let (response, mut send) = client.send_request(request(path).body(()).unwrap(), false).unwrap();
        send.send_data(body, true).unwrap();
        response
    }

    /// Begins a read of the large program, and waits until its response is unread.
    async fn begin_get(&self, client: &SendRequest<Bytes>) -> ResponseFuture {
        let used = self.unread.used();
        let response = Self::begin(client, GET, self.get.clone()).await;
        while self.unread.used() < used + PROGRAM_BYTES {
            assert_eq!(ping(client).await, 0);
        }
        response
    }
}

fn address(port: u16) -> Option<SocketAddr> {
    Some(SocketAddr::from(([192, 0, 2, 1], port)))
}

/// Reads a response to its end. Returns the number of bytes, and whether it ended with an error.
async fn read(response: ResponseFuture) -> (usize, bool) {
    let Ok(response) = response.await else { return (0, true) };
    let (mut body, mut bytes) = (response.into_body(), 0);
    while let Some(data) = body.data().await {
        let Ok(data) = data else { return (bytes, true) };
        let _ = body.flow_control().release_capacity(data.len());
        bytes += data.len();
    }
    (bytes, body.trailers().await.is_err())
}

#[tokio::test]
async fn the_requests_of_a_connection_share_its_budget() {
    for known in [true, false] {
        let mut server = ProgramServer::new(4 * MIB, 1 << 30, MANY).await;
        let at = |port| if known { address(port) } else { None };
        let client = server.client(at(1)).await;
        let mut responses = Vec::new();
        for _ in 0..20 {
            responses.push(ProgramServer::begin(&client, GET, server.get.clone()).await);
        }
        while server.unread.used() < 4 * MIB {
            assert_eq!(ping(&client).await, 0);
        }
        for _ in 0..100 {
            assert_eq!(ping(&client).await, 0, "small responses do not wait");
        }
        let used = server.unread.used();
        assert!(used < 4 * MIB + PROGRAM_BYTES + MIB, "{used}");
        // Requests without an address share one budget, so another client waits too.
        let other = server.client(at(2)).await;
        let mut read_other = Box::pin(call(&other, request(GET), server.get.clone()));
        if known {
            assert_eq!((&mut read_other).await.0, 0);
        } else {
            for _ in 0..100 {
                assert_eq!(ping(&other).await, 0);
                assert!(futures_util::poll!(&mut read_other).is_pending());
            }
        }
        // The client reads all responses concurrently, because each waits until others are read.
        let reads = futures_util::future::join_all(responses.into_iter().map(status));
        if known {
            assert!(reads.await.iter().all(|(code, _)| *code == 0));
        } else {
            let (reads, other) = tokio::join!(reads, read_other);
            assert!(reads.iter().chain([&other]).all(|(code, _)| *code == 0));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_response_that_nobody_reads_is_dropped_after_the_stall_timeout() {
    let mut server = ProgramServer::new(64 * MIB, 1 << 30, MANY).await;
    let client = server.client(address(1)).await;
    let stalled = server.begin_get(&client).await;
    tokio::time::sleep(STALLED).await;
    let kept = server.unread.used();
    assert!(kept <= 16 * 1024, "only the last frame remains: {kept}");
    let (bytes, failed) = read(stalled).await;
    assert!(failed && bytes < PROGRAM_BYTES, "{bytes}");
    // The client may use the host again.
    assert_eq!(call(&client, request(GET), server.get.clone()).await.0, 0);
    assert_eq!(server.unread.used(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_keeps_its_response() {
    let mut server = ProgramServer::new(64 * MIB, 1 << 30, MANY).await;
    let client = server.client(address(1)).await;
    let mut body = server.begin_get(&client).await.await.unwrap().into_body();
    let mut bytes = 0;
    while let Some(data) = body.data().await {
        let data = data.unwrap().len();
        bytes += data;
        if bytes < MIB {
            tokio::time::sleep(STALLED / 6).await;
        }
        let _ = body.flow_control().release_capacity(data);
    }
    assert!(bytes > PROGRAM_BYTES, "{bytes}");
}

#[tokio::test(start_paused = true)]
async fn a_paused_stream_is_dropped_only_if_memory_is_short() {
    for (budget, dropped) in [(1 << 30, false), (MIB, true)] {
        let mut server = ProgramServer::new(64 * MIB, budget, MANY).await;
        let client = server.client(address(1)).await;
        let chunks = pb::ExecuteToolRequest { tool_name: "chunks".to_owned(), ..Default::default() };
        let _paused = ProgramServer::begin(&client, STREAM, message(&chunks)).await;
        while server.unread.used() < MIB {
            assert_eq!(ping(&client).await, 0);
        }
        tokio::time::sleep(STALLED).await;
        assert_eq!(server.unread.used() < MIB, dropped);
    }
}

#[tokio::test]
async fn requests_above_the_limits_are_rejected() {
    let limits = RequestLimits { total: 3, per_client: 2 };
    let mut server = ProgramServer::new(MIB, MIB, limits).await;
    let client = server.client(address(1)).await;
    let sleep = || message(&pb::ExecuteToolRequest { tool_name: "sleep".to_owned(), ..Default::default() });
    let open = [
        ProgramServer::begin(&client, EXECUTE, sleep()).await,
        ProgramServer::begin(&client, EXECUTE, sleep()).await,
    ];
    assert_eq!(
        rejection(&client).await,
        "2 requests of this client are open, which is the limit; retry later"
    );
    let other = server.client(address(2)).await;
    let third = ProgramServer::begin(&other, EXECUTE, sleep()).await;
    for client in [&other, &server.client(address(3)).await] {
        let expected = "3 requests of mounted services are open, which is the limit; retry later";
        assert_eq!(rejection(client).await, expected);
    }
    drop(open);
    while ping(&client).await != 0 {}
    drop(third);
    while ping(&other).await != 0 {}
}

/// Sends requests until one is rejected, and returns the message. The open requests may still be on their way.
async fn rejection(client: &SendRequest<Bytes>) -> String {
    loop {
        let (code, text) = call(client, request(PING), message(&pb::PingRequest::default())).await;
        if code == 8 {
            return text;
        }
    }
}
