//! A session as an embedding program holds it.

mod variables;

use std::sync::Arc;

use serde::{Serialize, de::DeserializeOwned};
use snakepit_session::{Created, Program, ProgramInfo, ProgramName, ProgramOwner, Session, SessionId};

use crate::{CallBuilder, Error, ReplyStream, call::Target, host::Host};

/// A session of this host: [`Snakepit::session`](crate::Snakepit::session). Cheap to clone.
///
/// The handle keeps nothing alive: when the session expires or is deleted, every operation answers "not found".
#[derive(Debug, Clone)]
pub struct SessionHandle {
    host: Arc<Host>,
    id: SessionId,
}

impl SessionHandle {
    pub(crate) const fn new(host: Arc<Host>, id: SessionId) -> Self {
        Self { host, id }
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
        Ok(self.host.sessions.get(&self.id).await?)
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
        CallBuilder::new(Target::Host(Arc::clone(&self.host)), tool).session(self.id.clone())
    }

    fn owner(&self) -> ProgramOwner {
        ProgramOwner::Session(self.id.clone())
    }

    /// Stores a program, replacing the one of that name.
    ///
    /// # Errors
    /// [`Error::Session`] when the name is odd, the program too large, or the session gone.
    pub async fn put_program(&self, name: &str, program: Program) -> Result<Created, Error> {
        Ok(self.host.sessions.put_program(&self.owner(), &ProgramName::try_new(name)?, program).await?)
    }

    /// Returns a program.
    ///
    /// # Errors
    /// [`Error::Session`] when the session or the program is not there.
    pub async fn program(&self, name: &str) -> Result<Program, Error> {
        Ok(self.host.sessions.program(&self.owner(), &ProgramName::try_new(name)?).await?)
    }

    /// Lists the session's programs, ordered by name.
    ///
    /// # Errors
    /// [`Error::Session`] when the session is gone.
    pub async fn programs(&self) -> Result<Vec<ProgramInfo>, Error> {
        Ok(self.host.sessions.programs(&self.owner()).await?)
    }

    /// Deletes a program.
    ///
    /// # Errors
    /// [`Error::Session`] when the session or the program is not there.
    pub async fn delete_program(&self, name: &str) -> Result<(), Error> {
        Ok(self.host.sessions.delete_program(&self.owner(), &ProgramName::try_new(name)?).await?)
    }

    /// Deletes the session with all it holds.
    ///
    /// # Errors
    /// [`Error::Session`] when it is gone already.
    pub async fn delete(self) -> Result<(), Error> {
        self.host.sessions.delete(&self.id).await?;
        Ok(())
    }
}
