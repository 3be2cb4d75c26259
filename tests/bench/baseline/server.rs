//! The echo server: unary RPCs and the multiplexed stream, without a scheduler, layers or Python.

use std::{
    convert::Infallible,
    future::{Future, Ready, ready},
    path::Path,
    pin::Pin,
    task::{Context, Poll},
};

use snakepit_proto::{
    mux::{Calls, Replies, Serve},
    pb,
};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    codegen::{Service, http},
    server::{Grpc, NamedService, StreamingService, UnaryService},
    transport::Server,
};
use tonic_prost::ProstCodec;

/// A service that answers each unary or multiplexed call with its first argument.
#[derive(Debug, Clone, Copy)]
struct EchoService;

impl NamedService for EchoService {
    const NAME: &'static str = "snakepit.bridge.BridgeService";
}

impl Service<http::Request<Body>> for EchoService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move {
            Ok(match request.uri().path() {
                "/snakepit.bridge.BridgeService/ExecuteTool" => {
                    Grpc::new(ProstCodec::default()).unary(Self, request).await
                }
                "/snakepit.bridge.BridgeService/Multiplex" => {
                    Grpc::new(ProstCodec::default()).streaming(Self, request).await
                }
                other => Status::unimplemented(other).into_http(),
            })
        })
    }
}

impl UnaryService<pb::ExecuteToolRequest> for EchoService {
    type Response = pb::ExecuteToolResponse;
    type Future = Ready<Result<Response<Self::Response>, Status>>;

    fn call(&mut self, request: Request<pb::ExecuteToolRequest>) -> Self::Future {
        let result = request.into_inner().parameters.remove("a");
        ready(Ok(Response::new(pb::ExecuteToolResponse { success: true, result, ..Default::default() })))
    }
}

impl StreamingService<pb::CallBatch> for EchoService {
    type Response = pb::ReplyBatch;
    type ResponseStream = Serve<EchoCalls>;
    type Future = Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<pb::CallBatch>>) -> Self::Future {
        let replies = Replies::new();
        ready(Ok(Response::new(Serve::new(request.into_inner(), EchoCalls(replies.clone()), replies))))
    }
}

struct EchoCalls(Replies);

impl Calls for EchoCalls {
    fn receive(&mut self, batch: pb::CallBatch) {
        for call in batch.calls {
            let value = call.arguments.into_iter().next().and_then(|argument| argument.value);
            self.0.send_reply(pb::CallReply { id: call.id, value, ..pb::CallReply::default() });
        }
    }
}

/// Runs the server until the process is killed.
pub(crate) fn serve(socket: &Path) {
    crate::load::runtime(1).block_on(async {
        let incoming = UnixListenerStream::new(UnixListener::bind(socket).expect("the socket can be bound"));
        let server = Server::builder().add_service(EchoService);
        server.serve_with_incoming(incoming).await.expect("the server serves");
    });
}
