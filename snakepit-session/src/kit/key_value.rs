//! A session backend over any ordered key-value store with atomic commits. The store only reads and writes rows.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

use super::Watchers;
use crate::{
    ProgramName, SessionError, SessionEventKind, SessionEventSender, SessionId, SessionLimits, SessionStats,
    error_chain,
};

mod backend;
mod rows;

use rows::{GLOBAL, Rows, Table, Writes};

/// The time after which the backend retries the deletion of expired rows.
const RETRY_PAUSE: Duration = Duration::from_secs(5);

/// The maximum number of expiry times in one commit, so that other operations do not wait for all of them.
const EXPIRIES_PER_COMMIT: usize = 256;

/// An error of a [`KeyValueStore`]. Every error type converts with `?`.
pub type StoreError = Box<dyn std::error::Error + Send + Sync>;

/// The writes of one commit, in order: a key with its new value, or with `None` to delete the key.
pub type StoreWrites = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// An ordered key-value store with atomic commits, for a [`KeyValueBackend`].
///
/// The backend calls one method at a time, under its lock and on the thread of the caller, which in an async program runs
/// other tasks too. While a method runs, all other operations of the backend block their threads. A method must therefore
/// return as fast as a local store does, and must not wait for a network, for a lock that other code holds for a long time, or for the
/// backend itself. Otherwise implement [`SessionBackend`](crate::SessionBackend) with a writer thread, as `RedbBackend` does. The
/// methods must not panic.
///
/// Keys have up to 600 bytes. A value is a record, or the data of a program, up to the
/// [limits](SessionLimits::max_program_bytes) of the backend.
pub trait KeyValueStore: Send + std::fmt::Debug + 'static {
    /// Returns the value of a key, or `None` if the key does not exist.
    ///
    /// # Errors
    /// The store cannot be read.
    fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// Calls `visit` with the key and the value of each entry whose key begins with `prefix`, in ascending order of the
    /// bytes of the keys.
    ///
    /// # Errors
    /// The store cannot be read.
    fn scan(&mut self, prefix: &[u8], visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), StoreError>;

    /// Applies all of the writes, or none if it fails. When it returns, the writes are as durable as the store
    /// promises.
    ///
    /// # Errors
    /// The store cannot be written. None of the writes may become visible later.
    fn commit(&mut self, writes: StoreWrites) -> Result<(), StoreError>;
}

/// A [`SessionBackend`](crate::SessionBackend) that stores sessions in a [`KeyValueStore`].
///
/// It implements the semantics, the limits, expiry, watches, events and statistics. A store only needs three short methods. The
/// example `sqlite_backend` of this crate stores sessions in SQLite.
///
/// - One lock serializes all operations, and each change is one commit. For a store with a high latency or with concurrent
///   writers, implement `SessionBackend` directly.
/// - One process owns the store. Watches and events cover only that process.
/// - Expiry times are in memory, so that a renewal does not write. [`close`](Self::close) stores them. Without it, or after a
///   crash, each session and each global program gets its whole TTL again. At each start, the counters of created, deleted and
///   expired sessions begin at zero.
/// - If the store cannot delete an expired session, the backend logs a warning and retries after five seconds. Meanwhile, other
///   operations continue. Callers cannot see the session, but it counts towards the limits.
///
/// ```
/// use std::collections::BTreeMap;
///
/// use snakepit_session::{
///     NewSession, SessionBackend, SessionId, SessionLimits,
///     kit::{KeyValueBackend, KeyValueStore, StoreError, StoreWrites},
/// };
///
/// #[derive(Debug, Default)]
/// struct Map(BTreeMap<Vec<u8>, Vec<u8>>);
///
/// impl KeyValueStore for Map {
///     fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
///         Ok(self.0.get(key).cloned())
///     }
///
///     fn scan(&mut self, prefix: &[u8], visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), StoreError> {
///         let rows = self.0.range(prefix.to_vec()..).take_while(|(key, _)| key.starts_with(prefix));
///         rows.for_each(|(key, value)| visit(key, value));
///         Ok(())
///     }
///
///     fn commit(&mut self, writes: StoreWrites) -> Result<(), StoreError> {
///         for (key, value) in writes {
///             match value {
///                 Some(value) => drop(self.0.insert(key, value)),
///                 None => drop(self.0.remove(&key)),
///             }
///         }
///         Ok(())
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), snakepit_session::SessionError> {
/// let backend = KeyValueBackend::open(Map::default(), SessionLimits::default())?;
/// backend.create(&SessionId::try_new("alice")?, NewSession::default()).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct KeyValueBackend<S> {
    limits: SessionLimits,
    events: SessionEventSender,
    state: Mutex<State<S>>,
}

/// The rows, and the state that exists only in memory.
#[derive(Debug)]
struct State<S> {
    rows: Rows<S>,
    /// The time of the operation that holds the lock, so that all of its steps agree on which sessions are live.
    now: Instant,
    /// The expiry times of all stored sessions.
    sessions: BTreeMap<SessionId, Instant>,
    /// The expiry times of all global programs.
    globals: BTreeMap<ProgramName, Instant>,
    /// Nothing expires before this time.
    earliest_expiry: Option<Instant>,
    watchers: HashMap<SessionId, Watchers>,
    stats: SessionStats,
}

impl<S: KeyValueStore> KeyValueBackend<S> {
    /// Opens the sessions of a store, which may be empty. Reads all headers of sessions and all descriptions of global
    /// programs.
    ///
    /// # Errors
    /// [`SessionError::Backend`] if the store cannot be read, or a row is not in the format of this release or an
    /// earlier one.
    pub fn open(store: S, limits: SessionLimits) -> Result<Self, SessionError> {
        let now = Instant::now();
        let mut state = State {
            rows: Rows::new(store),
            now,
            sessions: BTreeMap::new(),
            globals: BTreeMap::new(),
            earliest_expiry: None,
            watchers: HashMap::new(),
            stats: SessionStats::default(),
        };
        let stored = state.rows.take_expiries()?;
        let expires_at = |owner: &str, name: &str, ttl| {
            let expires: Option<&SystemTime> = stored.get(&(owner.to_owned(), name.to_owned()));
            // At most the TTL, because the wall clock may have been set back.
            let remaining =
                |at: &SystemTime| at.duration_since(SystemTime::now()).unwrap_or_default().min(ttl);
            now + expires.map_or(ttl, remaining)
        };
        for (id, header) in state.rows.headers()? {
            state.stats.live += 1;
            state.stats.bytes += header.bytes as u64;
            state.stats.variables += header.variables as u64;
            state.stats.programs += header.programs as u64;
            state.renew_session(&id, expires_at(id.as_str(), "", header.ttl));
        }
        for info in state.rows.program_infos(GLOBAL)? {
            let program = super::ProgramRecord { info, data: bytes::Bytes::new() };
            state.stats.bytes += program.size() as u64;
            state.stats.programs += 1;
            let ttl = program.info.ttl.unwrap_or_default();
            state.renew_global(&program.info.name, expires_at(GLOBAL, program.info.name.as_str(), ttl));
        }
        Ok(Self { limits, events: SessionEventSender::new(), state: Mutex::new(state) })
    }

    /// Stores the expiry times of sessions and global programs, so that the next start continues with them. Call it as the last
    /// operation, for example after the shutdown of the host, because the stored times do not include later renewals.
    ///
    /// Blocks the thread while the store commits the times, in batches of up to 256. Use `spawn_blocking` if the store is slow
    /// or has many sessions. Dropping the backend stores nothing and does not block.
    ///
    /// # Errors
    /// [`SessionError::NotWritten`] if the store cannot be written. Sessions without a stored time get their whole TTL again.
    pub fn close(&self) -> Result<(), SessionError> {
        let expiries = self.lock().expiries();
        for batch in expiries.chunks(EXPIRIES_PER_COMMIT) {
            let mut writes = Writes::default();
            for (owner, name, expires) in batch {
                writes.expiry(owner, name, *expires)?;
            }
            self.lock().rows.commit(writes)?;
        }
        Ok(())
    }

    /// Locks the state for an operation, and sets its time.
    fn lock(&self) -> MutexGuard<'_, State<S>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.now = Instant::now();
        state
    }

    /// Deletes expired sessions and global programs, so that they do not count against the limits. Returns the number
    /// of deleted sessions. Sessions that the store cannot delete remain until the next attempt, so that they do not block other
    /// operations.
    fn reclaim(&self, state: &mut State<S>) -> usize {
        let now = state.now;
        if state.earliest_expiry.is_none_or(|earliest| now < earliest) {
            return 0;
        }
        let is_expired = |expires_at: &Instant| *expires_at <= now;
        let sessions: Vec<_> =
            state.sessions.iter().filter(|(_, at)| is_expired(at)).map(|(id, _)| id.clone()).collect();
        let globals: Vec<_> =
            state.globals.iter().filter(|(_, at)| is_expired(at)).map(|(name, _)| name.clone()).collect();
        let mut deleted = 0;
        for id in &sessions {
            match self.expire(state, id) {
                Ok(()) => deleted += 1,
                Err(error) => {
                    tracing::warn!(session = %id, error = %error_chain(&error), "cannot delete an expired session");
                }
            }
        }
        for name in &globals {
            if let Err(error) = state.delete_global(name) {
                let error = error_chain(&error);
                tracing::warn!(program = %name, %error, "cannot delete an expired program");
            }
        }
        let all = state.sessions.values().chain(state.globals.values());
        state.earliest_expiry = all.map(|at| if is_expired(at) { now + RETRY_PAUSE } else { *at }).min();
        deleted
    }

    /// Deletes an expired session.
    fn expire(&self, state: &mut State<S>, id: &SessionId) -> Result<(), SessionError> {
        state.delete_session(id)?;
        state.stats.expired += 1;
        self.events.notify(id, SessionEventKind::Expired);
        Ok(())
    }

    /// Returns the total after the size of one part changes, or an error if it exceeds the limit of the backend.
    fn resized(&self, total: u64, from: usize, to: usize) -> Result<u64, SessionError> {
        let (size, limit) = ((total + to as u64).saturating_sub(from as u64), self.limits.max_total_bytes);
        if to > from && size > limit as u64 {
            let size = usize::try_from(size).unwrap_or(usize::MAX);
            return Err(SessionError::BackendFull { size, limit });
        }
        Ok(size)
    }
}

impl<S: KeyValueStore> State<S> {
    fn renew_session(&mut self, id: &SessionId, expires_at: Instant) {
        self.sessions.insert(id.clone(), expires_at);
        self.note_expiry(expires_at);
    }

    fn renew_global(&mut self, name: &ProgramName, expires_at: Instant) {
        self.globals.insert(name.clone(), expires_at);
        self.note_expiry(expires_at);
    }

    fn note_expiry(&mut self, at: Instant) {
        self.earliest_expiry = Some(self.earliest_expiry.map_or(at, |earliest| earliest.min(at)));
    }

    /// The owners, names and expiry times of all sessions and global programs.
    fn expiries(&self) -> Vec<(String, String, SystemTime)> {
        let (now, wall_clock) = (self.now, SystemTime::now());
        let expires = |at: &Instant| wall_clock + at.saturating_duration_since(now);
        let sessions =
            self.sessions.iter().map(|(id, at)| (id.as_str().to_owned(), String::new(), expires(at)));
        let globals =
            self.globals.iter().map(|(name, at)| (GLOBAL.to_owned(), name.as_str().to_owned(), expires(at)));
        sessions.chain(globals).collect()
    }

    fn delete_session(&mut self, id: &SessionId) -> Result<(), SessionError> {
        let header = self.rows.header(id)?;
        let mut writes = Writes::default();
        for table in Table::OF_SESSION {
            self.rows.delete_all(table, id.as_str(), &mut writes)?;
        }
        self.rows.commit(writes)?;
        self.sessions.remove(id);
        if let Some(header) = header {
            self.stats.live -= 1;
            self.stats.bytes -= header.bytes as u64;
            self.stats.variables -= header.variables as u64;
            self.stats.programs -= header.programs as u64;
        }
        if let Some(watchers) = self.watchers.remove(id) {
            watchers.end(&SessionError::NotFound { id: id.clone() });
        }
        Ok(())
    }

    fn delete_global(&mut self, name: &ProgramName) -> Result<(), SessionError> {
        let program = self.rows.program(GLOBAL, name, false)?;
        let mut writes = Writes::default();
        writes.program(GLOBAL, name, None)?;
        self.rows.commit(writes)?;
        self.globals.remove(name);
        if let Some(program) = program {
            self.stats.bytes -= program.size() as u64;
            self.stats.programs -= 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
