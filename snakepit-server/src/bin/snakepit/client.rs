//! Connecting to a server, and turning its refusals into one line.

use std::{error::Error, time::Duration};

use snakepit_proto::{
    MAX_MESSAGE_BYTES,
    pb::bridge_service_client::BridgeServiceClient,
    status::{caused_by, failure_of, root_cause},
};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt;

use crate::{Failure, exit};

#[derive(Debug, clap::Args)]
pub(crate) struct Server {
    /// The server to talk to; `http://` may be left out.
    #[arg(
        long,
        value_name = "URL",
        value_parser = server_url,
        default_value = "http://127.0.0.1:50051",
        env = "SNAKEPIT_SERVER",
        hide_env_values = true
    )]
    server: String,
}

impl Server {
    pub(crate) async fn connect(&self) -> Result<BridgeServiceClient<Channel>, Failure> {
        let address = &self.server;
        let endpoint = Endpoint::from_shared(address.clone())
            .map_err(|_| Failure::new(exit::USAGE, format!("`{address}` is no URL")))?;
        let channel = endpoint
            .connect_timeout(Duration::from_secs(5))
            .tcp_nodelay(true)
            // A server that vanished without a word is noticed, also by a call without a timeout.
            .http2_keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(10))
            .connect().await.map_err(|e| {
            let reason = root_cause(&e);
            Failure::new(
                exit::UNREACHABLE,
                format!("cannot reach a server at {address}: {reason}; start one with `snakepit serve`, or pass --server"),
            )
        })?;
        Ok(BridgeServiceClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES))
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
    let reason = status.get_error_details().error_info().map(|info| info.reason.clone());
    let mut message = format!("{} ({:?})", status.message(), status.code());
    if reason.as_deref() == Some("TOOL_NOT_FOUND") && !message.contains("did you mean") {
        message.push_str("; see `snakepit tools`");
    }
    Failure::new(exit::REFUSED, message).code(reason.unwrap_or_else(|| code_name(status.code())))
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

/// Checks the form of a server's address; `http://` may be left out.
fn server_url(value: &str) -> Result<String, String> {
    const FORM: &str = "it looks like http://127.0.0.1:50051 or localhost:50051";
    let url = match value.split_once("://") {
        Some(("http", _)) => value.to_owned(),
        Some(("https", _)) => {
            return Err(
                "servers speak no TLS; use http://, through a tunnel if the network is not trusted".into()
            );
        }
        Some((scheme, _)) => return Err(format!("`{scheme}` is no scheme of a server; {FORM}")),
        None if crate::serve::host_and_port(value).is_ok() => format!("http://{value}"),
        None => return Err(FORM.to_owned()),
    };
    Endpoint::from_shared(url.clone()).map_err(|_| FORM.to_owned())?;
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_named_with_or_without_its_scheme() {
        assert_eq!(server_url("http://10.0.0.1:1").as_deref(), Ok("http://10.0.0.1:1"));
        assert_eq!(server_url("localhost:50051").as_deref(), Ok("http://localhost:50051"));
        assert_eq!(server_url("[::1]:50051").as_deref(), Ok("http://[::1]:50051"));
        assert!(server_url("https://localhost:50051").unwrap_err().contains("TLS"));
        for bad in ["localhost", "", "ftp://localhost:1", "http://", "http://a b:1", "unix:/tmp/s"] {
            assert!(server_url(bad).unwrap_err().contains("localhost:50051"), "{bad}");
        }
    }

    #[test]
    fn codes_have_their_canonical_names() {
        assert_eq!(code_name(Code::NotFound), "NOT_FOUND");
        assert_eq!(code_name(Code::Ok), "OK");
    }
}
