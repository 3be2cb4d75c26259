//! Session ids. The creator chooses the id; it is validated once and cheap to clone.

use std::{borrow::Borrow, convert::Infallible, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::SessionError;

/// The id of a session. It has 1 to [`SessionId::MAX_BYTES`] bytes, without control characters.
///
/// Use `try_into` or `parse` to convert a string. Deserialization also validates the id, so request types can contain it:
///
/// ```
/// use serde::Deserialize;
/// use snakepit_session::SessionId;
///
/// #[derive(Deserialize)]
/// struct Request {
///     session: SessionId,
/// }
///
/// let request: Request = serde_json::from_str(r#"{"session": "alice"}"#)?;
/// assert_eq!(request.session, "alice".parse()?);
/// assert!(serde_json::from_str::<Request>(r#"{"session": ""}"#).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
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

/// Returns the reason why a string is not valid as an id or a name, if there is one.
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

/// For `call.session(&id)`, where the caller keeps the text.
impl TryFrom<&String> for SessionId {
    type Error = SessionError;

    fn try_from(id: &String) -> Result<Self, SessionError> {
        Self::try_new(id)
    }
}

impl FromStr for SessionId {
    type Err = SessionError;

    fn from_str(id: &str) -> Result<Self, SessionError> {
        Self::try_new(id)
    }
}

impl From<&Self> for SessionId {
    fn from(id: &Self) -> Self {
        id.clone()
    }
}

impl AsRef<str> for SessionId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl Serialize for SessionId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for SessionId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // `&str` does not work, because a string with escapes cannot be borrowed.
        Self::try_from(String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// Lets functions with `TryInto<SessionId>` bounds accept ids as well as text.
impl From<Infallible> for SessionError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_serialize_as_strings_and_are_validated_on_deserialization() {
        let id: SessionId = "Grüße\\".parse().unwrap();
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(serde_json::from_str::<SessionId>(&json).unwrap(), id);
        let error = serde_json::from_str::<SessionId>(r#""a\nb""#).unwrap_err().to_string();
        assert!(error.contains("control characters"), "{error}");
    }

    #[test]
    fn text_and_ids_convert_whether_owned_or_borrowed() {
        fn convert<S: TryInto<SessionId>>(id: S) -> Result<SessionId, SessionError>
        where
            SessionError: From<S::Error>,
        {
            Ok(id.try_into()?)
        }
        let (text, id) = ("a".to_owned(), SessionId::try_new("a").unwrap());
        for converted in [convert("a"), convert(&text), convert(&id), convert(id.clone()), convert(text)] {
            assert_eq!(converted.unwrap(), id);
        }
        assert!(convert(String::new()).is_err());
    }

    #[test]
    fn invalid_ids_are_rejected_with_the_reason() {
        for (id, reason) in [("", "empty"), ("a\nb", "control"), (&"x".repeat(257), "257 bytes")] {
            let error = SessionId::try_new(id).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        assert_eq!(SessionId::try_new("Grüße / 你好").unwrap().as_str(), "Grüße / 你好");
    }
}
