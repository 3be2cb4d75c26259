//! The default backend: sessions in this process, in a concurrent map, with a queue of what expires next.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use async_trait::async_trait;
use dashmap::{DashMap, Entry, mapref::one::RefMut};
use foldhash::quality::RandomState;
use tokio::time::Instant;

use crate::{
    Batch, Created, NewSession, NewVariable, Note, Page, PageRequest, Program, ProgramInfo, ProgramName,
    ProgramOwner, Session, SessionBackend, SessionError, SessionEventKind, SessionEvents, SessionId,
    SessionLimits, SessionStats, SetVariable, UpdateKind, Variable, VariableName, VariableVersion,
    VariableWatch,
    events::Events,
    limits::{size_of_metadata, size_of_program, size_of_version},
    record::{Head, Record, Room, VariableRecord, is_like},
    watch::{Watcher, Watchers},
};

mod globals;

use globals::Globals;

/// Sessions in this process: gone when it ends.
#[derive(Debug)]
pub struct MemoryBackend {
    limits: SessionLimits,
    /// Hashed fast: the hash is seeded anew in each process, and ids come from clients that may run tools anyway.
    sessions: DashMap<SessionId, Place, RandomState>,
    /// How many sessions there are, counted before they are made so that racing creators cannot pass the limit.
    count: AtomicUsize,
    /// The bytes of all sessions and global programs, counted before they are kept for the same reason.
    bytes: AtomicUsize,
    /// Every session once, under the time it was last known to expire. Use does not move it: one that turns out to live
    /// longer when its time comes is queued again, so a sweep costs by what surfaces and not by what lives. Locked after
    /// the session, never before it.
    expiry: Mutex<BTreeSet<(Instant, SessionId)>>,
    globals: Mutex<Globals>,
    events: Events,
    counters: Counters,
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
struct Place {
    record: Record,
    expires: Instant,
    /// Where it stands in the expiry queue.
    queued: Instant,
    /// Boxed, because few sessions are watched.
    watchers: Option<Box<Watchers>>,
}

impl Place {
    fn new(new: NewSession, limits: &SessionLimits, now: Instant) -> Self {
        let head = Head::new(new, limits);
        let expires = now + head.ttl;
        Self { record: Record::new(head), expires, queued: expires, watchers: None }
    }

    fn is_expired(&self, now: Instant) -> bool {
        self.expires <= now
    }

    fn renew(&mut self, now: Instant) {
        self.expires = now + self.record.head.ttl;
    }

    fn snapshot(&self, id: &SessionId, now: Instant) -> Session {
        self.record.head.snapshot(id, self.expires.saturating_duration_since(now))
    }
}

/// Tells the watchers of a session, if it has any.
fn tell(watchers: &mut Option<Box<Watchers>>, kind: UpdateKind, changed: &VariableRecord) {
    if let Some(watchers) = watchers {
        watchers.tell(&changed.update(kind));
    }
}

impl MemoryBackend {
    /// A backend without sessions.
    #[must_use]
    pub fn new(limits: SessionLimits) -> Self {
        Self {
            limits,
            sessions: DashMap::default(),
            count: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            expiry: Mutex::new(BTreeSet::new()),
            globals: Mutex::default(),
            events: Events::new(),
            counters: Counters::default(),
        }
    }

    fn queue(&self) -> MutexGuard<'_, BTreeSet<(Instant, SessionId)>> {
        self.expiry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn globals(&self) -> MutexGuard<'_, Globals> {
        self.globals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The live session of this id, locked. Clocks are read while it is, so that they go with what is done.
    fn place(&self, id: &SessionId) -> Result<(RefMut<'_, SessionId, Place>, Instant), SessionError> {
        let found = self.sessions.get_mut(id);
        let now = Instant::now();
        match found {
            Some(place) if !place.is_expired(now) => Ok((place, now)),
            _ => Err(SessionError::NotFound { id: id.clone() }),
        }
    }

    /// The live session of this id, locked and renewed.
    fn used(&self, id: &SessionId) -> Result<RefMut<'_, SessionId, Place>, SessionError> {
        let (mut place, now) = self.place(id)?;
        place.renew(now);
        Ok(place)
    }

    /// Does something to a session that may change what it holds. `more` is the most it may take in addition.
    fn change<T>(
        &self,
        id: &SessionId,
        more: usize,
        act: impl FnOnce(&mut Place, &mut Room<'_>) -> Result<T, SessionError>,
    ) -> Result<T, SessionError> {
        self.make_room(more);
        let mut place = self.used(id)?;
        let mut resize = |from, to| self.resize(from, to);
        act(&mut place, &mut Room { session: id, limits: &self.limits, resize: &mut resize })
    }

    /// Claims room for one more session; false when there is none.
    fn claim(&self) -> bool {
        let limit = self.limits.max_sessions;
        let add = |count| (count < limit).then_some(count + 1);
        self.count.fetch_update(Relaxed, Relaxed, add).is_ok()
    }

    /// Reclaims what expired if that is where so many bytes would have to come from: expired sessions do not count, and
    /// nobody is refused because of them. No session may be locked meanwhile.
    fn make_room(&self, bytes: usize) {
        if self.bytes.load(Relaxed).saturating_add(bytes) > self.limits.max_total_bytes {
            self.reclaim();
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

    /// Ends a session that is no longer in the map: gives back its room and tells those who care.
    fn retire(&self, id: &SessionId, place: &Place, kind: SessionEventKind) {
        let Head { bytes, programs, variables, .. } = place.record.head;
        self.count.fetch_sub(1, Relaxed);
        self.bytes.fetch_sub(bytes, Relaxed);
        self.counters.programs.fetch_sub(programs, Relaxed);
        self.counters.variables.fetch_sub(variables, Relaxed);
        if let Some(watchers) = &place.watchers {
            watchers.end(&SessionError::NotFound { id: id.clone() });
        }
        let counter = match kind {
            SessionEventKind::Created => &self.counters.created,
            SessionEventKind::Expired => &self.counters.expired,
            SessionEventKind::Deleted => &self.counters.deleted,
        };
        counter.fetch_add(1, Relaxed);
        self.events.tell(id, kind);
    }

    /// Returns the session of this id if it lives, or makes it in room claimed before. `None`: it must be made, and
    /// no room was claimed.
    fn find_or_make(&self, id: &SessionId, new: &NewSession, claimed: bool) -> Option<(Session, Created)> {
        let entry = self.sessions.entry(id.clone());
        let now = Instant::now();
        match entry {
            Entry::Occupied(mut entry) if !entry.get().is_expired(now) => {
                if claimed {
                    self.count.fetch_sub(1, Relaxed);
                    self.bytes.fetch_sub(size_of_metadata(&new.metadata), Relaxed);
                }
                entry.get_mut().renew(now);
                Some((entry.get().snapshot(id, now), Created::Existing))
            }
            Entry::Occupied(_) | Entry::Vacant(_) if !claimed => None,
            entry => {
                let fresh = Place::new(new.clone(), &self.limits, now);
                let (queued, session) = (fresh.queued, fresh.snapshot(id, now));
                if let Entry::Occupied(mut expired) = entry {
                    let expired = expired.insert(fresh);
                    self.queue().remove(&(expired.queued, id.clone()));
                    self.retire(id, &expired, SessionEventKind::Expired);
                } else {
                    entry.insert(fresh);
                }
                self.queue().insert((queued, id.clone()));
                self.counters.created.fetch_add(1, Relaxed);
                self.events.tell(id, SessionEventKind::Created);
                Some((session, Created::New))
            }
        }
    }

    /// Reclaims what expired; returns how many sessions that were.
    fn reclaim(&self) -> usize {
        let now = Instant::now();
        let freed = self.globals().reclaim(now);
        self.bytes.fetch_sub(freed, Relaxed);
        let mut expired = 0;
        loop {
            // The queue is released before the session is locked: everybody else locks them the other way round.
            let due = self.queue().first().filter(|(at, _)| *at <= now).cloned();
            let Some((queued, id)) = due else { return expired };
            let Entry::Occupied(mut entry) = self.sessions.entry(id.clone()) else {
                // Deleted in between, and so is its place in the queue.
                continue;
            };
            if entry.get().queued != queued {
                continue;
            }
            let mut queue = self.queue();
            queue.remove(&(queued, id.clone()));
            if entry.get().is_expired(now) {
                drop(queue);
                self.retire(&id, &entry.remove(), SessionEventKind::Expired);
                expired += 1;
            } else {
                let expires = entry.get().expires;
                entry.get_mut().queued = expires;
                queue.insert((expires, id));
            }
        }
    }
}

#[async_trait]
impl SessionBackend for MemoryBackend {
    async fn create(&self, id: &SessionId, new: NewSession) -> Result<(Session, Created), SessionError> {
        self.limits.check_new(id, &new)?;
        if let Some(found) = self.find_or_make(id, &new, false) {
            return Ok(found);
        }
        // Expired sessions do not count, so their room is reclaimed before anybody is refused.
        if !self.claim() && (self.reclaim() == 0 || !self.claim()) {
            return Err(SessionError::TooManySessions { limit: self.limits.max_sessions });
        }
        let size = size_of_metadata(&new.metadata);
        self.make_room(size);
        if let Err(full) = self.resize(0, size) {
            self.count.fetch_sub(1, Relaxed);
            return Err(full);
        }
        match self.find_or_make(id, &new, true) {
            Some(found) => Ok(found),
            None => Err(SessionError::Backend { problem: "room was claimed but not used".to_owned() }),
        }
    }

    async fn get(&self, id: &SessionId) -> Result<Session, SessionError> {
        let (mut place, now) = self.place(id)?;
        place.renew(now);
        Ok(place.snapshot(id, now))
    }

    async fn delete(&self, id: &SessionId) -> Result<Session, SessionError> {
        let Entry::Occupied(entry) = self.sessions.entry(id.clone()) else {
            return Err(SessionError::NotFound { id: id.clone() });
        };
        let now = Instant::now();
        if entry.get().is_expired(now) {
            return Err(SessionError::NotFound { id: id.clone() });
        }
        let session = entry.get().snapshot(id, now);
        self.queue().remove(&(entry.get().queued, id.clone()));
        self.retire(id, &entry.remove(), SessionEventKind::Deleted);
        Ok(session)
    }

    async fn list(&self, page: PageRequest) -> Result<Page<Session>, SessionError> {
        let (size, after) = page.parse()?;
        // The ids of this page are the smallest above the token: kept as a bounded set, so a page of a million
        // sessions costs one pass and the memory of one page.
        let mut ids = BTreeSet::new();
        let now = Instant::now();
        for place in self.sessions.iter().filter(|place| !place.is_expired(now)) {
            if after.as_ref().is_none_or(|after| place.key() > after) {
                ids.insert(place.key().clone());
                if ids.len() > size + 1 {
                    ids.pop_last();
                }
            }
        }
        let more = ids.len() > size;
        let snapshot = |id: &SessionId| self.place(id).ok().map(|(place, now)| place.snapshot(id, now));
        let items: Vec<_> = ids.iter().take(size).filter_map(snapshot).collect();
        let next = more.then(|| ids.iter().nth(size - 1).map(ToString::to_string)).flatten();
        Ok(Page { items, next })
    }

    async fn set_last_worker(&self, id: &SessionId, worker: Arc<str>) -> Result<(), SessionError> {
        self.place(id)?.0.record.head.last_worker = Some(worker);
        Ok(())
    }

    async fn put_program(
        &self,
        owner: &ProgramOwner,
        name: &ProgramName,
        program: Program,
    ) -> Result<Created, SessionError> {
        let more = size_of_program(name, &program);
        let ProgramOwner::Session(id) = owner else {
            self.make_room(more);
            let resize = |from, to| self.resize(from, to);
            return self.globals().put(&self.limits, name, program, resize);
        };
        self.change(id, more, |place, room| {
            let created = place.record.put_program(room, name, program)?;
            self.counters.programs.fetch_add(usize::from(created == Created::New), Relaxed);
            Ok(created)
        })
    }

    async fn program(&self, owner: &ProgramOwner, name: &ProgramName) -> Result<Program, SessionError> {
        match owner {
            ProgramOwner::Session(id) => self.used(id)?.record.program(id, name),
            ProgramOwner::Global => self.globals().program(name),
        }
    }

    async fn programs(&self, owner: &ProgramOwner) -> Result<Vec<ProgramInfo>, SessionError> {
        Ok(match owner {
            ProgramOwner::Session(id) => {
                self.used(id)?.record.programs.values().map(|program| program.info.clone()).collect()
            }
            ProgramOwner::Global => self.globals().list(),
        })
    }

    async fn delete_program(&self, owner: &ProgramOwner, name: &ProgramName) -> Result<(), SessionError> {
        let ProgramOwner::Session(id) = owner else {
            let freed = self.globals().delete(name)?;
            self.bytes.fetch_sub(freed, Relaxed);
            return Ok(());
        };
        self.change(id, 0, |place, room| {
            place.record.delete_program(room, name)?;
            self.counters.programs.fetch_sub(1, Relaxed);
            Ok(())
        })
    }

    async fn register_variable(
        &self,
        id: &SessionId,
        name: &VariableName,
        new: NewVariable,
    ) -> Result<Variable, SessionError> {
        let more = size_of_version(&new.value, &new.note);
        self.change(id, more, |Place { record, watchers, .. }, room| {
            let made = record.register(room, name, new)?;
            self.counters.variables.fetch_add(1, Relaxed);
            tell(watchers, UpdateKind::Registered, made);
            Ok(made.variable.clone())
        })
    }

    async fn variables(
        &self,
        id: &SessionId,
        identifiers: &[&str],
    ) -> Result<Vec<Option<Variable>>, SessionError> {
        let place = self.used(id)?;
        let find = |identifier: &&str| Some(place.record.find(identifier)?.variable.clone());
        Ok(identifiers.iter().map(find).collect())
    }

    async fn set_variables(
        &self,
        id: &SessionId,
        updates: Vec<SetVariable>,
        batch: Batch,
    ) -> Result<Vec<Result<u32, SessionError>>, SessionError> {
        let more = updates.iter().map(|update| size_of_version(&update.value, &update.note)).sum();
        self.change(id, more, |Place { record, watchers, .. }, room| match batch {
            Batch::Atomic => {
                let names = record.set_all(room, updates)?;
                let told = |name| {
                    let changed = record.variable(id, name)?;
                    tell(watchers, UpdateKind::Set, changed);
                    Ok(Ok(changed.variable.version))
                };
                names.iter().map(VariableName::as_str).map(told).collect()
            }
            Batch::Each => {
                let write = |update| {
                    let changed = record.set(room, update)?;
                    tell(watchers, UpdateKind::Set, changed);
                    Ok(changed.variable.version)
                };
                Ok(updates.into_iter().map(write).collect())
            }
        })
    }

    async fn list_variables(&self, id: &SessionId, pattern: &str) -> Result<Vec<Variable>, SessionError> {
        let place = self.used(id)?;
        let variables = place.record.variables.values().map(|record| &record.variable);
        Ok(variables.filter(|variable| is_like(pattern, variable.name.as_str())).cloned().collect())
    }

    async fn delete_variable(&self, id: &SessionId, identifier: &str) -> Result<Variable, SessionError> {
        self.change(id, 0, |Place { record, watchers, .. }, room| {
            let gone = record.delete_variable(room, identifier)?;
            self.counters.variables.fetch_sub(1, Relaxed);
            tell(watchers, UpdateKind::Deleted, &gone);
            Ok(gone.variable)
        })
    }

    async fn variable_history(
        &self,
        id: &SessionId,
        identifier: &str,
        limit: usize,
    ) -> Result<Vec<VariableVersion>, SessionError> {
        Ok(self.used(id)?.record.variable(id, identifier)?.history(limit).collect())
    }

    async fn rollback_variable(
        &self,
        id: &SessionId,
        identifier: &str,
        version: u32,
        note: Note,
    ) -> Result<Variable, SessionError> {
        // The value is one that is there, so the most it takes in addition is what a value may have.
        self.change(id, self.limits.max_value_bytes, |Place { record, watchers, .. }, room| {
            let changed = record.rollback(room, identifier, version, note)?;
            tell(watchers, UpdateKind::RolledBack, changed);
            Ok(changed.variable.clone())
        })
    }

    async fn watch_variables(
        &self,
        id: &SessionId,
        identifiers: &[String],
        initial: bool,
    ) -> Result<VariableWatch, SessionError> {
        let mut place = self.used(id)?;
        let Place { record, watchers, .. } = &mut *place;
        let (watcher, watch) = Watcher::start(&self.limits, id, record, identifiers, initial)?;
        watchers.get_or_insert_default().add(watcher, self.limits.max_watches)?;
        Ok(watch)
    }

    async fn variable(&self, id: &SessionId, identifier: &str) -> Result<Variable, SessionError> {
        Ok(self.used(id)?.record.variable(id, identifier)?.variable.clone())
    }

    async fn set_variable(&self, id: &SessionId, update: SetVariable) -> Result<u32, SessionError> {
        let more = size_of_version(&update.value, &update.note);
        self.change(id, more, |Place { record, watchers, .. }, room| {
            let changed = record.set(room, update)?;
            tell(watchers, UpdateKind::Set, changed);
            Ok(changed.variable.version)
        })
    }

    async fn stats(&self) -> Result<SessionStats, SessionError> {
        let Counters { created, deleted, expired, sweeps, variables, programs } = &self.counters;
        let count = |counter: &AtomicUsize| counter.load(Relaxed) as u64;
        Ok(SessionStats {
            created: created.load(Relaxed),
            deleted: deleted.load(Relaxed),
            expired: expired.load(Relaxed),
            sweeps: sweeps.load(Relaxed),
            live: count(&self.count),
            variables: count(variables),
            programs: count(programs) + self.globals().len() as u64,
            bytes: count(&self.bytes),
        })
    }

    fn subscribe(&self) -> SessionEvents {
        self.events.subscribe()
    }

    async fn sweep(&self) -> Result<usize, SessionError> {
        self.counters.sweeps.fetch_add(1, Relaxed);
        Ok(self.reclaim())
    }
}

#[cfg(test)]
mod tests;
