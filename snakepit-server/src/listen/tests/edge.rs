//! Tests of hostile, frozen and faulty clients over raw HTTP/2.

use std::{
    io,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use bytes::Bytes;
use futures_util::StreamExt;
use h2::client::SendRequest;
use prost::Message;
use snakepit_proto::pb;
use snakepit_registry::{FnTool, Registry};
use snakepit_session::{MemoryBackend, SessionLimits};
use tokio::{
    io::{AsyncReadExt, DuplexStream, duplex},
    task::JoinSet,
    time::Instant,
};

use super::*;
use crate::{
    grpc,
    host::Host,
    listen::connections::{Admission, ConnectionPermit, Peer},
};

mod malformed;
mod mounted;
mod overload;
mod unread;

const PING: &str = "/snakepit.bridge.BridgeService/Ping";
const EXECUTE: &str = "/snakepit.bridge.BridgeService/ExecuteTool";
const MULTIPLEX: &str = "/snakepit.bridge.BridgeService/Multiplex";

/// A host without workers that serves in-memory connections.
struct TestServer {
    sessions: Arc<MemoryBackend>,
    connections: Arc<Connections>,
    services: Services,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl TestServer {
    async fn new(connection_bytes: usize) -> Self {
        let registry = Registry::new();
        let sleep = |()| async {
            std::future::pending::<()>().await;
            Ok::<_, String>(())
        };
        registry.register_host_tool(FnTool::typed("sleep", sleep)).unwrap();
        let large = |()| async { Ok::<_, String>("x".repeat(3 << 20)) };
        registry.register_host_tool(FnTool::typed("large", large)).unwrap();
        let chunks =
            |()| futures_util::stream::iter(["x".repeat(1 << 20)]).chain(futures_util::stream::pending());
        registry.register_host_tool(FnTool::new("chunks", chunks)).unwrap();
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let sessions = Arc::new(MemoryBackend::new(SessionLimits::default()));
        let host = Arc::new(Host::new(
            Arc::clone(&sessions) as _,
            registry,
            Arc::default(),
            None,
            &tasks,
            stop.clone(),
        ));
        let (services, _) = grpc::services(host).await;
        let (arriving, outgoing) = (ArrivalBudgets::new(1 << 30), Arc::new(ResponseBudget::new(1 << 30)));
        let connections = Connections::new(8, connection_bytes, arriving, outgoing, Weak::new(), false);
        Self { sessions, connections, services, stop, tasks: JoinSet::new() }
    }

    /// Opens a connection on which the client has sent nothing.
    fn connect(&mut self) -> (DuplexStream, Arc<Connection>) {
        let (client, server) = duplex(1 << 20);
        let permit: ConnectionPermit = match self.connections.admit(Peer::Unknown) {
            Admission::Admitted(permit) => permit,
            Admission::Rejected { .. } => panic!("rejected"),
        };
        let state = Arc::clone(permit.connection());
        let (services, stop) = (self.services.clone(), self.stop.child_token());
        self.tasks.spawn(connection::serve(server, services, permit, stop, CancellationToken::new()));
        (client, state)
    }

    async fn client(&mut self) -> (SendRequest<Bytes>, Arc<Connection>) {
        self.client_with_window(1 << 24).await
    }

    /// Opens a client with this window per stream, in bytes. The client receives no more of a response before it reads.
    async fn client_with_window(&mut self, window: u32) -> (SendRequest<Bytes>, Arc<Connection>) {
        let (io, state) = self.connect();
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(window).initial_connection_window_size(1 << 24);
        let (client, connection) = builder.handshake(io).await.unwrap();
        self.tasks.spawn(async move { drop(connection.await) });
        (client.ready().await.unwrap(), state)
    }
}

fn request(path: &str) -> http::request::Builder {
    http::Request::post(format!("http://localhost{path}")).header("content-type", "application/grpc")
}

fn message(message: &impl Message) -> Bytes {
    let encoded = message.encode_to_vec();
    let mut bytes = vec![0];
    bytes.extend(u32::try_from(encoded.len()).unwrap().to_be_bytes());
    bytes.extend(encoded);
    bytes.into()
}

/// Sends a complete request, and returns the code and message of its status.
async fn call(client: &SendRequest<Bytes>, request: http::request::Builder, body: Bytes) -> (u32, String) {
    let mut client = client.clone().ready().await.unwrap();
    let (response, mut send) = client.send_request(request.body(()).unwrap(), false).unwrap();
    // The server may reject a request without reading its body.
    let _ = send.send_data(body, true);
    status(response).await
}

/// The trailers of a response, or its headers if it has nothing else.
async fn trailers(response: h2::client::ResponseFuture) -> http::HeaderMap {
    let (head, mut body) = response.await.unwrap().into_parts();
    while let Some(data) = body.data().await {
        let _ = body.flow_control().release_capacity(data.unwrap().len());
    }
    body.trailers().await.unwrap().unwrap_or(head.headers)
}

async fn status(response: h2::client::ResponseFuture) -> (u32, String) {
    let trailers = trailers(response).await;
    let entry = |name| trailers.get(name).cloned();
    let text = |value: http::HeaderValue| value.to_str().unwrap().to_owned();
    let code = entry("grpc-status").map_or(u32::MAX, |code| text(code).parse().unwrap());
    (code, entry("grpc-message").map(text).unwrap_or_default().replace("%20", " "))
}

async fn ping(client: &SendRequest<Bytes>) -> u32 {
    call(client, request(PING), message(&pb::PingRequest::default())).await.0
}

#[tokio::test]
async fn large_metadata_is_rejected_and_the_connection_stays_open() {
    let mut server = TestServer::new(1 << 20).await;
    let (client, _) = server.client().await;
    for bytes in [17 << 10, 300 << 10, 1000 << 10] {
        let big = request(PING).header("x-big", "x".repeat(bytes));
        let (code, text) = call(&client, big, message(&pb::PingRequest::default())).await;
        assert_eq!(code, tonic::Code::ResourceExhausted as u32, "{bytes}: {text}");
        assert!(text.contains("the limit is 16384"), "{text}");
        assert_eq!(ping(&client).await, 0, "{bytes}");
    }
    let small = request(PING).header("x-small", "x".repeat(15 << 10));
    assert_eq!(call(&client, small, message(&pb::PingRequest::default())).await.0, 0);
}

#[tokio::test]
async fn unfinished_requests_of_a_connection_are_bounded() {
    let mut server = TestServer::new(1 << 20).await;
    let (client, state) = server.client().await;
    let mut open = Vec::new();
    for path in [EXECUTE, MULTIPLEX, EXECUTE, MULTIPLEX] {
        let mut client = client.clone().ready().await.unwrap();
        let (response, mut send) = client.send_request(request(path).body(()).unwrap(), false).unwrap();
        let mut body = vec![0];
        body.extend((1_u32 << 20).to_be_bytes());
        body.resize(400 << 10, 7);
        send.send_data(body.into(), false).unwrap();
        open.push((response, send));
    }
    // Two requests fit. The server rejects the other two, in the order in which it reads them.
    let statuses = futures_util::future::select_all(open.iter_mut().map(|(response, _)| response));
    let (rejected, index, _) = statuses.await;
    let rejected = rejected.unwrap();
    let status_header = rejected.headers().get("grpc-status").cloned();
    let (response_body, path) = (rejected.into_body(), [EXECUTE, MULTIPLEX, EXECUTE, MULTIPLEX][index]);
    if path == EXECUTE {
        assert_eq!(status_header.unwrap(), "8");
    }
    drop(response_body);
    assert!(state.reserved_bytes() <= 1 << 20, "{}", state.reserved_bytes());
    assert_eq!(ping(&client).await, 0, "small requests pass");
    drop(open);
    while state.reserved_bytes() > 0 {
        assert_eq!(ping(&client).await, 0);
    }
}

fn gzipped(message: &[u8]) -> Bytes {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(vec![1, 0, 0, 0, 0], flate2::Compression::best());
    encoder.write_all(message).unwrap();
    let mut bytes = encoder.finish().unwrap();
    let size = u32::try_from(bytes.len() - 5).unwrap();
    bytes[1..5].copy_from_slice(&size.to_be_bytes());
    bytes.into()
}

#[tokio::test]
async fn compressed_requests_receive_compressed_responses() {
    use std::io::Read;
    let mut server = TestServer::new(1 << 20).await;
    let (client, state) = server.client().await;
    let text = "x".repeat(100_000);
    let ping = pb::PingRequest { message: text.clone() }.encode_to_vec();
    let gzip_request =
        || request(PING).header("grpc-encoding", "gzip").header("grpc-accept-encoding", "identity, gzip");
    let mut ready = client.clone().ready().await.unwrap();
    let (response, mut send) = ready.send_request(gzip_request().body(()).unwrap(), false).unwrap();
    send.send_data(gzipped(&ping), true).unwrap();
    let (head, mut body) = response.await.unwrap().into_parts();
    assert_eq!(head.headers["grpc-encoding"], "gzip");
    let mut response = Vec::new();
    while let Some(data) = body.data().await {
        response.extend_from_slice(&data.unwrap());
    }
    assert!(response[0] == 1 && response.len() < 5_000, "{}", response.len());
    let mut decompressed = Vec::new();
    flate2::read::GzDecoder::new(&response[5..]).read_to_end(&mut decompressed).unwrap();
    assert_eq!(pb::PingResponse::decode(&*decompressed).unwrap().message, format!("pong: {text}"));
    assert_eq!(body.trailers().await.unwrap().unwrap()["grpc-status"], "0");
    // Messages whose decompressed form is too large, has too many fields, or is malformed.
    for (bomb, problem) in [
        (gzipped(&vec![0; 16 << 20]), "the limit is 4194304"),
        (gzipped(&[0x0a, 0].repeat(1 << 20)), "fields"),
        (Bytes::from_static(&[1, 0, 0, 0, 3, 1, 2, 3]), "is not gzip"),
    ] {
        let (code, text) = call(&client, gzip_request(), bomb).await;
        assert!(code != 0 && text.contains(problem), "{code} {text}");
    }
    assert_eq!(self::ping(&client).await, 0);
    drop(client);
    assert_eq!(state.reserved_bytes(), 0);
}

/// Reads complete messages of a response, each with its compression flag.
async fn read_messages(body: &mut h2::RecvStream, count: usize) -> Vec<(u8, Vec<u8>)> {
    use std::io::Read;
    let (mut data, mut messages) = (Vec::new(), Vec::new());
    while messages.len() < count {
        data.extend_from_slice(&body.data().await.unwrap().unwrap());
        while data.len() >= 5 {
            let size = u32::from_be_bytes(data[1..5].try_into().unwrap()) as usize;
            if data.len() < 5 + size {
                break;
            }
            let rest = data.split_off(5 + size);
            let mut message = data[5..].to_vec();
            if data[0] == 1 {
                message.clear();
                flate2::read::GzDecoder::new(&data[5..]).read_to_end(&mut message).unwrap();
            }
            messages.push((data[0], message));
            data = rest;
        }
    }
    messages
}

#[tokio::test]
async fn streams_are_compressed_message_by_message() {
    let mut server = TestServer::new(1 << 20).await;
    let (client, state) = server.client().await;
    let gzip_request = || {
        request(MULTIPLEX).header("grpc-encoding", "gzip").header("grpc-accept-encoding", "identity, gzip")
    };
    let open = async |bytes: Bytes| {
        let mut ready = client.clone().ready().await.unwrap();
        let (response, mut send) = ready.send_request(gzip_request().body(()).unwrap(), false).unwrap();
        send.send_data(bytes, false).unwrap();
        (response, send)
    };
    let batch = |id, tool_name: &str| {
        let call = pb::CallStart { id, tool_name: tool_name.to_owned(), ..Default::default() };
        pb::CallBatch { calls: vec![call], ..Default::default() }
    };
    // Two messages in one segment, of which the second is not compressed, and half of a third.
    let unknown = "x".repeat(10_000);
    let third = gzipped(&batch(3, &unknown).encode_to_vec());
    let pieces = [
        gzipped(&batch(1, &unknown).encode_to_vec()),
        message(&batch(2, &unknown)),
        third.slice(..third.len() / 2),
    ];
    let (response, mut send) = open(pieces.concat().into()).await;
    let (head, mut body) = response.await.unwrap().into_parts();
    assert_eq!(head.headers["grpc-encoding"], "gzip");
    let mut ids: Vec<u64> = Vec::new();
    while ids.len() < 3 {
        for (flag, reply) in read_messages(&mut body, 1).await {
            assert_eq!(flag, 1);
            ids.extend(pb::ReplyBatch::decode(&*reply).unwrap().replies.iter().map(|reply| reply.id));
        }
        if ids.len() == 2 {
            send.send_data(third.slice(third.len() / 2..), false).unwrap();
        }
    }
    assert_eq!(ids, [1, 2, 3]);
    // A message whose decompressed form is too large, has too many fields, or is malformed ends only its own stream.
    for (bomb, problem) in [
        (gzipped(&vec![0; 110 << 20]), "the limit is"),
        (gzipped(&[0x0a, 0].repeat(1 << 19)), "fields"),
        (Bytes::from_static(&[1, 0, 0, 0, 3, 1, 2, 3]), "is not gzip"),
    ] {
        let (response, _send) = open(bomb).await;
        let (code, text) = status(response).await;
        assert!(code != 0 && text.contains(problem), "{code} {text}");
    }
    assert_eq!(ping(&client).await, 0);
    send.send_data(gzipped(&batch(4, &unknown).encode_to_vec()), false).unwrap();
    let (_, reply) = read_messages(&mut body, 1).await.remove(0);
    assert_eq!(pb::ReplyBatch::decode(&*reply).unwrap().replies[0].id, 4);
    assert_eq!(state.reserved_bytes(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_a_request_is_closed() {
    let mut server = TestServer::new(1 << 20).await;
    let (mut silent, _) = server.connect();
    let start = Instant::now();
    let mut rest = Vec::new();
    silent.read_to_end(&mut rest).await.unwrap();
    assert_eq!(start.elapsed().as_secs(), 20);
}

#[tokio::test(start_paused = true)]
async fn only_a_connection_without_streams_is_closed_when_idle() {
    let mut server = TestServer::new(1 << 20).await;
    let (idle, _) = server.client().await;
    let (busy, _) = server.client().await;
    assert_eq!(ping(&idle).await, 0);
    let (_response, _send) = busy
        .clone()
        .ready()
        .await
        .unwrap()
        .send_request(request(MULTIPLEX).body(()).unwrap(), false)
        .unwrap();
    assert_eq!(ping(&busy).await, 0);
    tokio::time::sleep(Duration::from_secs(40 * 60)).await;
    assert_eq!(ping(&busy).await, 0);
    assert!(idle.clone().ready().await.is_err(), "the server closed it");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_freezes_loses_its_calls() {
    let mut server = TestServer::new(1 << 20).await;
    let (io, state) = server.connect();
    let (client, connection) = h2::client::handshake(io).await.unwrap();
    let mut client_task = JoinSet::new();
    let (freeze, frozen) = (CancellationToken::new(), CancellationToken::new());
    let (wait, notify) = (freeze.clone(), frozen.clone());
    client_task.spawn(async move {
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            _ = &mut connection => {}
            () = wait.cancelled() => {}
        }
        notify.cancel();
        // The frozen client keeps its socket open but sends nothing.
        std::future::pending::<()>().await;
    });
    let mut client = client.ready().await.unwrap();
    let (response, mut send) = client.send_request(request(EXECUTE).body(()).unwrap(), false).unwrap();
    let sleep = pb::ExecuteToolRequest { tool_name: "sleep".to_owned(), ..Default::default() };
    send.send_data(message(&sleep), true).unwrap();
    // The call runs while the client answers pings.
    tokio::time::timeout(Duration::from_secs(60), response).await.unwrap_err();
    assert!(state.without_requests_since().is_none());
    freeze.cancel();
    frozen.cancelled().await;
    let start = Instant::now();
    while state.without_requests_since().is_none() {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(start.elapsed() < Duration::from_secs(20));
    }
}

/// A listener that has run out of descriptors.
struct OutOfDescriptors {
    attempts: Arc<AtomicUsize>,
}

impl accept::Accept for OutOfDescriptors {
    type Io = DuplexStream;

    async fn accept(&mut self) -> io::Result<DuplexStream> {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        Err(io::Error::from_raw_os_error(nix::libc::EMFILE))
    }

    fn peer(&self, _: &DuplexStream) -> Peer {
        Peer::Unknown
    }
}

/// A listener that panics a few times and then returns one connection.
struct PanickingListener {
    remaining_panics: usize,
    connection: Option<DuplexStream>,
}

impl accept::Accept for PanickingListener {
    type Io = DuplexStream;

    async fn accept(&mut self) -> io::Result<DuplexStream> {
        if self.remaining_panics > 0 {
            self.remaining_panics -= 1;
            panic!("on purpose");
        }
        match self.connection.take() {
            Some(io) => Ok(io),
            None => std::future::pending().await,
        }
    }

    fn peer(&self, _: &DuplexStream) -> Peer {
        Peer::Unknown
    }
}

#[tokio::test(start_paused = true)]
async fn the_accept_loop_continues_after_a_panic() {
    let server = TestServer::new(1 << 20).await;
    let (io, server_io) = duplex(1 << 20);
    let (services, connections) = (server.services.clone(), Arc::clone(&server.connections));
    let mut serving = JoinSet::new();
    serving.spawn(accept::serve(
        PanickingListener { remaining_panics: 2, connection: Some(server_io) },
        services,
        connections,
        server.stop.clone(),
    ));
    let (client, connection) = h2::client::handshake(io).await.unwrap();
    serving.spawn(async move { drop(connection.await) });
    assert_eq!(ping(&client).await, 0);
}

#[tokio::test(start_paused = true)]
async fn an_idle_multiplex_stream_is_evicted_with_a_status_that_no_call_ran() {
    let mut server = TestServer::new(1 << 20).await;
    server.connections = Connections::new(
        2,
        1 << 20,
        ArrivalBudgets::new(1 << 20),
        Arc::new(ResponseBudget::new(1 << 20)),
        Weak::new(),
        false,
    );
    let (idle, busy) = (server.client().await, server.client().await);
    let mut streams = Vec::new();
    for (client, _) in [&idle, &busy] {
        let mut ready = client.clone().ready().await.unwrap();
        let (response, send) = ready.send_request(request(MULTIPLEX).body(()).unwrap(), false).unwrap();
        streams.push((response, send));
    }
    let call = pb::CallStart { id: 1, tool_name: "sleep".to_owned(), ..Default::default() };
    let batch = pb::CallBatch { calls: vec![call], ..Default::default() };
    streams[1].1.send_data(message(&batch), false).unwrap();
    while !busy.1.is_in_use() {
        assert_eq!(ping(&idle.0).await, 0);
    }
    // This connection has been idle for less time than the one with the idle stream.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(ping(&busy.0).await, 0);
    let (new, _) = server.client().await;
    assert_eq!(ping(&new).await, 0);
    let (code, text) = status(streams.swap_remove(0).0).await;
    assert_eq!(code, tonic::Code::Unavailable as u32, "{text}");
    assert!(text.contains("the call was not begun"), "{text}");
    assert!(idle.0.clone().ready().await.is_err(), "the server closed it");
    assert!(busy.1.is_in_use());
    assert_eq!(ping(&busy.0).await, 0);
}

#[tokio::test(start_paused = true)]
async fn the_accept_loop_survives_a_shortage_of_descriptors() {
    let server = TestServer::new(1 << 20).await;
    let attempts = Arc::new(AtomicUsize::new(0));
    let listener = OutOfDescriptors { attempts: Arc::clone(&attempts) };
    let mut serving = JoinSet::new();
    serving.spawn(accept::serve(
        listener,
        server.services.clone(),
        Arc::clone(&server.connections),
        server.stop.clone(),
    ));
    tokio::time::sleep(Duration::from_secs(10)).await;
    let attempts = attempts.load(Ordering::Relaxed);
    assert!((50..=101).contains(&attempts), "{attempts}");
    server.stop.cancel();
    serving.join_next().await.unwrap().unwrap();
}
