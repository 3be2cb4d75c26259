//! A session as callers see it: an immutable snapshot.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use crate::{Metadata, SessionId};

/// The parameters of a new session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewSession {
    /// Metadata, stored with the session.
    pub metadata: BTreeMap<String, String>,
    /// The lifetime of the unused session. `None` uses the backend's default.
    pub ttl: Option<Duration>,
}

/// A snapshot of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// The metadata that the creator attached.
    pub metadata: Metadata,
    /// When it was created.
    pub created_at: SystemTime,
    /// The remaining lifetime if the session is not used.
    pub expires_in: Duration,
    /// The lifetime of the unused session.
    pub ttl: Duration,
    /// The number of programs.
    pub program_count: usize,
    /// The number of variables.
    pub variable_count: usize,
    /// The size in bytes, as [`SessionLimits`](crate::SessionLimits) counts it.
    pub bytes: usize,
    /// The worker that served the session last. This is only a hint for the next call.
    pub last_worker: Option<Arc<str>>,
}
