//! Leases: the expiry times of sessions and global programs. They are in memory, so that a renewal does not write. Only a clean
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

/// The holder of a lease: a session or a global program.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Holder {
    Session(SessionId),
    Global(ProgramName),
}

impl Holder {
    pub(super) fn key(&self) -> (&str, &str) {
        match self {
            Self::Session(id) => header_key(id),
            Self::Global(name) => (GLOBAL_OWNER, name.as_str()),
        }
    }
}

/// An expiry time, and other state that a crash loses.
#[derive(Debug, Clone)]
pub(super) struct Lease {
    ttl: Duration,
    expires_at: Instant,
    /// The expiry time under which the holder is in the writer's queue.
    pub(super) queue_key: Instant,
    /// A hint. It is not stored on each call, because a crash of the host ends its workers too.
    pub(super) last_worker: Option<Arc<str>>,
}

/// A stored lease.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct LeaseRow {
    expires: SystemTime,
    last_worker: Option<Arc<str>>,
}

impl Lease {
    /// Creates a lease with the full TTL.
    pub(super) fn new(ttl: Duration, now: Instant) -> Self {
        Self { ttl, expires_at: now + ttl, queue_key: now + ttl, last_worker: None }
    }

    /// Restores a stored lease.
    pub(super) fn from_row(ttl: Duration, row: LeaseRow, now: Instant) -> Self {
        // Limit it to the TTL, because the wall clock may have been set back.
        let remaining = row.expires.duration_since(SystemTime::now()).unwrap_or_default().min(ttl);
        Self { ttl, expires_at: now + remaining, queue_key: now + remaining, last_worker: row.last_worker }
    }

    pub(super) fn to_row(&self, now: Instant) -> LeaseRow {
        LeaseRow { expires: SystemTime::now() + self.remaining(now), last_worker: self.last_worker.clone() }
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

/// The leases of all committed sessions and global programs. Every caller renews them; only the writer adds and removes them.
#[derive(Debug, Default)]
pub(super) struct Leases {
    leases: DashMap<Holder, Lease>,
}

impl Leases {
    /// Renews a lease that has not expired, and returns it.
    pub(super) fn renew(&self, holder: &Holder, now: Instant) -> Option<Lease> {
        self.change(holder, now, |lease| lease.renew(now))
    }

    /// Changes a lease that has not expired, and returns it.
    pub(super) fn change(
        &self,
        holder: &Holder,
        now: Instant,
        change: impl FnOnce(&mut Lease),
    ) -> Option<Lease> {
        let mut lease = self.leases.get_mut(holder).filter(|lease| !lease.is_expired(now))?;
        change(&mut lease);
        Some(lease.clone())
    }

    /// Returns a lease that has not expired.
    pub(super) fn live(&self, holder: &Holder, now: Instant) -> Option<Lease> {
        self.get(holder).filter(|lease| !lease.is_expired(now))
    }

    /// Returns a lease, expired or not.
    pub(super) fn get(&self, holder: &Holder) -> Option<Lease> {
        self.leases.get(holder).map(|lease| lease.clone())
    }

    /// Adds a lease and returns the previous one.
    pub(super) fn insert(&self, holder: Holder, lease: Lease) -> Option<Lease> {
        self.leases.insert(holder, lease)
    }

    pub(super) fn remove(&self, holder: &Holder) -> Option<Lease> {
        self.leases.remove(holder).map(|(_, lease)| lease)
    }

    pub(super) fn holders(&self) -> impl Iterator<Item = Holder> {
        self.leases.iter().map(|lease| lease.key().clone())
    }

    /// Moves a holder in the queue to the expiry time of its lease, and returns that time.
    pub(super) fn requeue(&self, holder: &Holder) -> Option<Instant> {
        let mut lease = self.leases.get_mut(holder)?;
        lease.queue_key = lease.expires_at;
        Some(lease.queue_key)
    }

    /// Returns all leases in the order of their keys.
    pub(super) fn rows(&self, now: Instant) -> Vec<(Holder, LeaseRow)> {
        let rows = self.leases.iter().map(|lease| (lease.key().clone(), lease.to_row(now)));
        let mut rows: Vec<_> = rows.collect();
        rows.sort_unstable_by(|(one, _), (other, _)| one.key().cmp(&other.key()));
        rows
    }
}
