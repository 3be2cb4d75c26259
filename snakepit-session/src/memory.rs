//! The default backend: sessions in this process, in a concurrent map, with a queue of what expires next.

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
    kit::{Budget, SessionHeader, SessionRecord, VariableRecord, Watchers, size_of_metadata},
};

mod globals;
mod operations;

use globals::Globals;

/// How many parts the map has for each processor, each with a lock of its own. Few threads wait for each other then.
const SHARDS_PER_CPU: usize = 32;

/// Sessions in this process: gone when it ends.
#[derive(Debug)]
pub struct MemoryBackend {
    limits: SessionLimits,
    /// When the backend was made: times are nanoseconds since then, which an atomic holds for five hundred years.
    epoch: Instant,
    /// Hashed fast: the hash is seeded anew in each process, and ids come from clients that may run tools anyway.
    sessions: DashMap<SessionId, Box<SessionSlot>, RandomState>,
    /// How many sessions there are, counted before they are made so that racing creators cannot pass the limit.
    count: AtomicUsize,
    /// The bytes of all sessions and global programs, counted before they are kept for the same reason.
    bytes: AtomicUsize,
    /// Locked after the session, never before it.
    index: Mutex<Index>,
    globals: Mutex<Globals>,
    events: SessionEventSender,
    counters: Counters,
}

/// Every session once in each order.
#[derive(Debug, Default)]
struct Index {
    /// Under the time it was last known to expire. Use does not move it: one that turns out to live longer when its time
    /// comes is queued again, so a sweep costs by what surfaces and not by what lives.
    due: BTreeSet<(u64, SessionId)>,
    /// For listings, which cost by what they show.
    ids: BTreeSet<SessionId>,
}

/// What happened so far, and what there is beside sessions and bytes.
#[derive(Debug, Default)]
struct Counters {
    created: AtomicU64,
    deleted: AtomicU64,
    expired: AtomicU64,
    sweeps: AtomicU64,
    variables: AtomicUsize,
    /// Of sessions; the global ones are counted by themselves.
    programs: AtomicUsize,
}

/// A session in its place.
#[derive(Debug)]
struct SessionSlot {
    record: SessionRecord,
    /// Moved by readers too, which share the lock.
    expires: AtomicU64,
    /// Where it stands in the expiry queue.
    queued: u64,
    /// Boxed, because few sessions are watched.
    watchers: Option<Box<Watchers>>,
}

impl SessionSlot {
    fn new(new: NewSession, limits: &SessionLimits, now: u64) -> Self {
        let header = SessionHeader::new(new, limits);
        let queued = later(now, header.ttl);
        Self { record: SessionRecord::new(header), expires: queued.into(), queued, watchers: None }
    }

    fn expires(&self) -> u64 {
        self.expires.load(Relaxed)
    }

    fn is_expired(&self, now: u64) -> bool {
        self.expires() <= now
    }

    /// Never earlier than it was: of two readers, the later one may get here first.
    fn renew(&self, now: u64) {
        self.expires.fetch_max(later(now, self.record.header.ttl), Relaxed);
    }

    fn snapshot(&self, id: &SessionId, now: u64) -> Session {
        self.record.header.snapshot(id, Duration::from_nanos(self.expires().saturating_sub(now)))
    }
}

fn later(now: u64, ttl: Duration) -> u64 {
    now.saturating_add(u64::try_from(ttl.as_nanos()).unwrap_or(u64::MAX))
}

/// Tells the watchers of a session, if it has any.
fn notify(watchers: &mut Option<Box<Watchers>>, kind: UpdateKind, changed: &VariableRecord) {
    if let Some(watchers) = watchers {
        watchers.notify(&changed.update(kind));
    }
}

impl MemoryBackend {
    /// A backend without sessions.
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

    /// The live session of this id, locked against writers. Clocks are read while it is, so that they go with what is done.
    fn slot(&self, id: &SessionId) -> Result<(Ref<'_, SessionId, Box<SessionSlot>>, u64), SessionError> {
        let found = self.sessions.get(id);
        let now = self.now();
        match found {
            Some(slot) if !slot.is_expired(now) => Ok((slot, now)),
            _ => Err(SessionError::NotFound { id: id.clone() }),
        }
    }

    /// The same, locked against everybody.
    fn slot_mut(
        &self,
        id: &SessionId,
    ) -> Result<(RefMut<'_, SessionId, Box<SessionSlot>>, u64), SessionError> {
        let found = self.sessions.get_mut(id);
        let now = self.now();
        match found {
            Some(slot) if !slot.is_expired(now) => Ok((slot, now)),
            _ => Err(SessionError::NotFound { id: id.clone() }),
        }
    }

    /// The live session of this id, locked against writers and renewed.
    fn touch(&self, id: &SessionId) -> Result<Ref<'_, SessionId, Box<SessionSlot>>, SessionError> {
        let (slot, now) = self.slot(id)?;
        slot.renew(now);
        Ok(slot)
    }

    /// The same, locked against everybody.
    fn touch_mut(&self, id: &SessionId) -> Result<RefMut<'_, SessionId, Box<SessionSlot>>, SessionError> {
        let (slot, now) = self.slot_mut(id)?;
        slot.renew(now);
        Ok(slot)
    }

    /// Does something to a session that may change what it holds. `more` is the most it may take in addition.
    async fn change<T>(
        &self,
        id: &SessionId,
        more: usize,
        act: impl FnOnce(&mut SessionSlot, &mut Budget<'_>) -> Result<T, SessionError>,
    ) -> Result<T, SessionError> {
        self.reclaim_for(more).await;
        let mut slot = self.touch_mut(id)?;
        let mut resize = |from, to| self.resize(from, to);
        act(&mut slot, &mut Budget { session: id, limits: &self.limits, resize: &mut resize })
    }

    /// Claims room for one more session; false when there is none.
    fn claim(&self) -> bool {
        let limit = self.limits.max_sessions;
        let add = |count| (count < limit).then_some(count + 1);
        self.count.fetch_update(Relaxed, Relaxed, add).is_ok()
    }

    /// Reclaims what expired if that is where so many bytes would have to come from: expired sessions do not count, and
    /// nobody is refused because of them. No session may be locked meanwhile.
    async fn reclaim_for(&self, bytes: usize) {
        let is_full = || self.bytes.load(Relaxed).saturating_add(bytes) > self.limits.max_total_bytes;
        if is_full() {
            self.reclaim_globals();
        }
        while is_full() && self.reclaim_some().is_some() {
            tokio::task::yield_now().await;
        }
    }

    /// Claims the bytes that something grows by, or gives back those that it shrinks by.
    ///
    /// # Errors
    /// [`SessionError::BackendFull`].
    fn resize(&self, from: usize, to: usize) -> Result<(), SessionError> {
        if to <= from {
            self.bytes.fetch_sub(from - to, Relaxed);
            return Ok(());
        }
        let limit = self.limits.max_total_bytes;
        let add = |held: usize| held.checked_add(to - from).filter(|size| *size <= limit);
        let claimed = self.bytes.fetch_update(Relaxed, Relaxed, add);
        claimed
            .map(drop)
            .map_err(|held| SessionError::BackendFull { size: held.saturating_add(to - from), limit })
    }

    /// Ends a session that is about to leave the map, and is locked: gives back its room and tells those who care.
    fn retire(&self, id: &SessionId, slot: &SessionSlot, kind: SessionEventKind) {
        let SessionHeader { bytes, programs, variables, .. } = slot.record.header;
        self.count.fetch_sub(1, Relaxed);
        self.bytes.fetch_sub(bytes, Relaxed);
        self.counters.programs.fetch_sub(programs, Relaxed);
        self.counters.variables.fetch_sub(variables, Relaxed);
        if let Some(watchers) = &slot.watchers {
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

    /// Returns the session of this id if it lives, or makes it in room claimed before. `None`: it must be made, and
    /// no room was claimed.
    fn find_or_create(&self, id: &SessionId, new: &NewSession, claimed: bool) -> Option<(Session, Created)> {
        let entry = self.sessions.entry(id.clone());
        let now = self.now();
        match entry {
            Entry::Occupied(entry) if !entry.get().is_expired(now) => {
                if claimed {
                    self.count.fetch_sub(1, Relaxed);
                    self.bytes.fetch_sub(size_of_metadata(&new.metadata), Relaxed);
                }
                entry.get().renew(now);
                Some((entry.get().snapshot(id, now), Created::Existing))
            }
            Entry::Occupied(_) | Entry::Vacant(_) if !claimed => None,
            entry => {
                let fresh = Box::new(SessionSlot::new(new.clone(), &self.limits, now));
                let (queued, session) = (fresh.queued, fresh.snapshot(id, now));
                // Held until all is told, so that nobody deletes what is not queued yet, and events come in order.
                let held = match entry {
                    Entry::Occupied(mut expired) => {
                        self.index().due.remove(&(expired.get().queued, id.clone()));
                        self.retire(id, expired.get(), SessionEventKind::Expired);
                        expired.insert(fresh);
                        expired.into_ref()
                    }
                    Entry::Vacant(entry) => entry.insert(fresh),
                };
                let mut index = self.index();
                index.due.insert((queued, id.clone()));
                // Of the expired one it may be there.
                index.ids.insert(id.clone());
                drop(index);
                self.counters.created.fetch_add(1, Relaxed);
                self.events.notify(id, SessionEventKind::Created);
                drop(held);
                Some((session, Created::New))
            }
        }
    }

    fn reclaim_globals(&self) {
        let freed = self.globals().reclaim(Instant::now());
        self.bytes.fetch_sub(freed, Relaxed);
    }

    /// Reclaims some of the sessions that expired; returns how many, and nothing when none is due any more.
    fn reclaim_some(&self) -> Option<usize> {
        const SOME: usize = 1000;
        let now = self.now();
        let mut expired = 0;
        for looked in 0..SOME {
            // The queue is released before the session is locked: everybody else locks them the other way round.
            let due = self.index().due.first().filter(|(at, _)| *at <= now).cloned();
            let Some((queued, id)) = due else { return (looked > 0).then_some(expired) };
            let entry = self.sessions.entry(id.clone());
            // Whatever became of the session meanwhile, this place in the queue is done with.
            let mut index = self.index();
            index.due.remove(&(queued, id.clone()));
            let Entry::Occupied(mut entry) = entry else { continue };
            if entry.get().queued != queued {
                continue;
            }
            if entry.get().is_expired(now) {
                index.ids.remove(&id);
                drop(index);
                self.retire(&id, entry.get(), SessionEventKind::Expired);
                entry.remove();
                expired += 1;
            } else {
                let expires = entry.get().expires();
                entry.get_mut().queued = expires;
                index.due.insert((expires, id));
            }
        }
        Some(expired)
    }
}

#[cfg(test)]
mod tests;
