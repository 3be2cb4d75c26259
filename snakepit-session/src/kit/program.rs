//! The record of a program.

use std::time::SystemTime;

use bytes::Bytes;

use super::size_of_metadata;
use crate::{Program, ProgramInfo, ProgramName, SessionError, SessionLimits};

/// A stored program.
#[derive(Debug, Clone)]
pub struct ProgramRecord {
    /// The description, without the data.
    pub info: ProgramInfo,
    /// The data. Empty if only the description is loaded.
    pub data: Bytes,
}

impl ProgramRecord {
    /// Creates the record of a program.
    pub fn new(name: &ProgramName, program: Program) -> Self {
        let info = ProgramInfo {
            name: name.clone(),
            size: program.data.len(),
            content_type: program.content_type,
            metadata: program.metadata,
            ttl: program.ttl,
            updated_at: program.updated_at,
        };
        Self { info, data: program.data }
    }

    /// Creates the record of a global program, which has its own TTL.
    ///
    /// # Errors
    /// [`SessionError::ProgramTooLarge`] or [`SessionError::MetadataTooLarge`].
    pub fn global(
        limits: &SessionLimits,
        name: &ProgramName,
        program: Program,
    ) -> Result<Self, SessionError> {
        limits.check_program(name, &program)?;
        let ttl = Some(limits.ttl(program.ttl));
        Ok(Self::new(name, Program { updated_at: SystemTime::now(), ttl, ..program }))
    }

    /// Returns the program as callers see it.
    ///
    /// # Errors
    /// [`SessionError::Backend`] if the storage lost the data.
    pub fn program(&self) -> Result<Program, SessionError> {
        let ProgramInfo { name, size, content_type, metadata, ttl, updated_at } = &self.info;
        if self.data.len() != *size {
            let problem = format!("program `{name}` is truncated to {} of {size} bytes", self.data.len());
            return Err(SessionError::backend(problem));
        }
        Ok(Program {
            data: self.data.clone(),
            content_type: content_type.clone(),
            metadata: metadata.clone(),
            ttl: *ttl,
            updated_at: *updated_at,
        })
    }

    /// The size in bytes, as [`SessionLimits`] counts it.
    pub fn size(&self) -> usize {
        let ProgramInfo { name, size, content_type, metadata, ttl: _, updated_at: _ } = &self.info;
        name.as_str().len() + size + content_type.len() + size_of_metadata(metadata)
    }
}
