//! The methods that call tools, shared by clients, embedded hosts and sessions.

use serde::{Serialize, de::DeserializeOwned};
use snakepit_session::{NewSession, SessionId};

use crate::{CallBuilder, Error, HostHandle, RemoteHost, ReplyStream, SessionHandle};

/// Calls tools of a host, in a session or without one.
///
/// [`Client`](crate::Client), [`SessionHandle`] and `snakepit_server::Snakepit` dereference to it. A function that takes a
/// `&Caller<H>` therefore accepts a reference to any of them:
///
/// ```
/// use serde_json::json;
/// use snakepit_client::{Caller, Error, HostHandle};
///
/// async fn add<H: HostHandle>(caller: &Caller<H>, a: i64, b: i64) -> Result<i64, Error> {
///     caller.execute("add", json!({"a": a, "b": b})).await
/// }
/// ```
#[derive(Debug, Clone)]
pub struct Caller<H = RemoteHost> {
    host: H,
    session: Option<SessionId>,
}

impl<H: HostHandle> Caller<H> {
    /// Creates a caller without a session.
    #[doc(hidden)]
    pub const fn new(host: H) -> Self {
        Self { host, session: None }
    }

    /// Creates a caller in a session.
    pub(crate) const fn in_session(host: H, session: SessionId) -> Self {
        Self { host, session: Some(session) }
    }

    /// Returns the handle to the host.
    #[doc(hidden)]
    pub const fn host(&self) -> &H {
        &self.host
    }

    /// Creates a session unless it exists, and returns its handle.
    #[doc(hidden)]
    pub async fn open_session(&self, id: &str, new: NewSession) -> Result<SessionHandle<H>, Error> {
        let id = SessionId::try_new(id)?;
        self.host.open_session(&id, new).await?;
        Ok(SessionHandle::new(self.host.clone(), id))
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

    /// Calls a streaming tool and returns its chunks as they arrive.
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

    /// Prepares a call with options, such as a timeout, raw payloads or metadata.
    pub fn call(&self, tool: &str) -> CallBuilder<H> {
        let call = CallBuilder::new(self.host.clone(), tool);
        match &self.session {
            Some(session) => call.session(session.clone()),
            None => call,
        }
    }
}
