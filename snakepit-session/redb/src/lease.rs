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

/// The holder of a lease.
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
    expires: Instant,
    /// The holder's key in the writer's expiry queue.
    pub(super) queued: Instant,
    /// Only a hint, and a crash of the host ends its workers too, so it is not stored on each call.
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
        Self { ttl, expires: now + ttl, queued: now + ttl, last_worker: None }
    }

    /// Restores a stored lease.
    pub(super) fn resumed(ttl: Duration, row: LeaseRow, now: Instant) -> Self {
        // At most the full TTL, even if the wall clock was set back.
        let left = row.expires.duration_since(SystemTime::now()).unwrap_or_default().min(ttl);
        Self { ttl, expires: now + left, queued: now + left, last_worker: row.last_worker }
    }

    pub(super) fn row(&self, now: Instant) -> LeaseRow {
        LeaseRow { expires: SystemTime::now() + self.left(now), last_worker: self.last_worker.clone() }
    }

    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.expires <= now
    }

    fn left(&self, now: Instant) -> Duration {
        self.expires.saturating_duration_since(now)
    }

    pub(super) fn renew(&mut self, now: Instant) {
        self.expires = now + self.ttl;
    }

    /// The session as callers see it.
    pub(super) fn snapshot(&self, id: &SessionId, header: SessionHeader, now: Instant) -> Session {
        SessionHeader { last_worker: self.last_worker.clone(), ..header }.snapshot(id, self.left(now))
    }
}

/// The leases of all committed sessions and programs. Every caller renews them; only the writer adds and removes them.
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
        let mut lease = self.leases.get_mut(holder).filter(|lease| !lease.is_over(now))?;
        change(&mut lease);
        Some(lease.clone())
    }

    /// A lease that has not expired.
    pub(super) fn live(&self, holder: &Holder, now: Instant) -> Option<Lease> {
        self.get(holder).filter(|lease| !lease.is_over(now))
    }

    /// A lease, expired or not.
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
    pub(super) fn queue(&self, holder: &Holder) -> Option<Instant> {
        let mut lease = self.leases.get_mut(holder)?;
        lease.queued = lease.expires;
        Some(lease.queued)
    }

    /// All leases in the order of their keys.
    pub(super) fn rows(&self, now: Instant) -> Vec<(Holder, LeaseRow)> {
        let rows = self.leases.iter().map(|lease| (lease.key().clone(), lease.row(now)));
        let mut rows: Vec<_> = rows.collect();
        rows.sort_unstable_by(|(one, _), (other, _)| one.key().cmp(&other.key()));
        rows
    }
}
