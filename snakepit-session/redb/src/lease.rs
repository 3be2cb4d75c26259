//! How long sessions and global programs live. Every use renews that, so it is kept in memory, where reading costs no
//! write; a file has it only after an orderly end.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use dashmap::DashMap;
use serde::{Deserialize, Serialize};
use snakepit_session::{ProgramName, Session, SessionId, kit::SessionHeader};
use tokio::time::Instant;

use super::rows::{GLOBAL_OWNER, header_key};

/// Who lives for a time.
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

/// For how long, and what else is forgotten when the host is killed.
#[derive(Debug, Clone)]
pub(super) struct Lease {
    ttl: Duration,
    expires: Instant,
    /// Where the holder stands in the writer's queue of what expires.
    pub(super) queued: Instant,
    /// Only a hint, and when the host is gone its workers are: not worth a write for each call.
    pub(super) last_worker: Option<Arc<str>>,
}

/// A lease as it is written.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct LeaseRow {
    expires: SystemTime,
    last_worker: Option<Arc<str>>,
}

impl Lease {
    /// A full one.
    pub(super) fn new(ttl: Duration, now: Instant) -> Self {
        Self { ttl, expires: now + ttl, queued: now + ttl, last_worker: None }
    }

    /// One that was written.
    pub(super) fn resumed(ttl: Duration, row: LeaseRow, now: Instant) -> Self {
        // Never more than a full one, whatever the clock on the wall did meanwhile.
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

    /// The session of this lease as callers see it.
    pub(super) fn snapshot(&self, id: &SessionId, header: SessionHeader, now: Instant) -> Session {
        SessionHeader { last_worker: self.last_worker.clone(), ..header }.snapshot(id, self.left(now))
    }
}

/// The leases of all that was committed. Everybody renews them; only the writer adds and removes.
#[derive(Debug, Default)]
pub(super) struct Leases {
    leases: DashMap<Holder, Lease>,
}

impl Leases {
    /// Renews a lease unless it is over, and returns it.
    pub(super) fn renew(&self, holder: &Holder, now: Instant) -> Option<Lease> {
        self.change(holder, now, |lease| lease.renew(now))
    }

    /// Changes a lease unless it is over, and returns it.
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

    /// A lease unless it is over.
    pub(super) fn live(&self, holder: &Holder, now: Instant) -> Option<Lease> {
        self.get(holder).filter(|lease| !lease.is_over(now))
    }

    /// A lease, be it over or not.
    pub(super) fn get(&self, holder: &Holder) -> Option<Lease> {
        self.leases.get(holder).map(|lease| lease.clone())
    }

    /// Adds a lease, and returns the one that it replaces.
    pub(super) fn insert(&self, holder: Holder, lease: Lease) -> Option<Lease> {
        self.leases.insert(holder, lease)
    }

    pub(super) fn remove(&self, holder: &Holder) -> Option<Lease> {
        self.leases.remove(holder).map(|(_, lease)| lease)
    }

    pub(super) fn holders(&self) -> impl Iterator<Item = Holder> {
        self.leases.iter().map(|lease| lease.key().clone())
    }

    /// Notes where a holder is queued from now on: at the end of its lease, which is returned.
    pub(super) fn queue(&self, holder: &Holder) -> Option<Instant> {
        let mut lease = self.leases.get_mut(holder)?;
        lease.queued = lease.expires;
        Some(lease.queued)
    }

    /// All of them, in the order of their keys.
    pub(super) fn rows(&self, now: Instant) -> Vec<(Holder, LeaseRow)> {
        let rows = self.leases.iter().map(|lease| (lease.key().clone(), lease.row(now)));
        let mut rows: Vec<_> = rows.collect();
        rows.sort_unstable_by(|(one, _), (other, _)| one.key().cmp(&other.key()));
        rows
    }
}
