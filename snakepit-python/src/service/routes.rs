//! The routes of the worker's RPCs. The generated server has routes for all RPCs of the protocol, and their code would be part of
//! the memory of every worker.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use snakepit_proto::{MAX_MESSAGE_BYTES, Message, pb};
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    codegen::http,
    server::{Grpc, NamedService},
};
use tonic_prost::ProstCodec;
use tower::{Service, service_fn};

use super::WorkerService;
use crate::telemetry;

type HttpFuture = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

/// The service of a worker as a gRPC server.
#[derive(Debug, Clone)]
pub(crate) struct WorkerRoutes(Arc<WorkerService>);

impl WorkerRoutes {
    pub(crate) fn new(service: WorkerService) -> Self {
        Self(Arc::new(service))
    }
}

impl NamedService for WorkerRoutes {
    const NAME: &'static str = "snakepit.bridge.BridgeService";
}

impl Service<http::Request<Body>> for WorkerRoutes {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = HttpFuture;

    /// Always ready.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> HttpFuture {
        let service = Arc::clone(&self.0);
        match request.uri().path() {
            "/snakepit.bridge.BridgeService/Multiplex" => Box::pin(async move {
                let open = |request: Request<Streaming<pb::CallBatch>>| {
                    std::future::ready(Ok(Response::new(service.multiplex(request.into_inner()))))
                };
                Ok(grpc().streaming(service_fn(open), request).await)
            }),
            "/snakepit.bridge.BridgeService/ExecuteTool" => Box::pin(async move {
                let execute = |request| service.execute(request);
                Ok(grpc().unary(service_fn(execute), request).await)
            }),
            "/snakepit.bridge.BridgeService/ExecuteStreamingTool" => Box::pin(async move {
                let execute = |request| service.execute_streaming(request);
                Ok(grpc().server_streaming(service_fn(execute), request).await)
            }),
            "/snakepit.bridge.BridgeService/CancelTool" => Box::pin(async move {
                let cancel = |request| service.cancel(request);
                Ok(grpc().unary(service_fn(cancel), request).await)
            }),
            "/snakepit.bridge.BridgeService/StreamTelemetry" => Box::pin(async move {
                let open = |request: Request<Streaming<pb::TelemetryControl>>| {
                    std::future::ready(telemetry::stream(request.into_inner()).map(Response::new))
                };
                Ok(grpc().streaming(service_fn(open), request).await)
            }),
            "/snakepit.bridge.BridgeService/Ping" => Box::pin(async move {
                let pong = |request: Request<pb::PingRequest>| {
                    std::future::ready(Ok(Response::new(WorkerService::pong(request.into_inner()))))
                };
                Ok(grpc().unary(service_fn(pong), request).await)
            }),
            _ => {
                let status = Status::unimplemented("workers do not serve this RPC; call it on the host");
                Box::pin(std::future::ready(Ok(status.into_http())))
            }
        }
    }
}

fn grpc<A, Q>() -> Grpc<ProstCodec<A, Q>>
where
    A: Message + 'static,
    Q: Message + Default + 'static,
{
    Grpc::new(ProstCodec::default())
        .apply_max_message_size_config(Some(MAX_MESSAGE_BYTES), Some(MAX_MESSAGE_BYTES))
}
