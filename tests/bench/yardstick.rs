//! What the machine gives without the product: a server that answers at once, in a process of its own.

use std::{
    convert::Infallible,
    future::{Future, Ready, ready},
    path::{Path, PathBuf},
    pin::Pin,
    process::{Child, Command, Stdio},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use snakepit_proto::{
    mux::{CallEnd, CallEvent, Calls, Multiplexer, Replies, Serve},
    pb::{self, bridge_service_client::BridgeServiceClient},
};
use tokio::{
    net::{UnixListener, UnixStream},
    task::JoinSet,
};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    codegen::{Service, http},
    server::{Grpc, NamedService, StreamingService, UnaryService},
    transport::{Channel, Endpoint, Server, Uri},
};
use tonic_prost::ProstCodec;
use tower::service_fn;

use crate::load::{Report, closed_loop};

/// The service: answers a unary call, and each call of a multiplexed stream, with its first argument.
#[derive(Debug, Clone, Copy)]
struct Answers;

impl NamedService for Answers {
    const NAME: &'static str = "snakepit.bridge.BridgeService";
}

impl Service<http::Request<Body>> for Answers {
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

impl UnaryService<pb::ExecuteToolRequest> for Answers {
    type Response = pb::ExecuteToolResponse;
    type Future = Ready<Result<Response<Self::Response>, Status>>;

    fn call(&mut self, request: Request<pb::ExecuteToolRequest>) -> Self::Future {
        let result = request.into_inner().parameters.remove("a");
        ready(Ok(Response::new(pb::ExecuteToolResponse { success: true, result, ..Default::default() })))
    }
}

impl StreamingService<pb::CallBatch> for Answers {
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
            self.0.reply(pb::CallReply { id: call.id, value, ..pb::CallReply::default() });
        }
    }
}

/// Serves until it is killed.
pub(crate) fn serve(socket: &Path) {
    crate::load::runtime(1).block_on(async {
        let incoming = UnixListenerStream::new(UnixListener::bind(socket).expect("the socket can be bound"));
        let server = Server::builder().add_service(Answers);
        server.serve_with_incoming(incoming).await.expect("the server serves");
    });
}

/// A running yardstick server; killed when dropped.
#[derive(Debug)]
pub(crate) struct Echo {
    server: Child,
    socket: PathBuf,
    _dir: tempfile::TempDir,
}

impl Echo {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let socket = dir.path().join("echo.sock");
        let binary = std::env::current_exe().expect("this program has a path");
        let server = Command::new(binary).arg("echo").arg(&socket).stdin(Stdio::null()).spawn();
        let echo = Self { server: server.expect("the yardstick starts"), socket, _dir: dir };
        while UnixStream::connect(&echo.socket).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        echo
    }

    async fn connect(&self) -> BridgeServiceClient<Channel> {
        let socket = self.socket.clone();
        let connector = service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await;
        BridgeServiceClient::new(channel.expect("the yardstick accepts"))
    }

    /// Unary calls on one connection.
    pub(crate) async fn unary(&self, in_flight: usize, time: Duration) -> Report {
        let client = self.connect().await;
        closed_loop(in_flight, time, &[self.server.id()], move |number| {
            let mut client = client.clone();
            async move {
                let request = snakepit_tests::tool_request("add", &serde_json::json!({"a": number, "b": 1}));
                let sent = request.parameters["a"].clone();
                client
                    .execute_tool(request)
                    .await
                    .is_ok_and(|answer| answer.into_inner().result == Some(sent))
            }
        })
        .await
    }

    /// Calls multiplexed on one stream.
    pub(crate) async fn multiplexed(&self, in_flight: usize, time: Duration) -> Report {
        let (multiplexer, incoming) =
            Multiplexer::open(self.connect().await).await.expect("the stream opens");
        let mut tasks = JoinSet::new();
        tasks.spawn(incoming);
        let multiplexer = Arc::new(multiplexer);
        closed_loop(in_flight, time, &[self.server.id()], move |number| {
            let multiplexer = Arc::clone(&multiplexer);
            async move {
                let call = add_call(number);
                let sent = call.arguments[0].value.clone();
                let event = multiplexer.start(call, number).event().await;
                matches!(event, CallEvent::End(CallEnd::Reply(reply)) if reply.value == sent)
            }
        })
        .await
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        // It has no state to lose.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// `add(a=number, b=1)` as a multiplexed call.
pub(crate) fn add_call(number: u64) -> pb::CallStart {
    let argument = |name: &str, number: u64| pb::CallArgument {
        name: name.to_owned(),
        value: Some(pb::CallValue {
            r#type: pb::CallValueType::Integer.into(),
            json: number.to_string().into(),
            binary: None,
        }),
    };
    pb::CallStart {
        tool_name: "add".to_owned(),
        arguments: vec![argument("a", number), argument("b", 1)],
        ..pb::CallStart::default()
    }
}
