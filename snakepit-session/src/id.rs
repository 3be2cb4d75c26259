//! Session ids. The creator chooses the id; it is validated once and cheap to clone.

use std::{borrow::Borrow, fmt, sync::Arc};

use crate::SessionError;

/// Identifies a session. Any non-empty text without control characters, at most [`SessionId::MAX_BYTES`] long.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(Arc<str>);

impl SessionId {
    /// The longest id accepted, in bytes of UTF-8.
    pub const MAX_BYTES: usize = 256;

    /// Checks and wraps an id.
    ///
    /// # Errors
    /// [`SessionError::InvalidId`] when the text is empty, too long or holds control characters.
    pub fn try_new(id: impl AsRef<str>) -> Result<Self, SessionError> {
        let id = id.as_ref();
        match problem_of(id, Self::MAX_BYTES) {
            None => Ok(Self(id.into())),
            Some(problem) => Err(SessionError::InvalidId { problem }),
        }
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Returns why a text cannot be an id or a name.
pub(crate) fn problem_of(text: &str, max_bytes: usize) -> Option<String> {
    if text.is_empty() {
        Some("it is empty".to_owned())
    } else if text.len() > max_bytes {
        Some(format!("it has {} bytes, the limit is {max_bytes}", text.len()))
    } else if text.chars().any(char::is_control) {
        Some("it holds control characters".to_owned())
    } else {
        None
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Borrow<str> for SessionId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl TryFrom<&str> for SessionId {
    type Error = SessionError;

    fn try_from(id: &str) -> Result<Self, SessionError> {
        Self::try_new(id)
    }
}

impl TryFrom<String> for SessionId {
    type Error = SessionError;

    fn try_from(id: String) -> Result<Self, SessionError> {
        Self::try_new(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_ids_are_rejected_with_the_reason() {
        for (id, reason) in [("", "empty"), ("a\nb", "control"), (&"x".repeat(257), "257 bytes")] {
            let error = SessionId::try_new(id).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        assert_eq!(SessionId::try_new("Grüße / 你好").unwrap().as_str(), "Grüße / 你好");
    }
}
