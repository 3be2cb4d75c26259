//! A client of a host that runs elsewhere: the same calls as on an embedded one.

mod remote;

use std::{error::Error as _, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use snakepit_proto::{
    MAX_MESSAGE_BYTES,
    address::{Address, AddressError},
    flow::{CALLER_CONNECTION_WINDOW, ERROR_RESETS, FRAME, REMEMBERED_FOR, REMEMBERED_RESETS, STREAM_WINDOW},
    identify::identify,
    pb::{self, bridge_service_client::BridgeServiceClient},
    proxy,
    status::root_cause,
};
use snakepit_session::{NewSession, SessionId};
use tokio::net::UnixStream;
use tonic::transport::{Endpoint, Uri};
use tower::service_fn;

use self::remote::Patience;
pub(crate) use self::remote::Remote;
use crate::{CallBuilder, Error, ReplyStream, SessionHandle, call::Target};

/// How long connecting to a host may take, with all that is said before the first call.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// How often a host that says nothing is asked whether it is there, and how long it may take to say so.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));

/// A connection to a host that runs elsewhere. Cheap to clone; all clones share the connection.
///
/// No method waits for ever: a call ends at its deadline, and every other request after 30 seconds at most, or after the
/// [`request_timeout`](ClientBuilder::request_timeout), by this side's clock. A host that says nothing for 40 seconds counts
/// as lost.
///
/// Calls share one stream, where the host serves one; calls to a host that does not are RPCs of their own. When the
/// connection is lost, calls in flight fail with [`ConnectionLost`](snakepit_registry::ToolError::ConnectionLost), and the
/// next call connects anew.
#[derive(Debug, Clone)]
pub struct Client {
    remote: Arc<Remote>,
}

/// Options of a [`Client`].
///
/// ```no_run
/// # async fn connect() -> Result<(), snakepit_server::Error> {
/// use std::time::Duration;
///
/// use snakepit_server::Client;
///
/// let client = Client::builder().request_timeout(Duration::from_secs(2)).connect("127.0.0.1:50051").await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default)]
pub struct ClientBuilder {
    patience: Patience,
}

impl ClientBuilder {
    /// How long the host may take to answer a request that is not a call: opening a session, reading and writing its
    /// variables and programs, beginning a watch. 30 seconds without it. A late answer is [`Error::TimedOut`].
    ///
    /// A call has a deadline of its own: [`CallBuilder::timeout`].
    #[must_use]
    pub const fn request_timeout(mut self, timeout: Duration) -> Self {
        self.patience = Patience(timeout);
        self
    }

    /// Connects as [`Client::connect`] does.
    ///
    /// # Errors
    /// Those of `Client::connect`.
    pub async fn connect(self, address: &str) -> Result<Client, Error> {
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(Error::NoRuntime);
        }
        let connected = tokio::time::timeout(CONNECT_WITHIN, Client::connect_to(address, self.patience));
        connected.await.unwrap_or_else(|_| {
            let problem = format!("it did not answer within {CONNECT_WITHIN:?}");
            Err(Error::Connect { address: address.to_owned(), problem })
        })
    }
}

/// What answers there instead of a host, else what the transport says.
async fn instead(address: &Address, problem: String) -> String {
    identify(address).await.unwrap_or(problem)
}

impl Client {
    /// Connects to `host:port`, `http://` before it or not, or to `unix:/path/to/socket`.
    ///
    /// # Errors
    /// [`Error::Connect`], within ten seconds; [`Error::NoRuntime`] outside a tokio runtime.
    pub async fn connect(address: &str) -> Result<Self, Error> {
        Self::builder().connect(address).await
    }

    /// Prepares a connection with other options than those of [`connect`](Self::connect).
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    async fn connect_to(address: &str, patience: Patience) -> Result<Self, Error> {
        let failed = |problem: String| Error::Connect { address: address.to_owned(), problem };
        let settings = |endpoint: Endpoint| {
            endpoint
                .tcp_nodelay(true)
                // Each later attempt to connect is bounded too.
                .connect_timeout(CONNECT_WITHIN)
                .http2_keep_alive_interval(KEEPALIVE.0)
                .keep_alive_timeout(KEEPALIVE.1)
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CALLER_CONNECTION_WINDOW)
                .max_frame_size(FRAME)
                .http2_max_concurrent_reset_streams(REMEMBERED_RESETS)
                .http2_reset_stream_duration(REMEMBERED_FOR)
                .http2_max_local_error_reset_streams(ERROR_RESETS)
        };
        let target: Address =
            address.parse().map_err(|error: AddressError| failed(error.problem().to_owned()))?;
        let channel = match &target {
            Address::Unix(path) => {
                let path = path.clone();
                let connector = service_fn(move |_: Uri| {
                    let path = path.clone();
                    async move { UnixStream::connect(path).await.map(TokioIo::new) }
                });
                // The host in this URL is only what HTTP/2 shows as authority.
                settings(Endpoint::from_static("http://localhost")).connect_with_connector(connector).await
            }
            Address::Tcp(_) => {
                let endpoint =
                    Endpoint::from_shared(target.to_string()).map_err(|e| failed(e.to_string()))?;
                settings(endpoint).connect().await
            }
        };
        let channel = match channel {
            Ok(channel) => channel,
            Err(error) => {
                // A `String`, because the error behind it must not be held while something is awaited.
                let problem = root_cause(&error).to_string();
                return Err(failed(instead(&target, problem).await));
            }
        };
        let client = BridgeServiceClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        // A stream seems to open at a proxy that answers by itself, so a plain request comes first.
        let opened = async {
            client.clone().ping(pb::PingRequest { message: "client".to_owned() }).await?;
            Remote::open(client, patience).await
        };
        match opened.await {
            Ok(remote) => Ok(Self { remote: Arc::new(remote) }),
            Err(status) => {
                let broken = status.source().map(|cause| root_cause(cause).to_string());
                Err(failed(match broken {
                    Some(problem) => instead(&target, problem).await,
                    None => proxy::clarify(status).message().to_owned(),
                }))
            }
        }
    }

    /// Calls a tool and returns its value.
    ///
    /// # Errors
    /// See [`CallBuilder::unary`].
    ///
    /// # Cancel safety
    /// Dropping the future cancels the call.
    pub async fn execute<T: DeserializeOwned>(&self, tool: &str, args: impl Serialize) -> Result<T, Error> {
        Ok(self.call(tool).args(args).unary().await?.value)
    }

    /// Calls a tool and returns its chunks as they come.
    ///
    /// # Errors
    /// See [`CallBuilder::stream`].
    ///
    /// # Cancel safety
    /// Dropping the future, or the stream before its end, cancels the call.
    pub async fn execute_stream<T: DeserializeOwned>(
        &self,
        tool: &str,
        args: impl Serialize,
    ) -> Result<ReplyStream<T>, Error> {
        self.call(tool).args(args).stream().await
    }

    /// Prepares a call with options: timeout, raw payloads, metadata.
    pub fn call(&self, tool: &str) -> CallBuilder {
        CallBuilder::new(self.target(), tool)
    }

    /// Returns the session of this id, creating it with the host's default TTL if need be.
    ///
    /// # Errors
    /// [`Error::Session`] when the id is odd or the host refuses another session, [`Error::Unreachable`] when it cannot be
    /// reached.
    pub async fn session(&self, id: &str) -> Result<SessionHandle, Error> {
        self.session_with(id, NewSession::default()).await
    }

    /// Returns the session of this id, creating it with this metadata and TTL if need be. A TTL is told in whole seconds,
    /// the longer part of one counted in full.
    ///
    /// # Errors
    /// As for [`session`](Self::session).
    pub async fn session_with(&self, id: &str, new: NewSession) -> Result<SessionHandle, Error> {
        let id = SessionId::try_new(id)?;
        self.remote.open_session(&id, new).await?;
        Ok(SessionHandle::new(self.target(), id))
    }

    fn target(&self) -> Target {
        Target::Remote(Arc::clone(&self.remote))
    }
}
