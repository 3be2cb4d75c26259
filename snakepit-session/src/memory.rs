//! The default backend: sessions in this process, in a concurrent map, with a queue of what expires next.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use dashmap::{DashMap, Entry, mapref::one::RefMut};
use tokio::time::Instant;

use crate::{
    Created, NewSession, Page, PageRequest, Program, ProgramInfo, ProgramName, Session, SessionBackend,
    SessionError, SessionId,
};

mod limits;

use limits::{size_of_metadata, size_of_program};

/// TTLs above this are cut to it: a century is forever, and fits every clock.
const MAX_TTL: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
const DEFAULT_PAGE: usize = 100;
const MAX_PAGE: usize = 1000;

/// Limits and defaults of a [`MemoryBackend`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryConfig {
    /// TTL of sessions whose creator names none. One hour by default.
    pub default_ttl: Duration,
    /// The most sessions at a time. A million by default.
    pub max_sessions: usize,
    /// The largest program, in bytes. 64 MiB by default.
    pub max_program_bytes: usize,
    /// The most programs in one session. 1000 by default.
    pub max_programs: usize,
    /// What one session may hold in all, in bytes: its programs, with their names and metadata, and its own metadata.
    /// 256 MiB by default.
    pub max_session_bytes: usize,
    /// What all sessions may hold together, in bytes, counted the same way. 4 GiB by default.
    pub max_total_bytes: usize,
    /// The most entries in the metadata of a session, or of a program. 1000 by default.
    pub max_metadata_entries: usize,
    /// How long all names and values of such metadata may be together, in bytes. 1 MiB by default.
    pub max_metadata_bytes: usize,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self {
            default_ttl: Duration::from_secs(3600),
            max_sessions: 1_000_000,
            max_program_bytes: 64 * 1024 * 1024,
            max_programs: 1000,
            max_session_bytes: 256 * 1024 * 1024,
            max_total_bytes: usize::try_from(4_u64 << 30).unwrap_or(usize::MAX),
            max_metadata_entries: 1000,
            max_metadata_bytes: 1024 * 1024,
        }
    }
}

/// Sessions in this process: gone when it ends.
#[derive(Debug)]
pub struct MemoryBackend {
    config: MemoryConfig,
    sessions: DashMap<SessionId, Record>,
    /// How many records there are, counted before they are made so that racing creators cannot pass the limit.
    count: AtomicUsize,
    /// The bytes of all records, counted before they are kept for the same reason.
    bytes: AtomicUsize,
    /// Every record once, under the time it was last known to expire. Use does not move it: a record that turns out to
    /// live longer when its time comes is queued again, so a sweep costs by what surfaces and not by what lives.
    /// Locked after the record, never before it.
    expiry: Mutex<BTreeSet<(Instant, SessionId)>>,
}

#[derive(Debug)]
struct Record {
    metadata: Arc<BTreeMap<String, String>>,
    created_at: SystemTime,
    ttl: Duration,
    expires: Instant,
    /// Where the record stands in the expiry queue.
    queued: Instant,
    programs: BTreeMap<ProgramName, Program>,
    /// The size of all programs and all metadata.
    bytes: usize,
    last_worker: Option<Arc<str>>,
}

impl Record {
    fn new(new: NewSession, default_ttl: Duration) -> Self {
        let ttl = new.ttl.unwrap_or(default_ttl).min(MAX_TTL);
        let expires = Instant::now() + ttl;
        Self {
            bytes: size_of_metadata(&new.metadata),
            metadata: Arc::new(new.metadata),
            created_at: SystemTime::now(),
            ttl,
            expires,
            queued: expires,
            programs: BTreeMap::new(),
            last_worker: None,
        }
    }

    fn is_expired(&self) -> bool {
        self.expires <= Instant::now()
    }

    fn renew(&mut self) {
        self.expires = Instant::now() + self.ttl;
    }

    fn snapshot(&self, id: &SessionId) -> Session {
        let left = self.expires.saturating_duration_since(Instant::now());
        Session {
            id: id.clone(),
            metadata: Arc::clone(&self.metadata),
            created_at: self.created_at,
            expires_at: SystemTime::now() + left,
            ttl: self.ttl,
            program_count: self.programs.len(),
            last_worker: self.last_worker.clone(),
        }
    }
}

impl MemoryBackend {
    /// A backend without sessions.
    #[must_use]
    pub fn new(config: MemoryConfig) -> Self {
        Self {
            config,
            sessions: DashMap::new(),
            count: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            expiry: Mutex::new(BTreeSet::new()),
        }
    }

    fn queue(&self) -> MutexGuard<'_, BTreeSet<(Instant, SessionId)>> {
        self.expiry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The live record of this id, locked.
    fn record(&self, id: &SessionId) -> Result<RefMut<'_, SessionId, Record>, SessionError> {
        match self.sessions.get_mut(id) {
            Some(record) if !record.is_expired() => Ok(record),
            _ => Err(SessionError::NotFound { id: id.clone() }),
        }
    }

    /// The live record of this id, locked and renewed.
    fn used(&self, id: &SessionId) -> Result<RefMut<'_, SessionId, Record>, SessionError> {
        let mut record = self.record(id)?;
        record.renew();
        Ok(record)
    }

    /// Claims room for one more record; false when there is none.
    fn claim(&self) -> bool {
        let limit = self.config.max_sessions;
        let add = |count| (count < limit).then_some(count + 1);
        self.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok()
    }

    /// Claims room for so many more bytes.
    ///
    /// # Errors
    /// [`SessionError::BackendFull`].
    fn claim_bytes(&self, more: usize) -> Result<(), SessionError> {
        let limit = self.config.max_total_bytes;
        let add = |held: usize| held.checked_add(more).filter(|size| *size <= limit);
        let claimed = self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        claimed.map(drop).map_err(|held| SessionError::BackendFull { size: held.saturating_add(more), limit })
    }

    /// Gives back what a record held.
    fn release_bytes(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Gives back the room of a record.
    fn release(&self, record: &Record) {
        self.count.fetch_sub(1, Ordering::Relaxed);
        self.release_bytes(record.bytes);
    }

    /// Does something that claims bytes. Expired sessions do not count: what they hold is reclaimed before anybody is
    /// refused. No record may be locked meanwhile.
    fn with_room<T>(&self, act: impl Fn() -> Result<T, SessionError>) -> Result<T, SessionError> {
        match act() {
            Err(SessionError::BackendFull { .. }) if self.reclaim() > 0 => act(),
            outcome => outcome,
        }
    }

    /// Returns the session of this id if it lives, or makes it in room claimed before. `None`: it must be made, and
    /// no room was claimed.
    fn find_or_make(&self, id: &SessionId, new: &NewSession, claimed: bool) -> Option<(Session, Created)> {
        match self.sessions.entry(id.clone()) {
            Entry::Occupied(mut entry) if !entry.get().is_expired() => {
                if claimed {
                    self.count.fetch_sub(1, Ordering::Relaxed);
                    self.release_bytes(size_of_metadata(&new.metadata));
                }
                entry.get_mut().renew();
                Some((entry.get().snapshot(id), Created::Existing))
            }
            Entry::Occupied(_) if !claimed => None,
            // The record of an expired session gives its room back to the new one.
            Entry::Occupied(mut entry) => {
                let fresh = Record::new(new.clone(), self.config.default_ttl);
                let (queued, session) = (fresh.queued, fresh.snapshot(id));
                let old = entry.insert(fresh);
                self.release(&old);
                let mut queue = self.queue();
                queue.remove(&(old.queued, id.clone()));
                queue.insert((queued, id.clone()));
                Some((session, Created::New))
            }
            Entry::Vacant(_) if !claimed => None,
            Entry::Vacant(entry) => {
                let fresh = Record::new(new.clone(), self.config.default_ttl);
                let (queued, session) = (fresh.queued, fresh.snapshot(id));
                let _locked = entry.insert(fresh);
                self.queue().insert((queued, id.clone()));
                Some((session, Created::New))
            }
        }
    }

    /// Reclaims what expired; returns how many sessions that were.
    fn reclaim(&self) -> usize {
        let now = Instant::now();
        let mut expired = 0;
        loop {
            // The queue is released before the record is locked: everybody else locks them the other way round.
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
            if entry.get().is_expired() {
                drop(queue);
                self.release(&entry.remove());
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
        self.config.check_new(id, &new)?;
        if let Some(found) = self.find_or_make(id, &new, false) {
            return Ok(found);
        }
        // Expired sessions do not count, so their room is reclaimed before anybody is refused.
        if !self.claim() && (self.reclaim() == 0 || !self.claim()) {
            return Err(SessionError::TooManySessions { limit: self.config.max_sessions });
        }
        if let Err(full) = self.with_room(|| self.claim_bytes(size_of_metadata(&new.metadata))) {
            self.count.fetch_sub(1, Ordering::Relaxed);
            return Err(full);
        }
        match self.find_or_make(id, &new, true) {
            Some(found) => Ok(found),
            None => Err(SessionError::Backend { problem: "room was claimed but not used".to_owned() }),
        }
    }

    async fn get(&self, id: &SessionId) -> Result<Session, SessionError> {
        Ok(self.used(id)?.snapshot(id))
    }

    async fn delete(&self, id: &SessionId) -> Result<Session, SessionError> {
        let Entry::Occupied(entry) = self.sessions.entry(id.clone()) else {
            return Err(SessionError::NotFound { id: id.clone() });
        };
        if entry.get().is_expired() {
            return Err(SessionError::NotFound { id: id.clone() });
        }
        let session = entry.get().snapshot(id);
        self.queue().remove(&(entry.get().queued, id.clone()));
        self.release(&entry.remove());
        Ok(session)
    }

    async fn list(&self, page: PageRequest) -> Result<Page<Session>, SessionError> {
        let size = match page.size {
            0 => DEFAULT_PAGE,
            size => size.min(MAX_PAGE),
        };
        // A token is the last id of the page before it.
        let after =
            page.token.map(|token| SessionId::try_new(token).map_err(|_| SessionError::InvalidPageToken));
        let after = after.transpose()?;
        // The ids of this page are the smallest above the token: kept as a bounded set, so a page of a million
        // sessions costs one pass and the memory of one page.
        let mut ids = BTreeSet::new();
        for record in self.sessions.iter().filter(|record| !record.is_expired()) {
            if after.as_ref().is_none_or(|after| record.key() > after) {
                ids.insert(record.key().clone());
                if ids.len() > size + 1 {
                    ids.pop_last();
                }
            }
        }
        let more = ids.len() > size;
        let snapshot = |id: &SessionId| self.record(id).ok().map(|record| record.snapshot(id));
        let items: Vec<_> = ids.iter().take(size).filter_map(snapshot).collect();
        let next = more.then(|| ids.iter().nth(size - 1).map(ToString::to_string)).flatten();
        Ok(Page { items, next })
    }

    async fn set_last_worker(&self, id: &SessionId, worker: Arc<str>) -> Result<(), SessionError> {
        self.record(id)?.last_worker = Some(worker);
        Ok(())
    }

    async fn put_program(
        &self,
        id: &SessionId,
        name: &ProgramName,
        program: Program,
    ) -> Result<Created, SessionError> {
        self.config.check_program(name, &program)?;
        let program = Program { updated_at: SystemTime::now(), ..program };
        // A clone of a program shares its data.
        self.with_room(|| {
            let mut record = self.used(id)?;
            let size = self.config.size_with(id, &record, name, &program)?;
            self.claim_bytes(size.saturating_sub(record.bytes))?;
            self.release_bytes(record.bytes.saturating_sub(size));
            record.bytes = size;
            let replaced = record.programs.insert(name.clone(), program.clone());
            Ok(if replaced.is_some() { Created::Existing } else { Created::New })
        })
    }

    async fn program(&self, id: &SessionId, name: &ProgramName) -> Result<Program, SessionError> {
        self.used(id)?.programs.get(name).cloned().ok_or_else(|| no_program(id, name))
    }

    async fn programs(&self, id: &SessionId) -> Result<Vec<ProgramInfo>, SessionError> {
        let describe = |(name, program): (&ProgramName, &Program)| ProgramInfo {
            name: name.clone(),
            size: program.data.len(),
            content_type: program.content_type.clone(),
            metadata: program.metadata.clone(),
            updated_at: program.updated_at,
        };
        Ok(self.used(id)?.programs.iter().map(describe).collect())
    }

    async fn delete_program(&self, id: &SessionId, name: &ProgramName) -> Result<(), SessionError> {
        let mut record = self.used(id)?;
        let program = record.programs.remove(name).ok_or_else(|| no_program(id, name))?;
        let freed = size_of_program(name, &program);
        record.bytes -= freed;
        self.release_bytes(freed);
        Ok(())
    }

    async fn sweep(&self) -> Result<usize, SessionError> {
        Ok(self.reclaim())
    }
}

fn no_program(id: &SessionId, name: &ProgramName) -> SessionError {
    SessionError::ProgramNotFound { session: id.clone(), name: name.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> SessionId {
        SessionId::try_new(text).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn memory_keeps_the_contract() {
        let config = MemoryConfig { max_program_bytes: 1024, ..MemoryConfig::default() };
        let make = || async { MemoryBackend::new(config.clone()) };
        crate::contract::session_backend_contract(make, tokio::time::advance).await;
    }

    #[tokio::test(start_paused = true)]
    async fn room_is_exact_and_expired_sessions_give_theirs_back() {
        let backend = MemoryBackend::new(MemoryConfig { max_sessions: 2, ..MemoryConfig::default() });
        let short = NewSession { ttl: Some(Duration::from_secs(1)), ..NewSession::default() };
        backend.create(&id("a"), short).await.unwrap();
        backend.create(&id("b"), NewSession::default()).await.unwrap();
        backend.create(&id("b"), NewSession::default()).await.unwrap();
        let refused = backend.create(&id("c"), NewSession::default()).await.unwrap_err();
        assert_eq!(refused, SessionError::TooManySessions { limit: 2 });
        tokio::time::advance(Duration::from_secs(1)).await;
        backend.create(&id("c"), NewSession::default()).await.unwrap();
        backend.delete(&id("c")).await.unwrap();
        backend.create(&id("d"), NewSession::default()).await.unwrap();
        assert_eq!(backend.count.load(Ordering::Relaxed), backend.sessions.len());
        assert_eq!(backend.queue().len(), backend.sessions.len());
    }

    #[tokio::test(start_paused = true)]
    async fn the_bytes_of_all_sessions_are_counted_exactly() {
        let backend = MemoryBackend::new(MemoryConfig { max_total_bytes: 100, ..MemoryConfig::default() });
        let held = || backend.bytes.load(Ordering::Relaxed);
        let name = ProgramName::try_new("p").unwrap();
        // A program takes one byte for its name and one for its type; this metadata takes ten.
        let program = |bytes: usize| Program::new("x".repeat(bytes), "t");
        let new = |ttl: u64| NewSession {
            metadata: BTreeMap::from([("name".to_owned(), "123456".to_owned())]),
            ttl: Some(Duration::from_secs(ttl)),
        };
        backend.create(&id("short"), new(10)).await.unwrap();
        backend.create(&id("short"), new(10)).await.unwrap();
        backend.create(&id("long"), new(1000)).await.unwrap();
        assert_eq!(held(), 20, "a session that lives is not made again");
        backend.put_program(&id("short"), &name, program(48)).await.unwrap();
        backend.put_program(&id("long"), &name, program(28)).await.unwrap();
        assert_eq!(held(), 100);
        let full = SessionError::BackendFull { size: 101, limit: 100 };
        assert_eq!(backend.put_program(&id("long"), &name, program(29)).await.unwrap_err(), full);
        let refused = backend.create(&id("third"), new(10)).await.unwrap_err();
        assert_eq!(refused, SessionError::BackendFull { size: 110, limit: 100 });
        assert_eq!(backend.count.load(Ordering::Relaxed), 2, "what is refused takes no room");
        backend.put_program(&id("long"), &name, program(8)).await.unwrap();
        assert_eq!(held(), 80);
        tokio::time::advance(Duration::from_secs(10)).await;
        // The expired session's 60 bytes are free once they are needed.
        backend.put_program(&id("long"), &name, program(88)).await.unwrap();
        assert_eq!(held(), 100);
        backend.delete_program(&id("long"), &name).await.unwrap();
        assert_eq!(held(), 10);
        backend.create(&id("short"), new(10)).await.unwrap();
        tokio::time::advance(Duration::from_secs(10)).await;
        backend.create(&id("short"), new(10)).await.unwrap();
        assert_eq!(held(), 20, "the expired session gave its bytes to the one of its name");
        backend.delete(&id("long")).await.unwrap();
        backend.delete(&id("short")).await.unwrap();
        assert_eq!((held(), backend.count.load(Ordering::Relaxed)), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_sweep_touches_only_what_is_due() {
        let backend = MemoryBackend::new(MemoryConfig::default());
        for n in 0..100 {
            backend.create(&id(&format!("long-{n}")), NewSession::default()).await.unwrap();
        }
        let short = NewSession { ttl: Some(Duration::from_secs(5)), ..NewSession::default() };
        backend.create(&id("used"), short.clone()).await.unwrap();
        backend.create(&id("idle"), short).await.unwrap();
        tokio::time::advance(Duration::from_secs(3)).await;
        backend.get(&id("used")).await.unwrap();
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(backend.sweep().await.unwrap(), 1, "only the idle one expired");
        assert_eq!(backend.queue().first().unwrap().1, id("used"), "the used one is queued anew");
        assert_eq!(backend.queue().len(), 101);
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(backend.sweep().await.unwrap(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_ttl_beyond_all_clocks_is_forever() {
        let backend = MemoryBackend::new(MemoryConfig::default());
        let forever = NewSession { ttl: Some(Duration::MAX), ..NewSession::default() };
        let (session, _) = backend.create(&id("s"), forever).await.unwrap();
        assert_eq!(session.ttl, MAX_TTL);
    }
}
