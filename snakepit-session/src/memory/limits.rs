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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MemoryBackend, SessionBackend};

    fn id(text: &str) -> SessionId {
        SessionId::try_new(text).unwrap()
    }

    fn name(text: &str) -> ProgramName {
        ProgramName::try_new(text).unwrap()
    }

    fn metadata(entries: usize, bytes: usize) -> BTreeMap<String, String> {
        (0..entries).map(|n| (format!("{n:04}"), "x".repeat(bytes - 4))).collect()
    }

    #[tokio::test]
    async fn a_session_holds_so_many_programs_and_no_more() {
        let backend = MemoryBackend::new(MemoryConfig { max_programs: 2, ..MemoryConfig::default() });
        backend.create(&id("s"), NewSession::default()).await.unwrap();
        for program in ["a", "b", "b"] {
            backend.put_program(&id("s"), &name(program), Program::new("x", "t")).await.unwrap();
        }
        let refused = backend.put_program(&id("s"), &name("c"), Program::new("x", "t")).await.unwrap_err();
        assert_eq!(refused, SessionError::TooManyPrograms { session: id("s"), limit: 2 });
        backend.delete_program(&id("s"), &name("a")).await.unwrap();
        backend.put_program(&id("s"), &name("c"), Program::new("x", "t")).await.unwrap();
    }

    #[tokio::test]
    async fn the_bytes_of_a_session_are_counted_exactly() {
        let backend = MemoryBackend::new(MemoryConfig { max_session_bytes: 100, ..MemoryConfig::default() });
        let new = NewSession { metadata: metadata(1, 10), ttl: None };
        backend.create(&id("s"), new).await.unwrap();
        // The metadata takes 10 bytes, each program one for its name and one for its type.
        let program = |bytes: usize| Program::new("x".repeat(bytes), "t");
        backend.put_program(&id("s"), &name("a"), program(40)).await.unwrap();
        backend.put_program(&id("s"), &name("b"), program(46)).await.unwrap();
        let refused = backend.put_program(&id("s"), &name("a"), program(41)).await.unwrap_err();
        assert_eq!(refused, SessionError::SessionTooLarge { session: id("s"), size: 101, limit: 100 });
        let whole = backend.program(&id("s"), &name("a")).await.unwrap();
        assert_eq!(whole.data.len(), 40, "a refused program replaces nothing");
        backend.put_program(&id("s"), &name("a"), program(10)).await.unwrap();
        backend.delete_program(&id("s"), &name("b")).await.unwrap();
        backend.put_program(&id("s"), &name("c"), program(76)).await.unwrap();
        assert_eq!(backend.record(&id("s")).unwrap().bytes, 100);
    }

    #[tokio::test]
    async fn metadata_is_bounded_in_sessions_and_programs() {
        let config =
            MemoryConfig { max_metadata_entries: 3, max_metadata_bytes: 100, ..MemoryConfig::default() };
        let backend = MemoryBackend::new(config);
        for bad in [metadata(4, 5), metadata(2, 51)] {
            let new = NewSession { metadata: bad.clone(), ttl: None };
            let refused = backend.create(&id("s"), new).await.unwrap_err();
            assert!(matches!(refused, SessionError::MetadataTooLarge { .. }), "{refused:?}");
            backend.create(&id("other"), NewSession::default()).await.unwrap();
            let program = Program { metadata: bad, ..Program::new("x", "t") };
            let refused = backend.put_program(&id("other"), &name("a"), program).await.unwrap_err();
            assert!(matches!(refused, SessionError::MetadataTooLarge { .. }), "{refused:?}");
        }
        let new = NewSession { metadata: metadata(2, 50), ttl: None };
        backend.create(&id("s"), new).await.unwrap();
    }
}
