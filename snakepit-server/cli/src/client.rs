//! Connecting to a server, and turning its refusals into one line.

use std::{error::Error, time::Duration};

use hyper_util::rt::TokioIo;
use snakepit_proto::{
    MAX_MESSAGE_BYTES,
    address::{Address, AddressError},
    identify::identify,
    pb::{self, bridge_service_client::BridgeServiceClient},
    proxy,
    status::{PROXY, caused_by, failure_of, root_cause},
};
use tokio::net::UnixStream;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint, Uri},
};
use tonic_types::StatusExt;
use tower::service_fn;

use crate::{Failure, exit};

/// How long connecting may take, and then the first answer.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub(crate) struct Server {
    /// The server to talk to: http://HOST:PORT, of which `http://` may be left out, or unix:PATH.
    #[arg(
        long,
        value_name = "URL",
        value_parser = server_address,
        default_value = "http://127.0.0.1:50051",
        env = "SNAKEPIT_SERVER",
        hide_env_values = true
    )]
    server: Address,
}

impl Server {
    /// Connects, and makes sure that a host answers.
    pub(crate) async fn connect(&self) -> Result<BridgeServiceClient<Channel>, Failure> {
        let address = &self.server;
        let settings = |endpoint: Endpoint| {
            endpoint
                .connect_timeout(CONNECT_WITHIN)
                .tcp_nodelay(true)
                // A server that vanished without a word is noticed, also by a call without a timeout.
                .http2_keep_alive_interval(Duration::from_secs(30))
                .keep_alive_timeout(Duration::from_secs(10))
        };
        let channel = match address {
            Address::Tcp(_) => match Endpoint::from_shared(address.to_string()) {
                Ok(endpoint) => settings(endpoint).connect().await,
                Err(_) => return Err(Failure::new(exit::USAGE, format!("`{address}` is no URL"))),
            },
            Address::Unix(path) => {
                let path = path.clone();
                let connector = service_fn(move |_: Uri| {
                    let path = path.clone();
                    async move { UnixStream::connect(path).await.map(TokioIo::new) }
                });
                // The host in this URL is only what HTTP/2 shows as authority.
                settings(Endpoint::from_static("http://localhost")).connect_with_connector(connector).await
            }
        };
        let channel = match channel {
            Ok(channel) => channel,
            Err(error) => return Err(self.unreachable(&root_cause(&error).to_string()).await),
        };
        let mut client = BridgeServiceClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let ping = pb::PingRequest { message: "cli".to_owned() };
        match tokio::time::timeout(ANSWER_WITHIN, client.ping(ping)).await {
            Ok(Ok(_)) => Ok(client),
            Ok(Err(status)) => match (status.source(), proxy::clarify(status.clone())) {
                (Some(cause), _) => Err(self.unreachable(&root_cause(cause).to_string()).await),
                (None, status) => Err(self.failure(status.message()).code(code_of(&status))),
            },
            Err(_) => Err(self.unreachable(&format!("it did not answer within {ANSWER_WITHIN:?}")).await),
        }
    }

    /// Why there is no connection: what answers there instead of a host, else what the transport says.
    async fn unreachable(&self, problem: &str) -> Failure {
        let instead = identify(&self.server).await;
        self.failure(instead.as_deref().unwrap_or(problem))
    }

    fn failure(&self, problem: &str) -> Failure {
        let address = &self.server;
        let message = format!(
            "cannot reach a server at {address}: {problem}; start one with `snakepit serve`, or pass --server"
        );
        Failure::new(exit::UNREACHABLE, message)
    }
}

/// How long after its time is up a command waits for the server's own answer, which says more.
const GRACE: Duration = Duration::from_millis(200);

/// Runs a command by this side's own clock.
pub(crate) async fn within(
    timeout: Option<Duration>,
    command: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    match timeout {
        Some(timeout) => tokio::time::timeout(timeout.saturating_add(GRACE), command)
            .await
            .unwrap_or_else(|_| Err(timed_out())),
        None => command.await,
    }
}

/// The server was not even in time to say so.
fn timed_out() -> Failure {
    let problem =
        "the deadline passed before the server answered; raise --timeout, or see `snakepit workers`";
    Failure::new(exit::REFUSED, problem).code("DEADLINE_EXCEEDED")
}

/// A status as one line: the server's message, then the code's name.
#[allow(clippy::needless_pass_by_value, reason = "it is an argument of map_err")]
pub(crate) fn refused(status: Status) -> Failure {
    if caused_by::<tonic::TimeoutExpired>(&status) {
        return timed_out();
    }
    // A status that the server sent has no cause.
    if let Some(cause) = status.source() {
        let problem = format!(
            "the connection to the server was lost before the call ended: {}; the call may have run",
            root_cause(cause)
        );
        return Failure::new(exit::UNREACHABLE, problem).code("CONNECTION_LOST");
    }
    if let Some(failure) = failure_of(&status) {
        return Failure::new(exit::TOOL_FAILED, status.message()).traceback(failure.traceback);
    }
    let status = proxy::clarify(status);
    let reason = status.get_error_details().error_info().map(|info| info.reason.clone());
    if reason.as_deref() == Some(PROXY) {
        return Failure::new(exit::UNREACHABLE, status.message()).code(PROXY);
    }
    let mut message = format!("{} ({:?})", status.message(), status.code());
    if reason.as_deref() == Some("TOOL_NOT_FOUND") && !message.contains("did you mean") {
        message.push_str("; see `snakepit tools`");
    }
    Failure::new(exit::REFUSED, message).code(code_of(&status))
}

/// What kind of failure a status is: its reason, else its code.
fn code_of(status: &Status) -> String {
    let reason = status.get_error_details().error_info().map(|info| info.reason.clone());
    reason.unwrap_or_else(|| code_name(status.code()))
}

/// The canonical name of a code: `NOT_FOUND`.
fn code_name(code: Code) -> String {
    let mut name = String::new();
    for c in format!("{code:?}").chars() {
        if c.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(c.to_ascii_uppercase());
    }
    name
}

/// Reads a server's address, for messages that name the flag and the text already.
fn server_address(value: &str) -> Result<Address, String> {
    value.parse().map_err(|error: AddressError| {
        format!(
            "{}; it looks like http://127.0.0.1:50051, localhost:50051 or unix:/path/to/socket",
            error.problem()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_their_canonical_names() {
        assert_eq!(code_name(Code::NotFound), "NOT_FOUND");
        assert_eq!(code_name(Code::Ok), "OK");
    }
}
