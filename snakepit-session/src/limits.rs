//! The limits of a backend, and the functions that compute sizes.

use std::{collections::BTreeMap, time::Duration};

use crate::{NewSession, Note, Payload, Program, ProgramName, SessionError, SessionId};

/// The longest TTL. A century fits into every clock.
const MAX_TTL: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// The limits and defaults of a backend.
///
/// The *size* of a session counts its metadata, its variables with their histories, and its programs, including names and
/// metadata. It does not count the overhead of the backend.
///
/// Error messages name a limit by its field. Messages of the daemon name its flag.
///
/// ```
/// use snakepit_session::{MemoryBackend, SessionLimits};
///
/// let limits = SessionLimits::default().max_sessions(10_000).max_value_bytes(1024 * 1024);
/// let backend = MemoryBackend::new(limits);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionLimits {
    /// The TTL of sessions that are created without one. One hour by default.
    pub default_ttl: Duration,
    /// The maximum number of sessions. A million by default.
    pub max_sessions: usize,
    /// The maximum size of a session in bytes. 256 MiB by default.
    pub max_session_bytes: usize,
    /// The maximum total size of all sessions and global programs in bytes. 4 GiB by default.
    pub max_total_bytes: usize,
    /// The maximum number of metadata entries of a session, program, variable or write. 1000 by default.
    pub max_metadata_entries: usize,
    /// The maximum total length of these entries in bytes, names and values. 1 MiB by default.
    pub max_metadata_bytes: usize,
    /// The maximum size of a program in bytes. 64 MiB by default.
    pub max_program_bytes: usize,
    /// The maximum number of programs in a session, and of global programs. 1000 by default.
    pub max_programs: usize,
    /// The maximum number of variables in a session. 1000 by default.
    pub max_variables: usize,
    /// The maximum size of a value in bytes. 10 MiB by default.
    pub max_value_bytes: usize,
    /// The number of older versions in a variable's history. 20 by default; 0 disables the history.
    pub max_history: usize,
    /// The maximum size of a history in bytes. The oldest versions are dropped first. 16 MiB by default.
    pub max_history_bytes: usize,
    /// The maximum number of watches on a session. 1000 by default.
    pub max_watches: usize,
    /// The maximum number of updates queued for a slow watcher. Above it, the oldest are dropped. 1024 by default.
    pub max_watch_backlog: usize,
    /// The maximum size of these updates in bytes. 64 MiB by default.
    pub max_watch_backlog_bytes: usize,
}

impl Default for SessionLimits {
    fn default() -> Self {
        const MIB: usize = 1024 * 1024;
        Self {
            default_ttl: Duration::from_secs(3600),
            max_sessions: 1_000_000,
            max_session_bytes: 256 * MIB,
            max_total_bytes: usize::try_from(4_u64 << 30).unwrap_or(usize::MAX),
            max_metadata_entries: 1000,
            max_metadata_bytes: MIB,
            max_program_bytes: 64 * MIB,
            max_programs: 1000,
            max_variables: 1000,
            max_value_bytes: 10 * MIB,
            max_history: 20,
            max_history_bytes: 16 * MIB,
            max_watches: 1000,
            max_watch_backlog: 1024,
            max_watch_backlog_bytes: 64 * MIB,
        }
    }
}

macro_rules! setters {
    ($($field:ident: $ty:ty;)*) => {
        $(
            #[doc = concat!("Sets the field [`", stringify!($field), "`](Self#structfield.", stringify!($field), ").")]
            #[must_use]
            pub const fn $field(mut self, value: $ty) -> Self {
                self.$field = value;
                self
            }
        )*
    };
}

/// The setters, one per field.
impl SessionLimits {
    setters! {
        default_ttl: Duration;
        max_sessions: usize;
        max_session_bytes: usize;
        max_total_bytes: usize;
        max_metadata_entries: usize;
        max_metadata_bytes: usize;
        max_program_bytes: usize;
        max_programs: usize;
        max_variables: usize;
        max_value_bytes: usize;
        max_history: usize;
        max_history_bytes: usize;
        max_watches: usize;
        max_watch_backlog: usize;
        max_watch_backlog_bytes: usize;
    }
}

impl SessionLimits {
    /// Returns the requested TTL, or else the default. The maximum is a century.
    pub fn ttl(&self, requested: Option<Duration>) -> Duration {
        requested.unwrap_or(self.default_ttl).min(MAX_TTL)
    }

    /// Checks whether a session may be created.
    ///
    /// # Errors
    /// [`SessionError::MetadataTooLarge`] or [`SessionError::SessionTooLarge`].
    pub fn check_new(&self, id: &SessionId, new: &NewSession) -> Result<(), SessionError> {
        self.check_metadata(&new.metadata)?;
        self.check_size(id, size_of_metadata(&new.metadata))
    }

    /// Checks the size and metadata of a program.
    ///
    /// # Errors
    /// [`SessionError::ProgramTooLarge`] or [`SessionError::MetadataTooLarge`].
    pub fn check_program(&self, name: &ProgramName, program: &Program) -> Result<(), SessionError> {
        let (size, limit) = (program.data.len(), self.max_program_bytes);
        if size > limit {
            return Err(SessionError::ProgramTooLarge { name: name.to_string(), size, limit });
        }
        self.check_metadata(&program.metadata)
    }

    /// Checks the size of a value.
    ///
    /// # Errors
    /// [`SessionError::ValueTooLarge`].
    pub fn check_value(&self, variable: &str, value: &Payload) -> Result<(), SessionError> {
        let (size, limit) = (value.size(), self.max_value_bytes);
        if size > limit {
            return Err(SessionError::ValueTooLarge { variable: variable.to_owned(), size, limit });
        }
        Ok(())
    }

    /// Checks the number of variables that one operation names.
    ///
    /// # Errors
    /// [`SessionError::TooManyNames`] if the number exceeds both `max_variables` and 1000. A lower `max_variables` does not
    /// apply, because a session may have variables from before it was lowered.
    pub fn check_names(&self, count: usize) -> Result<(), SessionError> {
        let limit = self.max_variables.max(1000);
        if count > limit {
            return Err(SessionError::TooManyNames { given: count, limit });
        }
        Ok(())
    }

    /// Checks the size of a session.
    ///
    /// # Errors
    /// [`SessionError::SessionTooLarge`].
    pub fn check_size(&self, id: &SessionId, size: usize) -> Result<(), SessionError> {
        let limit = self.max_session_bytes;
        if size > limit {
            return Err(SessionError::SessionTooLarge { session: id.clone(), size, limit });
        }
        Ok(())
    }

    /// Checks the size of metadata.
    ///
    /// # Errors
    /// [`SessionError::MetadataTooLarge`].
    pub fn check_metadata(&self, metadata: &BTreeMap<String, String>) -> Result<(), SessionError> {
        self.check_metadata_of(metadata.len(), size_of_metadata(metadata))
    }

    /// Checks the size of a note.
    ///
    /// # Errors
    /// [`SessionError::MetadataTooLarge`].
    pub fn check_note(&self, note: &Note) -> Result<(), SessionError> {
        self.check_metadata_of(note.metadata.len(), size_of_note(note))
    }

    /// Checks metadata with this number of entries and bytes.
    ///
    /// # Errors
    /// [`SessionError::MetadataTooLarge`].
    pub const fn check_metadata_of(&self, entries: usize, bytes: usize) -> Result<(), SessionError> {
        let (max_entries, max_bytes) = (self.max_metadata_entries, self.max_metadata_bytes);
        if entries > max_entries || bytes > max_bytes {
            return Err(SessionError::MetadataTooLarge { entries, bytes, max_entries, max_bytes });
        }
        Ok(())
    }
}

/// The size of metadata in bytes.
#[must_use]
pub fn size_of_metadata(metadata: &BTreeMap<String, String>) -> usize {
    metadata.iter().map(|(name, value)| name.len() + value.len()).sum()
}

/// The size of a program in bytes, including its name and metadata.
#[must_use]
pub fn size_of_program(name: &ProgramName, program: &Program) -> usize {
    let Program { data, content_type, metadata, ttl: _, updated_at: _ } = program;
    name.as_str().len() + data.len() + content_type.len() + size_of_metadata(metadata)
}

/// The size of one variable version, in bytes.
#[must_use]
pub fn size_of_version(value: &Payload, note: &Note) -> usize {
    value.size() + size_of_note(note)
}

/// The maximum number of bytes that a write adds to a variable.
#[must_use]
pub fn max_write_size(value: &Payload, note: &Note) -> usize {
    // A number can grow when it is converted to its stored form: in a float variable, `5` becomes `5.0`.
    const MAX_NUMBER_GROWTH: usize = 64;
    size_of_version(value, note) + note.metadata.size() + MAX_NUMBER_GROWTH
}

fn size_of_note(note: &Note) -> usize {
    note.changed_by.as_ref().map_or(0, |name| name.len()) + note.metadata.size()
}
