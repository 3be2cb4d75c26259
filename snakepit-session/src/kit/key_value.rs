//! A session backend over any ordered key-value store with atomic commits. The store only reads and writes rows.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::time::Instant;

use super::Watchers;
use crate::{
    ProgramName, SessionError, SessionEventKind, SessionEventSender, SessionId, SessionLimits, SessionStats,
};

mod backend;
mod rows;

use rows::{GLOBAL, Rows, Table, Writes};

/// An error of a [`KeyValueStore`]. Every error type converts with `?`.
pub type StoreError = Box<dyn std::error::Error + Send + Sync>;

/// The writes of one commit, in order: a key with its new value, or with `None` to delete the key.
pub type StoreWrites = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// An ordered key-value store with atomic commits, for a [`KeyValueBackend`].
///
/// The backend calls one method at a time, on the thread of the caller and under its lock. The methods may block for as
/// long as a local store usually takes. They must not panic, and must not call the backend.
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
/// - Expiry times are in memory, so a renewal does not write. A restart renews each session and each global program, and resets
///   the counters of created, deleted and expired sessions.
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
        let mut state = State {
            rows: Rows::new(store),
            sessions: BTreeMap::new(),
            globals: BTreeMap::new(),
            earliest_expiry: None,
            watchers: HashMap::new(),
            stats: SessionStats::default(),
        };
        let now = Instant::now();
        for (id, header) in state.rows.headers()? {
            state.stats.live += 1;
            state.stats.bytes += header.bytes as u64;
            state.stats.variables += header.variables as u64;
            state.stats.programs += header.programs as u64;
            state.renew_session(&id, now + header.ttl);
        }
        for info in state.rows.program_infos(GLOBAL)? {
            let program = super::ProgramRecord { info, data: bytes::Bytes::new() };
            state.stats.bytes += program.size() as u64;
            state.stats.programs += 1;
            state.renew_global(&program.info.name, now + program.info.ttl.unwrap_or_default());
        }
        Ok(Self { limits, events: SessionEventSender::new(), state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, State<S>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Deletes expired sessions and global programs, so that they do not count against the limits. Returns the number
    /// of sessions.
    fn reclaim(&self, state: &mut State<S>) -> Result<usize, SessionError> {
        let now = Instant::now();
        if state.earliest_expiry.is_none_or(|earliest| now < earliest) {
            return Ok(0);
        }
        let is_expired = |expires_at: &Instant| *expires_at <= now;
        let sessions: Vec<_> =
            state.sessions.iter().filter(|(_, at)| is_expired(at)).map(|(id, _)| id.clone()).collect();
        let globals: Vec<_> =
            state.globals.iter().filter(|(_, at)| is_expired(at)).map(|(name, _)| name.clone()).collect();
        for id in &sessions {
            state.delete_session(id)?;
            state.stats.expired += 1;
            self.events.notify(id, SessionEventKind::Expired);
        }
        for name in &globals {
            state.delete_global(name)?;
        }
        state.earliest_expiry = state.sessions.values().chain(state.globals.values()).min().copied();
        Ok(sessions.len())
    }

    /// Returns the total after the size of one part changes, or an error above the limit of the backend.
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
