//! Everything that can go wrong with a session.

use std::collections::BTreeMap;

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
    #[error(
        "session limit of {limit} reached; delete sessions, shorten their ttl or raise the host's `max-sessions`"
    )]
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
    /// There is no global program of this name.
    #[error("global program `{name}` not found; it may have expired")]
    GlobalProgramNotFound {
        /// The name asked for.
        name: String,
    },
    /// There are as many global programs as there may be.
    #[error(
        "there are {limit} global programs, the most there may be; delete some or raise the host's `max-programs`"
    )]
    TooManyGlobalPrograms {
        /// The most global programs.
        limit: usize,
    },
    /// The text cannot be the name of a program.
    #[error("invalid program name: {problem}")]
    InvalidProgramName {
        /// What is wrong with it.
        problem: String,
    },
    /// The program is larger than the backend accepts.
    #[error(
        "program `{name}` has {size} bytes, above the limit of {limit}; raise the host's `max-program-bytes` or store \
         it elsewhere"
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
        "session `{session}` would hold {size} bytes, above the limit of {limit}; delete variables or programs, \
         or use another session"
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
         their ttl or raise the host's `max-total-bytes`"
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
    /// The session has no variable of this id or name.
    #[error("variable `{identifier}` not found in session `{session}`; register it first")]
    VariableNotFound {
        /// The session asked.
        session: SessionId,
        /// The id or name asked for.
        identifier: String,
    },
    /// The session has a variable of this name already.
    #[error("variable `{name}` already exists in session `{session}`; set it, or delete it first")]
    VariableExists {
        /// The session.
        session: SessionId,
        /// The name.
        name: String,
    },
    /// The text cannot be the name of a variable.
    #[error("invalid variable name: {problem}")]
    InvalidVariableName {
        /// What is wrong with it.
        problem: String,
    },
    /// Variables cannot have this type, or it cannot have these constraints.
    #[error("invalid type `{kind}` of a variable: {problem}")]
    InvalidType {
        /// The type.
        kind: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The value is not of the variable's type, or outside its constraints.
    #[error("variable `{variable}`: {problem}")]
    InvalidValue {
        /// The variable's name.
        variable: String,
        /// What is wrong with the value.
        problem: String,
    },
    /// The value is larger than the backend accepts.
    #[error(
        "variable `{variable}`: value has {size} bytes, above the limit of {limit}; raise the host's `max-value-bytes` \
         or store it as a program"
    )]
    ValueTooLarge {
        /// The variable.
        variable: String,
        /// The size of the value, in bytes.
        size: usize,
        /// The largest size accepted, in bytes.
        limit: usize,
    },
    /// The variable is not at the version that the writer expected: somebody else wrote meanwhile.
    #[error(
        "variable `{variable}` is at version {actual}, not at the expected version {expected}; read it again"
    )]
    VersionConflict {
        /// The variable's name.
        variable: String,
        /// The version that the writer expected.
        expected: u32,
        /// The version it is at.
        actual: u32,
    },
    /// The variable never had this version, or it is no longer kept.
    #[error("version {version} of variable `{variable}` not found; versions {oldest} to {newest} are kept")]
    VersionNotKept {
        /// The variable's name.
        variable: String,
        /// The version asked for.
        version: u32,
        /// The oldest version that is kept.
        oldest: u32,
        /// The version it is at.
        newest: u32,
    },
    /// The session holds as many variables as it may.
    #[error(
        "session `{session}` holds {limit} variables, the most it may; delete some or use another session"
    )]
    TooManyVariables {
        /// The session.
        session: SessionId,
        /// The most variables a session may hold.
        limit: usize,
    },
    /// As many watches run on the session as may.
    #[error("{limit} watches run on the session, the most that may; end some")]
    TooManyWatches {
        /// The most watches on one session.
        limit: usize,
    },
    /// A batch writes the same variable twice.
    #[error("variable `{variable}` is written twice in one batch; name it once, by its id or by its name")]
    WrittenTwice {
        /// The variable's name.
        variable: String,
    },
    /// Nothing of an atomic batch was written, because of these.
    #[error("nothing was written, because {}", reasons(.errors))]
    BatchRefused {
        /// What is wrong with which of the variables, as they were named.
        errors: BTreeMap<String, SessionError>,
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

/// The reasons of a refused batch: the first few of them.
fn reasons(errors: &BTreeMap<String, SessionError>) -> String {
    const SHOWN: usize = 5;
    let mut reasons: Vec<_> = errors.values().take(SHOWN).map(ToString::to_string).collect();
    if errors.len() > SHOWN {
        reasons.push(format!("and {} more", errors.len() - SHOWN));
    }
    reasons.join("; ")
}
