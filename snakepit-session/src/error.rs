//! The errors of session backends.

use std::{collections::BTreeMap, error::Error};

use crate::{SessionId, settings};

mod chain;
mod kind;

pub use chain::{ErrorChain, SharedError, error_chain};
pub use kind::SessionErrorKind;

/// Why an operation on a session failed.
///
/// The message of a backend's failure omits its cause, which is the [`source`](std::error::Error::source).
/// [`error_chain`] prints both.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// No live session has this id: it never existed, was deleted, or expired.
    #[error("session `{id}` not found; create it first, or raise its ttl if it expired")]
    NotFound {
        /// The requested id.
        id: SessionId,
    },
    /// The text is not a valid session id.
    #[error("invalid session id: {problem}")]
    InvalidId {
        /// The reason.
        problem: String,
    },
    /// The backend has reached its session limit.
    #[error(
        "session limit of {limit} reached; delete sessions, shorten their ttl or raise {}",
        settings::MAX_SESSIONS
    )]
    TooManySessions {
        /// The maximum number of sessions.
        limit: usize,
    },
    /// The session does not have a program with this name.
    #[error("program `{name}` not found in session `{session}`")]
    ProgramNotFound {
        /// The session.
        session: SessionId,
        /// The requested name.
        name: String,
    },
    /// A global program with this name does not exist.
    #[error("global program `{name}` not found; it may have expired")]
    GlobalProgramNotFound {
        /// The requested name.
        name: String,
    },
    /// The backend has reached its limit of global programs.
    #[error("limit of {limit} global programs reached; delete some or raise {}", settings::MAX_PROGRAMS)]
    TooManyGlobalPrograms {
        /// The maximum number of global programs.
        limit: usize,
    },
    /// The text is not a valid program name.
    #[error("invalid program name: {problem}")]
    InvalidProgramName {
        /// The reason.
        problem: String,
    },
    /// The program is larger than the backend accepts.
    #[error(
        "program `{name}` has {size} bytes, above the limit of {limit}; raise {} or store it elsewhere",
        settings::MAX_PROGRAM_BYTES
    )]
    ProgramTooLarge {
        /// The program's name.
        name: String,
        /// Its size in bytes.
        size: usize,
        /// The largest size accepted, in bytes.
        limit: usize,
    },
    /// The session has reached its program limit.
    #[error("limit of {limit} programs in session `{session}` reached; delete some or use another session")]
    TooManyPrograms {
        /// The session.
        session: SessionId,
        /// The maximum number of programs in a session.
        limit: usize,
    },
    /// The session would exceed its size limit.
    #[error(
        "session `{session}` would hold {size} bytes, above the limit of {limit}; delete variables or programs, \
         or use another session"
    )]
    SessionTooLarge {
        /// The session.
        session: SessionId,
        /// The size that the session would have, in bytes.
        size: usize,
        /// The maximum size in bytes.
        limit: usize,
    },
    /// The backend would exceed its total size limit.
    #[error(
        "all sessions together would hold {size} bytes, above the limit of {limit}; delete programs or sessions, shorten \
         their ttl or raise {}",
        settings::MAX_TOTAL_BYTES
    )]
    BackendFull {
        /// The total size that it would have, in bytes.
        size: usize,
        /// The maximum total size in bytes.
        limit: usize,
    },
    /// The metadata of a session or a program is larger than the backend accepts.
    #[error(
        "metadata of {entries} entries and {bytes} bytes is above the limit of {max_entries} entries and {max_bytes} \
         bytes; store large values as programs"
    )]
    MetadataTooLarge {
        /// The number of entries.
        entries: usize,
        /// The total length of names and values in bytes.
        bytes: usize,
        /// The maximum number of entries.
        max_entries: usize,
        /// The maximum number of bytes.
        max_bytes: usize,
    },
    /// The session does not have a variable with this id or name.
    #[error("variable `{identifier}` not found in session `{session}`; register it first")]
    VariableNotFound {
        /// The session.
        session: SessionId,
        /// The requested id or name.
        identifier: String,
    },
    /// The session already has a variable with this name.
    #[error("variable `{name}` already exists in session `{session}`; set it, or delete it first")]
    VariableExists {
        /// The session.
        session: SessionId,
        /// The name.
        name: String,
    },
    /// The text is not a valid variable name.
    #[error("invalid variable name: {problem}")]
    InvalidVariableName {
        /// The reason.
        problem: String,
    },
    /// Variables do not support this type, or the type does not support these constraints.
    #[error("invalid type `{kind}` of a variable: {problem}")]
    InvalidType {
        /// The type.
        kind: String,
        /// The reason.
        problem: String,
    },
    /// The value does not match the variable's type or violates its constraints.
    #[error("variable `{variable}`: {problem}")]
    InvalidValue {
        /// The variable's name.
        variable: String,
        /// The reason.
        problem: String,
    },
    /// The value is larger than the backend accepts.
    #[error(
        "variable `{variable}`: value has {size} bytes, above the limit of {limit}; raise {} or store it as a program",
        settings::MAX_VALUE_BYTES
    )]
    ValueTooLarge {
        /// The variable.
        variable: String,
        /// The size of the value, in bytes.
        size: usize,
        /// The largest size accepted, in bytes.
        limit: usize,
    },
    /// The variable is not at the version that the writer expected, because of another write.
    #[error(
        "variable `{variable}` is at version {actual}, not at the expected version {expected}; read it again"
    )]
    VersionConflict {
        /// The variable's name.
        variable: String,
        /// The version that the writer expected.
        expected: u32,
        /// The current version.
        actual: u32,
    },
    /// The history does not contain this version.
    #[error("version {version} of variable `{variable}` not found; versions {oldest} to {newest} are kept")]
    VersionNotKept {
        /// The variable's name.
        variable: String,
        /// The requested version.
        version: u32,
        /// The oldest version in the history.
        oldest: u32,
        /// The current version.
        newest: u32,
    },
    /// The session has reached its variable limit.
    #[error("limit of {limit} variables in session `{session}` reached; delete some or use another session")]
    TooManyVariables {
        /// The session.
        session: SessionId,
        /// The maximum number of variables in a session.
        limit: usize,
    },
    /// One operation names more variables than a session may have.
    #[error("the operation names {given} variables, above the limit of {limit}; split it")]
    TooManyNames {
        /// The number of names.
        given: usize,
        /// The maximum number of names.
        limit: usize,
    },
    /// The session has reached its limit of watches.
    #[error("limit of {limit} watches on the session reached; end some")]
    TooManyWatches {
        /// The maximum number of watches on a session.
        limit: usize,
    },
    /// A batch writes the same variable twice.
    #[error("variable `{variable}` is written twice in one batch; name it once, by its id or by its name")]
    WrittenTwice {
        /// The variable's name.
        variable: String,
    },
    /// An atomic batch was rejected as a whole.
    #[error("nothing was written, because {}", reasons(.errors))]
    BatchRejected {
        /// The error of each rejected write, by the identifier of its variable.
        errors: BTreeMap<String, SessionError>,
    },
    /// The backend did not issue this page token.
    #[error("invalid page token; pass the token of the previous page unchanged, or none for the first page")]
    InvalidPageToken,
    /// The backend failed without a write: it cannot write now, for example because its disk is full, or the failed operation
    /// only reads.
    #[error("session backend failed: {problem}")]
    NotWritten {
        /// The problem.
        problem: String,
        /// The cause, if the backend knows it. An error from a remote host has its text in `problem`.
        source: Option<SharedError>,
    },
    /// The backend itself failed: its disk, its network, its server. A write may have been applied.
    #[error("session backend failed: {problem}")]
    Backend {
        /// The problem.
        problem: String,
        /// The cause, if the backend knows it. An error from a remote host has its text in `problem`.
        source: Option<SharedError>,
    },
}

impl SessionError {
    /// Creates the error of a backend that failed. A write may have been applied.
    ///
    /// ```
    /// use std::{error::Error, io};
    ///
    /// use snakepit_session::SessionError;
    ///
    /// let reset = io::Error::from(io::ErrorKind::ConnectionReset);
    /// let error = SessionError::backend("cannot read from the server").with_source(reset);
    /// assert!(error.source().unwrap().is::<io::Error>());
    /// ```
    pub fn backend(problem: impl Into<String>) -> Self {
        Self::Backend { problem: problem.into(), source: None }
    }

    /// Creates the error of a backend that cannot write now. Nothing was written.
    pub fn not_written(problem: impl Into<String>) -> Self {
        Self::NotWritten { problem: problem.into(), source: None }
    }

    /// Converts the error of an operation that only reads. If the backend failed, the result is
    /// [`NotWritten`](Self::NotWritten), because no write can have happened.
    ///
    /// ```
    /// use snakepit_session::SessionError;
    ///
    /// let error = SessionError::backend("the connection was reset").into_read_error();
    /// assert_eq!(error, SessionError::not_written("the connection was reset"));
    /// ```
    #[must_use]
    pub fn into_read_error(self) -> Self {
        match self {
            Self::Backend { problem, source } => Self::NotWritten { problem, source },
            error => error,
        }
    }

    /// Sets the cause of a backend's failure. Has no effect on other errors, which have no source.
    #[must_use]
    pub fn with_source(mut self, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        if let Self::Backend { source, .. } | Self::NotWritten { source, .. } = &mut self {
            *source = Some(SharedError::new(cause));
        }
        self
    }
}

/// Lists the first few reasons of a rejected batch.
fn reasons(errors: &BTreeMap<String, SessionError>) -> String {
    const MAX_LISTED: usize = 5;
    let mut reasons: Vec<_> =
        errors.values().take(MAX_LISTED).map(|error| error_chain(error).to_string()).collect();
    if errors.len() > MAX_LISTED {
        reasons.push(format!("and {} more", errors.len() - MAX_LISTED));
    }
    reasons.join("; ")
}
