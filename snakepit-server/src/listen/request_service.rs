//! The HTTP service of one connection. Before a request reaches its gRPC service, this module checks the headers, starts the
//! deadline, and reads the whole message unless the RPC takes a stream.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response};
use http_body::Body as _;
use hyper::body::Incoming;
use pin_project_lite::pin_project;
use snakepit_proto::{MAX_MESSAGE_BYTES, headers::CALL_ID};
use tonic::{Status, body::Body};

use super::{
    connections::{Connection, OpenRequest},
    deadline::{ResponseFuture, with_deadline},
    framing::MessageLimits,
    gzip::{self, DecompressedBody},
    message::{Message, read_message},
    message_stream::MessageStream,
    reported_call::ReportedCall,
    request_memory::RequestMemory,
    response::{ResponseBody, ResponseKind},
    services::Services,
};
use crate::{
    blocking::poll_first_blocking,
    status::{from_tool_error, headers_too_large, malformed_message, response_budget_exhausted},
};

/// The largest headers of a request, in bytes. Each entry counts 32 bytes more, as in HTTP/2.
const MAX_HEADER_BYTES: usize = 16 * 1024;
/// The largest headers that the transport reads, in bytes. Up to this size, the host responds with a status that names the limit
/// above. HTTP/2 rejects larger headers.
pub(super) const MAX_TRANSPORT_HEADER_BYTES: u32 = snakepit_proto::flow::MAX_HEADER_LIST_SIZE;
/// The largest message, in bytes, of RPCs that carry no values.
const MAX_SMALL_BYTES: usize = 4 * 1024 * 1024;

/// The RPC whose stream carries multiplexed calls.
const MULTIPLEX: &str = "/snakepit.bridge.BridgeService/Multiplex";
/// RPCs with streams of requests.
const STREAMING_RPCS: [&str; 4] = [
    "/snakepit.bridge.BridgeService/StreamTelemetry",
    MULTIPLEX,
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];
/// RPCs whose services use the connection: those of calls, and those that distinguish workers from clients. If the host
/// authorizes, all RPCs of the service do.
const CONNECTION_RPCS: [&str; 9] = [
    MULTIPLEX,
    "/snakepit.bridge.BridgeService/ExecuteTool",
    "/snakepit.bridge.BridgeService/ExecuteStreamingTool",
    "/snakepit.bridge.BridgeService/ExecuteElixirTool",
    "/snakepit.bridge.BridgeService/ExecuteStreamingElixirTool",
    "/snakepit.bridge.BridgeService/RegisterTools",
    "/snakepit.bridge.BridgeService/ListTools",
    "/snakepit.bridge.BridgeService/RestartWorkers",
    "/snakepit.bridge.BridgeService/StreamTelemetry",
];
/// RPCs whose requests carry large values, each with the numbers of the message fields whose nested fields count towards the
/// limit ([`MessageLimits::nested`]).
const VALUE_RPCS: [(&str, &[u32]); 9] = [
    (MULTIPLEX, &[1]),
    ("/snakepit.bridge.BridgeService/ExecuteTool", &[]),
    ("/snakepit.bridge.BridgeService/ExecuteStreamingTool", &[]),
    ("/snakepit.bridge.BridgeService/ExecuteElixirTool", &[]),
    ("/snakepit.bridge.BridgeService/ExecuteStreamingElixirTool", &[]),
    ("/snakepit.bridge.BridgeService/RegisterVariable", &[]),
    ("/snakepit.bridge.BridgeService/SetVariable", &[]),
    ("/snakepit.bridge.BridgeService/SetVariables", &[]),
    ("/snakepit.bridge.BridgeService/PutProgram", &[2]),
];

/// The service of one connection.
pub(super) struct RequestService {
    services: Services,
    connection: Arc<Connection>,
}

impl RequestService {
    pub(super) const fn new(services: Services, connection: Arc<Connection>) -> Self {
        Self { services, connection }
    }

    /// Begins the response to a request.
    pub(super) fn respond<B>(&self, request: Request<B>) -> RequestFuture
    where
        B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: std::fmt::Display,
    {
        let open_request = self.connection.begin_request(request.uri().path() == MULTIPLEX);
        let (services, memory) = (self.services.clone(), RequestMemory::new(Arc::clone(&self.connection)));
        let kind = ResponseKind::of(request.uri().path());
        let inner = with_deadline(request, |request| {
            let response = async move { handle(services, request, kind, memory).await };
            Box::pin(response.map(|result| Ok(result.unwrap_or_else(|status| status.into_http()))))
                as HandlerFuture
        });
        RequestFuture { inner, kind, open_request: Some(open_request) }
    }
}

impl hyper::service::Service<Request<Incoming>> for RequestService {
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = RequestFuture;

    fn call(&self, request: Request<Incoming>) -> RequestFuture {
        self.respond(request)
    }
}

type HandlerFuture = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

pin_project! {
    /// The response to one request.
    pub(super) struct RequestFuture {
        #[pin]
        inner: ResponseFuture<HandlerFuture>,
        kind: ResponseKind,
        open_request: Option<OpenRequest>,
    }
}

impl Future for RequestFuture {
    type Output = Result<Response<ResponseBody>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Ok(response) = ready!(this.inner.poll(cx));
        // A future is not polled again after it was ready.
        let Some(open_request) = this.open_request.take() else { return Poll::Pending };
        Poll::Ready(Ok(ResponseBody::wrap(response, *this.kind, open_request, cx)))
    }
}

/// Passes a request to its service, within the limits of its connection.
async fn handle<B>(
    services: Services,
    request: Request<B>,
    kind: ResponseKind,
    mut memory: RequestMemory,
) -> Result<Response<Body>, Status>
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: std::fmt::Display,
{
    let connection = memory.connection();
    let bytes = header_bytes(&request);
    if bytes > MAX_HEADER_BYTES {
        return Err(headers_too_large(bytes, MAX_HEADER_BYTES));
    }
    if kind != ResponseKind::Small {
        // The client must read its earlier responses first. This also bounds the responses that wait to be encoded.
        let capacity = connection.response_capacity(None).await;
        capacity.map_err(|full| from_tool_error(response_budget_exhausted(full)))?;
    }
    let (mut parts, body) = request.into_parts();
    let path = parts.uri.path();
    let is_streaming = STREAMING_RPCS.contains(&path);
    let value_rpc = VALUE_RPCS.iter().find(|(value_rpc, _)| *value_rpc == path);
    let limits = value_rpc.map_or(MessageLimits { bytes: MAX_SMALL_BYTES, nested: &[] }, |(_, nested)| {
        MessageLimits { bytes: MAX_MESSAGE_BYTES, nested }
    });
    if connection.authorizes() || CONNECTION_RPCS.contains(&path) {
        parts.extensions.insert(Arc::clone(connection));
        if let Some(call) = ReportedCall::parse(parts.headers.get(CALL_ID)) {
            parts.extensions.insert(call);
        }
    }
    let is_gzip = gzip::take_gzip_encoding(&mut parts.headers);
    let compresses_response = is_gzip && gzip::accepts_gzip(&parts.headers);
    let response = if is_streaming {
        let body = MessageStream::new(body, limits, RequestMemory::for_stream(connection));
        let body = if is_gzip {
            Body::new(DecompressedBody::new(body, limits, connection))
        } else {
            Body::new(body)
        };
        call(services, Request::from_parts(parts, body)).await
    } else {
        // Holds the reservation until the service has responded, or until its response stream has begun.
        let mut message = read_message(body, limits, &mut memory).await?;
        if is_gzip {
            let decompressed;
            (decompressed, memory) =
                gzip::decompress_message(message.into_segments(), limits, memory).await?;
            message = Message::from_segments(decompressed);
        }
        let _memory = memory;
        let is_heavy = message.is_heavy();
        let request = Request::from_parts(parts, Body::new(message));
        if is_heavy {
            poll_first_blocking(call(services, request)).await
        } else {
            call(services, request).await
        }
    };
    Ok(if compresses_response { gzip::compress_response(response) } else { response })
}

/// Calls the service of a request.
async fn call(services: Services, request: Request<Body>) -> Response<Body> {
    let response = services.respond(request).await;
    // Only a response without a body has its status in the headers.
    if response.body().is_end_stream()
        && let Some(status) = Status::from_header_map(response.headers())
        && let Some(malformed) = malformed_message(&status)
    {
        return malformed.into_http();
    }
    response
}

/// The size of the headers as HTTP/2 counts it, without a few pseudo-headers.
fn header_bytes<B>(request: &Request<B>) -> usize {
    let headers = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 32);
    headers.sum::<usize>() + request.uri().path().len()
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use prost_types::FileDescriptorSet;

    use super::*;

    /// The paths of all RPCs, and whether they take streams.
    fn rpcs() -> Vec<(String, bool)> {
        let sets = [
            snakepit_proto::FILE_DESCRIPTOR_SET,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ];
        let files = sets.iter().flat_map(|set| FileDescriptorSet::decode(*set).unwrap().file);
        files
            .flat_map(|file| {
                let package = file.package().to_owned();
                file.service.into_iter().flat_map(move |service| {
                    let prefix = format!("/{package}.{}", service.name());
                    let path = |rpc: prost_types::MethodDescriptorProto| {
                        (format!("{prefix}/{}", rpc.name()), rpc.client_streaming())
                    };
                    service.method.into_iter().map(path).collect::<Vec<_>>()
                })
            })
            .collect()
    }

    #[test]
    fn the_lists_of_rpcs_match_the_descriptors() {
        let rpcs = rpcs();
        let streaming: Vec<_> =
            rpcs.iter().filter(|(_, is_streaming)| *is_streaming).map(|(path, _)| path.as_str()).collect();
        assert_eq!(streaming, STREAMING_RPCS);
        for path in VALUE_RPCS.iter().map(|(path, _)| *path).chain(CONNECTION_RPCS) {
            assert!(rpcs.iter().any(|(known, ..)| known == path), "{path}");
        }
    }
}
