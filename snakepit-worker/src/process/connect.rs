//! Connects to a worker that has reported readiness. Retries, because a worker may report it before it accepts connections.

use std::{path::PathBuf, time::Duration};

use hyper_util::rt::TokioIo;
use snakepit_proto::{
    MAX_MESSAGE_BYTES,
    flow::{
        CLIENT_CONNECTION_WINDOW, ERROR_RESETS, MAX_FRAME_SIZE, MAX_RESET_STREAMS, RESET_STREAM_DURATION,
        STREAM_WINDOW,
    },
    pb::{self, bridge_service_client::BridgeServiceClient},
    status::{HEADER_LIST_BYTES, root_cause},
};
use tokio::{net::UnixStream, time::Instant};
use tonic::{
    Status,
    transport::{Channel, Endpoint, Uri},
};

use super::{
    hangup_tolerant_stream::HangupTolerantStream, readiness::WorkerAddress, supervisor::SupervisedProcess,
};
use crate::{SharedError, WorkerError};

/// The gRPC client of a worker.
pub(super) type Client = BridgeServiceClient<Channel>;

/// The backoff after the first failed attempt. It doubles up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(5);
const MAX_BACKOFF: Duration = Duration::from_millis(250);
/// The timeout of one attempt. A server may accept a connection and never answer, because the port belongs to another program or
/// the worker's server does not run yet.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);

/// Connects to a worker as [`connect_until`] does, unless the worker exits first.
///
/// # Errors
/// [`WorkerError::EndedEarly`] or [`WorkerError::Connect`].
pub(super) async fn connect(
    address: &WorkerAddress,
    supervised: &SupervisedProcess,
    deadline: Instant,
) -> Result<Client, WorkerError> {
    let exit = supervised.exit_watch();
    let failure = tokio::select! {
        connected = connect_until(address, deadline) => match connected {
            Ok(client) => return Ok(client),
            Err(failure) => failure,
        },
        exit = exit.exited() => {
            return Err(WorkerError::EndedEarly { reason: exit.reason.to_string(), output_lines: exit.output_lines });
        }
    };
    let Failure { problem, source } = failure;
    let output_lines = supervised.output().lines();
    Err(WorkerError::Connect { address: address.to_string(), problem, output_lines, source })
}

/// The failure of an attempt to connect.
#[derive(Debug)]
pub(super) struct Failure {
    /// The problem, with its root cause.
    pub(super) problem: String,
    pub(super) source: Option<SharedError>,
}

impl Failure {
    pub(super) fn new(problem: impl Into<String>) -> Self {
        Self { problem: problem.into(), source: None }
    }

    fn of_transport(error: tonic::transport::Error) -> Self {
        Self { problem: root_cause(&error).to_string(), source: Some(SharedError::new(error)) }
    }

    pub(super) fn of_status(status: Status) -> Self {
        Self { problem: status.message().to_owned(), source: Some(SharedError::new(status)) }
    }
}

/// Connects and pings until the worker answers. Retries with exponential backoff until the deadline.
///
/// # Errors
/// The failure of the last attempt.
pub(super) async fn connect_until(address: &WorkerAddress, deadline: Instant) -> Result<Client, Failure> {
    let mut last_failure = Failure::new("it did not answer before the deadline");
    let attempts = async {
        let mut backoff = MIN_BACKOFF;
        loop {
            match tokio::time::timeout(ATTEMPT_TIMEOUT, try_connect(address)).await {
                Ok(Ok(client)) => return client,
                Ok(Err(failure)) => last_failure = failure,
                Err(_) => {
                    last_failure = Failure::new(format!("it did not answer within {ATTEMPT_TIMEOUT:?}"));
                }
            }
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
    };
    let connected = tokio::time::timeout_at(deadline, attempts).await;
    connected.map_err(|_| last_failure)
}

async fn try_connect(address: &WorkerAddress) -> Result<Client, Failure> {
    let channel = match address {
        WorkerAddress::Tcp(address) => {
            let endpoint =
                Endpoint::from_shared(format!("http://{address}")).map_err(Failure::of_transport)?;
            with_http2_options(endpoint).connect().await
        }
        WorkerAddress::Unix(path) => {
            let path = path.clone();
            let connector = tower::service_fn(move |_: Uri| connect_unix(path.clone()));
            // The host in this URL only sets the `:authority` header.
            with_http2_options(Endpoint::from_static("http://localhost"))
                .connect_with_connector(connector)
                .await
        }
    }
    .map_err(Failure::of_transport)?;
    let mut client = BridgeServiceClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    // A server may accept connections before it serves requests.
    client.ping(pb::PingRequest { message: "host".to_owned() }).await.map_err(Failure::of_status)?;
    Ok(client)
}

/// Sets the HTTP/2 options. Sends no keepalive pings, because Python servers answer frequent pings with GOAWAY, and the
/// supervisor detects the exit of a worker without them.
fn with_http2_options(endpoint: Endpoint) -> Endpoint {
    endpoint
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CLIENT_CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME_SIZE)
        .http2_max_header_list_size(HEADER_LIST_BYTES)
        .http2_max_concurrent_reset_streams(MAX_RESET_STREAMS)
        .http2_reset_stream_duration(RESET_STREAM_DURATION)
        .http2_max_local_error_reset_streams(ERROR_RESETS)
}

async fn connect_unix(path: PathBuf) -> std::io::Result<TokioIo<HangupTolerantStream<UnixStream>>> {
    Ok(TokioIo::new(HangupTolerantStream::new(UnixStream::connect(path).await?)))
}
