//! Variables: typed, versioned values of a session.

use std::{borrow::Borrow, collections::BTreeMap, fmt, sync::Arc, time::SystemTime};

use serde::{Deserialize, Serialize};

use crate::{Metadata, Payload, SessionError, VariableType, id::problem_of};

/// The name of a variable within its session. It has 1 to 256 bytes, without control characters and without `*`, the wildcard
/// of listings. It must not look like a [`VariableId`].
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VariableName(Arc<str>);

impl VariableName {
    /// The longest name accepted, in bytes of UTF-8.
    pub const MAX_BYTES: usize = 256;

    /// Checks and wraps a name.
    ///
    /// # Errors
    /// [`SessionError::InvalidVariableName`] when the text is empty, too long, looks like an id, or holds `*` or control
    /// characters.
    pub fn try_new(name: impl AsRef<str>) -> Result<Self, SessionError> {
        let name = name.as_ref();
        let variable_problem = || {
            if name.contains('*') {
                Some("it holds `*`, the wildcard of listings".to_owned())
            } else {
                VariableId::name_in(name).map(|_| "it looks like an id; use the name".to_owned())
            }
        };
        match problem_of(name, Self::MAX_BYTES).or_else(variable_problem) {
            None => Ok(Self(name.into())),
            Some(problem) => Err(SessionError::InvalidVariableName { problem }),
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for VariableName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for VariableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl fmt::Display for VariableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The id of a variable. A variable that is deleted and registered again has another id.
///
/// The format is `var_`, 32 random hexadecimal digits, `_` and the variable's name. Because the id contains the name, a lookup
/// by id does not need an index.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VariableId(Arc<str>);

impl VariableId {
    /// The longest id, in bytes of UTF-8: that of the variable with the longest name.
    pub const MAX_BYTES: usize = Self::PREFIX.len() + Self::RANDOM_DIGITS + 1 + VariableName::MAX_BYTES;
    const PREFIX: &str = "var_";
    const RANDOM_DIGITS: usize = 32;

    /// Creates an id for a variable with this name.
    #[must_use]
    pub fn random(name: &VariableName) -> Self {
        Self(format!("{}{}_{name}", Self::PREFIX, uuid::Uuid::new_v4().simple()).into())
    }

    /// Wraps an id that a host issued.
    ///
    /// # Errors
    /// [`SessionError::InvalidId`] when it is empty.
    pub fn try_new(id: impl AsRef<str>) -> Result<Self, SessionError> {
        match id.as_ref() {
            "" => Err(SessionError::InvalidId { problem: "it is empty".to_owned() }),
            id => Ok(Self(id.into())),
        }
    }

    /// Returns the name in a string that may be an id.
    pub(crate) fn name_in(identifier: &str) -> Option<&str> {
        let (random, name) = identifier.strip_prefix(Self::PREFIX)?.split_at_checked(Self::RANDOM_DIGITS)?;
        random.bytes().all(|byte| byte.is_ascii_hexdigit()).then(|| name.strip_prefix('_')).flatten()
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for VariableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl fmt::Display for VariableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The side that wrote a value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The host, or a client of the host.
    #[default]
    Host,
    /// A Python tool.
    Python,
}

impl Source {
    /// Its name: `host` or `python`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Python => "python",
        }
    }
}

/// The note of a write: its author and metadata.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The side of the author.
    pub source: Source,
    /// The author, such as a worker's id or a user.
    pub changed_by: Option<Arc<str>>,
    /// Metadata of the write. The version keeps it, and it is merged into the variable's metadata.
    pub metadata: Metadata,
}

impl Note {
    /// Converts the metadata of the protocol, in which the entries `source` (`python`, or else the host) and `changed_by` are
    /// special.
    #[must_use]
    pub fn from_metadata(mut metadata: BTreeMap<String, String>) -> Self {
        let source = match metadata.remove("source").as_deref() {
            Some("python") => Source::Python,
            _ => Source::Host,
        };
        let changed_by = metadata.remove("changed_by").filter(|by| !by.is_empty()).map(Into::into);
        Self { source, changed_by, metadata: metadata.into() }
    }

    /// Converts the note into the metadata of the protocol.
    #[must_use]
    pub fn to_metadata(&self) -> BTreeMap<String, String> {
        let mut metadata = BTreeMap::from(&self.metadata);
        metadata.insert("source".to_owned(), self.source.as_str().to_owned());
        if let Some(by) = &self.changed_by {
            metadata.insert("changed_by".to_owned(), by.to_string());
        }
        metadata
    }

    /// The author as text: [`changed_by`](Self::changed_by), or else the side.
    #[must_use]
    pub fn author(&self) -> &str {
        self.changed_by.as_deref().unwrap_or(self.source.as_str())
    }
}

/// The parameters of a new variable.
#[derive(Debug, Clone)]
pub struct NewVariable {
    /// The type, with the constraints for every value.
    pub ty: Arc<VariableType>,
    /// The first value, which becomes version 0.
    pub value: Payload,
    /// The metadata and the author.
    pub note: Note,
}

/// One write.
#[derive(Debug, Clone)]
pub struct SetVariable {
    /// The variable's id or name.
    pub identifier: String,
    /// The new value.
    pub value: Payload,
    /// The note of the write.
    pub note: Note,
    /// The version that the variable must have. `None` writes unconditionally.
    pub expected_version: Option<u32>,
}

impl SetVariable {
    /// Creates an unconditional write.
    #[must_use]
    pub fn new(identifier: impl Into<String>, value: Payload) -> Self {
        Self { identifier: identifier.into(), value, note: Note::default(), expected_version: None }
    }

    /// Makes the write a compare-and-swap: it fails if the variable is not at this version.
    #[must_use]
    pub const fn if_version(mut self, version: u32) -> Self {
        self.expected_version = Some(version);
        self
    }
}

/// A snapshot of a variable. Clones are cheap and share large values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Variable {
    /// Its id.
    pub id: VariableId,
    /// Its name.
    pub name: VariableName,
    /// Its type and constraints.
    pub ty: Arc<VariableType>,
    /// Its value, of the type [`VariableType::kind`].
    pub value: Payload,
    /// The number of writes since the registration.
    pub version: u32,
    /// The metadata of the registration, merged with that of later writes.
    pub metadata: Metadata,
    /// The side that wrote the value.
    pub source: Source,
    /// When the value was written.
    pub updated_at: SystemTime,
}

/// A version of a variable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VariableVersion {
    /// The number. The registration creates version 0.
    pub version: u32,
    /// The value.
    pub value: Payload,
    /// When it was written.
    pub at: SystemTime,
    /// The note of the write.
    pub note: Note,
}
