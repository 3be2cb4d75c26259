//! What every request passes before it reaches its service: the bounds of its headers, its deadline, and, unless its RPC
//! takes a stream, the wait for all of its message.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_util::FutureExt;
use http::{Request, Response};
use hyper::body::Incoming;
use pin_project_lite::pin_project;
use snakepit_proto::MAX_MESSAGE_BYTES;
use tonic::{Status, body::Body, service::Routes};
use tower::Service;

use super::{
    answer::{Answer, AnswerKind},
    collect::{Message, collect},
    connections::{Connection, OpenRequest},
    gzip::{self, Opened},
    held::MessageLimits,
    offload::begin_elsewhere,
    stream::MessageStream,
};
use crate::{
    grpc::{ResponseFuture, in_time},
    status::{from_tool_error, headers_too_large, too_many_unread},
};

/// The largest headers of a request, in bytes as HTTP/2 counts them: with 32 for each entry.
const MAX_HEADER_BYTES: usize = 16 * 1024;
/// The largest headers that the transport reads, in bytes: up to here, a request is answered with a status that names the
/// bound above. Beyond, HTTP/2 itself refuses it.
pub(super) const MOST_HEADER_BYTES: u32 = 1024 * 1024;
/// The largest message of RPCs that carry no values, in bytes.
const MAX_SMALL_BYTES: usize = 4 * 1024 * 1024;

/// The RPC whose stream carries calls.
const MULTIPLEX: &str = "/snakepit.bridge.BridgeService/Multiplex";
/// RPCs whose requests are streams.
const STREAMS: [&str; 4] = [
    "/snakepit.bridge.BridgeService/StreamTelemetry",
    MULTIPLEX,
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];
/// RPCs whose requests carry values of any size, with the fields of their messages that hold messages with many fields.
const CARRIERS: [(&str, &[u32]); 8] = [
    (MULTIPLEX, &[1]),
    ("/snakepit.bridge.BridgeService/ExecuteTool", &[]),
    ("/snakepit.bridge.BridgeService/ExecuteStreamingTool", &[]),
    ("/snakepit.bridge.BridgeService/ExecuteElixirTool", &[]),
    ("/snakepit.bridge.BridgeService/RegisterVariable", &[]),
    ("/snakepit.bridge.BridgeService/SetVariable", &[]),
    ("/snakepit.bridge.BridgeService/SetVariables", &[]),
    ("/snakepit.bridge.BridgeService/PutProgram", &[2]),
];

/// Further RPCs that ask who is at the other end of their connection.
const IDENTIFIED: [&str; 2] =
    ["/snakepit.bridge.BridgeService/RegisterTools", "/snakepit.bridge.BridgeService/ExecuteElixirTool"];

/// The service of one connection.
pub(super) struct Requests {
    routes: Routes,
    connection: Arc<Connection>,
}

impl Requests {
    pub(super) const fn new(routes: Routes, connection: Arc<Connection>) -> Self {
        Self { routes, connection }
    }
}

impl hyper::service::Service<Request<Incoming>> for Requests {
    type Response = Response<Answer>;
    type Error = Infallible;
    type Future = Answering;

    fn call(&self, request: Request<Incoming>) -> Answering {
        let open = self.connection.begin_request(request.uri().path() == MULTIPLEX);
        let (routes, connection) = (self.routes.clone(), Arc::clone(&self.connection));
        let kind = AnswerKind::of(request.uri().path());
        let inner = in_time(request, |request| {
            let answer = async move { handle(routes, request, kind, &connection).await };
            Box::pin(answer.map(|answer| Ok(answer.unwrap_or_else(|status| status.into_http())))) as Handling
        });
        Answering { inner, kind, open: Some(open) }
    }
}

type Handling = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

pin_project! {
    /// Answers one request.
    pub(super) struct Answering {
        #[pin]
        inner: ResponseFuture<Handling>,
        kind: AnswerKind,
        open: Option<OpenRequest>,
    }
}

impl Future for Answering {
    type Output = Result<Response<Answer>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Ok(response) = ready!(this.inner.poll(cx));
        // It is not polled again once it was ready.
        let Some(open) = this.open.take() else { return Poll::Pending };
        Poll::Ready(Ok(Answer::of(response, *this.kind, open, cx)))
    }
}

/// Brings a request to its service, within the limits of its connection.
async fn handle(
    routes: Routes,
    request: Request<Incoming>,
    kind: AnswerKind,
    connection: &Arc<Connection>,
) -> Result<Response<Body>, Status> {
    let bytes = header_bytes(&request);
    if bytes > MAX_HEADER_BYTES {
        return Err(headers_too_large(bytes, MAX_HEADER_BYTES));
    }
    if kind != AnswerKind::Small {
        // What it asked for before comes first. This also bounds what waits to be encoded.
        connection.room(None).await.map_err(|full| from_tool_error(too_many_unread(full)))?;
    }
    let (mut parts, body) = request.into_parts();
    let path = parts.uri.path();
    let streams = STREAMS.contains(&path);
    let carrier = CARRIERS.iter().find(|(carrier, _)| *carrier == path);
    let limits = carrier.map_or(MessageLimits { bytes: MAX_SMALL_BYTES, nested: &[] }, |(_, nested)| {
        MessageLimits { bytes: MAX_MESSAGE_BYTES, nested }
    });
    if streams || IDENTIFIED.contains(&path) {
        parts.extensions.insert(Arc::clone(connection));
    }
    let is_gzip = gzip::take_encoding(&mut parts.headers);
    let is_closed = is_gzip && gzip::is_accepted(&parts.headers);
    let response = if streams {
        let body = MessageStream::new(body, limits, connection);
        let body = if is_gzip { Body::new(Opened::new(body, limits, connection)) } else { Body::new(body) };
        call(routes, Request::from_parts(parts, body)).await
    } else {
        // Held until the answer is there; of a stream, until it begins.
        let (mut message, mut held) = collect(body, limits, connection).await?;
        if is_gzip {
            let opened;
            (opened, held) = gzip::open(message.into_pieces(), limits, held).await?;
            message = Message::of(opened);
        }
        let _held = held;
        let is_heavy = message.is_heavy();
        let request = Request::from_parts(parts, Body::new(message));
        if is_heavy { begin_elsewhere(call(routes, request)).await } else { call(routes, request).await }
    };
    Ok(if is_closed { gzip::close(response) } else { response })
}

/// The services of the routes are always ready, and answer failures with statuses.
async fn call(mut routes: Routes, request: Request<Body>) -> Response<Body> {
    let Ok(response) = routes.call(request).await;
    response
}

/// The size of the headers as HTTP/2 counts it, less a few fixed ones.
fn header_bytes(request: &Request<Incoming>) -> usize {
    let headers = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 32);
    headers.sum::<usize>() + request.uri().path().len()
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use prost_types::FileDescriptorSet;

    use super::*;

    /// All RPCs by path, with whether their requests are streams.
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
    fn the_kinds_of_rpcs_are_those_of_the_descriptors() {
        let rpcs = rpcs();
        let streams: Vec<_> =
            rpcs.iter().filter(|(_, streams)| *streams).map(|(path, _)| path.as_str()).collect();
        assert_eq!(streams, STREAMS);
        for path in CARRIERS.iter().map(|(path, _)| *path).chain(IDENTIFIED) {
            assert!(rpcs.iter().any(|(known, ..)| known == path), "{path}");
        }
    }
}
