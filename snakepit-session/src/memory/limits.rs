//! How much a session may hold in memory, and what counts.

use std::collections::BTreeMap;

use super::{MemoryConfig, Record};
use crate::{NewSession, Program, ProgramName, SessionError, SessionId};

impl MemoryConfig {
    /// Whether a session may be made of this.
    ///
    /// # Errors
    /// [`SessionError::MetadataTooLarge`] or [`SessionError::SessionTooLarge`].
    pub(super) fn check_new(&self, id: &SessionId, new: &NewSession) -> Result<(), SessionError> {
        self.check_metadata(&new.metadata)?;
        self.check_size(id, size_of_metadata(&new.metadata))
    }

    /// Whether a program may be kept in any session.
    ///
    /// # Errors
    /// [`SessionError::ProgramTooLarge`] or [`SessionError::MetadataTooLarge`].
    pub(super) fn check_program(&self, name: &ProgramName, program: &Program) -> Result<(), SessionError> {
        let (size, limit) = (program.data.len(), self.max_program_bytes);
        if size > limit {
            return Err(SessionError::ProgramTooLarge { name: name.to_string(), size, limit });
        }
        self.check_metadata(&program.metadata)
    }

    /// The size of a session once it holds this program too.
    ///
    /// # Errors
    /// [`SessionError::TooManyPrograms`] or [`SessionError::SessionTooLarge`].
    pub(super) fn size_with(
        &self,
        id: &SessionId,
        record: &Record,
        name: &ProgramName,
        program: &Program,
    ) -> Result<usize, SessionError> {
        let replaced = record.programs.get(name);
        if replaced.is_none() && record.programs.len() >= self.max_programs {
            return Err(SessionError::TooManyPrograms { session: id.clone(), limit: self.max_programs });
        }
        let freed = replaced.map_or(0, |replaced| size_of_program(name, replaced));
        let size = record.bytes - freed + size_of_program(name, program);
        self.check_size(id, size)?;
        Ok(size)
    }

    fn check_size(&self, id: &SessionId, size: usize) -> Result<(), SessionError> {
        let limit = self.max_session_bytes;
        if size > limit {
            return Err(SessionError::SessionTooLarge { session: id.clone(), size, limit });
        }
        Ok(())
    }

    fn check_metadata(&self, metadata: &BTreeMap<String, String>) -> Result<(), SessionError> {
        let (entries, bytes) = (metadata.len(), size_of_metadata(metadata));
        let (max_entries, max_bytes) = (self.max_metadata_entries, self.max_metadata_bytes);
        if entries > max_entries || bytes > max_bytes {
            return Err(SessionError::MetadataTooLarge { entries, bytes, max_entries, max_bytes });
        }
        Ok(())
    }
}

pub(super) fn size_of_metadata(metadata: &BTreeMap<String, String>) -> usize {
    metadata.iter().map(|(name, value)| name.len() + value.len()).sum()
}

pub(super) fn size_of_program(name: &ProgramName, program: &Program) -> usize {
    let Program { data, content_type, metadata, updated_at: _ } = program;
    name.as_str().len() + data.len() + content_type.len() + size_of_metadata(metadata)
}
