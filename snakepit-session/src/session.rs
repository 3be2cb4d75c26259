//! What a session is, as callers see it: an immutable snapshot.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use crate::{Metadata, SessionId};

/// What a caller says when it creates a session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewSession {
    /// Kept with the session and returned with it.
    pub metadata: BTreeMap<String, String>,
    /// How long the session lives without use. `None` takes the backend's default.
    pub ttl: Option<Duration>,
}

/// A session at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// What its creator attached.
    pub metadata: Metadata,
    /// When it was created.
    pub created_at: SystemTime,
    /// How long it lives from now unless it is used before.
    pub expires_in: Duration,
    /// How long it lives without use.
    pub ttl: Duration,
    /// How many programs it holds.
    pub program_count: usize,
    /// How many variables it holds.
    pub variable_count: usize,
    /// What it holds, in bytes, as [`SessionLimits`](crate::SessionLimits) counts.
    pub bytes: usize,
    /// The worker that served it last: a hint for the next call, nothing more.
    pub last_worker: Option<Arc<str>>,
}
