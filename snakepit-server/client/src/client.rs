//! [`Client`]: a connection to a remote host.

use std::{ops::Deref, time::Duration};

use snakepit_session::NewSession;

use crate::{Caller, ClientBuilder, Error, SessionHandle, remote::RemoteHost};

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

impl Client {
    pub(crate) const fn new(host: RemoteHost) -> Self {
        Self { caller: Caller::new(host) }
    }

    /// Connects to `host:port`, with or without `http://`, or to `unix:/path/to/socket`. The feature `tls` adds
    /// `https://host:port`, whose default port is 443.
    ///
    /// # Errors
    /// [`Error::Connect`] within ten seconds; [`Error::NoRuntime`] outside a tokio runtime.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection.
    pub async fn connect(address: &str) -> Result<Self, Error> {
        Self::builder().connect(address).await
    }

    /// Prepares a connection with options, such as a token or several addresses.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    /// Closes the client and all its clones. It rejects new calls and requests, and ends watches. Calls in flight, with the
    /// streams that you read, may finish for up to `limit`. The client then aborts the others. Returns `true` if all calls
    /// finished in time.
    ///
    /// Rejected and aborted requests fail with [`ToolError::ClientClosed`](crate::ToolError::ClientClosed). A stream yields that
    /// error once, and then ends. The connection closes when the last clone, stream and watch are dropped.
    ///
    /// # Cancel safety
    /// If the future is dropped, the client stays closed, and calls in flight continue. Call `close` again to wait for them or to
    /// cut them off.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # async fn example(client: snakepit_client::Client) {
    /// if !client.close(Duration::from_secs(5)).await {
    ///     println!("some calls were cut");
    /// }
    /// # }
    /// ```
    pub async fn close(&self, limit: Duration) -> bool {
        self.caller.host().close(limit).await
    }

    /// Returns a session, and creates it with the host's default TTL if it does not exist.
    ///
    /// # Errors
    /// [`Error::Session`] if the id is invalid or the host rejects another session; [`Error::Unreachable`] if the connection
    /// fails; [`Error::TimedOut`].
    ///
    /// # Cancel safety
    /// If the future is dropped, the host may have created the session, which then expires after its TTL.
    pub async fn session(&self, id: &str) -> Result<SessionHandle, Error> {
        self.session_with(id, NewSession::default()).await
    }

    /// Returns a session, and creates it with this metadata and TTL if it does not exist. The TTL is rounded up to whole
    /// seconds.
    ///
    /// # Errors
    /// As for [`session`](Self::session).
    ///
    /// # Cancel safety
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
