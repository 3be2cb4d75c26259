//! The operations of the trait, each on a session that is locked meanwhile.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use async_trait::async_trait;
use dashmap::Entry;

use super::{Counters, MemoryBackend, Place, tell};
use crate::{
    Batch, Created, NewSession, NewVariable, Note, Page, PageRequest, Payload, Program, ProgramInfo,
    ProgramName, ProgramOwner, Session, SessionBackend, SessionError, SessionEventKind, SessionEvents,
    SessionId, SessionStats, SetVariable, UpdateKind, Variable, VariableName, VariableVersion, VariableWatch,
    limits::{most_of_write, size_of_metadata, size_of_program},
    record::is_like,
    watch::Watcher,
};

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
        let (place, now) = self.place(id)?;
        place.renew(now);
        Ok(place.snapshot(id, now))
    }

    async fn delete(&self, id: &SessionId) -> Result<Session, SessionError> {
        let Entry::Occupied(entry) = self.sessions.entry(id.clone()) else {
            return Err(SessionError::NotFound { id: id.clone() });
        };
        let now = self.now();
        if entry.get().is_expired(now) {
            return Err(SessionError::NotFound { id: id.clone() });
        }
        let session = entry.get().snapshot(id, now);
        self.queue().remove(&(entry.get().queued, id.clone()));
        self.retire(id, entry.get(), SessionEventKind::Deleted);
        entry.remove();
        Ok(session)
    }

    async fn list(&self, page: PageRequest) -> Result<Page<Session>, SessionError> {
        let (size, after) = page.parse()?;
        // The ids of this page are the smallest above the token: kept as a bounded set, so a page of a million
        // sessions costs one pass and the memory of one page.
        let mut ids = BTreeSet::new();
        let now = self.now();
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
        self.place_mut(id)?.0.record.head.last_worker = Some(worker);
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
        // The name is in the id, too.
        let names = 3 * VariableName::MAX_BYTES;
        let more = most_of_write(&new.value, &new.note) + new.ty.constraints_json().len() + names;
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
        let more = updates.iter().map(|update| most_of_write(&update.value, &update.note)).sum();
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
        let more = self.limits.max_value_bytes.saturating_add(most_of_write(&Payload::null(), &note));
        self.change(id, more, |Place { record, watchers, .. }, room| {
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
        let mut place = self.used_mut(id)?;
        let Place { record, watchers, .. } = &mut **place;
        let (watcher, watch) = Watcher::of_record(&self.limits, id, record, identifiers, initial)?;
        watchers.get_or_insert_default().add(watcher, self.limits.max_watches)?;
        Ok(watch)
    }

    async fn variable(&self, id: &SessionId, identifier: &str) -> Result<Variable, SessionError> {
        Ok(self.used(id)?.record.variable(id, identifier)?.variable.clone())
    }

    async fn set_variable(&self, id: &SessionId, update: SetVariable) -> Result<u32, SessionError> {
        let more = most_of_write(&update.value, &update.note);
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
        self.reclaim_globals();
        let mut expired = 0;
        while let Some(some) = self.reclaim_some() {
            expired += some;
            // However many expire at once, others get their turn.
            tokio::task::yield_now().await;
        }
        Ok(expired)
    }
}
