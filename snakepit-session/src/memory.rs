//! The default backend: a concurrent map of sessions in this process, with an index ordered by expiry time.

use std::{
    collections::BTreeSet,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    thread::available_parallelism,
    time::Duration,
};

use dashmap::{
    DashMap, Entry,
    mapref::one::{Ref, RefMut},
};
use foldhash::quality::RandomState;
use tokio::time::Instant;

use crate::{
    Created, NewSession, Session, SessionError, SessionEventKind, SessionId, SessionLimits, UpdateKind,
    events::SessionEventSender,
    kit::{SessionHeader, SessionRecord, SizeGuard, VariableRecord, Watchers, size_of_metadata},
};

mod globals;
mod operations;

use globals::Globals;

/// The number of map shards per CPU. Each shard has a lock, so more shards mean less contention.
const SHARDS_PER_CPU: usize = 32;

/// Sessions in the memory of this process.
///
/// ```
/// use snakepit_session::{MemoryBackend, NewSession, SessionBackend, SessionError, SessionId, SessionLimits};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), SessionError> {
/// let backend = MemoryBackend::new(SessionLimits::default().max_sessions(1));
/// backend.create(&SessionId::try_new("alice")?, NewSession::default()).await?;
/// let full = backend.create(&SessionId::try_new("bob")?, NewSession::default()).await.unwrap_err();
/// assert_eq!(full, SessionError::TooManySessions { limit: 1 });
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct MemoryBackend {
    limits: SessionLimits,
    /// The creation time of the backend. Other times are nanoseconds since then, which fit into a `u64` for five hundred years.
    epoch: Instant,
    /// The hasher is fast, with a random seed in each process. It does not fully protect against hash flooding. That suffices,
    /// because a client that can choose ids can also run tools.
    sessions: DashMap<SessionId, Box<SessionEntry>, RandomState>,
    /// The number of sessions. Incremented before a session is created, so that racing creators cannot exceed the limit.
    count: AtomicUsize,
    /// The size of all sessions and global programs, increased before they are stored for the same reason.
    bytes: AtomicUsize,
    /// Lock order: the session, then the index.
    index: Mutex<Index>,
    globals: Mutex<Globals>,
    events: SessionEventSender,
    counters: Counters,
}

/// The ids of all sessions in two orders.
#[derive(Debug, Default)]
struct Index {
    /// By the last known expiry time. Renewals do not update it. A sweep examines only the sessions that are due, and moves
    /// those that were renewed.
    due: BTreeSet<(u64, SessionId)>,
    /// By id, for listings.
    ids: BTreeSet<SessionId>,
}

/// Counters for the statistics.
#[derive(Debug, Default)]
struct Counters {
    created: AtomicU64,
    deleted: AtomicU64,
    expired: AtomicU64,
    sweeps: AtomicU64,
    variables: AtomicUsize,
    /// Programs of sessions. Global programs are counted separately.
    programs: AtomicUsize,
}

/// The entry of a session in the map.
#[derive(Debug)]
struct SessionEntry {
    record: SessionRecord,
    /// Nanoseconds since the epoch of the backend. Atomic, because readers share the lock and renew the session too.
    expires_at: AtomicU64,
    /// The expiry time under which the session is in the index.
    indexed_expiry: u64,
    /// Boxed, because few sessions are watched.
    watchers: Option<Box<Watchers>>,
}

impl SessionEntry {
    fn new(new: NewSession, limits: &SessionLimits, now: u64) -> Self {
        let header = SessionHeader::new(new, limits);
        let expires_at = expiry(now, header.ttl);
        Self {
            record: SessionRecord::new(header),
            expires_at: expires_at.into(),
            indexed_expiry: expires_at,
            watchers: None,
        }
    }

    fn expires_at(&self) -> u64 {
        self.expires_at.load(Relaxed)
    }

    fn is_expired(&self, now: u64) -> bool {
        self.expires_at() <= now
    }

    /// Extends the lifetime. Never moves the expiry time back, because concurrent readers may call this out of order.
    fn renew(&self, now: u64) {
        self.expires_at.fetch_max(expiry(now, self.record.header.ttl), Relaxed);
    }

    fn snapshot(&self, id: &SessionId, now: u64) -> Session {
        self.record.header.snapshot(id, Duration::from_nanos(self.expires_at().saturating_sub(now)))
    }
}

/// The expiry time of a session that is used now, in nanoseconds since the epoch of the backend.
fn expiry(now: u64, ttl: Duration) -> u64 {
    now.saturating_add(u64::try_from(ttl.as_nanos()).unwrap_or(u64::MAX))
}

/// Sends a change to the watchers of a session.
fn notify(watchers: &mut Option<Box<Watchers>>, kind: UpdateKind, changed: &VariableRecord) {
    if let Some(watchers) = watchers {
        watchers.notify(&changed.update(kind));
    }
}

impl MemoryBackend {
    /// Creates a backend without sessions.
    #[must_use]
    pub fn new(limits: SessionLimits) -> Self {
        let shards = SHARDS_PER_CPU * available_parallelism().map_or(1, usize::from);
        Self {
            limits,
            epoch: Instant::now(),
            sessions: DashMap::with_hasher_and_shard_amount(
                RandomState::default(),
                shards.next_power_of_two(),
            ),
            count: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            index: Mutex::default(),
            globals: Mutex::default(),
            events: SessionEventSender::new(),
            counters: Counters::default(),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn globals(&self) -> MutexGuard<'_, Globals> {
        self.globals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the live session, read-locked, and the time. The clock is read under the lock, so that times follow the order of
    /// operations.
    fn entry(&self, id: &SessionId) -> Result<(Ref<'_, SessionId, Box<SessionEntry>>, u64), SessionError> {
        let found = self.sessions.get(id);
        let now = self.now();
        match found {
            Some(entry) if !entry.is_expired(now) => Ok((entry, now)),
            _ => Err(SessionError::NotFound { id: id.clone() }),
        }
    }

    /// Like [`entry`](Self::entry), with a write lock.
    fn entry_mut(
        &self,
        id: &SessionId,
    ) -> Result<(RefMut<'_, SessionId, Box<SessionEntry>>, u64), SessionError> {
        let found = self.sessions.get_mut(id);
        let now = self.now();
        match found {
            Some(entry) if !entry.is_expired(now) => Ok((entry, now)),
            _ => Err(SessionError::NotFound { id: id.clone() }),
        }
    }

    /// Renews the live session and returns it, read-locked.
    fn touch(&self, id: &SessionId) -> Result<Ref<'_, SessionId, Box<SessionEntry>>, SessionError> {
        let (entry, now) = self.entry(id)?;
        entry.renew(now);
        Ok(entry)
    }

    /// Like [`touch`](Self::touch), with a write lock.
    fn touch_mut(&self, id: &SessionId) -> Result<RefMut<'_, SessionId, Box<SessionEntry>>, SessionError> {
        let (entry, now) = self.entry_mut(id)?;
        entry.renew(now);
        Ok(entry)
    }

    /// Runs an operation that may change the size of a session. `max_growth` is in bytes.
    async fn change<T>(
        &self,
        id: &SessionId,
        max_growth: usize,
        operation: impl FnOnce(&mut SessionEntry, &mut SizeGuard<'_>) -> Result<T, SessionError>,
    ) -> Result<T, SessionError> {
        self.reclaim_for(max_growth).await;
        let mut entry = self.touch_mut(id)?;
        let mut resize = |from, to| self.resize(from, to);
        operation(&mut entry, &mut SizeGuard { session: id, limits: &self.limits, resize: &mut resize })
    }

    /// Reserves one session. Returns false at the limit.
    fn reserve_session(&self) -> bool {
        let limit = self.limits.max_sessions;
        let increment = |count| (count < limit).then_some(count + 1);
        self.count.fetch_update(Relaxed, Relaxed, increment).is_ok()
    }

    /// Reclaims expired sessions if that is necessary to add this number of bytes, so that they never cause a rejection.
    /// The caller must not hold the lock of a session.
    async fn reclaim_for(&self, bytes: usize) {
        let is_full = || self.bytes.load(Relaxed).saturating_add(bytes) > self.limits.max_total_bytes;
        if is_full() {
            self.reclaim_globals();
        }
        while is_full() && self.reclaim_some().is_some() {
            tokio::task::yield_now().await;
        }
    }

    /// Adjusts the total size when an object's size changes.
    ///
    /// # Errors
    /// [`SessionError::BackendFull`].
    fn resize(&self, from: usize, to: usize) -> Result<(), SessionError> {
        if to <= from {
            self.bytes.fetch_sub(from - to, Relaxed);
            return Ok(());
        }
        let limit = self.limits.max_total_bytes;
        let add = |total: usize| total.checked_add(to - from).filter(|size| *size <= limit);
        let added = self.bytes.fetch_update(Relaxed, Relaxed, add);
        added
            .map(drop)
            .map_err(|total| SessionError::BackendFull { size: total.saturating_add(to - from), limit })
    }

    /// Ends a locked session before its removal from the map: updates the counters, ends its watches, and sends the event.
    fn retire(&self, id: &SessionId, entry: &SessionEntry, kind: SessionEventKind) {
        let SessionHeader { bytes, programs, variables, .. } = entry.record.header;
        self.count.fetch_sub(1, Relaxed);
        self.bytes.fetch_sub(bytes, Relaxed);
        self.counters.programs.fetch_sub(programs, Relaxed);
        self.counters.variables.fetch_sub(variables, Relaxed);
        if let Some(watchers) = &entry.watchers {
            watchers.end(&SessionError::NotFound { id: id.clone() });
        }
        let counter = match kind {
            SessionEventKind::Created => &self.counters.created,
            SessionEventKind::Expired => &self.counters.expired,
            SessionEventKind::Deleted => &self.counters.deleted,
        };
        counter.fetch_add(1, Relaxed);
        self.events.notify(id, kind);
    }

    /// Returns the session if it is live. Otherwise creates it if the caller has reserved its space, and else returns `None`.
    fn find_or_create(
        &self,
        id: &SessionId,
        new: &NewSession,
        is_reserved: bool,
    ) -> Option<(Session, Created)> {
        let entry = self.sessions.entry(id.clone());
        let now = self.now();
        match entry {
            Entry::Occupied(entry) if !entry.get().is_expired(now) => {
                if is_reserved {
                    self.count.fetch_sub(1, Relaxed);
                    self.bytes.fetch_sub(size_of_metadata(&new.metadata), Relaxed);
                }
                entry.get().renew(now);
                Some((entry.get().snapshot(id, now), Created::Existing))
            }
            Entry::Occupied(_) | Entry::Vacant(_) if !is_reserved => None,
            entry => {
                let created = Box::new(SessionEntry::new(new.clone(), &self.limits, now));
                let (indexed_expiry, session) = (created.indexed_expiry, created.snapshot(id, now));
                // Keep the lock until the index is updated and the event is sent. Otherwise a concurrent deletion could miss the
                // index entry or send its event first.
                let locked = match entry {
                    Entry::Occupied(mut expired) => {
                        self.index().due.remove(&(expired.get().indexed_expiry, id.clone()));
                        self.retire(id, expired.get(), SessionEventKind::Expired);
                        expired.insert(created);
                        expired.into_ref()
                    }
                    Entry::Vacant(entry) => entry.insert(created),
                };
                let mut index = self.index();
                index.due.insert((indexed_expiry, id.clone()));
                // The entry of an expired session may exist already.
                index.ids.insert(id.clone());
                drop(index);
                self.counters.created.fetch_add(1, Relaxed);
                self.events.notify(id, SessionEventKind::Created);
                drop(locked);
                Some((session, Created::New))
            }
        }
    }

    fn reclaim_globals(&self) {
        let freed_bytes = self.globals().reclaim(Instant::now());
        self.bytes.fetch_sub(freed_bytes, Relaxed);
    }

    /// Reclaims a limited number of expired sessions and returns their number, or `None` if no session is due.
    fn reclaim_some(&self) -> Option<usize> {
        const MAX_EXAMINED: usize = 1000;
        let now = self.now();
        let mut expired = 0;
        for examined in 0..MAX_EXAMINED {
            // Release the index before locking the session, because the lock order is the other way round.
            let due = self.index().due.first().filter(|(at, _)| *at <= now).cloned();
            let Some((indexed_expiry, id)) = due else { return (examined > 0).then_some(expired) };
            let entry = self.sessions.entry(id.clone());
            // This queue entry is obsolete in any case.
            let mut index = self.index();
            index.due.remove(&(indexed_expiry, id.clone()));
            let Entry::Occupied(mut entry) = entry else { continue };
            if entry.get().indexed_expiry != indexed_expiry {
                continue;
            }
            if entry.get().is_expired(now) {
                index.ids.remove(&id);
                drop(index);
                self.retire(&id, entry.get(), SessionEventKind::Expired);
                entry.remove();
                expired += 1;
            } else {
                let expires_at = entry.get().expires_at();
                entry.get_mut().indexed_expiry = expires_at;
                index.due.insert((expires_at, id));
            }
        }
        Some(expired)
    }
}

#[cfg(test)]
mod tests;
