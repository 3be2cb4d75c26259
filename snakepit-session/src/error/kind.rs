//! The kinds of session errors, and the table of their reasons and HTTP statuses.

use super::SessionError;

/// The kind of a [`SessionError`], without its data. Several errors can have the same kind.
///
/// ```
/// use snakepit_session::{SessionError, SessionErrorKind, SessionId};
///
/// let error = SessionId::try_new("").unwrap_err();
/// assert_eq!(error.kind(), SessionErrorKind::InvalidArgument);
/// assert_eq!(error.kind().http_status(), 400);
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
    /// The reason as clients receive it in the details of a gRPC status, such as `SESSION_NOT_FOUND`.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        self.row().0
    }

    /// The HTTP status that suits the error, such as 404.
    #[must_use]
    pub const fn http_status(self) -> u16 {
        self.row().1
    }

    /// Whether the same operation may succeed later without a change by the caller.
    #[must_use]
    pub const fn is_transient(self) -> bool {
        matches!(self, Self::BackendFailed)
    }

    /// The table of reasons and HTTP statuses.
    const fn row(self) -> (&'static str, u16) {
        match self {
            Self::SessionNotFound => ("SESSION_NOT_FOUND", 404),
            Self::ProgramNotFound => ("PROGRAM_NOT_FOUND", 404),
            Self::VariableNotFound => ("VARIABLE_NOT_FOUND", 404),
            Self::VersionNotKept => ("VERSION_NOT_KEPT", 404),
            Self::VariableExists => ("VARIABLE_EXISTS", 409),
            Self::VersionConflict => ("VERSION_CONFLICT", 409),
            Self::TooManySessions => ("TOO_MANY_SESSIONS", 429),
            Self::TooManyVariables => ("TOO_MANY_VARIABLES", 429),
            Self::TooManyWatches => ("TOO_MANY_WATCHES", 429),
            Self::TooManyPrograms => ("TOO_MANY_PROGRAMS", 429),
            Self::SessionFull => ("SESSION_FULL", 507),
            Self::BackendFull => ("BACKEND_FULL", 507),
            Self::InvalidValue => ("INVALID_VALUE", 422),
            Self::InvalidArgument => ("INVALID_ARGUMENT", 400),
            Self::BackendFailed => ("BACKEND_FAILED", 503),
        }
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
