//! The handle of a session: its programs and metadata.

mod batches;
mod variables;

use std::ops::Deref;

use snakepit_session::{Created, Program, ProgramInfo, ProgramName, Session, SessionId};

pub use self::variables::{SessionWatch, WatchBuilder};
use crate::{Caller, Error, HostHandle, RemoteHost};

/// A session of a host: `Snakepit::session` of an embedded host, [`Client::session`](crate::Client::session) of a remote one.
/// Cheap to clone.
///
/// The handle does not keep the session alive. When the session expires or is deleted, every operation fails with
/// [`SessionError::NotFound`](snakepit_session::SessionError::NotFound).
///
/// It dereferences to a [`Caller`], whose methods [`execute`](Caller::execute), [`execute_stream`](Caller::execute_stream) and
/// [`call`](Caller::call) run tools in this session.
///
/// # Errors
/// In addition to the errors that its documentation lists, every operation can fail with [`Error::Session`] if the session does not
/// exist. On a remote host it can also fail with
///
/// - [`Error::Unreachable`] if the connection fails,
/// - [`Error::TimedOut`] after the client's [`request_timeout`](crate::ClientBuilder::request_timeout),
/// - [`Error::Rejected`] if the host rejects the request for another reason.
///
/// # Cancel safety
/// Dropping the future of an operation that reads changes nothing. If the future of a write is dropped, the write may or may not
/// happen, but never in part, unless the operation documents otherwise.
///
/// ```no_run
/// use snakepit_client::{Client, VariableType};
///
/// # async fn example() -> Result<(), snakepit_client::Error> {
/// let client = Client::connect("127.0.0.1:50051").await?;
/// let session = client.session("alice").await?;
/// session.register("rate", VariableType::float().range(0.0..=1.0), 0.1).await?;
/// session.update("rate", |rate: f64| rate / 2.0).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct SessionHandle<H = RemoteHost> {
    caller: Caller<H>,
    id: SessionId,
}

impl<H: HostHandle> SessionHandle<H> {
    pub(crate) fn new(host: H, id: SessionId) -> Self {
        Self { caller: Caller::in_session(host, id.clone()), id }
    }

    fn host(&self) -> &H {
        self.caller.host()
    }

    /// The id of the session.
    #[must_use]
    pub const fn id(&self) -> &SessionId {
        &self.id
    }

    /// Returns the session's metadata, TTL and sizes. Renews the TTL.
    ///
    /// # Errors
    /// [`Error::Session`] if the session does not exist.
    pub async fn info(&self) -> Result<Session, Error> {
        self.host().session(&self.id).await
    }

    /// Stores a program, and replaces a program of the same name.
    ///
    /// # Errors
    /// [`Error::Session`] if the name is invalid, the program is too large, or the session does not exist.
    pub async fn put_program(&self, name: &str, program: Program) -> Result<Created, Error> {
        self.host().put_program(&self.id, &ProgramName::try_new(name)?, program).await
    }

    /// Returns a program.
    ///
    /// # Errors
    /// [`Error::Session`] if the session or the program does not exist.
    pub async fn program(&self, name: &str) -> Result<Program, Error> {
        self.host().program(&self.id, &ProgramName::try_new(name)?).await
    }

    /// Lists the session's programs, ordered by name.
    ///
    /// # Errors
    /// [`Error::Session`] if the session does not exist.
    pub async fn programs(&self) -> Result<Vec<ProgramInfo>, Error> {
        self.host().programs(&self.id).await
    }

    /// Deletes a program.
    ///
    /// # Errors
    /// [`Error::Session`] if the session or the program does not exist.
    pub async fn delete_program(&self, name: &str) -> Result<(), Error> {
        self.host().delete_program(&self.id, &ProgramName::try_new(name)?).await
    }

    /// Deletes the session with its variables and programs.
    ///
    /// # Errors
    /// [`Error::Session`] if the session does not exist.
    pub async fn delete(self) -> Result<(), Error> {
        self.host().delete_session(&self.id).await
    }
}

impl<H> Deref for SessionHandle<H> {
    type Target = Caller<H>;

    fn deref(&self) -> &Self::Target {
        &self.caller
    }
}
