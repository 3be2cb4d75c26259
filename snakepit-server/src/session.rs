//! A session as a program holds it, of its own host or of one elsewhere.

mod variables;

use serde::{Serialize, de::DeserializeOwned};
use snakepit_session::{Created, Program, ProgramInfo, ProgramName, ProgramOwner, Session, SessionId};

pub(crate) use self::variables::EventStream;
pub use self::variables::SessionWatch;
use crate::{CallBuilder, Error, ReplyStream, call::Target};

/// A session of this host, or of one that runs elsewhere: [`Snakepit::session`](crate::Snakepit::session),
/// [`Client::session`](crate::Client::session). Cheap to clone.
///
/// The handle keeps nothing alive: when the session expires or is deleted, every operation answers "not found".
///
/// # Errors
/// Of every operation, beside those that it names: [`Error::Session`] when the session is gone, and of a host elsewhere
/// [`Error::Unreachable`], [`Error::TimedOut`] after the client's
/// [`request_timeout`](crate::ClientBuilder::request_timeout), and [`Error::Refused`] for what it takes none of.
#[derive(Debug, Clone)]
pub struct SessionHandle {
    target: Target,
    id: SessionId,
}

impl SessionHandle {
    pub(crate) const fn new(target: Target, id: SessionId) -> Self {
        Self { target, id }
    }

    /// Its id.
    #[must_use]
    pub const fn id(&self) -> &SessionId {
        &self.id
    }

    /// What the host knows of it. Renews its TTL.
    ///
    /// # Errors
    /// [`Error::Session`] when it is gone.
    pub async fn info(&self) -> Result<Session, Error> {
        match &self.target {
            Target::Host(host) => Ok(host.sessions.get(&self.id).await?),
            Target::Remote(remote) => remote.session(&self.id).await,
        }
    }

    /// Calls a tool in this session and returns its value.
    ///
    /// # Errors
    /// See [`CallBuilder::unary`].
    pub async fn execute<T: DeserializeOwned>(&self, tool: &str, args: impl Serialize) -> Result<T, Error> {
        Ok(self.call(tool).args(args).unary().await?.value)
    }

    /// Calls a tool in this session and returns its chunks as they come.
    ///
    /// # Errors
    /// See [`CallBuilder::stream`].
    pub async fn execute_stream<T: DeserializeOwned>(
        &self,
        tool: &str,
        args: impl Serialize,
    ) -> Result<ReplyStream<T>, Error> {
        self.call(tool).args(args).stream().await
    }

    /// Prepares a call in this session.
    pub fn call(&self, tool: &str) -> CallBuilder {
        CallBuilder::new(self.target.clone(), tool).session(self.id.clone())
    }

    fn owner(&self) -> ProgramOwner {
        ProgramOwner::Session(self.id.clone())
    }

    /// Stores a program, replacing the one of that name.
    ///
    /// # Errors
    /// [`Error::Session`] when the name is odd, the program too large, or the session gone.
    pub async fn put_program(&self, name: &str, program: Program) -> Result<Created, Error> {
        let name = ProgramName::try_new(name)?;
        match &self.target {
            Target::Host(host) => Ok(host.sessions.put_program(&self.owner(), &name, program).await?),
            Target::Remote(remote) => remote.put_program(&self.id, &name, program).await,
        }
    }

    /// Returns a program.
    ///
    /// # Errors
    /// [`Error::Session`] when the session or the program is not there.
    pub async fn program(&self, name: &str) -> Result<Program, Error> {
        let name = ProgramName::try_new(name)?;
        match &self.target {
            Target::Host(host) => Ok(host.sessions.program(&self.owner(), &name).await?),
            Target::Remote(remote) => remote.program(&self.id, &name).await,
        }
    }

    /// Lists the session's programs, ordered by name.
    ///
    /// # Errors
    /// [`Error::Session`] when the session is gone.
    pub async fn programs(&self) -> Result<Vec<ProgramInfo>, Error> {
        match &self.target {
            Target::Host(host) => Ok(host.sessions.programs(&self.owner()).await?),
            Target::Remote(remote) => remote.programs(&self.id).await,
        }
    }

    /// Deletes a program.
    ///
    /// # Errors
    /// [`Error::Session`] when the session or the program is not there.
    pub async fn delete_program(&self, name: &str) -> Result<(), Error> {
        let name = ProgramName::try_new(name)?;
        match &self.target {
            Target::Host(host) => Ok(host.sessions.delete_program(&self.owner(), &name).await?),
            Target::Remote(remote) => remote.delete_program(&self.id, &name).await,
        }
    }

    /// Deletes the session with all it holds.
    ///
    /// # Errors
    /// [`Error::Session`] when it is gone already.
    pub async fn delete(self) -> Result<(), Error> {
        match &self.target {
            Target::Host(host) => Ok(host.sessions.delete(&self.id).await.map(drop)?),
            Target::Remote(remote) => remote.delete_session(&self.id).await,
        }
    }
}
