//! The trait behind which sessions live.

use std::sync::Arc;

use async_trait::async_trait;

use crate::{
    NewSession, NewVariable, Note, Program, ProgramInfo, ProgramName, ProgramOwner, Session, SessionError,
    SessionEvents, SessionId, SessionStats, SetVariable, Variable, VariableName, VariableVersion,
    VariableWatch, kit::variable_not_found,
};

/// Whether an operation that creates or finds did the one or the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// It was not there before.
    New,
    /// It was there already and is returned, or replaced, as it was.
    Existing,
}

/// How writes that come together are done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Batch {
    /// All or none.
    Atomic,
    /// Each by itself.
    Each,
}

/// Which part of a listing to return.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageRequest {
    /// The most entries to return; 0 means 100, and more than 1000 counts as 1000.
    pub size: usize,
    /// [`Page::next`] of the page before; `None` for the first.
    pub token: Option<String>,
}

impl PageRequest {
    /// How many entries to return, and after which id: that is what the token is.
    ///
    /// # Errors
    /// [`SessionError::InvalidPageToken`].
    pub fn parse(self) -> Result<(usize, Option<SessionId>), SessionError> {
        const DEFAULT: usize = 100;
        const MAX: usize = 1000;
        let size = if self.size == 0 { DEFAULT } else { self.size.min(MAX) };
        let after =
            self.token.map(|token| SessionId::try_new(token).map_err(|_| SessionError::InvalidPageToken));
        Ok((size, after.transpose()?))
    }
}

/// Part of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// The entries, ordered by id.
    pub items: Vec<T>,
    /// The token of the next page; `None` on the last.
    pub next: Option<String>,
}

/// Where sessions live.
///
/// Every operation is atomic: two callers, in this host or, for shared backends, in different ones, see each
/// operation happen entirely before or entirely after any other on the same session. An expired session is gone for
/// every operation at the moment it expires, whether or not its memory was reclaimed.
///
/// [`kit`](crate::kit) holds the semantics of every operation, so an implementation only loads and stores. The suites in the
/// crate `snakepit-session-testkit` check it.
///
/// # Cancel safety
/// A dropped future either did all of its operation or nothing.
///
/// # Errors
/// Every operation on a session that does not live answers [`SessionError::NotFound`]; a backend that cannot reach its
/// storage answers [`SessionError::Backend`]. Whether a write that is answered so was done is unknown, when the storage is
/// elsewhere: repeat it only if that does no harm, such as with an expected version.
#[async_trait]
pub trait SessionBackend: Send + Sync + std::fmt::Debug + 'static {
    /// Returns the session of this id, making it if need be. Racing creators get the same session, and exactly one
    /// of them [`Created::New`]. An existing session is renewed and keeps its metadata and TTL.
    ///
    /// # Errors
    /// [`SessionError::TooManySessions`] when a new one would pass the backend's limit.
    async fn create(&self, id: &SessionId, new: NewSession) -> Result<(Session, Created), SessionError>;

    /// Returns the session and renews its TTL.
    async fn get(&self, id: &SessionId) -> Result<Session, SessionError>;

    /// Deletes the session with all it holds, and returns what it was.
    async fn delete(&self, id: &SessionId) -> Result<Session, SessionError>;

    /// Lists live sessions, ordered by id, without renewing them. Sessions that come or go between two pages may
    /// or may not be listed; all others are listed exactly once.
    ///
    /// # Errors
    /// [`SessionError::InvalidPageToken`] for a token that this backend did not hand out.
    async fn list(&self, page: PageRequest) -> Result<Page<Session>, SessionError>;

    /// Remembers the worker that served the session last. Does not renew the TTL.
    async fn set_last_worker(&self, id: &SessionId, worker: Arc<str>) -> Result<(), SessionError>;

    /// Stores a program under a name, replacing what was there. Here and in all that follows, what is done in a session
    /// renews its TTL.
    ///
    /// # Errors
    /// [`SessionError::ProgramTooLarge`], and others of what may be held in all, above the backend's limits.
    async fn put_program(
        &self,
        owner: &ProgramOwner,
        name: &ProgramName,
        program: Program,
    ) -> Result<Created, SessionError>;

    /// Returns a program. A global one is renewed.
    ///
    /// # Errors
    /// [`SessionError::ProgramNotFound`] or [`SessionError::GlobalProgramNotFound`].
    async fn program(&self, owner: &ProgramOwner, name: &ProgramName) -> Result<Program, SessionError>;

    /// Lists programs, ordered by name. Global ones are not renewed.
    async fn programs(&self, owner: &ProgramOwner) -> Result<Vec<ProgramInfo>, SessionError>;

    /// Deletes a program.
    ///
    /// # Errors
    /// [`SessionError::ProgramNotFound`] or [`SessionError::GlobalProgramNotFound`].
    async fn delete_program(&self, owner: &ProgramOwner, name: &ProgramName) -> Result<(), SessionError>;

    /// Registers a variable, at version 0.
    ///
    /// # Errors
    /// [`SessionError::VariableExists`] when the name is taken, [`SessionError::InvalidValue`] when the first value does
    /// not fit, and others above the backend's limits.
    async fn register_variable(
        &self,
        id: &SessionId,
        name: &VariableName,
        new: NewVariable,
    ) -> Result<Variable, SessionError>;

    /// Returns the variables of these ids or names, in their order, as they were at one moment; `None` where there is none.
    async fn variables(
        &self,
        id: &SessionId,
        identifiers: &[&str],
    ) -> Result<Vec<Option<Variable>>, SessionError>;

    /// Writes variables, each of which gets one version more, and returns the versions in the order of the writes.
    ///
    /// An atomic batch is written as a whole or not at all. Otherwise each write succeeds or fails by itself, and the
    /// outer result fails only with the session.
    ///
    /// # Errors
    /// [`SessionError::VariableNotFound`]; [`SessionError::VersionConflict`] when a write expected another version;
    /// [`SessionError::InvalidValue`]; others above the backend's limits. Of an atomic batch,
    /// [`SessionError::BatchRefused`] with all of them, and [`SessionError::WrittenTwice`] when it names one variable twice.
    async fn set_variables(
        &self,
        id: &SessionId,
        updates: Vec<SetVariable>,
        batch: Batch,
    ) -> Result<Vec<Result<u32, SessionError>>, SessionError>;

    /// Lists the variables whose names match a pattern, ordered by name. `*` stands for any characters; an empty pattern
    /// lists all.
    async fn list_variables(&self, id: &SessionId, pattern: &str) -> Result<Vec<Variable>, SessionError>;

    /// Deletes a variable with its history, and returns what it was.
    ///
    /// # Errors
    /// [`SessionError::VariableNotFound`].
    async fn delete_variable(&self, id: &SessionId, identifier: &str) -> Result<Variable, SessionError>;

    /// Returns the newest versions of a variable that are kept, newest first; at most `limit`, 0 for all.
    ///
    /// # Errors
    /// [`SessionError::VariableNotFound`].
    async fn variable_history(
        &self,
        id: &SessionId,
        identifier: &str,
        limit: usize,
    ) -> Result<Vec<VariableVersion>, SessionError>;

    /// Gives a variable the value that it had at a version, as a new version.
    ///
    /// # Errors
    /// [`SessionError::VariableNotFound`]; [`SessionError::VersionNotKept`] for a version that is not in its history.
    async fn rollback_variable(
        &self,
        id: &SessionId,
        identifier: &str,
        version: u32,
        note: Note,
    ) -> Result<Variable, SessionError>;

    /// Watches variables by id or name, or without identifiers all that the session has or will have. `initial` begins
    /// with what they are now. Nothing is missing between that and the first change.
    ///
    /// A name stands for whatever variable has it: one that is deleted and registered anew is still watched.
    ///
    /// # Errors
    /// [`SessionError::VariableNotFound`] when one of the identifiers names none now; [`SessionError::TooManyWatches`].
    async fn watch_variables(
        &self,
        id: &SessionId,
        identifiers: &[String],
        initial: bool,
    ) -> Result<VariableWatch, SessionError>;

    /// Returns the variable of this id or name.
    ///
    /// # Errors
    /// [`SessionError::VariableNotFound`].
    async fn variable(&self, id: &SessionId, identifier: &str) -> Result<Variable, SessionError> {
        let found = self.variables(id, &[identifier]).await?.into_iter().next().flatten();
        found.ok_or_else(|| variable_not_found(id, identifier))
    }

    /// Writes one variable and returns its new version.
    ///
    /// # Errors
    /// Those of [`set_variables`](Self::set_variables) for one write.
    async fn set_variable(&self, id: &SessionId, update: SetVariable) -> Result<u32, SessionError> {
        let identifier = update.identifier.clone();
        let written = self.set_variables(id, vec![update], Batch::Each).await?.into_iter().next();
        written.unwrap_or_else(|| Err(variable_not_found(id, &identifier)))
    }

    /// Counts what happened and what there is.
    async fn stats(&self) -> Result<SessionStats, SessionError>;

    /// Tells which sessions come and go from now on.
    fn subscribe(&self) -> SessionEvents;

    /// Reclaims what expired, and returns how many sessions that were. The host calls it now and then; nothing but
    /// memory depends on when.
    async fn sweep(&self) -> Result<usize, SessionError>;
}
