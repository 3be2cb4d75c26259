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

    /// Calls a tool and returns its value. `T` is the type of the value. If nothing else determines it, write it at the call, for
    /// example `serde_json::Value` for any value that JSON can express:
    ///
    /// ```
    /// use serde_json::{Value, json};
    /// use snakepit_client::{Caller, Error, HostHandle};
    ///
    /// async fn show<H: HostHandle>(caller: &Caller<H>) -> Result<(), Error> {
    ///     let report = caller.execute::<Value>("report", json!({"year": 2026})).await?;
    ///     println!("{report}");
    ///     caller.execute::<()>("forget", json!({"year": 2025})).await // for a tool that returns `None`
    /// }
    /// ```
    ///
    /// `Value` rounds integers beyond 64 bits to floats. To keep their digits, use `i128` or [`CallBuilder::payload_reply`], which also
    /// returns the buffers of `bytes` and arrays.
    ///
    /// # Errors
    /// See [`CallBuilder::unary`].
    ///
    /// # Cancel safety
    /// Dropping the future cancels the call.
    pub async fn execute<T: DeserializeOwned>(&self, tool: &str, args: impl Serialize) -> Result<T, Error> {
        Ok(self.call(tool).args(args).unary().await?.value)
    }

    /// Calls a streaming tool and returns its chunks as they arrive. `T` is the type of a chunk: your own type,
    /// `serde_json::Value` for any chunk that JSON can express, or [`Payload`](snakepit_session::Payload) for `bytes` and arrays,
    /// whose buffers it does not copy.
    ///
    /// ```
    /// use futures_util::TryStreamExt;
    /// use serde_json::json;
    /// use snakepit_client::{Caller, Error, HostHandle, Payload};
    ///
    /// async fn read<H: HostHandle>(caller: &Caller<H>) -> Result<u64, Error> {
    ///     let mut words = caller.execute_stream::<String>("generate", json!({"prompt": "Hello"})).await?;
    ///     while let Some(word) = words.try_next().await? {
    ///         print!("{word} ");
    ///     }
    ///     let frames = caller.execute_stream::<Payload>("frames", json!({})).await?;
    ///     frames.try_fold(0, |total, frame| async move { Ok(total + frame.size() as u64) }).await
    /// }
    /// ```
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
