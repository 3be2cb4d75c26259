//! Programs: named blobs, such as a trained model, of a session or global. The host keeps them; only Python understands them.

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{SessionError, SessionId, id::problem_of};

/// Names a program within its session, or among the global ones. Non-empty, without control characters, at most 256 bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ProgramName(Arc<str>);

impl ProgramName {
    /// The longest name accepted, in bytes of UTF-8.
    pub const MAX_BYTES: usize = 256;

    /// Checks and wraps a name.
    ///
    /// # Errors
    /// [`SessionError::InvalidProgramName`] when the text is empty, too long or holds control characters.
    pub fn try_new(name: impl AsRef<str>) -> Result<Self, SessionError> {
        let name = name.as_ref();
        match problem_of(name, Self::MAX_BYTES) {
            None => Ok(Self(name.into())),
            Some(problem) => Err(SessionError::InvalidProgramName { problem }),
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ProgramName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl fmt::Display for ProgramName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whose a program is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProgramOwner {
    /// A session's: it is used by those who know the session, and ends with it.
    Session(SessionId),
    /// Nobody's: it is used by all, and ends by its own TTL, which every read renews.
    Global,
}

impl From<SessionId> for ProgramOwner {
    fn from(id: SessionId) -> Self {
        Self::Session(id)
    }
}

/// A program with its data. Cloning is cheap; the data is shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// The blob itself.
    pub data: Bytes,
    /// A media type, such as `application/json` or `application/octet-stream`.
    pub content_type: String,
    /// Whatever the owner wants to remember about it.
    pub metadata: BTreeMap<String, String>,
    /// How long a global program lives without use. `None` takes the backend's default; a session's program has none.
    pub ttl: Option<Duration>,
    /// When it was stored. Set by the backend.
    pub updated_at: SystemTime,
}

impl Program {
    /// A program without metadata, as of now.
    #[must_use]
    pub fn new(data: impl Into<Bytes>, content_type: impl Into<String>) -> Self {
        Self {
            data: data.into(),
            content_type: content_type.into(),
            metadata: BTreeMap::new(),
            ttl: None,
            updated_at: SystemTime::now(),
        }
    }
}

/// A program as listings show it: all but its data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramInfo {
    /// Its name.
    pub name: ProgramName,
    /// Length of its data in bytes.
    pub size: usize,
    /// Its media type.
    pub content_type: String,
    /// Its metadata.
    pub metadata: BTreeMap<String, String>,
    /// How long it lives without use, if it is global.
    pub ttl: Option<Duration>,
    /// When it was stored.
    pub updated_at: SystemTime,
}
