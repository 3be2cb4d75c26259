//! Connecting to a server, and turning its refusals into one line.

use std::time::Duration;

use snakepit_proto::{
    MAX_MESSAGE_BYTES,
    pb::bridge_service_client::BridgeServiceClient,
    status::{caused_by, failure_of, root_cause},
};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

use crate::{Failure, exit};

#[derive(Debug, clap::Args)]
pub(crate) struct Server {
    /// The server to talk to.
    #[arg(
        long,
        value_name = "URL",
        default_value = "http://127.0.0.1:50051",
        env = "SNAKEPIT_SERVER",
        hide_env_values = true
    )]
    server: String,
}

impl Server {
    pub(crate) async fn connect(&self) -> Result<BridgeServiceClient<Channel>, Failure> {
        let address = &self.server;
        let endpoint = Endpoint::from_shared(address.clone()).map_err(|_| {
            Failure::new(exit::USAGE, format!("`{address}` is no URL; it looks like http://127.0.0.1:50051"))
        })?;
        let channel = endpoint.connect_timeout(Duration::from_secs(5)).tcp_nodelay(true).connect().await.map_err(|e| {
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

/// A refusal as one line: the server's message, then the code's name.
#[allow(clippy::needless_pass_by_value, reason = "it is an argument of map_err")]
pub(crate) fn refused(status: Status) -> Failure {
    if caused_by::<tonic::TimeoutExpired>(&status) {
        // The server was not even in time to say so.
        let problem =
            "the deadline passed before the server answered; raise --timeout, or see `snakepit workers`";
        return Failure::new(exit::REFUSED, problem);
    }
    let code = match status.code() {
        Code::Internal if failure_of(&status).is_some() => exit::TOOL_FAILED,
        _ => exit::REFUSED,
    };
    Failure::new(code, format!("{} ({:?})", status.message(), status.code()))
}
