//! The trait behind which sessions live.

use std::sync::Arc;

use async_trait::async_trait;

use crate::{NewSession, Program, ProgramInfo, ProgramName, Session, SessionError, SessionId};

/// Whether an operation that creates or finds did the one or the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// It was not there before.
    New,
    /// It was there already and is returned, or replaced, as it was.
    Existing,
}

/// Which part of a listing to return.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageRequest {
    /// The most entries to return; 0 means 100, and more than 1000 counts as 1000.
    pub size: usize,
    /// [`Page::next`] of the page before; `None` for the first.
    pub token: Option<String>,
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
/// Implementations prove themselves by the suite in `contract` (feature `test-util`).
///
/// # Cancel safety
/// A dropped future either did all of its operation or nothing.
///
/// # Errors
/// Every operation on a session that does not live answers [`SessionError::NotFound`]; a backend that cannot reach its
/// storage answers [`SessionError::Backend`].
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

    /// Stores a program under a name, replacing what was there, and renews the TTL.
    ///
    /// # Errors
    /// [`SessionError::ProgramTooLarge`] above the backend's limit.
    async fn put_program(
        &self,
        id: &SessionId,
        name: &ProgramName,
        program: Program,
    ) -> Result<Created, SessionError>;

    /// Returns a program and renews the TTL.
    ///
    /// # Errors
    /// [`SessionError::ProgramNotFound`] when the session has none of that name.
    async fn program(&self, id: &SessionId, name: &ProgramName) -> Result<Program, SessionError>;

    /// Lists the session's programs, ordered by name, and renews the TTL.
    async fn programs(&self, id: &SessionId) -> Result<Vec<ProgramInfo>, SessionError>;

    /// Deletes a program and renews the TTL.
    ///
    /// # Errors
    /// [`SessionError::ProgramNotFound`] when the session has none of that name.
    async fn delete_program(&self, id: &SessionId, name: &ProgramName) -> Result<(), SessionError>;

    /// Reclaims what expired, and returns how many sessions that were. The host calls it now and then; nothing but
    /// memory depends on when.
    async fn sweep(&self) -> Result<usize, SessionError>;
}
