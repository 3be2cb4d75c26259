//! [`Code`]: the canonical codes of gRPC, without gRPC.

use std::fmt;

/// A canonical gRPC code.
///
/// ```
/// use snakepit_reason::Code;
///
/// assert_eq!((Code::NotFound.number(), Code::NotFound.name()), (5, "NOT_FOUND"));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Code {
    /// The request was cancelled.
    Cancelled = 1,
    /// The error has no other code.
    Unknown = 2,
    /// The request is invalid, independent of the host's state.
    InvalidArgument = 3,
    /// The deadline passed.
    DeadlineExceeded = 4,
    /// The requested item does not exist.
    NotFound = 5,
    /// An item with this name exists already.
    AlreadyExists = 6,
    /// The caller lacks the permission.
    PermissionDenied = 7,
    /// A limit is reached.
    ResourceExhausted = 8,
    /// The state of the host does not allow the request. A retry does not help.
    FailedPrecondition = 9,
    /// A concurrent change won. Read again, then retry.
    Aborted = 10,
    /// The request is outside of the valid range.
    OutOfRange = 11,
    /// The host does not support the request.
    Unimplemented = 12,
    /// A failure in the host, the worker or the tool.
    Internal = 13,
    /// The host or the worker is not available now. gRPC libraries may retry.
    Unavailable = 14,
    /// Data was lost.
    DataLoss = 15,
    /// The caller is not authenticated.
    Unauthenticated = 16,
}

impl Code {
    /// All codes, by number.
    pub const ALL: &'static [Self] = &[
        Self::Cancelled,
        Self::Unknown,
        Self::InvalidArgument,
        Self::DeadlineExceeded,
        Self::NotFound,
        Self::AlreadyExists,
        Self::PermissionDenied,
        Self::ResourceExhausted,
        Self::FailedPrecondition,
        Self::Aborted,
        Self::OutOfRange,
        Self::Unimplemented,
        Self::Internal,
        Self::Unavailable,
        Self::DataLoss,
        Self::Unauthenticated,
    ];

    /// The code that a tool chose for its failure, by its name in lower case.
    ///
    /// ```
    /// use snakepit_reason::Code;
    ///
    /// assert_eq!(Code::of_failure("not_found"), Some(Code::NotFound));
    /// assert_eq!(Code::of_failure("out_of_stock"), None);
    /// ```
    #[must_use]
    pub fn of_failure(code: &str) -> Option<Self> {
        let is_lower = !code.bytes().any(|byte| byte.is_ascii_uppercase());
        Self::ALL.iter().copied().find(|known| is_lower && known.name().eq_ignore_ascii_case(code))
    }

    /// The HTTP status for a tool failure with this code.
    #[must_use]
    pub const fn http_status(self) -> u16 {
        match self {
            Self::InvalidArgument | Self::FailedPrecondition | Self::OutOfRange => 400,
            Self::Unauthenticated => 401,
            Self::PermissionDenied => 403,
            Self::NotFound => 404,
            Self::AlreadyExists | Self::Aborted => 409,
            Self::ResourceExhausted => 429,
            Self::Cancelled => 499,
            Self::Unknown | Self::Internal | Self::DataLoss => 500,
            Self::Unimplemented => 501,
            Self::Unavailable => 503,
            Self::DeadlineExceeded => 504,
        }
    }

    /// The number on the wire, such as 5.
    #[must_use]
    pub const fn number(self) -> i32 {
        self as i32
    }

    /// The canonical name, such as `NOT_FOUND`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cancelled => "CANCELLED",
            Self::Unknown => "UNKNOWN",
            Self::InvalidArgument => "INVALID_ARGUMENT",
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Self::NotFound => "NOT_FOUND",
            Self::AlreadyExists => "ALREADY_EXISTS",
            Self::PermissionDenied => "PERMISSION_DENIED",
            Self::ResourceExhausted => "RESOURCE_EXHAUSTED",
            Self::FailedPrecondition => "FAILED_PRECONDITION",
            Self::Aborted => "ABORTED",
            Self::OutOfRange => "OUT_OF_RANGE",
            Self::Unimplemented => "UNIMPLEMENTED",
            Self::Internal => "INTERNAL",
            Self::Unavailable => "UNAVAILABLE",
            Self::DataLoss => "DATA_LOSS",
            Self::Unauthenticated => "UNAUTHENTICATED",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
