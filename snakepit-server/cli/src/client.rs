//! Connects to a server, and converts its statuses to one line of text.

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

/// The time in which the connection must be established.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The time in which the server must answer the first ping.
const PING_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub(crate) struct ServerArgs {
    /// Connect to this server: http://HOST:PORT, HOST:PORT or unix:PATH.
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

impl ServerArgs {
    /// Connects, and checks that a host answers.
    pub(crate) async fn connect(&self) -> Result<BridgeServiceClient<Channel>, Failure> {
        let address = &self.server;
        let configure = |endpoint: Endpoint| {
            endpoint
                .connect_timeout(CONNECT_TIMEOUT)
                .tcp_nodelay(true)
                // Detects a server that disappeared, also during a call without a timeout.
                .http2_keep_alive_interval(Duration::from_secs(30))
                .keep_alive_timeout(Duration::from_secs(10))
        };
        let channel = match address {
            Address::Tcp(_) => match Endpoint::from_shared(address.to_string()) {
                Ok(endpoint) => configure(endpoint).connect().await,
                Err(_) => return Err(Failure::new(exit::USAGE, format!("`{address}` is not a URL"))),
            },
            Address::Unix(path) => {
                let path = path.clone();
                let connector = service_fn(move |_: Uri| {
                    let path = path.clone();
                    async move { UnixStream::connect(path).await.map(TokioIo::new) }
                });
                // HTTP/2 sends the host of this URL only as the authority.
                configure(Endpoint::from_static("http://localhost")).connect_with_connector(connector).await
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
        match tokio::time::timeout(PING_TIMEOUT, client.ping(ping)).await {
            Ok(Ok(_)) => Ok(client),
            Ok(Err(status)) => match (status.source(), proxy::clarify(status.clone())) {
                (Some(cause), _) => Err(self.unreachable(&root_cause(cause).to_string()).await),
                (None, status) => Err(self.failure(status.message()).code(code_of(&status))),
            },
            Err(_) => Err(self.unreachable(&format!("it did not answer within {PING_TIMEOUT:?}")).await),
        }
    }

    /// The failure to connect. Names the program at the address if it is not a host, otherwise the error of the transport.
    async fn unreachable(&self, problem: &str) -> Failure {
        let identified = identify(&self.server).await;
        self.failure(identified.as_deref().unwrap_or(problem))
    }

    fn failure(&self, problem: &str) -> Failure {
        let address = &self.server;
        let message = format!(
            "cannot reach a server at {address}: {problem}; start one with `snakepit serve`, or pass --server"
        );
        Failure::new(exit::UNREACHABLE, message)
    }
}

/// The extra time for the server to report the deadline itself, with more detail.
const GRACE: Duration = Duration::from_millis(200);

/// Enforces the timeout of a command on the client side.
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

/// The failure if the server did not report the deadline in time.
fn timed_out() -> Failure {
    let problem =
        "the deadline passed before the server answered; raise --timeout, or see `snakepit workers`";
    Failure::new(exit::REJECTED, problem).code("DEADLINE_EXCEEDED")
}

/// Converts a status to one line of text: the server's message and the name of the code.
#[allow(clippy::needless_pass_by_value, reason = "it is an argument of map_err")]
pub(crate) fn status_failure(status: Status) -> Failure {
    if caused_by::<tonic::TimeoutExpired>(&status) {
        return timed_out();
    }
    // Only statuses of the transport have a source.
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
    Failure::new(exit::REJECTED, message).code(code_of(&status))
}

/// The kind of failure of a status: its reason, or else its code.
fn code_of(status: &Status) -> String {
    let reason = status.get_error_details().error_info().map(|info| info.reason.clone());
    reason.unwrap_or_else(|| code_name(status.code()))
}

/// The canonical name of a code, such as `NOT_FOUND`.
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

/// Parses a server's address. clap prefixes errors with the flag and the value.
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
