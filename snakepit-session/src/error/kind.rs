//! The kinds of session errors, and their reasons.

use snakepit_reason::Reason;

use super::SessionError;

/// The kind of a [`SessionError`], without its data. Several errors can have the same kind.
///
/// ```
/// use snakepit_session::{SessionError, SessionErrorKind, SessionId};
///
/// let error = SessionId::try_new("").unwrap_err();
/// assert_eq!(error.kind(), SessionErrorKind::InvalidArgument);
/// assert_eq!(error.kind().http_status(), 422);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum SessionErrorKind {
    /// The session does not exist: it never existed, was deleted, or expired.
    SessionNotFound,
    /// The program does not exist.
    ProgramNotFound,
    /// The variable does not exist.
    VariableNotFound,
    /// The history does not contain the version.
    VersionNotKept,
    /// A variable with the name already exists.
    VariableExists,
    /// The variable is not at the expected version.
    VersionConflict,
    /// The backend has reached its limit of sessions.
    TooManySessions,
    /// The session has reached its limit of variables.
    TooManyVariables,
    /// The session has reached its limit of watches.
    TooManyWatches,
    /// The backend has reached its limit of global programs.
    TooManyPrograms,
    /// The session has reached its limit of programs or bytes.
    SessionFull,
    /// The backend has reached its limit of bytes.
    BackendFull,
    /// The value does not fit the variable's type, or is too large.
    InvalidValue,
    /// A name, type, size, batch or page token is invalid.
    InvalidArgument,
    /// The backend itself failed.
    BackendFailed,
}

impl SessionErrorKind {
    /// The machine-readable reason, such as `SESSION_NOT_FOUND`: a row in the table of reasons, with the codes for every protocol.
    /// Remote clients receive its [text](Reason::as_str) in the details of a gRPC status.
    #[must_use]
    pub const fn reason(self) -> Reason {
        match self {
            Self::SessionNotFound => Reason::SessionNotFound,
            Self::ProgramNotFound => Reason::ProgramNotFound,
            Self::VariableNotFound => Reason::VariableNotFound,
            Self::VersionNotKept => Reason::VersionNotKept,
            Self::VariableExists => Reason::VariableExists,
            Self::VersionConflict => Reason::VersionConflict,
            Self::TooManySessions => Reason::TooManySessions,
            Self::TooManyVariables => Reason::TooManyVariables,
            Self::TooManyWatches => Reason::TooManyWatches,
            Self::TooManyPrograms => Reason::TooManyPrograms,
            Self::SessionFull => Reason::SessionFull,
            Self::BackendFull => Reason::BackendFull,
            Self::InvalidValue => Reason::InvalidValue,
            Self::InvalidArgument => Reason::InvalidArgument,
            Self::BackendFailed => Reason::BackendFailed,
        }
    }

    /// The HTTP status that suits the error, such as 404.
    #[must_use]
    pub const fn http_status(self) -> u16 {
        self.reason().http_status()
    }

    /// Whether the same operation may succeed later without a change by the caller.
    #[must_use]
    pub const fn is_transient(self) -> bool {
        self.reason().is_transient()
    }
}

impl SessionError {
    /// The kind of the error.
    #[must_use]
    pub const fn kind(&self) -> SessionErrorKind {
        match self {
            Self::NotFound { .. } => SessionErrorKind::SessionNotFound,
            Self::ProgramNotFound { .. } | Self::GlobalProgramNotFound { .. } => {
                SessionErrorKind::ProgramNotFound
            }
            Self::VariableNotFound { .. } => SessionErrorKind::VariableNotFound,
            Self::VersionNotKept { .. } => SessionErrorKind::VersionNotKept,
            Self::VariableExists { .. } => SessionErrorKind::VariableExists,
            Self::VersionConflict { .. } => SessionErrorKind::VersionConflict,
            Self::TooManySessions { .. } => SessionErrorKind::TooManySessions,
            Self::TooManyVariables { .. } => SessionErrorKind::TooManyVariables,
            Self::TooManyWatches { .. } => SessionErrorKind::TooManyWatches,
            Self::TooManyGlobalPrograms { .. } => SessionErrorKind::TooManyPrograms,
            Self::TooManyPrograms { .. } | Self::SessionTooLarge { .. } => SessionErrorKind::SessionFull,
            Self::BackendFull { .. } => SessionErrorKind::BackendFull,
            Self::InvalidValue { .. } | Self::ValueTooLarge { .. } => SessionErrorKind::InvalidValue,
            Self::InvalidId { .. }
            | Self::InvalidProgramName { .. }
            | Self::ProgramTooLarge { .. }
            | Self::MetadataTooLarge { .. }
            | Self::InvalidVariableName { .. }
            | Self::InvalidType { .. }
            | Self::WrittenTwice { .. }
            | Self::TooManyNames { .. }
            | Self::BatchRejected { .. }
            | Self::InvalidPageToken => SessionErrorKind::InvalidArgument,
            Self::NotWritten { .. } | Self::Backend { .. } => SessionErrorKind::BackendFailed,
        }
    }
}
