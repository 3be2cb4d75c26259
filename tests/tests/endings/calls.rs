//! Every way to call a tool of one host, each of which says in one word how a call ended.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use futures_util::{TryStreamExt, future::BoxFuture};
use serde_json::{Value, json};
use snakepit_proto::{pb, status::details_of};
use snakepit_server::{CallBuilder, Client as Remote, Error, HostHandle, Snakepit, status::from_tool_error};
use snakepit_tests::{Client, eventually, tool_request};
use tokio::task::JoinSet;
use tonic::{Request, Status, transport::Endpoint};

use crate::{SOON, python::PythonClient};

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Way {
    /// By the program that embeds the host.
    Embedded,
    /// By plain gRPC from Rust.
    Grpc,
    /// By the client in Rust, whose calls share a stream.
    Multiplexed,
    /// By plain gRPC from Python.
    Grpcio,
    /// By the client in Python.
    Package,
}

/// One client of each kind, connected to one host.
#[derive(Debug)]
pub struct Clients {
    /// `None` if the host is another process.
    pub embedded: Option<Snakepit>,
    pub remote: Remote,
    pub grpc: Client,
    pub grpcio: PythonClient,
    pub package: PythonClient,
    markers: tempfile::TempDir,
}

impl Clients {
    /// Connects them to `host:port`.
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

    /// Makes a call, and waits until the tool runs, unless it ends by itself.
    pub async fn begin(
        &self,
        way: Way,
        tool: &str,
        streams: bool,
        how: &str,
        timeout: Option<Duration>,
    ) -> Calling {
        static CALLS: AtomicUsize = AtomicUsize::new(0);
        let marker = self.markers.path().join(format!("marker-{}", CALLS.fetch_add(1, Ordering::SeqCst)));
        let args = json!({"how": how, "marker": marker});
        let in_python = |client: &PythonClient, args: &Value| -> BoxFuture<'static, String> {
            let seconds = timeout.map(|timeout| timeout.as_secs_f64());
            let call = json!({"tool": tool, "args": args, "stream": streams, "timeout": seconds});
            let mut asked = client.ask(call);
            Box::pin(async move { asked.next().await })
        };
        let outcome: BoxFuture<'static, String> = match way {
            Way::Embedded => {
                let host = self.embedded.as_ref().expect("the host is embedded");
                Box::pin(built(host.call(tool), args, streams, timeout))
            }
            Way::Multiplexed => Box::pin(built(self.remote.call(tool), args, streams, timeout)),
            Way::Grpc => {
                let mut request = Request::new(tool_request(tool, &args));
                if let Some(timeout) = timeout {
                    request.set_timeout(timeout);
                }
                Box::pin(plain(self.grpc.clone(), request, streams))
            }
            Way::Grpcio => in_python(&self.grpcio, &args),
            Way::Package => in_python(&self.package, &args),
        };
        let mut task = JoinSet::new();
        task.spawn(outcome);
        // A call that ends by itself may have done so before anybody looks.
        if how == "hang" {
            eventually(&format!("{tool} runs, called {way:?}"), SOON, async || marker.exists()).await;
        }
        Calling(task)
    }
}

/// A call on its way. Dropping it cancels it.
#[derive(Debug)]
pub struct Calling(JoinSet<String>);

impl Calling {
    pub async fn outcome(mut self) -> String {
        tokio::time::timeout(SOON, self.0.join_next()).await.expect("the call ends").unwrap().unwrap()
    }
}

async fn built<H: HostHandle>(
    call: CallBuilder<H>,
    args: Value,
    streams: bool,
    timeout: Option<Duration>,
) -> String {
    let call = call.args(args);
    let call = match timeout {
        Some(timeout) => call.timeout(timeout),
        None => call,
    };
    let answer = async {
        if streams {
            call.stream::<Value>().await?.try_collect::<Vec<_>>().await.map(drop)
        } else {
            call.unary::<Value>().await.map(drop)
        }
    };
    answer.await.map_or_else(reason, |()| "OK".to_owned())
}

async fn plain(mut client: Client, request: Request<pb::ExecuteToolRequest>, streams: bool) -> String {
    let answer = async {
        if streams {
            let chunks = client.execute_streaming_tool(request).await?.into_inner();
            chunks.try_collect::<Vec<_>>().await.map(|_| true)
        } else {
            client.execute_tool(request).await.map(|response| response.into_inner().success)
        }
    };
    match answer.await {
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

fn is_caused_by_a_clock(status: &Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<tonic::TimeoutExpired>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The reason in a status; the code of one that the client made by its own clock.
pub fn reason_of(status: &Status) -> String {
    details_of(status).reason.unwrap_or_else(|| match status.code() {
        tonic::Code::DeadlineExceeded => "DEADLINE_EXCEEDED".to_owned(),
        // tonic's own clock, which on a busy machine can be first.
        tonic::Code::Cancelled if is_caused_by_a_clock(status) => "DEADLINE_EXCEEDED".to_owned(),
        _ => format!("{status:?}"),
    })
}
