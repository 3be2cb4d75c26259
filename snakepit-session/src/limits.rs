//! How much sessions may hold, and what counts.

use std::{collections::BTreeMap, time::Duration};

use crate::{NewSession, Note, Payload, Program, ProgramName, SessionError, SessionId};

/// TTLs above this are cut to it: a century is forever, and fits every clock.
const MAX_TTL: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Limits and defaults of a backend. What a session *holds* is the length of its metadata, of its variables with all
/// versions kept, and of its programs, each with names and metadata; what the backend needs around that does not count.
///
/// Errors name a limit as the daemon's flag and configuration key do: `max-sessions` is `max_sessions`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionLimits {
    /// TTL of sessions whose creator names none. One hour by default.
    pub default_ttl: Duration,
    /// The most sessions at a time. A million by default.
    pub max_sessions: usize,
    /// What one session may hold in all, in bytes. 256 MiB by default.
    pub max_session_bytes: usize,
    /// What all sessions and the global programs may hold together, in bytes. 4 GiB by default.
    pub max_total_bytes: usize,
    /// The most entries in the metadata of a session, a program, a variable or a write. 1000 by default.
    pub max_metadata_entries: usize,
    /// How long all names and values of such metadata may be together, in bytes. 1 MiB by default.
    pub max_metadata_bytes: usize,
    /// The largest program, in bytes. 64 MiB by default.
    pub max_program_bytes: usize,
    /// The most programs in one session, and the most global ones. 1000 by default.
    pub max_programs: usize,
    /// The most variables in one session. 1000 by default.
    pub max_variables: usize,
    /// The largest value of a variable, in bytes. 10 MiB by default.
    pub max_value_bytes: usize,
    /// How many versions of a variable are kept beside the one it has. 20 by default; 0 keeps none.
    pub max_history: usize,
    /// What these versions may take, in bytes: the oldest go first. 16 MiB by default.
    pub max_history_bytes: usize,
    /// The most watches on one session. 1000 by default.
    pub max_watches: usize,
    /// How many updates wait for a slow watcher before it loses the oldest. 1024 by default.
    pub max_watch_backlog: usize,
    /// What these updates may take, in bytes. 64 MiB by default.
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

impl SessionLimits {
    /// The TTL that a caller gets who asks for this one.
    pub fn ttl(&self, asked: Option<Duration>) -> Duration {
        asked.unwrap_or(self.default_ttl).min(MAX_TTL)
    }

    /// Whether a session may be made of this.
    ///
    /// # Errors
    /// [`SessionError::MetadataTooLarge`] or [`SessionError::SessionTooLarge`].
    pub fn check_new(&self, id: &SessionId, new: &NewSession) -> Result<(), SessionError> {
        self.check_metadata(&new.metadata)?;
        self.check_size(id, size_of_metadata(&new.metadata))
    }

    /// Whether a program may be kept in any session.
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

    /// Whether a variable may have a value of this size.
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

    /// Whether a session may hold so much.
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

    /// Whether metadata may be kept.
    ///
    /// # Errors
    /// [`SessionError::MetadataTooLarge`].
    pub fn check_metadata(&self, metadata: &BTreeMap<String, String>) -> Result<(), SessionError> {
        self.check_metadata_of(metadata.len(), size_of_metadata(metadata))
    }

    /// Whether what is said about a write may be kept.
    ///
    /// # Errors
    /// [`SessionError::MetadataTooLarge`].
    pub fn check_note(&self, note: &Note) -> Result<(), SessionError> {
        self.check_metadata_of(note.metadata.len(), size_of_note(note))
    }

    /// Likewise, of what was counted already.
    pub const fn check_metadata_of(&self, entries: usize, bytes: usize) -> Result<(), SessionError> {
        let (max_entries, max_bytes) = (self.max_metadata_entries, self.max_metadata_bytes);
        if entries > max_entries || bytes > max_bytes {
            return Err(SessionError::MetadataTooLarge { entries, bytes, max_entries, max_bytes });
        }
        Ok(())
    }
}

/// What metadata takes, in bytes.
#[must_use]
pub fn size_of_metadata(metadata: &BTreeMap<String, String>) -> usize {
    metadata.iter().map(|(name, value)| name.len() + value.len()).sum()
}

/// What a program takes of its session, in bytes.
#[must_use]
pub fn size_of_program(name: &ProgramName, program: &Program) -> usize {
    let Program { data, content_type, metadata, ttl: _, updated_at: _ } = program;
    name.as_str().len() + data.len() + content_type.len() + size_of_metadata(metadata)
}

/// What one version of a variable takes.
pub fn size_of_version(value: &Payload, note: &Note) -> usize {
    value.size() + size_of_note(note)
}

/// The most that a variable grows by when this is written to it. Numbers may be written longer than they came.
pub fn max_write_size(value: &Payload, note: &Note) -> usize {
    const NUMBER: usize = 64;
    size_of_version(value, note) + note.metadata.size() + NUMBER
}

fn size_of_note(note: &Note) -> usize {
    note.changed_by.as_ref().map_or(0, |name| name.len()) + note.metadata.size()
}
