//! Calls a tool with each kind of client, and returns the outcome of the call as one word.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use futures_util::{TryStreamExt, future::BoxFuture};
use serde_json::{Value, json};
use snakepit_proto::{pb, status::details_of};
use snakepit_server::{CallBuilder, Client as Remote, Error, HostHandle, Snakepit, status::from_tool_error};
use snakepit_tests::{Client, EVENT_TIMEOUT, eventually, tool_request};
use tokio::task::JoinSet;
use tonic::{Request, Status, transport::Endpoint};

use crate::python::PythonClient;

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ClientKind {
    /// The program that embeds the host.
    Embedded,
    /// The generated gRPC client in Rust.
    Grpc,
    /// The Rust client, which multiplexes its calls on one stream.
    Multiplexed,
    /// grpcio in Python.
    Grpcio,
    /// The client of the Python package.
    Package,
}

/// One client of each kind, connected to one host.
#[derive(Debug)]
pub struct Clients {
    /// `None` if the host runs in another process.
    pub embedded: Option<Snakepit>,
    pub remote: Remote,
    pub grpc: Client,
    pub grpcio: PythonClient,
    pub package: PythonClient,
    markers: tempfile::TempDir,
}

impl Clients {
    /// Connects the clients to `host:port`.
    pub async fn connect(address: &str, embedded: Option<Snakepit>) -> Self {
        let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        Self {
            embedded,
            remote: Remote::connect(address).await.unwrap(),
            grpc: Client::new(channel),
            grpcio: PythonClient::start("grpcio", address),
            package: PythonClient::start("package", address),
            markers: tempfile::tempdir().unwrap(),
        }
    }

    /// Starts a call. If `how` is `hang`, waits until the tool runs.
    pub async fn begin(
        &self,
        kind: ClientKind,
        tool: &str,
        is_stream: bool,
        how: &str,
        timeout: Option<Duration>,
    ) -> RunningCall {
        static CALLS: AtomicUsize = AtomicUsize::new(0);
        let marker = self.markers.path().join(format!("marker-{}", CALLS.fetch_add(1, Ordering::SeqCst)));
        let args = json!({"how": how, "marker": marker});
        let in_python = |client: &PythonClient, args: &Value| -> BoxFuture<'static, String> {
            let seconds = timeout.map(|timeout| timeout.as_secs_f64());
            let call = json!({"tool": tool, "args": args, "stream": is_stream, "timeout": seconds});
            let mut request = client.request(call);
            Box::pin(async move { request.next_event().await })
        };
        let outcome: BoxFuture<'static, String> = match kind {
            ClientKind::Embedded => {
                let host = self.embedded.as_ref().expect("the host is embedded");
                Box::pin(with_builder(host.call(tool), args, is_stream, timeout))
            }
            ClientKind::Multiplexed => {
                Box::pin(with_builder(self.remote.call(tool), args, is_stream, timeout))
            }
            ClientKind::Grpc => {
                let mut request = Request::new(tool_request(tool, &args));
                if let Some(timeout) = timeout {
                    request.set_timeout(timeout);
                }
                Box::pin(with_grpc(self.grpc.clone(), request, is_stream))
            }
            ClientKind::Grpcio => in_python(&self.grpcio, &args),
            ClientKind::Package => in_python(&self.package, &args),
        };
        let mut task = JoinSet::new();
        task.spawn(outcome);
        // Other calls may have ended before this check.
        if how == "hang" {
            eventually(&format!("{tool} runs, called by {kind:?}"), EVENT_TIMEOUT, async || marker.exists())
                .await;
        }
        RunningCall(task)
    }
}

/// A running call. Dropping it cancels the call.
#[derive(Debug)]
pub struct RunningCall(JoinSet<String>);

impl RunningCall {
    pub async fn outcome(mut self) -> String {
        tokio::time::timeout(EVENT_TIMEOUT, self.0.join_next())
            .await
            .expect("the call ends")
            .unwrap()
            .unwrap()
    }
}

async fn with_builder<H: HostHandle>(
    call: CallBuilder<H>,
    args: Value,
    is_stream: bool,
    timeout: Option<Duration>,
) -> String {
    let call = call.args(args);
    let call = match timeout {
        Some(timeout) => call.timeout(timeout),
        None => call,
    };
    let result = async {
        if is_stream {
            call.stream::<Value>().await?.try_collect::<Vec<_>>().await.map(drop)
        } else {
            call.unary::<Value>().await.map(drop)
        }
    };
    result.await.map_or_else(reason, |()| "OK".to_owned())
}

async fn with_grpc(mut client: Client, request: Request<pb::ExecuteToolRequest>, is_stream: bool) -> String {
    let result = async {
        if is_stream {
            let chunks = client.execute_streaming_tool(request).await?.into_inner();
            chunks.try_collect::<Vec<_>>().await.map(|_| true)
        } else {
            client.execute_tool(request).await.map(|response| response.into_inner().success)
        }
    };
    match result.await {
        Ok(true) => "OK".to_owned(),
        Ok(false) => "TOOL_FAILED".to_owned(),
        Err(status) => reason_of(&status),
    }
}

pub fn reason(error: Error) -> String {
    match error {
        Error::Tool(error) => reason_of(&from_tool_error(error)),
        other => panic!("{other:?}"),
    }
}

fn is_channel_timeout(status: &Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<tonic::TimeoutExpired>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Returns the reason in a status, or `DEADLINE_EXCEEDED` if the client's own timer ended the call.
pub fn reason_of(status: &Status) -> String {
    details_of(status).reason.unwrap_or_else(|| match status.code() {
        tonic::Code::DeadlineExceeded => "DEADLINE_EXCEEDED".to_owned(),
        // On a busy machine, tonic's timer can fire before the server's response arrives.
        tonic::Code::Cancelled if is_channel_timeout(status) => "DEADLINE_EXCEEDED".to_owned(),
        _ => format!("{status:?}"),
    })
}
