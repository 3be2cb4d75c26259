//! [`Expiries`]: when sessions and global programs expire. They are in memory, so that a renewal does not write. Only a clean
//! shutdown stores them.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use dashmap::DashMap;
use serde::{Deserialize, Serialize};
use snakepit_session::{ProgramName, Session, SessionId, kit::SessionHeader};
use tokio::time::Instant;

use super::rows::{GLOBAL_OWNER, header_key};

/// The key of an [`Expiry`]: the session or the global program that expires.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum ExpiryKey {
    Session(SessionId),
    Global(ProgramName),
}

impl ExpiryKey {
    pub(super) fn key(&self) -> (&str, &str) {
        match self {
            Self::Session(id) => header_key(id),
            Self::Global(name) => (GLOBAL_OWNER, name.as_str()),
        }
    }
}

/// When an owner expires, and other state that a crash loses.
#[derive(Debug, Clone)]
pub(super) struct Expiry {
    ttl: Duration,
    expires_at: Instant,
    /// The owner's key in the writer's expiry queue. A renewal does not update it, so it may be earlier than `expires_at`.
    pub(super) queue_key: Instant,
    /// A hint. It is not stored on each call, because a crash of the host ends its workers too.
    pub(super) last_worker: Option<Arc<str>>,
}

/// A stored expiry.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ExpiryRow {
    expires: SystemTime,
    last_worker: Option<Arc<str>>,
}

impl Expiry {
    /// Expires after the full TTL.
    pub(super) fn new(ttl: Duration, now: Instant) -> Self {
        Self { ttl, expires_at: now + ttl, queue_key: now + ttl, last_worker: None }
    }

    /// Restores a stored expiry.
    pub(super) fn from_row(ttl: Duration, row: ExpiryRow, now: Instant) -> Self {
        // Limit it to the TTL, because the wall clock may have been set back.
        let remaining = row.expires.duration_since(SystemTime::now()).unwrap_or_default().min(ttl);
        Self { ttl, expires_at: now + remaining, queue_key: now + remaining, last_worker: row.last_worker }
    }

    pub(super) fn to_row(&self, now: Instant) -> ExpiryRow {
        ExpiryRow { expires: SystemTime::now() + self.remaining(now), last_worker: self.last_worker.clone() }
    }

    pub(super) fn is_expired(&self, now: Instant) -> bool {
        self.expires_at <= now
    }

    fn remaining(&self, now: Instant) -> Duration {
        self.expires_at.saturating_duration_since(now)
    }

    pub(super) fn renew(&mut self, now: Instant) {
        self.expires_at = now + self.ttl;
    }

    /// The session as callers see it.
    pub(super) fn snapshot(&self, id: &SessionId, header: SessionHeader, now: Instant) -> Session {
        SessionHeader { last_worker: self.last_worker.clone(), ..header }.snapshot(id, self.remaining(now))
    }
}

/// The expiries of all committed sessions and global programs. Every caller renews them; only the writer adds and removes them.
#[derive(Debug, Default)]
pub(super) struct Expiries {
    expiries: DashMap<ExpiryKey, Expiry>,
}

impl Expiries {
    /// Renews an owner that has not expired, and returns its expiry.
    pub(super) fn renew(&self, owner: &ExpiryKey, now: Instant) -> Option<Expiry> {
        self.change(owner, now, |expiry| expiry.renew(now))
    }

    /// Changes the expiry of an owner that has not expired, and returns it.
    pub(super) fn change(
        &self,
        owner: &ExpiryKey,
        now: Instant,
        change: impl FnOnce(&mut Expiry),
    ) -> Option<Expiry> {
        let mut expiry = self.expiries.get_mut(owner).filter(|expiry| !expiry.is_expired(now))?;
        change(&mut expiry);
        Some(expiry.clone())
    }

    /// Returns the expiry of an owner that has not expired.
    pub(super) fn live(&self, owner: &ExpiryKey, now: Instant) -> Option<Expiry> {
        self.get(owner).filter(|expiry| !expiry.is_expired(now))
    }

    /// Returns the expiry of an owner, expired or not.
    pub(super) fn get(&self, owner: &ExpiryKey) -> Option<Expiry> {
        self.expiries.get(owner).map(|expiry| expiry.clone())
    }

    /// Adds an expiry and returns the previous one.
    pub(super) fn insert(&self, owner: ExpiryKey, expiry: Expiry) -> Option<Expiry> {
        self.expiries.insert(owner, expiry)
    }

    pub(super) fn remove(&self, owner: &ExpiryKey) -> Option<Expiry> {
        self.expiries.remove(owner).map(|(_, expiry)| expiry)
    }

    pub(super) fn owners(&self) -> impl Iterator<Item = ExpiryKey> {
        self.expiries.iter().map(|expiry| expiry.key().clone())
    }

    /// Moves an owner in the queue to its current expiry time, and returns that time.
    pub(super) fn requeue(&self, owner: &ExpiryKey) -> Option<Instant> {
        let mut expiry = self.expiries.get_mut(owner)?;
        expiry.queue_key = expiry.expires_at;
        Some(expiry.queue_key)
    }

    /// Returns all expiries in order of their owners' keys.
    pub(super) fn rows(&self, now: Instant) -> Vec<(ExpiryKey, ExpiryRow)> {
        let rows = self.expiries.iter().map(|expiry| (expiry.key().clone(), expiry.to_row(now)));
        let mut rows: Vec<_> = rows.collect();
        rows.sort_unstable_by(|(one, _), (other, _)| one.key().cmp(&other.key()));
        rows
    }
}
