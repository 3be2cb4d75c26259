//! The trait of all session backends.

use std::sync::Arc;

use async_trait::async_trait;

use crate::{
    NewSession, NewVariable, Note, Program, ProgramInfo, ProgramName, ProgramOwner, Session, SessionError,
    SessionEvents, SessionId, SessionLimits, SessionStats, SetVariable, Variable, VariableName,
    VariableVersion, VariableWatch, kit::variable_not_found,
};

/// Whether an operation created an object or found an existing one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// The operation created the object.
    New,
    /// The object existed; the operation returned or replaced it.
    Existing,
}

/// How the writes of a batch depend on each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Batch {
    /// All writes succeed, or none is applied.
    Atomic,
    /// Each write succeeds or fails independently.
    Each,
}

/// A request for one page of a listing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageRequest {
    /// The maximum number of entries. 0 means 100, and values larger than 1000 mean 1000.
    pub size: usize,
    /// [`Page::next`] of the previous page, or `None` for the first page.
    pub token: Option<String>,
}

impl PageRequest {
    /// Returns the number of entries on the page, and the id after which the page starts.
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

/// One page of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// The entries, ordered by id.
    pub items: Vec<T>,
    /// The token of the next page, which is the last id of this page as a string; `None` on the last page.
    pub next: Option<String>,
}

/// Stores sessions.
///
/// Operations on one session must be linearizable, even between hosts that share a backend. Once a session expires, every
/// operation must treat it as missing, even if its memory is not reclaimed yet.
///
/// For a key-value store, implement `KeyValueStore` and pass it to `KeyValueBackend`. Both are in the module `kit` of the crate
/// `snakepit-session`, with its feature `codec`. For other stores, the same module contains the semantics of every operation.
/// Test a backend with the suites of `snakepit-session-testkit`.
///
/// # Cancel safety
/// If a future is dropped, its operation must happen completely or not at all.
///
/// # Errors
/// Operations on a missing or expired session must return [`SessionError::NotFound`]. A backend that cannot reach its storage
/// must return [`SessionError::Backend`]. With remote storage, a write that returns this error may have been applied. Repeat such
/// a write only if it is idempotent, for example because it has an expected version. A backend that certainly wrote nothing
/// should return [`SessionError::NotWritten`].
///
/// # Renewal
/// Every operation on a session must renew its TTL, except [`list`](Self::list) and [`set_last_worker`](Self::set_last_worker).
#[async_trait]
pub trait SessionBackend: Send + Sync + std::fmt::Debug + 'static {
    /// Returns the session with this id, and creates it if it does not exist. Racing creators get the same session, and exactly
    /// one of them gets [`Created::New`]. An existing session is renewed and keeps its metadata and TTL.
    ///
    /// # Errors
    /// - [`SessionError::MetadataTooLarge`] and [`SessionError::SessionTooLarge`] for parameters that no new session may have
    ///   ([`SessionLimits::check_new`](crate::SessionLimits::check_new)), even if the session exists. Whether a request is valid must
    ///   not depend on races.
    /// - [`SessionError::TooManySessions`] if a new session would exceed the backend's limit.
    async fn create(&self, id: &SessionId, new: NewSession) -> Result<(Session, Created), SessionError>;

    /// Returns the session and renews its TTL.
    async fn get(&self, id: &SessionId) -> Result<Session, SessionError>;

    /// Deletes the session with its variables and programs, and returns its last state.
    async fn delete(&self, id: &SessionId) -> Result<Session, SessionError>;

    /// Lists live sessions, ordered by id, without renewing them. Sessions that are created or deleted between two pages may be
    /// missing; all others are listed exactly once.
    ///
    /// # Errors
    /// [`SessionError::InvalidPageToken`] if this backend did not issue the token.
    async fn list(&self, page: PageRequest) -> Result<Page<Session>, SessionError>;

    /// Stores the worker that served the session last. Does not renew the TTL.
    async fn set_last_worker(&self, id: &SessionId, worker: Arc<str>) -> Result<(), SessionError>;

    /// Stores a program. Replaces an existing program with the same name.
    ///
    /// # Errors
    /// [`SessionError::ProgramTooLarge`], or another error of the backend's limits.
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
    /// [`SessionError::VariableExists`] if the name is taken, [`SessionError::InvalidValue`] if the first value does not match
    /// the type, or an error of the backend's limits.
    async fn register_variable(
        &self,
        id: &SessionId,
        name: &VariableName,
        new: NewVariable,
    ) -> Result<Variable, SessionError>;

    /// Returns a consistent snapshot of variables by id or name, in the order of the identifiers, with `None` for missing ones.
    async fn variables(
        &self,
        id: &SessionId,
        identifiers: &[&str],
    ) -> Result<Vec<Option<Variable>>, SessionError>;

    /// Writes variables, increments their versions, and returns the new versions in the order of the writes.
    ///
    /// The writes of an atomic batch succeed or fail together. Otherwise each write has its result, and the outer result is an
    /// error only if the session is missing or the backend fails.
    ///
    /// # Errors
    /// [`SessionError::VariableNotFound`], [`SessionError::VersionConflict`], [`SessionError::InvalidValue`], or an error of the
    /// backend's limits. For an atomic batch, [`SessionError::BatchRejected`] contains the errors of its writes, with
    /// [`SessionError::WrittenTwice`] if it writes one variable twice.
    async fn set_variables(
        &self,
        id: &SessionId,
        updates: Vec<SetVariable>,
        batch: Batch,
    ) -> Result<Vec<Result<u32, SessionError>>, SessionError>;

    /// Lists the variables whose names match a pattern, ordered by name. `*` matches any characters; an empty pattern matches
    /// all names.
    async fn list_variables(&self, id: &SessionId, pattern: &str) -> Result<Vec<Variable>, SessionError>;

    /// Deletes a variable with its history, and returns its last state.
    ///
    /// # Errors
    /// [`SessionError::VariableNotFound`].
    async fn delete_variable(&self, id: &SessionId, identifier: &str) -> Result<Variable, SessionError>;

    /// Deletes variables with their histories, and returns their last states in the order of the identifiers, with `None` for
    /// missing ones. A variable that is named twice is missing the second time.
    ///
    /// The default implementation deletes them one by one, so readers may see some of them in between, and a failure of the
    /// backend may leave some of them. The backends of this project delete all of them in one commit.
    ///
    /// # Errors
    /// [`SessionError::TooManyNames`], or an error of the backend. The default implementation accepts as many identifiers as
    /// [`SessionLimits::default`].
    async fn delete_variables(
        &self,
        id: &SessionId,
        identifiers: &[&str],
    ) -> Result<Vec<Option<Variable>>, SessionError> {
        // Checked before the reservation of memory, because an identifier of a client can have two bytes.
        SessionLimits::default().check_names(identifiers.len())?;
        if identifiers.is_empty() {
            self.get(id).await?;
        }
        let mut deleted = Vec::with_capacity(identifiers.len());
        for identifier in identifiers {
            deleted.push(match self.delete_variable(id, identifier).await {
                Ok(variable) => Some(variable),
                Err(SessionError::VariableNotFound { .. }) => None,
                Err(error) => return Err(error),
            });
        }
        Ok(deleted)
    }

    /// Returns the newest versions of a variable, newest first: at most `limit`, or the whole history for 0.
    ///
    /// # Errors
    /// [`SessionError::VariableNotFound`].
    async fn variable_history(
        &self,
        id: &SessionId,
        identifier: &str,
        limit: usize,
    ) -> Result<Vec<VariableVersion>, SessionError>;

    /// Writes the value of an earlier version as a new version.
    ///
    /// # Errors
    /// [`SessionError::VariableNotFound`], or [`SessionError::VersionNotKept`] if the history does not contain the version.
    async fn rollback_variable(
        &self,
        id: &SessionId,
        identifier: &str,
        version: u32,
        note: Note,
    ) -> Result<Variable, SessionError>;

    /// Watches variables by id or name. Without identifiers, it watches all current and future variables of the session. With
    /// `initial`, the stream begins with the current values, and changes follow without a gap.
    ///
    /// A watch by name continues if the variable is deleted and registered again.
    ///
    /// # Errors
    /// [`SessionError::VariableNotFound`] if one of the variables does not exist, or [`SessionError::TooManyWatches`].
    async fn watch_variables(
        &self,
        id: &SessionId,
        identifiers: &[String],
        initial: bool,
    ) -> Result<VariableWatch, SessionError>;

    /// Returns a variable by id or name.
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
    /// Those of [`set_variables`](Self::set_variables) for a single write.
    async fn set_variable(&self, id: &SessionId, update: SetVariable) -> Result<u32, SessionError> {
        let identifier = update.identifier.clone();
        let results = self.set_variables(id, vec![update], Batch::Each).await?;
        results.into_iter().next().unwrap_or_else(|| Err(variable_not_found(id, &identifier)))
    }

    /// Returns the backend's counters.
    async fn stats(&self) -> Result<SessionStats, SessionError>;

    /// Subscribes to the lifecycle events of all sessions.
    fn subscribe(&self) -> SessionEvents;

    /// Reclaims expired sessions and programs, and returns the number of sessions. The host calls it regularly. Only memory usage
    /// depends on it.
    async fn sweep(&self) -> Result<usize, SessionError>;
}
