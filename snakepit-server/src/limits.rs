//! Errors of the limits on requests and responses. [`listen`](crate::listen) enforces the limits; [`status`](crate::status)
//! reports them.

/// The maximum number of fields that one message may have, including those of nested messages.
pub(crate) const MAX_FIELDS: usize = 256 * 1024;

/// A request's message exceeds a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MessageTooLarge {
    /// The message has this many bytes.
    Bytes(usize),
    /// The message has more than [`MAX_FIELDS`] fields.
    Fields,
}

/// A budget has too few bytes left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BudgetExhausted {
    /// Bytes in use.
    pub(crate) used: usize,
    /// Bytes that may be in use.
    pub(crate) limit: usize,
}
