//! Variables: typed, versioned values of a session.

use std::{borrow::Borrow, collections::BTreeMap, fmt, sync::Arc, time::SystemTime};

use serde::{Deserialize, Serialize};

use crate::{Metadata, Payload, SessionError, VariableType, id::problem_of};

/// Names a variable within its session. Non-empty, without control characters and without `*`, which is the wildcard
/// of listings; not of the form of a [`VariableId`]; at most 256 bytes.
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
        let own = || {
            if name.contains('*') {
                Some("it holds `*`, the wildcard of listings".to_owned())
            } else {
                VariableId::name_in(name).map(|_| "it looks like an id; use the name".to_owned())
            }
        };
        match problem_of(name, Self::MAX_BYTES).or_else(own) {
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

/// Identifies a variable for as long as it exists; one that is deleted and registered anew has another id.
///
/// The text is `var_`, as the protocol has it, then 32 random hexadecimal digits, `_` and the variable's name. Holding
/// the name, it leads to the variable without an index.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VariableId(Arc<str>);

impl VariableId {
    /// The longest id, in bytes of UTF-8: that of the variable with the longest name.
    pub const MAX_BYTES: usize = Self::PREFIX.len() + Self::RANDOM + 1 + VariableName::MAX_BYTES;
    const PREFIX: &str = "var_";
    const RANDOM: usize = 32;

    /// A new id for a variable of this name.
    #[must_use]
    pub fn random(name: &VariableName) -> Self {
        Self(format!("{}{}_{name}", Self::PREFIX, uuid::Uuid::new_v4().simple()).into())
    }

    /// An id that a host gave.
    ///
    /// # Errors
    /// [`SessionError::InvalidId`] when it is empty.
    pub fn try_new(id: impl AsRef<str>) -> Result<Self, SessionError> {
        match id.as_ref() {
            "" => Err(SessionError::InvalidId { problem: "it is empty".to_owned() }),
            id => Ok(Self(id.into())),
        }
    }

    /// The name in what may be an id.
    pub(crate) fn name_in(identifier: &str) -> Option<&str> {
        let (random, name) = identifier.strip_prefix(Self::PREFIX)?.split_at_checked(Self::RANDOM)?;
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

/// Which side wrote a value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The host, or a client of it.
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

/// What is said about a write: who made it, and anything else worth remembering.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// Which side wrote.
    pub source: Source,
    /// Who wrote, more closely: a worker's id, a user. `None` when the side says enough.
    pub changed_by: Option<Arc<str>>,
    /// Anything else. It stays with the version that the write made, and is merged into the variable's own metadata.
    pub metadata: Metadata,
}

impl Note {
    /// A note of what the protocol sends as metadata: the entries `source` (`python`, anything else is the host) and
    /// `changed_by` are taken out.
    #[must_use]
    pub fn from_metadata(mut metadata: BTreeMap<String, String>) -> Self {
        let source = match metadata.remove("source").as_deref() {
            Some("python") => Source::Python,
            _ => Source::Host,
        };
        let changed_by = metadata.remove("changed_by").filter(|by| !by.is_empty()).map(Into::into);
        Self { source, changed_by, metadata: metadata.into() }
    }

    /// The metadata that says the same.
    #[must_use]
    pub fn to_metadata(&self) -> BTreeMap<String, String> {
        let mut metadata = BTreeMap::from(&self.metadata);
        metadata.insert("source".to_owned(), self.source.as_str().to_owned());
        if let Some(by) = &self.changed_by {
            metadata.insert("changed_by".to_owned(), by.to_string());
        }
        metadata
    }

    /// Who wrote, as text: [`changed_by`](Self::changed_by), or else the side.
    #[must_use]
    pub fn author(&self) -> &str {
        self.changed_by.as_deref().unwrap_or(self.source.as_str())
    }
}

/// What a caller says when it registers a variable.
#[derive(Debug, Clone)]
pub struct NewVariable {
    /// Its type, with the constraints that every value must keep.
    pub ty: Arc<VariableType>,
    /// Its first value, which becomes version 0.
    pub value: Payload,
    /// Its metadata, and who registers it.
    pub note: Note,
}

/// One write.
#[derive(Debug, Clone)]
pub struct SetVariable {
    /// The variable's id or name.
    pub identifier: String,
    /// The new value.
    pub value: Payload,
    /// What is said about the write.
    pub note: Note,
    /// Write only if the variable is at this version.
    pub expected_version: Option<u32>,
}

impl SetVariable {
    /// A write without conditions.
    #[must_use]
    pub fn new(identifier: impl Into<String>, value: Payload) -> Self {
        Self { identifier: identifier.into(), value, note: Note::default(), expected_version: None }
    }

    /// Makes it a compare-and-set: it fails unless the variable is at this version.
    #[must_use]
    pub const fn if_version(mut self, version: u32) -> Self {
        self.expected_version = Some(version);
        self
    }
}

/// A variable at one moment. Cloning is cheap; all that is large is shared.
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
    /// How many times it was written since it was registered.
    pub version: u32,
    /// What its registration attached, and the writes since then.
    pub metadata: Metadata,
    /// Which side wrote the value.
    pub source: Source,
    /// When the value was written.
    pub updated_at: SystemTime,
}

/// A value that a variable has, or had.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VariableVersion {
    /// Its number: 0 for the value of the registration.
    pub version: u32,
    /// The value.
    pub value: Payload,
    /// When it was written.
    pub at: SystemTime,
    /// What was said about the write.
    pub note: Note,
}
