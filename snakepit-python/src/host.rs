//! [`Host`]: the connection to the host, for the registration of a worker and the requests of Python code.

use std::{
    error::Error,
    future::Future,
    io,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, OnceLock, PoisonError, RwLock},
    time::Duration,
};

use bytes::Bytes;
use futures_core::Stream;
use hyper_util::rt::TokioIo;
use snakepit_proto::{
    MAX_MESSAGE_BYTES, Message,
    address::{Address, AddressError},
    headers, launch, pb,
    pb::bridge_service_client::BridgeServiceClient,
    status::{check_encoded_request_size, root_cause},
};
use snakepit_wire::BacklogBudget;
use tokio::{
    net::UnixStream,
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tokio_stream::StreamExt;
use tonic::{
    Code, Request, Response, Status,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint, Uri},
};
use tower::{Service, service_fn};

use crate::{
    caller::Caller,
    errors::{HostError, is_connection_broken, is_unsent},
    fork,
    http2::{configure_client, configure_stream_client},
    io::Io,
    retries::Retries,
    rpc::{self, AnyMessage, UnaryRpc},
    runtime::RuntimeHandle,
};

/// The time within which a host must accept the worker's connection and answer its first requests.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum number of attempts at a request whose connection breaks.
const MAX_ATTEMPTS: usize = 3;
/// The pause before the second attempt to connect. It doubles with each attempt.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// The maximum time before the deadline of a request at which the host reports that the deadline has passed. A host answers
/// early, so that its answer arrives in time.
const DEADLINE_MARGIN: Duration = Duration::from_millis(50);

/// The kind of a request, which decides when it may be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RequestKind {
    /// May have an effect, such as a write or a call to a host tool. Sent again only if the connection broke before the
    /// request was sent.
    Write,
    /// Changes nothing, and is sent again whenever the connection breaks.
    Read,
    /// Opens a stream, and is repeated like a read. Carries no deadline, because the stream may outlive the deadline of
    /// its opening. The reader ends the stream.
    Stream,
}

impl RequestKind {
    fn is_repeatable_after(self, status: &Status) -> bool {
        match self {
            Self::Write => is_unsent(status),
            Self::Read | Self::Stream => is_connection_broken(status),
        }
    }
}

/// A request to the host.
#[derive(Debug)]
pub(crate) struct RpcRequest {
    kind: RequestKind,
    path: PathAndQuery,
    message: AnyMessage,
}

impl RpcRequest {
    pub(crate) fn new(kind: RequestKind, path: &'static str, message: impl Message + 'static) -> Self {
        Self { kind, path: PathAndQuery::from_static(path), message: AnyMessage::new(message) }
    }

    /// A request that Python code has encoded.
    pub(crate) fn encoded(kind: RequestKind, path: PathAndQuery, message: Bytes) -> Self {
        Self { kind, path, message: AnyMessage::encoded(message) }
    }
}

/// The items of a stream.
pub(crate) type Items<A> = Pin<Box<dyn Stream<Item = Result<A, Status>> + Send>>;

/// A client of the host's gRPC service, usable from any thread. Clones share the connections. They are cheap, because each call
/// of a tool gets one.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    runtime: RuntimeHandle,
    connections: Arc<Connections>,
}

#[derive(Debug)]
struct Connections {
    /// `None` once the client of a program is closed. The connection ends with its last request.
    channel: RwLock<Option<Channel>>,
    streams: StreamConnection,
    backlogs: BacklogBudget,
}

/// The connection for the streams of host tools. It has a small receive window, so that a slow reader stops the tool soon. Opened
/// by the first stream.
#[derive(Debug, Default)]
struct StreamConnection {
    /// `None` without such a connection. The streams then share the other one.
    target: Option<Target>,
    channel: OnceLock<Channel>,
}

impl Host {
    pub(crate) fn new(channel: Channel, runtime: RuntimeHandle) -> Self {
        Self::with_streams(channel, runtime, StreamConnection::default())
    }

    fn with_streams(channel: Channel, runtime: RuntimeHandle, streams: StreamConnection) -> Self {
        let (channel, backlogs) = (RwLock::new(Some(channel)), BacklogBudget::default());
        Self { runtime, connections: Arc::new(Connections { channel, streams, backlogs }) }
    }

    /// The memory budget for unread updates of watches.
    pub(crate) fn backlogs(&self) -> &BacklogBudget {
        &self.connections.backlogs
    }

    /// Connects and verifies that the host answers a ping.
    ///
    /// # Errors
    /// A sentence that names the address, if it is malformed or the host does not response in time.
    pub(crate) async fn connect(address: &str, io: Io) -> Result<Self, String> {
        let target = Target::parse(address)?;
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        let mut pause = FIRST_PAUSE;
        let channel = loop {
            match target.connect(configure_client).await {
                Ok(channel) => break channel,
                Err(_) if Instant::now() + pause < deadline => {
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                Err(error) => {
                    return Err(format!(
                        "cannot reach the host at `{address}`: {error}; is it still running?"
                    ));
                }
            }
        };
        let streams = StreamConnection { target: Some(target), channel: OnceLock::new() };
        let host = Self::with_streams(channel, RuntimeHandle::Worker(io), streams);
        let ping = pb::PingRequest { message: "worker".to_owned() };
        match timeout(CONNECT_TIMEOUT, host.request_once(ping)).await {
            Ok(Ok(_)) => Ok(host),
            Ok(Err(status)) => Err(format!("the host at `{address}` rejected a ping: {}", status.message())),
            Err(_) => {
                Err(format!("the host at `{address}` did not answer a ping within {CONNECT_TIMEOUT:?}"))
            }
        }
    }

    /// Registers the tools of this worker. Called once.
    ///
    /// # Errors
    /// A sentence with the host's reason.
    pub(crate) async fn register(
        &self,
        tools: Vec<pb::ToolRegistration>,
        worker_id: &str,
        token: Option<String>,
        serves_any_tool: bool,
    ) -> Result<(), String> {
        let (worker_id, version) = (worker_id.to_owned(), launch::VERSION.to_owned());
        let protocol = launch::PROTOCOL;
        let identity = token.map(|token| pb::WorkerIdentity { token, version, protocol, serves_any_tool });
        let request = pb::RegisterToolsRequest { session_id: String::new(), tools, worker_id, identity };
        match timeout(CONNECT_TIMEOUT, self.request_once(request)).await {
            Ok(Ok(pb::RegisterToolsResponse { success, error_message, .. })) => {
                // A host of the original Snakepit reports tools that it already has as duplicates, which is harmless.
                if success || error_message.contains("duplicate_tool") {
                    Ok(())
                } else {
                    Err(format!("the host rejected the adapter's tools: {error_message}"))
                }
            }
            Ok(Err(status)) if status.code() == Code::FailedPrecondition => Err(status.message().to_owned()),
            Ok(Err(status)) => Err(format!("the host rejected the adapter's tools: {}", status.message())),
            Err(_) => Err(format!("the host did not answer the registration within {CONNECT_TIMEOUT:?}")),
        }
    }

    /// Sends a request of a worker to its host, without headers or retries.
    async fn request_once<Q: UnaryRpc>(&self, request: Q) -> Result<Q::Answer, Status> {
        let channel = self.channel().map_err(|_| Status::unavailable("the connection is closed"))?;
        let request = Request::new(AnyMessage::new(request));
        rpc::decode(rpc::unary(channel, PathAndQuery::from_static(Q::PATH), request).await?.into_inner())
    }

    /// The connection for requests.
    ///
    /// # Errors
    /// [`HostError::Closed`] after [`disconnect`](Self::disconnect).
    pub(crate) fn channel(&self) -> Result<Channel, HostError> {
        // Only this function and `disconnect` lock it, and neither panics.
        let channel = self.connections.channel.read().unwrap_or_else(PoisonError::into_inner);
        channel.clone().ok_or(HostError::Closed)
    }

    /// Drops the connection, which ends with its last request. Further requests fail.
    pub(crate) fn disconnect(&self) {
        let channel = self.connections.channel.write().unwrap_or_else(PoisonError::into_inner).take();
        drop(channel);
    }

    /// The runtime that drives the connection.
    pub(crate) const fn runtime(&self) -> RuntimeHandle {
        self.runtime
    }

    /// Calls a host tool that streams. The stream ends at the deadline of the caller.
    pub(crate) async fn open_host_tool_stream(
        &self,
        caller: &Caller,
        request: pb::ExecuteElixirToolRequest,
    ) -> Result<Items<pb::ToolChunk>, HostError> {
        let request = RpcRequest::new(RequestKind::Write, rpc::EXECUTE_STREAMING_HOST_TOOL, request);
        self.open_stream_on(self.stream_channel()?, caller, request).await
    }

    /// Calls a tool of the host or of its workers that streams. The stream ends at the deadline of the caller.
    pub(crate) async fn open_tool_stream(
        &self,
        caller: &Caller,
        request: pb::ExecuteToolRequest,
    ) -> Result<Items<pb::ToolChunk>, HostError> {
        let request = RpcRequest::new(RequestKind::Write, rpc::EXECUTE_STREAMING_TOOL, request);
        self.open_stream_on(self.stream_channel()?, caller, request).await
    }

    /// Opens a stream of updates.
    pub(crate) async fn watch_variables(
        &self,
        caller: &Caller,
        request: pb::WatchVariablesRequest,
    ) -> Result<Items<pb::VariableUpdate>, HostError> {
        let request = RpcRequest::new(RequestKind::Stream, rpc::WATCH_VARIABLES, request);
        self.open_stream_on(self.channel()?, caller, request).await
    }

    async fn open_stream_on<A: Message + Default + 'static>(
        &self,
        channel: Channel,
        caller: &Caller,
        request: RpcRequest,
    ) -> Result<Items<A>, HostError> {
        let path = request.path.clone();
        let open = |request| rpc::server_streaming(channel.clone(), path.clone(), request);
        let items = attempt(caller, request, open).await?;
        Ok(Box::pin(items.map(|item| rpc::decode(item?))))
    }

    /// The connection for streams of tools.
    fn stream_channel(&self) -> Result<Channel, HostError> {
        let StreamConnection { target, channel } = &self.connections.streams;
        match target {
            Some(target) => {
                let connect = || target.connect_lazy(configure_stream_client);
                Ok(channel.get_or_init(connect).clone())
            }
            None => self.channel(),
        }
    }

    /// Sends a request as [`send`](Self::send) does, and decodes its answer.
    pub(crate) async fn request<Q: UnaryRpc>(
        &self,
        caller: &Caller,
        kind: RequestKind,
        request: Q,
    ) -> Result<Q::Answer, HostError> {
        let request = RpcRequest::new(kind, Q::PATH, request);
        Ok(rpc::decode(self.send(caller, request).await?)?)
    }

    /// Sends a unary request, and returns the encoded answer. Ends early if the caller is cancelled or its deadline passes. Dropping
    /// the future cancels the request.
    ///
    /// If the connection breaks, the kind of the request decides whether it is sent again on a new connection. The caller may permit
    /// retries after other transient errors.
    pub(crate) async fn send(&self, caller: &Caller, request: RpcRequest) -> Result<Bytes, HostError> {
        let (channel, path) = (self.channel()?, request.path.clone());
        let send = |request| rpc::unary(channel.clone(), path.clone(), request);
        attempt(caller, request, send).await
    }
}

/// Makes the attempts of a request. See [`Host::send`].
async fn attempt<A, F>(
    caller: &Caller,
    RpcRequest { kind, path: _, message }: RpcRequest,
    rpc: impl Fn(Request<AnyMessage>) -> F,
) -> Result<A, HostError>
where
    F: Future<Output = Result<Response<A>, Status>>,
{
    caller.check()?;
    check_encoded_request_size(message.size())?;
    let deadline = caller.deadline();
    let header_deadline = if kind == RequestKind::Stream { None } else { deadline };
    let attempt = async || {
        let mut attempts = 1;
        loop {
            caller.connect(deadline).await?;
            let mut request = Request::new(message.clone());
            caller.add_headers(request.metadata_mut());
            if let Some(deadline) = header_deadline {
                let remaining = deadline.saturating_duration_since(Instant::now());
                if remaining.is_zero() {
                    return Err(HostError::Deadline);
                }
                request.set_timeout(remaining.min(headers::MAX_TIMEOUT));
            }
            match rpc(request).await {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) if attempts < MAX_ATTEMPTS && kind.is_repeatable_after(&status) => {
                    attempts += 1;
                }
                Err(status) => return Err(caller.request_error(status).await),
            }
        }
    };
    let response = async {
        let mut retries = Retries::new(caller.retries(kind), deadline);
        loop {
            match attempt().await {
                Err(error) if retries.wait_after(&error).await => caller.check()?,
                response => return response,
            }
        }
    };
    let response = async {
        let Some(deadline) = deadline else { return response.await };
        match timeout_at(deadline, response).await {
            Err(_) => Err(HostError::Deadline),
            // The deadline of the tool's call must not end one of its requests before the call itself. Otherwise the
            // exception reaches the host before the host's own deadline, and looks like a tool failure.
            Ok(Err(error)) if caller.is_tool() && is_early_deadline(&error, deadline) => {
                sleep_until(deadline).await;
                Err(HostError::Deadline)
            }
            Ok(response) => response,
        }
    };
    tokio::select! {
        biased;
        error = caller.cancelled() => Err(error),
        response = response => response,
    }
}

/// Sets the limits of messages.
pub(crate) fn limited<T>(client: BridgeServiceClient<T>) -> BridgeServiceClient<T>
where
    T: tonic::client::GrpcService<tonic::body::Body>,
    T::Error: Into<tonic::codegen::StdError>,
    T::ResponseBody: tonic::codegen::Body<Data = bytes::Bytes> + Send + 'static,
    <T::ResponseBody as tonic::codegen::Body>::Error: Into<tonic::codegen::StdError> + Send,
{
    client.max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// Returns whether the error means that this deadline is about to pass.
pub(crate) fn is_early_deadline(error: &HostError, deadline: Instant) -> bool {
    let is_deadline = match error {
        HostError::Deadline => true,
        HostError::Status(status) => status.code() == Code::DeadlineExceeded,
        _ => false,
    };
    is_deadline && deadline.saturating_duration_since(Instant::now()) <= DEADLINE_MARGIN
}

/// A parsed address of a host.
#[derive(Debug)]
pub(crate) struct Target {
    endpoint: Endpoint,
    /// The path of the Unix socket. `None` for TCP.
    socket: Option<PathBuf>,
}

impl Target {
    /// Parses `host:port`, `http://host:port` or `unix:/path`.
    ///
    /// # Errors
    /// A sentence that names the address and the problem.
    pub(crate) fn parse(address: &str) -> Result<Self, String> {
        let parsed: Address = address.parse().map_err(|error: AddressError| error.to_string())?;
        Ok(match parsed {
            // The URI only fills the `:authority` header, where HTTP/2 would reject a path.
            Address::Unix(path) => {
                Self { endpoint: Endpoint::from_static("http://localhost"), socket: Some(path) }
            }
            Address::Tcp(_) => {
                let endpoint = Endpoint::from_shared(parsed.to_string());
                let endpoint = endpoint
                    .map_err(|error| format!("`{address}` is not a valid address: {}", reason(&error)))?;
                Self { endpoint, socket: None }
            }
        })
    }

    /// Connects with these settings.
    ///
    /// # Errors
    /// The reason why the connection failed.
    pub(crate) async fn connect(
        &self,
        settings: impl FnOnce(Endpoint) -> Endpoint,
    ) -> Result<Channel, String> {
        let endpoint = settings(self.endpoint.clone());
        let connected = match self.socket.clone() {
            Some(path) => endpoint.connect_with_connector(unix_connector(path)).await,
            None => endpoint.connect().await,
        };
        connected.map_err(|error| reason(&error))
    }

    /// Returns a channel that connects with these settings at its first request. Needs a tokio runtime.
    pub(crate) fn connect_lazy(&self, settings: impl FnOnce(Endpoint) -> Endpoint) -> Channel {
        let endpoint = settings(self.endpoint.clone());
        match self.socket.clone() {
            Some(path) => endpoint.connect_with_connector_lazy(unix_connector(path)),
            None => endpoint.connect_lazy(),
        }
    }
}

/// Connects to a Unix socket, which a fork of this process closes.
fn unix_connector(
    path: PathBuf,
) -> impl Service<Uri, Response = TokioIo<UnixStream>, Error = io::Error, Future: Send> + Send + 'static {
    service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.inspect(fork::close_in_child).map(TokioIo::new) }
    })
}

/// Returns the root cause of a transport error, because the errors above it say only "transport error", "tcp connect
/// error" or "dns error".
fn reason(error: &(dyn Error + 'static)) -> String {
    root_cause(error).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_an_error_shortly_before_the_deadline_is_that_deadline() {
        let (soon, later) = (Instant::now() + DEADLINE_MARGIN, Instant::now() + 2 * DEADLINE_MARGIN);
        let exceeded = || HostError::Status(Status::deadline_exceeded("the deadline passed"));
        assert!(is_early_deadline(&exceeded(), soon) && is_early_deadline(&HostError::Deadline, soon));
        assert!(
            !is_early_deadline(&exceeded(), later),
            "a host tool may have a shorter deadline than the call"
        );
        assert!(!is_early_deadline(&HostError::Status(Status::not_found("no such variable")), soon));
    }

    #[test]
    fn malformed_addresses_are_rejected_before_connecting() {
        for address in
            ["", "ftp://x", "https://localhost:1", "localhost", "ho<st:1", "localhost:70000", "unix:"]
        {
            let problem = Target::parse(address).unwrap_err();
            assert!(problem.contains(&format!("`{address}`")), "{problem}");
        }
        for address in ["localhost:1", "http://[::1]:1/", "unix:/run/host.sock"] {
            Target::parse(address).unwrap();
        }
    }
}
