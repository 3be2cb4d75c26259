//! Connects to a remote host.

use std::{error::Error as StdError, ops::Deref, time::Duration};

use hyper_util::rt::TokioIo;
use snakepit_proto::{
    MAX_MESSAGE_BYTES,
    address::{Address, AddressError},
    flow::{
        CLIENT_CONNECTION_WINDOW, ERROR_RESETS, MAX_FRAME_SIZE, MAX_RESET_STREAMS, RESET_STREAM_DURATION,
        STREAM_WINDOW,
    },
    identify::identify,
    pb::{self, bridge_service_client::BridgeServiceClient},
    proxy,
    status::root_cause,
};
use snakepit_session::NewSession;
use tokio::net::UnixStream;
use tonic::transport::{Endpoint, Uri};
use tower::service_fn;

use crate::{
    Caller, Error, SessionHandle,
    remote::{RemoteHost, RequestTimeout, temporary_rejection},
};

/// The time limit for connecting to a host, including the first requests.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The interval between keepalive pings on a silent connection.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);

/// The time limit for the response to a keepalive ping.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to a remote host. Cheap to clone. All clones share the connection.
///
/// Every operation has a time limit on this side's clock. A call ends at its deadline. Every other request ends after the
/// [`request_timeout`](ClientBuilder::request_timeout), by default 30 seconds. A host that sends nothing for 40 seconds counts
/// as lost.
///
/// Calls share one stream if the host offers it, and otherwise use one RPC each. If the connection breaks, calls in flight
/// fail with [`ConnectionLost`](snakepit_registry::ToolError::ConnectionLost), and the next call reconnects.
///
/// The client dereferences to a [`Caller`], whose methods [`execute`](Caller::execute),
/// [`execute_stream`](Caller::execute_stream) and [`call`](Caller::call) run tools.
///
/// ```no_run
/// use serde_json::json;
/// use snakepit_client::{Client, ErrorKind};
///
/// # async fn example() -> Result<(), snakepit_client::Error> {
/// let client = Client::connect("127.0.0.1:50051").await?;
/// match client.execute::<i64>("add", json!({"a": 1, "b": 2})).await {
///     Ok(sum) => println!("{sum}"),
///     Err(error) if error.kind() == ErrorKind::ToolNotFound => println!("{error}"),
///     Err(error) => return Err(error),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Client {
    caller: Caller<RemoteHost>,
}

/// Options of a [`Client`].
///
/// ```no_run
/// # async fn connect() -> Result<(), snakepit_client::Error> {
/// use std::time::Duration;
///
/// use snakepit_client::Client;
///
/// let client = Client::builder().request_timeout(Duration::from_secs(2)).connect("127.0.0.1:50051").await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default)]
pub struct ClientBuilder {
    request_timeout: RequestTimeout,
}

impl ClientBuilder {
    /// Sets the time limit for requests other than calls: opening a session, reading and writing its variables and programs,
    /// starting a watch. The default is 30 seconds. After this time, a request fails with [`Error::TimedOut`].
    ///
    /// A call has its own deadline: [`CallBuilder::timeout`](crate::CallBuilder::timeout).
    #[must_use]
    pub const fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = RequestTimeout(timeout);
        self
    }

    /// Connects like [`Client::connect`].
    ///
    /// # Errors
    /// As for [`Client::connect`].
    pub async fn connect(self, address: &str) -> Result<Client, Error> {
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(Error::NoRuntime);
        }
        let connecting =
            tokio::time::timeout(CONNECT_TIMEOUT, Client::connect_to(address, self.request_timeout));
        connecting.await.unwrap_or_else(|_| {
            let problem = format!("it did not answer within {CONNECT_TIMEOUT:?}");
            Err(Error::Connect { address: address.to_owned(), problem, source: None })
        })
    }
}

impl Client {
    /// Connects to `host:port`, with or without `http://`, or to `unix:/path/to/socket`.
    ///
    /// # Errors
    /// [`Error::Connect`] within ten seconds; [`Error::NoRuntime`] outside a tokio runtime.
    pub async fn connect(address: &str) -> Result<Self, Error> {
        Self::builder().connect(address).await
    }

    /// Prepares a connection with options.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    async fn connect_to(address: &str, request_timeout: RequestTimeout) -> Result<Self, Error> {
        let connect_error = |problem: String, source: Option<Box<dyn StdError + Send + Sync>>| {
            Error::Connect { address: address.to_owned(), problem, source }
        };
        let configure = |endpoint: Endpoint| {
            endpoint
                .tcp_nodelay(true)
                // Also limits each later reconnect.
                .connect_timeout(CONNECT_TIMEOUT)
                .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
                .keep_alive_timeout(KEEPALIVE_TIMEOUT)
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CLIENT_CONNECTION_WINDOW)
                .max_frame_size(MAX_FRAME_SIZE)
                .http2_max_concurrent_reset_streams(MAX_RESET_STREAMS)
                .http2_reset_stream_duration(RESET_STREAM_DURATION)
                .http2_max_local_error_reset_streams(ERROR_RESETS)
        };
        let target: Address =
            address.parse().map_err(|error: AddressError| connect_error(error.problem().to_owned(), None))?;
        let channel = match &target {
            Address::Unix(path) => {
                let path = path.clone();
                let connector = service_fn(move |_: Uri| {
                    let path = path.clone();
                    async move { UnixStream::connect(path).await.map(TokioIo::new) }
                });
                // The host in this URL only becomes the HTTP/2 authority.
                configure(Endpoint::from_static("http://localhost")).connect_with_connector(connector).await
            }
            Address::Tcp(_) => {
                let endpoint = Endpoint::from_shared(target.to_string())
                    .map_err(|e| connect_error(e.to_string(), None))?;
                configure(endpoint).connect().await
            }
        };
        let channel = match channel {
            Ok(channel) => channel,
            Err(error) => {
                // A `String`, because a `&dyn Error` is not `Send` and cannot live across the await.
                let problem = root_cause(&error).to_string();
                return Err(connect_error(describe_peer(&target, problem).await, Some(error.into())));
            }
        };
        let client = BridgeServiceClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        // A proxy without a host also accepts a stream, so a unary request comes first.
        let opened = async {
            client.clone().ping(pb::PingRequest { message: "client".to_owned() }).await?;
            RemoteHost::open(client, request_timeout).await
        };
        match opened.await {
            Ok(host) => Ok(Self { caller: Caller::new(host) }),
            Err(status) => {
                if let Some(error) = temporary_rejection(&status) {
                    return Err(error.into());
                }
                let connection_problem = status.source().map(|cause| root_cause(cause).to_string());
                let problem = match connection_problem {
                    Some(problem) => describe_peer(&target, problem).await,
                    None => proxy::clarify(status.clone()).message().to_owned(),
                };
                Err(connect_error(problem, Some(status.into())))
            }
        }
    }

    /// Returns a session, and creates it with the host's default TTL if it does not exist.
    ///
    /// # Errors
    /// [`Error::Session`] if the id is invalid or the host rejects another session; [`Error::Unreachable`] if the connection
    /// fails; [`Error::TimedOut`].
    pub async fn session(&self, id: &str) -> Result<SessionHandle, Error> {
        self.session_with(id, NewSession::default()).await
    }

    /// Returns a session, and creates it with this metadata and TTL if it does not exist. The TTL is rounded up to whole
    /// seconds.
    ///
    /// # Errors
    /// As for [`session`](Self::session).
    pub async fn session_with(&self, id: &str, new: NewSession) -> Result<SessionHandle, Error> {
        self.caller.open_session(id, new).await
    }
}

impl Deref for Client {
    type Target = Caller<RemoteHost>;

    fn deref(&self) -> &Self::Target {
        &self.caller
    }
}

/// Names the server that answers at an address in place of a Snakepit host, or returns the problem unchanged.
async fn describe_peer(address: &Address, problem: String) -> String {
    identify(address).await.unwrap_or(problem)
}
