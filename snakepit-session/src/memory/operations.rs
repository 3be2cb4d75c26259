//! The implementation of `SessionBackend`. Each operation locks its session.

use std::{
    ops::Bound,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use async_trait::async_trait;
use dashmap::Entry;

use super::{Counters, MemoryBackend, SessionEntry, notify};
use crate::{
    Batch, Created, NewSession, NewVariable, Note, Page, PageRequest, Payload, Program, ProgramInfo,
    ProgramName, ProgramOwner, Session, SessionBackend, SessionError, SessionEventKind, SessionEvents,
    SessionId, SessionStats, SetVariable, UpdateKind, Variable, VariableName, VariableVersion, VariableWatch,
    Watcher,
    kit::{
        CheckedValue, PreparedWrite, WritePreparation, matches_pattern, max_write_size, size_of_metadata,
        size_of_program, variable_not_found,
    },
};

impl MemoryBackend {
    /// Returns the next ids in order. Some of the sessions may have expired.
    fn ids_after(&self, after: Option<&SessionId>, limit: usize) -> Vec<SessionId> {
        let first = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.index().ids.range::<SessionId, _>((first, Bound::Unbounded)).take(limit).cloned().collect()
    }

    /// Runs expensive checks before the session is locked.
    async fn prepare(&self, id: &SessionId, updates: Vec<SetVariable>) -> Vec<PreparedWrite> {
        if !WritePreparation::is_needed(&updates) {
            return updates.into_iter().map(PreparedWrite::from).collect();
        }
        let entry = self.entry(id).ok();
        let record = entry.as_ref().map(|(entry, _)| &entry.record);
        let preparation = WritePreparation::of(&self.limits, record, updates);
        drop(entry);
        preparation.prepare().await
    }
}

#[async_trait]
impl SessionBackend for MemoryBackend {
    async fn create(&self, id: &SessionId, new: NewSession) -> Result<(Session, Created), SessionError> {
        self.limits.check_new(id, &new)?;
        if let Some(found) = self.find_or_create(id, &new, false) {
            return Ok(found);
        }
        // Reclaim expired sessions before rejecting.
        while !self.reserve_session() {
            // Yield regularly, because many sessions may expire together.
            if self.reclaim_some().is_none() {
                return Err(SessionError::TooManySessions { limit: self.limits.max_sessions });
            }
            tokio::task::yield_now().await;
        }
        let size = size_of_metadata(&new.metadata);
        self.reclaim_for(size).await;
        if let Err(full) = self.resize(0, size) {
            self.count.fetch_sub(1, Relaxed);
            return Err(full);
        }
        match self.find_or_create(id, &new, true) {
            Some(found) => Ok(found),
            None => Err(SessionError::backend("a session with reserved space was not created")),
        }
    }

    async fn get(&self, id: &SessionId) -> Result<Session, SessionError> {
        let (entry, now) = self.entry(id)?;
        entry.renew(now);
        Ok(entry.snapshot(id, now))
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
        let mut index = self.index();
        index.due.remove(&(entry.get().indexed_expiry, id.clone()));
        index.ids.remove(id);
        drop(index);
        self.retire(id, entry.get(), SessionEventKind::Deleted);
        entry.remove();
        Ok(session)
    }

    async fn list(&self, page: PageRequest) -> Result<Page<Session>, SessionError> {
        let (size, after) = page.parse()?;
        let (mut items, mut last): (Vec<Session>, _) = (Vec::new(), after);
        loop {
            // Request one more id, which shows whether there is another page.
            let wanted = size + 1 - items.len();
            let ids = self.ids_after(last.as_ref(), wanted);
            items.extend(ids.iter().filter_map(|id| {
                let (entry, now) = self.entry(id).ok()?;
                Some(entry.snapshot(id, now))
            }));
            if ids.len() < wanted || items.len() > size {
                break;
            }
            // Some sessions have expired, so the page is not full.
            last = ids.into_iter().next_back();
            tokio::task::yield_now().await;
        }
        let has_more = items.len() > size;
        items.truncate(size);
        let next = items.last().filter(|_| has_more).map(|last| last.id.to_string());
        Ok(Page { items, next })
    }

    async fn set_last_worker(&self, id: &SessionId, worker: Arc<str>) -> Result<(), SessionError> {
        self.entry_mut(id)?.0.record.header.last_worker = Some(worker);
        Ok(())
    }

    async fn put_program(
        &self,
        owner: &ProgramOwner,
        name: &ProgramName,
        program: Program,
    ) -> Result<Created, SessionError> {
        let max_growth = size_of_program(name, &program);
        let ProgramOwner::Session(id) = owner else {
            self.reclaim_for(max_growth).await;
            let resize = |from, to| self.resize(from, to);
            return self.globals().put(&self.limits, name, program, resize);
        };
        self.change(id, max_growth, |entry, size_guard| {
            let created = entry.record.put_program(size_guard, name, program)?;
            self.counters.programs.fetch_add(usize::from(created == Created::New), Relaxed);
            Ok(created)
        })
        .await
    }

    async fn program(&self, owner: &ProgramOwner, name: &ProgramName) -> Result<Program, SessionError> {
        match owner {
            ProgramOwner::Session(id) => self.touch(id)?.record.program(id, name),
            ProgramOwner::Global => self.globals().program(name),
        }
    }

    async fn programs(&self, owner: &ProgramOwner) -> Result<Vec<ProgramInfo>, SessionError> {
        Ok(match owner {
            ProgramOwner::Session(id) => {
                self.touch(id)?.record.programs.values().map(|program| program.info.clone()).collect()
            }
            ProgramOwner::Global => self.globals().list(),
        })
    }

    async fn delete_program(&self, owner: &ProgramOwner, name: &ProgramName) -> Result<(), SessionError> {
        let ProgramOwner::Session(id) = owner else {
            let freed_bytes = self.globals().delete(name)?;
            self.bytes.fetch_sub(freed_bytes, Relaxed);
            return Ok(());
        };
        self.change(id, 0, |entry, size_guard| {
            entry.record.delete_program(size_guard, name)?;
            self.counters.programs.fetch_sub(1, Relaxed);
            Ok(())
        })
        .await
    }

    async fn register_variable(
        &self,
        id: &SessionId,
        name: &VariableName,
        new: NewVariable,
    ) -> Result<Variable, SessionError> {
        // An upper bound for the name and the id, which contains the name.
        let names_size = 3 * VariableName::MAX_BYTES;
        let max_growth = max_write_size(&new.value, &new.note) + new.ty.constraints_json().len() + names_size;
        let checked = CheckedValue::for_new_variable(&self.limits, &new).await;
        self.change(id, max_growth, |SessionEntry { record, watchers, .. }, size_guard| {
            let registered = record.register(size_guard, name, new, checked)?;
            self.counters.variables.fetch_add(1, Relaxed);
            notify(watchers, UpdateKind::Registered, registered);
            Ok(registered.variable.clone())
        })
        .await
    }

    async fn variables(
        &self,
        id: &SessionId,
        identifiers: &[&str],
    ) -> Result<Vec<Option<Variable>>, SessionError> {
        self.limits.check_names(identifiers.len())?;
        let entry = self.touch(id)?;
        let find = |identifier: &&str| Some(entry.record.find(identifier)?.variable.clone());
        Ok(identifiers.iter().map(find).collect())
    }

    async fn set_variables(
        &self,
        id: &SessionId,
        updates: Vec<SetVariable>,
        batch: Batch,
    ) -> Result<Vec<Result<u32, SessionError>>, SessionError> {
        self.limits.check_names(updates.len())?;
        let max_growth = updates.iter().map(|update| max_write_size(&update.value, &update.note)).sum();
        let updates = self.prepare(id, updates).await;
        self.change(id, max_growth, |SessionEntry { record, watchers, .. }, size_guard| {
            record.set_batch(size_guard, updates, batch, |changed| notify(watchers, UpdateKind::Set, changed))
        })
        .await
    }

    async fn list_variables(&self, id: &SessionId, pattern: &str) -> Result<Vec<Variable>, SessionError> {
        let entry = self.touch(id)?;
        let variables = entry.record.variables.values().map(|record| &record.variable);
        Ok(variables.filter(|variable| matches_pattern(pattern, variable.name.as_str())).cloned().collect())
    }

    async fn delete_variable(&self, id: &SessionId, identifier: &str) -> Result<Variable, SessionError> {
        self.change(id, 0, |SessionEntry { record, watchers, .. }, size_guard| {
            let deleted = record.delete_variable(size_guard, identifier)?;
            self.counters.variables.fetch_sub(1, Relaxed);
            notify(watchers, UpdateKind::Deleted, &deleted);
            Ok(deleted.variable)
        })
        .await
    }

    async fn delete_variables(
        &self,
        id: &SessionId,
        identifiers: &[&str],
    ) -> Result<Vec<Option<Variable>>, SessionError> {
        self.limits.check_names(identifiers.len())?;
        self.change(id, 0, |SessionEntry { record, watchers, .. }, size_guard| {
            record.delete_variables(size_guard, identifiers, |deleted| {
                self.counters.variables.fetch_sub(1, Relaxed);
                notify(watchers, UpdateKind::Deleted, deleted);
            })
        })
        .await
    }

    async fn variable_history(
        &self,
        id: &SessionId,
        identifier: &str,
        limit: usize,
    ) -> Result<Vec<VariableVersion>, SessionError> {
        Ok(self.touch(id)?.record.variable(id, identifier)?.history(limit).collect())
    }

    async fn rollback_variable(
        &self,
        id: &SessionId,
        identifier: &str,
        version: u32,
        note: Note,
    ) -> Result<Variable, SessionError> {
        // The size of the earlier value is not known before the session is locked, so use its limit.
        let max_growth = self.limits.max_value_bytes.saturating_add(max_write_size(&Payload::null(), &note));
        self.change(id, max_growth, |SessionEntry { record, watchers, .. }, size_guard| {
            let changed = record.rollback(size_guard, identifier, version, note)?;
            notify(watchers, UpdateKind::RolledBack, changed);
            Ok(changed.variable.clone())
        })
        .await
    }

    async fn watch_variables(
        &self,
        id: &SessionId,
        identifiers: &[String],
        initial: bool,
    ) -> Result<VariableWatch, SessionError> {
        self.limits.check_names(identifiers.len())?;
        let mut entry = self.touch_mut(id)?;
        let SessionEntry { record, watchers, .. } = &mut **entry;
        let (watcher, watch) = Watcher::for_record(&self.limits, id, record, identifiers, initial)?;
        watchers.get_or_insert_default().add(watcher, self.limits.max_watches)?;
        Ok(watch)
    }

    async fn variable(&self, id: &SessionId, identifier: &str) -> Result<Variable, SessionError> {
        Ok(self.touch(id)?.record.variable(id, identifier)?.variable.clone())
    }

    async fn set_variable(&self, id: &SessionId, update: SetVariable) -> Result<u32, SessionError> {
        if WritePreparation::is_needed([&update]) {
            let identifier = update.identifier.clone();
            let results = self.set_variables(id, vec![update], Batch::Each).await?;
            return results.into_iter().next().unwrap_or_else(|| Err(variable_not_found(id, &identifier)));
        }
        let max_growth = max_write_size(&update.value, &update.note);
        self.change(id, max_growth, |SessionEntry { record, watchers, .. }, size_guard| {
            let changed = record.set(size_guard, update)?;
            notify(watchers, UpdateKind::Set, changed);
            Ok(changed.variable.version)
        })
        .await
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
        while let Some(reclaimed) = self.reclaim_some() {
            expired += reclaimed;
            // Yield regularly, because many sessions may expire together.
            tokio::task::yield_now().await;
        }
        Ok(expired)
    }
}
