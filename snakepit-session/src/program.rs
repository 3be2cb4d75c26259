//! Programs: named blobs such as trained models, in a session or global. The host stores them without interpreting them.

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{SessionError, SessionId, id::problem_of};

/// The name of a program within its session, or among the global ones. It has 1 to 256 bytes, without control characters.
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

/// The owner of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProgramOwner {
    /// A session. The program is visible to callers that know the session, and is deleted with it.
    Session(SessionId),
    /// Global programs are visible to all callers and have a TTL, which every read renews.
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
    /// Metadata of the owner.
    pub metadata: BTreeMap<String, String>,
    /// The lifetime of an unused global program. `None` uses the backend's default. Programs of sessions have no TTL.
    pub ttl: Option<Duration>,
    /// When it was stored. Set by the backend.
    pub updated_at: SystemTime,
}

impl Program {
    /// Creates a program without metadata. Its time is now.
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

/// The description of a program, without its data.
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
    /// The lifetime of an unused global program.
    pub ttl: Option<Duration>,
    /// When it was stored.
    pub updated_at: SystemTime,
}
