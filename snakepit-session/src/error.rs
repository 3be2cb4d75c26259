//! Everything that can go wrong with a session.

use crate::SessionId;

/// Why an operation on a session failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// No live session has this id: it never existed, was deleted, or expired.
    #[error("session `{id}` not found; create it first, or raise its ttl if it expired")]
    NotFound {
        /// The id asked for.
        id: SessionId,
    },
    /// The text cannot be a session id.
    #[error("invalid session id: {problem}")]
    InvalidId {
        /// What is wrong with it.
        problem: String,
    },
    /// The backend holds as many sessions as it may.
    #[error("session limit of {limit} reached; delete sessions, shorten their ttl or raise the limit")]
    TooManySessions {
        /// The most sessions the backend accepts.
        limit: usize,
    },
    /// The session has no program of this name.
    #[error("program `{name}` not found in session `{session}`")]
    ProgramNotFound {
        /// The session asked.
        session: SessionId,
        /// The name asked for.
        name: String,
    },
    /// The text cannot be the name of a program.
    #[error("invalid program name: {problem}")]
    InvalidProgramName {
        /// What is wrong with it.
        problem: String,
    },
    /// The program is larger than the backend accepts.
    #[error(
        "program `{name}` has {size} bytes, above the limit of {limit}; raise the limit or store it elsewhere"
    )]
    ProgramTooLarge {
        /// The program's name.
        name: String,
        /// Its size in bytes.
        size: usize,
        /// The largest size accepted, in bytes.
        limit: usize,
    },
    /// The session holds as many programs as it may.
    #[error(
        "session `{session}` holds {limit} programs, the most it may; delete some or use another session"
    )]
    TooManyPrograms {
        /// The session.
        session: SessionId,
        /// The most programs a session may hold.
        limit: usize,
    },
    /// The session would hold more than it may.
    #[error(
        "session `{session}` would hold {size} bytes, above the limit of {limit}; delete programs or use another session"
    )]
    SessionTooLarge {
        /// The session.
        session: SessionId,
        /// What it would hold, in bytes.
        size: usize,
        /// The most it may hold, in bytes.
        limit: usize,
    },
    /// All sessions together would hold more than they may.
    #[error(
        "all sessions together would hold {size} bytes, above the limit of {limit}; delete programs or sessions, shorten \
         their ttl or raise the limit"
    )]
    BackendFull {
        /// What they would hold, in bytes.
        size: usize,
        /// The most they may hold, in bytes.
        limit: usize,
    },
    /// The metadata of a session or a program is larger than the backend accepts.
    #[error(
        "metadata of {entries} entries and {bytes} bytes is above the limit of {max_entries} entries and {max_bytes} \
         bytes; store large values as programs"
    )]
    MetadataTooLarge {
        /// How many entries it has.
        entries: usize,
        /// How long all names and values are together, in bytes.
        bytes: usize,
        /// The most entries accepted.
        max_entries: usize,
        /// The most bytes accepted.
        max_bytes: usize,
    },
    /// A page token that this backend did not hand out.
    #[error("invalid page token; pass the token of the previous page unchanged, or none for the first page")]
    InvalidPageToken,
    /// The backend itself failed: its disk, its network, its server.
    #[error("session backend failed: {problem}")]
    Backend {
        /// What the backend reported.
        problem: String,
    },
}
