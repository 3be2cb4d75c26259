//! Connects to a server, and converts its statuses to one line of text.

use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use hyper_util::rt::TokioIo;
use snakepit_proto::{
    MAX_MESSAGE_BYTES,
    address::{Address, AddressError},
    identify::identify,
    pb::{self, bridge_service_client::BridgeServiceClient},
    proxy,
    status::{caused_by, failure_of, root_cause},
};
use snakepit_server::{Reason, status::to_tool_error};
use tokio::net::UnixStream;
use tonic::{
    Status,
    transport::{Channel, Endpoint, Uri},
};
use tonic_types::StatusExt;
use tower::service_fn;

use crate::Failure;

/// The server of commands that name none.
const DEFAULT_SERVER: &str = "http://127.0.0.1:50051";
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
        default_value = DEFAULT_SERVER,
        env = "SNAKEPIT_SERVER",
        hide_env_values = true
    )]
    server: Address,

    #[arg(skip)]
    clock: Clock,
}

impl ServerArgs {
    /// Sets the timeout of the command, and returns its clock for [`with_timeout`].
    pub(crate) fn start_clock(&mut self, timeout: Option<Duration>) -> Clock {
        self.clock = Clock { timeout, address: self.server.to_string(), stage: Arc::default() };
        self.enter(Stage::Connect);
        self.clock.clone()
    }

    /// The server that listens at an address. `None` if clients cannot connect to the address.
    pub(crate) fn at(listen: &str) -> Option<Self> {
        Some(Self { server: listen.parse().ok()?, clock: Clock::default() })
    }

    /// The address of the server.
    pub(crate) const fn address(&self) -> &Address {
        &self.server
    }

    /// Whether the address is the default one.
    pub(crate) fn is_default(&self) -> bool {
        self.server.to_string() == DEFAULT_SERVER
    }

    /// Records the stage of the command, for the error of its timeout.
    pub(crate) fn enter(&self, stage: Stage) {
        self.clock.stage.store(stage as u8, Ordering::Relaxed);
    }

    /// Connects, and checks that a host answers.
    pub(crate) async fn connect(&self) -> Result<BridgeServiceClient<Channel>, Failure> {
        let address = &self.server;
        let configure = |endpoint: Endpoint| {
            endpoint
                .connect_timeout(CONNECT_TIMEOUT)
                .tcp_nodelay(true)
                // Detects a server that disappeared, even during a call without a timeout.
                .http2_keep_alive_interval(Duration::from_secs(30))
                .keep_alive_timeout(Duration::from_secs(10))
        };
        let channel = match address {
            Address::Tcp(_) => match Endpoint::from_shared(address.to_string()) {
                Ok(endpoint) => configure(endpoint).connect().await,
                Err(_) => return Err(Failure::new(Reason::Usage, format!("`{address}` is not a URL"))),
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
            Ok(Ok(_)) => {
                self.enter(Stage::Answer);
                Ok(client)
            }
            Ok(Err(status)) => match (status.source(), proxy::clarify(status.clone())) {
                (Some(cause), _) => Err(self.unreachable(&root_cause(cause).to_string()).await),
                (None, status) => {
                    let error = to_tool_error("", &status);
                    if error.is_overloaded() {
                        return Err(self.status_failure(status));
                    }
                    let retry_after = error.retry_after();
                    Err(self.failure(status.message()).with_reason_of(&status).retry_after(retry_after))
                }
            },
            Err(_) => Err(self.unreachable(&format!("it did not answer within {PING_TIMEOUT:?}")).await),
        }
    }

    /// The failure to connect. Names the program at the address if it is not a host, otherwise the error of the transport.
    async fn unreachable(&self, problem: &str) -> Failure {
        let advice = "clients without TLS cannot use it; use the port without TLS, or a tunnel";
        let identified = identify(&self.server, advice).await;
        self.failure(identified.as_deref().unwrap_or(problem))
    }

    fn failure(&self, problem: &str) -> Failure {
        let address = &self.server;
        let message = format!(
            "cannot reach a server at {address}: {problem}; start one with `snakepit serve`, or pass --server"
        );
        Failure::new(Reason::Unreachable, message)
    }
}

/// The extra time for the server to report the deadline itself, with more detail.
const GRACE: Duration = Duration::from_millis(200);

/// The stage that a command has reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Stage {
    /// It connects to the server.
    Connect,
    /// It opens the session of a call.
    Session,
    /// It waits for the answer.
    Answer,
}

/// The timeout of a command, and the stage that it has reached.
#[derive(Debug, Clone, Default)]
pub(crate) struct Clock {
    /// `None` if the user set no timeout.
    timeout: Option<Duration>,
    address: String,
    /// A [`Stage`].
    stage: Arc<AtomicU8>,
}

impl Clock {
    /// The failure if the server did not report the deadline in time.
    fn timed_out(&self) -> Failure {
        let stage = self.stage.load(Ordering::Relaxed);
        let (stage_text, hint) = if stage == Stage::Answer as u8 {
            ("waiting for the answer".to_owned(), "see `snakepit workers`")
        } else if stage == Stage::Session as u8 {
            ("opening the session".to_owned(), "see `snakepit sessions --stats`")
        } else {
            (format!("connecting to {}", self.address), "pass another --server")
        };
        let timeout = humantime::format_duration(self.timeout.unwrap_or_default());
        let problem =
            format!("the deadline of {timeout} passed while {stage_text}; raise --timeout, or {hint}");
        Failure::new(Reason::DeadlineExceeded, problem).may_have_run(stage == Stage::Answer as u8)
    }
}

/// Enforces the timeout of a command on the client side.
pub(crate) async fn with_timeout(
    clock: Clock,
    command: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    match clock.timeout {
        Some(timeout) => tokio::time::timeout(timeout.saturating_add(GRACE), command)
            .await
            .unwrap_or_else(|_| Err(clock.timed_out())),
        None => command.await,
    }
}

impl ServerArgs {
    /// Converts a status to one line of text: the server's message and the reason.
    #[allow(clippy::needless_pass_by_value, reason = "it is an argument of map_err")]
    pub(crate) fn status_failure(&self, status: Status) -> Failure {
        if caused_by::<tonic::TimeoutExpired>(&status) {
            return self.clock.timed_out();
        }
        // The tool's name is only part of messages, which the status has already.
        let error = to_tool_error("", &status);
        // Only statuses of the transport have a source.
        if let Some(cause) = status.source() {
            let may_have_run = error.may_have_run();
            let problem = format!(
                "the connection to the server was lost before the call ended: {}{}",
                root_cause(cause),
                if may_have_run { "; the call may have run" } else { "" },
            );
            return Failure::new(Reason::ConnectionLost, problem).may_have_run(may_have_run);
        }
        if let Some(failure) = failure_of(&status) {
            return Failure::new(Reason::ToolFailed, status.message()).exception(failure);
        }
        let status = proxy::clarify(status);
        let failure = match reason_of(&status) {
            Some(Reason::Proxy) => Failure::new(Reason::Proxy, status.message()),
            reason => {
                let mut failure = Failure::new(Reason::Rejected, status.message()).with_reason_of(&status);
                failure.message = format!("{} ({})", failure.message, failure.code());
                if reason == Some(Reason::ToolNotFound) && !failure.message.contains("did you mean") {
                    failure.message.push_str("; see `snakepit tools`");
                }
                failure
            }
        };
        failure.may_have_run(error.may_have_run()).retry_after(error.retry_after())
    }
}

/// The reason of a status, unless another project or a newer version made it.
fn reason_of(status: &Status) -> Option<Reason> {
    Reason::parse(&status.get_error_details().error_info()?.reason)
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
