//! The header of a session, which contains its size, and the limits on that size.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use super::size_of_metadata;
use crate::{Metadata, NewSession, Session, SessionError, SessionId, SessionLimits};

/// The session without its variables and programs. The names of the serialized fields are stable.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SessionHeader {
    /// The metadata that the creator attached.
    pub metadata: Metadata,
    /// When it was created.
    pub created_at: SystemTime,
    /// The lifetime of an unused session.
    pub ttl: Duration,
    /// The worker that served the session last.
    pub last_worker: Option<Arc<str>>,
    /// The size of the session in bytes, as [`SessionLimits`] counts it.
    pub bytes: usize,
    /// The number of programs.
    pub programs: usize,
    /// The number of variables.
    pub variables: usize,
}

/// Enforces the limits on the size of a session, and reports size changes to the backend.
#[expect(missing_debug_implementations, reason = "it borrows a closure")]
pub struct SizeGuard<'a> {
    /// The session, for error messages.
    pub session: &'a SessionId,
    /// The limits of the backend.
    pub limits: &'a SessionLimits,
    /// Changes the backend's total when the session's size changes from the first number of bytes to the second. It may reject
    /// growth with [`SessionError::BackendFull`]; the operation then changes nothing. It must accept shrinking.
    pub resize: &'a mut dyn FnMut(usize, usize) -> Result<(), SessionError>,
}

impl SessionHeader {
    /// Creates the header of a new session. Call [`SessionLimits::check_new`] first.
    pub fn new(new: NewSession, limits: &SessionLimits) -> Self {
        Self {
            bytes: size_of_metadata(&new.metadata),
            metadata: new.metadata.into(),
            created_at: SystemTime::now(),
            ttl: limits.ttl(new.ttl),
            last_worker: None,
            programs: 0,
            variables: 0,
        }
    }

    /// The session as callers see it, with this remaining lifetime.
    pub fn snapshot(&self, id: &SessionId, expires_in: Duration) -> Session {
        Session {
            id: id.clone(),
            metadata: self.metadata.clone(),
            created_at: self.created_at,
            expires_in,
            ttl: self.ttl,
            program_count: self.programs,
            variable_count: self.variables,
            bytes: self.bytes,
            last_worker: self.last_worker.clone(),
        }
    }

    /// Changes the size of the session if the limits allow it.
    pub(super) fn resize(&mut self, size_guard: &mut SizeGuard<'_>, size: usize) -> Result<(), SessionError> {
        if size == self.bytes {
            return Ok(());
        }
        if size > self.bytes {
            size_guard.limits.check_size(size_guard.session, size)?;
        }
        (size_guard.resize)(self.bytes, size)?;
        self.bytes = size;
        Ok(())
    }
}
