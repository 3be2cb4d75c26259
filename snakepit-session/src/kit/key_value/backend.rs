//! The operations of a [`KeyValueBackend`]: each loads a record, changes it with the record kit, and commits its rows.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use async_trait::async_trait;

use super::{
    KeyValueBackend, KeyValueStore, State,
    rows::{GLOBAL, Rows, Writes},
};
use crate::{
    Batch, Created, NewSession, NewVariable, Note, Page, PageRequest, Program, ProgramInfo, ProgramName,
    ProgramOwner, Session, SessionBackend, SessionError, SessionEventKind, SessionEvents, SessionId,
    SessionStats, SetVariable, UpdateKind, Variable, VariableName, VariableUpdate, VariableVersion,
    VariableWatch, Watcher,
    kit::{
        CheckedValue, PreparedWrite, ProgramRecord, SessionHeader, SessionRecord, SizeGuard,
        WritePreparation, matches_pattern, program_not_found,
    },
};

/// The rows that a change loads and stores, apart from the header.
#[derive(Debug, Clone, Copy)]
enum Part<'a> {
    Variables(&'a [&'a str]),
    Program(&'a ProgramName),
}

impl<S: KeyValueStore> State<S> {
    /// Loads the header of a live session without renewing it.
    fn header(&mut self, id: &SessionId) -> Result<SessionHeader, SessionError> {
        let is_live = self.sessions.get(id).is_some_and(|expires_at| *expires_at > self.now);
        let header = if is_live { self.rows.header(id)? } else { None };
        header.ok_or_else(|| SessionError::NotFound { id: id.clone() })
    }

    /// Loads the header of a live session and renews its TTL.
    fn load(&mut self, id: &SessionId) -> Result<SessionRecord, SessionError> {
        let header = self.header(id)?;
        self.renew_session(id, self.now + header.ttl);
        Ok(SessionRecord::new(header))
    }

    fn snapshot(&self, id: &SessionId, header: &SessionHeader) -> Session {
        let expires_at = self.sessions.get(id).copied().unwrap_or(self.now);
        header.snapshot(id, expires_at.saturating_duration_since(self.now))
    }

    fn set_header(&mut self, id: &SessionId, header: &SessionHeader) -> Result<(), SessionError> {
        let mut writes = Writes::default();
        writes.header(id, header)?;
        self.rows.commit(writes)
    }

    fn is_live_global(&self, name: &ProgramName) -> bool {
        self.globals.get(name).is_some_and(|expires_at| *expires_at > self.now)
    }

    /// Loads a live global program.
    fn global(&mut self, name: &ProgramName, with_data: bool) -> Result<ProgramRecord, SessionError> {
        let program =
            if self.is_live_global(name) { self.rows.program(GLOBAL, name, with_data)? } else { None };
        program.ok_or_else(|| program_not_found(None, name))
    }
}

impl<S: KeyValueStore> KeyValueBackend<S> {
    /// Loads a part of a session, changes it, stores it and notifies watchers.
    fn change<T>(
        &self,
        id: &SessionId,
        part: Part<'_>,
        operation: impl FnOnce(
            &mut Rows<S>,
            &mut SessionRecord,
            &mut SizeGuard<'_>,
            &mut Vec<VariableUpdate>,
        ) -> Result<T, SessionError>,
    ) -> Result<T, SessionError> {
        let state = &mut *self.lock();
        self.reclaim(state);
        let mut record = state.load(id)?;
        match part {
            Part::Variables(identifiers) => state.rows.load_variables(id, &mut record, identifiers)?,
            Part::Program(name) => {
                let program = state.rows.program(id.as_str(), name, false)?;
                record.programs.extend(program.map(|program| (name.clone(), program)));
            }
        }
        let stored: BTreeMap<_, _> =
            record.variables.iter().map(|(name, variable)| (name.clone(), variable.older())).collect();
        let (programs, variables) = (record.header.programs as u64, record.header.variables as u64);
        let (mut total, mut updates) = (state.stats.bytes, Vec::new());
        let mut resize = |from, to| -> Result<(), SessionError> {
            total = self.resized(total, from, to)?;
            Ok(())
        };
        let mut size_guard = SizeGuard { session: id, limits: &self.limits, resize: &mut resize };
        let output = operation(&mut state.rows, &mut record, &mut size_guard, &mut updates)?;

        let mut writes = Writes::default();
        writes.header(id, &record.header)?;
        for name in updates.iter().map(|update| &update.variable.name).collect::<BTreeSet<_>>() {
            let older = stored.get(name).cloned().unwrap_or_default();
            writes.variable(id, name, record.variables.get(name).map(|variable| &**variable), older)?;
        }
        if let Part::Program(name) = part {
            writes.program(id.as_str(), name, record.programs.get(name))?;
        }
        state.rows.commit(writes)?;
        state.stats.bytes = total;
        state.stats.programs = state.stats.programs + record.header.programs as u64 - programs;
        state.stats.variables = state.stats.variables + record.header.variables as u64 - variables;
        if let Some(watchers) = state.watchers.get_mut(id) {
            updates.iter().for_each(|update| watchers.notify(update));
        }
        Ok(output)
    }

    fn put_global(&self, name: &ProgramName, program: Program) -> Result<Created, SessionError> {
        let program = ProgramRecord::global(&self.limits, name, program)?;
        let state = &mut *self.lock();
        self.reclaim(state);
        if !state.is_live_global(name) && state.globals.contains_key(name) {
            // The program has expired, but the store could not delete it.
            state.delete_global(name)?;
        }
        let replaced = state.rows.program(GLOBAL, name, false)?;
        let limit = self.limits.max_programs;
        if replaced.is_none() && state.globals.len() >= limit {
            return Err(SessionError::TooManyGlobalPrograms { limit });
        }
        let size = replaced.as_ref().map_or(0, ProgramRecord::size);
        let total = self.resized(state.stats.bytes, size, program.size())?;
        let mut writes = Writes::default();
        writes.program(GLOBAL, name, Some(&program))?;
        state.rows.commit(writes)?;
        state.stats.bytes = total;
        state.stats.programs += u64::from(replaced.is_none());
        state.renew_global(name, state.now + program.info.ttl.unwrap_or_default());
        Ok(if replaced.is_some() { Created::Existing } else { Created::New })
    }

    /// Runs expensive checks of values outside the lock.
    async fn prepare(&self, id: &SessionId, writes: Vec<SetVariable>) -> Vec<PreparedWrite> {
        if !WritePreparation::is_needed(&writes) {
            return writes.into_iter().map(PreparedWrite::from).collect();
        }
        let preparation = {
            let state = &mut *self.lock();
            // The write reports the errors of the store and of a missing session.
            let mut record = state.header(id).ok().map(SessionRecord::new);
            if let Some(record) = &mut record {
                let _ = state.rows.load_variables(id, record, &identifiers(&writes));
            }
            WritePreparation::of(&self.limits, record.as_ref(), writes)
        };
        preparation.prepare().await
    }
}

fn identifiers(writes: &[SetVariable]) -> Vec<&str> {
    writes.iter().map(|write| write.identifier.as_str()).collect()
}

#[async_trait]
impl<S: KeyValueStore> SessionBackend for KeyValueBackend<S> {
    async fn create(&self, id: &SessionId, new: NewSession) -> Result<(Session, Created), SessionError> {
        self.limits.check_new(id, &new)?;
        let state = &mut *self.lock();
        self.reclaim(state);
        if state.sessions.get(id).is_some_and(|expires_at| *expires_at <= state.now) {
            // The session has expired, but the store could not delete it.
            self.expire(state, id)?;
        }
        if state.sessions.contains_key(id) {
            let record = state.load(id)?;
            return Ok((state.snapshot(id, &record.header), Created::Existing));
        }
        let limit = self.limits.max_sessions;
        if state.sessions.len() >= limit {
            return Err(SessionError::TooManySessions { limit });
        }
        let header = SessionHeader::new(new, &self.limits);
        let total = self.resized(state.stats.bytes, 0, header.bytes)?;
        state.set_header(id, &header)?;
        state.renew_session(id, state.now + header.ttl);
        state.stats.bytes = total;
        state.stats.live += 1;
        state.stats.created += 1;
        self.events.notify(id, SessionEventKind::Created);
        Ok((state.snapshot(id, &header), Created::New))
    }

    async fn get(&self, id: &SessionId) -> Result<Session, SessionError> {
        let mut state = self.lock();
        let record = state.load(id)?;
        Ok(state.snapshot(id, &record.header))
    }

    async fn delete(&self, id: &SessionId) -> Result<Session, SessionError> {
        let mut state = self.lock();
        let header = state.header(id)?;
        let session = state.snapshot(id, &header);
        state.delete_session(id)?;
        state.stats.deleted += 1;
        self.events.notify(id, SessionEventKind::Deleted);
        Ok(session)
    }

    async fn list(&self, page: PageRequest) -> Result<Page<Session>, SessionError> {
        let (size, after) = page.parse()?;
        let state = &mut *self.lock();
        let now = state.now;
        let live = state.sessions.iter().filter(|(_, expires_at)| **expires_at > now).map(|(id, _)| id);
        let rest = live.filter(|id| after.as_ref().is_none_or(|after| *id > after));
        // One id more than requested shows whether there is another page.
        let ids: Vec<_> = rest.take(size + 1).cloned().collect();
        let mut items = Vec::with_capacity(ids.len().min(size));
        for id in ids.iter().take(size) {
            let header = state.header(id)?;
            items.push(state.snapshot(id, &header));
        }
        let next = (ids.len() > size).then(|| ids[size - 1].to_string());
        Ok(Page { items, next })
    }

    async fn set_last_worker(&self, id: &SessionId, worker: Arc<str>) -> Result<(), SessionError> {
        let mut state = self.lock();
        let header = state.header(id)?;
        if header.last_worker.as_ref() == Some(&worker) {
            return Ok(());
        }
        state.set_header(id, &SessionHeader { last_worker: Some(worker), ..header })
    }

    async fn put_program(
        &self,
        owner: &ProgramOwner,
        name: &ProgramName,
        program: Program,
    ) -> Result<Created, SessionError> {
        let ProgramOwner::Session(id) = owner else { return self.put_global(name, program) };
        self.change(id, Part::Program(name), |_, record, size_guard, _| {
            record.put_program(size_guard, name, program)
        })
    }

    async fn program(&self, owner: &ProgramOwner, name: &ProgramName) -> Result<Program, SessionError> {
        let state = &mut *self.lock();
        match owner {
            ProgramOwner::Session(id) => {
                let mut record = state.load(id)?;
                let program = state.rows.program(id.as_str(), name, true)?;
                record.programs.extend(program.map(|program| (name.clone(), program)));
                record.program(id, name)
            }
            ProgramOwner::Global => {
                let program = state.global(name, true)?;
                state.renew_global(name, state.now + program.info.ttl.unwrap_or_default());
                program.program()
            }
        }
    }

    async fn programs(&self, owner: &ProgramOwner) -> Result<Vec<ProgramInfo>, SessionError> {
        let state = &mut *self.lock();
        match owner {
            ProgramOwner::Session(id) => {
                state.load(id)?;
                state.rows.program_infos(id.as_str())
            }
            ProgramOwner::Global => {
                self.reclaim(state);
                let infos = state.rows.program_infos(GLOBAL)?.into_iter();
                Ok(infos.filter(|info| state.is_live_global(&info.name)).collect())
            }
        }
    }

    async fn delete_program(&self, owner: &ProgramOwner, name: &ProgramName) -> Result<(), SessionError> {
        let ProgramOwner::Session(id) = owner else {
            let mut state = self.lock();
            state.global(name, false)?;
            return state.delete_global(name);
        };
        self.change(id, Part::Program(name), |_, record, size_guard, _| {
            record.delete_program(size_guard, name)
        })
    }

    async fn register_variable(
        &self,
        id: &SessionId,
        name: &VariableName,
        new: NewVariable,
    ) -> Result<Variable, SessionError> {
        let checked = CheckedValue::for_new_variable(&self.limits, &new).await;
        self.change(id, Part::Variables(&[name.as_str()]), |_, record, size_guard, updates| {
            let created = record.register(size_guard, name, new, checked)?;
            updates.push(created.update(UpdateKind::Registered));
            Ok(created.variable.clone())
        })
    }

    async fn variables(
        &self,
        id: &SessionId,
        identifiers: &[&str],
    ) -> Result<Vec<Option<Variable>>, SessionError> {
        self.limits.check_names(identifiers.len())?;
        let mut state = self.lock();
        let mut record = state.load(id)?;
        state.rows.load_variables(id, &mut record, identifiers)?;
        let find = |identifier: &&str| Some(record.find(identifier)?.variable.clone());
        Ok(identifiers.iter().map(find).collect())
    }

    async fn set_variables(
        &self,
        id: &SessionId,
        writes: Vec<SetVariable>,
        batch: Batch,
    ) -> Result<Vec<Result<u32, SessionError>>, SessionError> {
        self.limits.check_names(writes.len())?;
        let names: Vec<_> = identifiers(&writes).into_iter().map(str::to_owned).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let writes = self.prepare(id, writes).await;
        self.change(id, Part::Variables(&names), |_, record, size_guard, updates| {
            record
                .set_batch(size_guard, writes, batch, |written| updates.push(written.update(UpdateKind::Set)))
        })
    }

    async fn list_variables(&self, id: &SessionId, pattern: &str) -> Result<Vec<Variable>, SessionError> {
        let mut state = self.lock();
        state.load(id)?;
        let variables = state.rows.all_variables(id)?.into_iter().map(|record| record.variable);
        Ok(variables.filter(|variable| matches_pattern(pattern, variable.name.as_str())).collect())
    }

    async fn delete_variable(&self, id: &SessionId, identifier: &str) -> Result<Variable, SessionError> {
        self.change(id, Part::Variables(&[identifier]), |_, record, size_guard, updates| {
            let deleted = record.delete_variable(size_guard, identifier)?;
            updates.push(deleted.update(UpdateKind::Deleted));
            Ok(deleted.variable)
        })
    }

    async fn delete_variables(
        &self,
        id: &SessionId,
        identifiers: &[&str],
    ) -> Result<Vec<Option<Variable>>, SessionError> {
        self.limits.check_names(identifiers.len())?;
        self.change(id, Part::Variables(identifiers), |_, record, size_guard, updates| {
            record.delete_variables(size_guard, identifiers, |deleted| {
                updates.push(deleted.update(UpdateKind::Deleted));
            })
        })
    }

    async fn variable_history(
        &self,
        id: &SessionId,
        identifier: &str,
        limit: usize,
    ) -> Result<Vec<VariableVersion>, SessionError> {
        let mut state = self.lock();
        let mut record = state.load(id)?;
        state.rows.load_variables(id, &mut record, &[identifier])?;
        let mut variable = record.variable(id, identifier)?.clone();
        state.rows.load_history(id, &mut variable)?;
        Ok(variable.history(limit).collect())
    }

    async fn rollback_variable(
        &self,
        id: &SessionId,
        identifier: &str,
        version: u32,
        note: Note,
    ) -> Result<Variable, SessionError> {
        self.change(id, Part::Variables(&[identifier]), |rows, record, size_guard, updates| {
            if let Some(variable) = record.variables.values_mut().next() {
                rows.load_history(id, variable)?;
            }
            let written = record.rollback(size_guard, identifier, version, note)?;
            updates.push(written.update(UpdateKind::RolledBack));
            Ok(written.variable.clone())
        })
    }

    async fn watch_variables(
        &self,
        id: &SessionId,
        identifiers: &[String],
        initial: bool,
    ) -> Result<VariableWatch, SessionError> {
        self.limits.check_names(identifiers.len())?;
        let state = &mut *self.lock();
        let mut record = state.load(id)?;
        if identifiers.is_empty() {
            let all = state.rows.all_variables(id)?.into_iter();
            record.variables = all.map(|found| (found.variable.name.clone(), Box::new(found))).collect();
        } else {
            let identifiers: Vec<_> = identifiers.iter().map(String::as_str).collect();
            state.rows.load_variables(id, &mut record, &identifiers)?;
        }
        let (watcher, watch) = Watcher::for_record(&self.limits, id, &record, identifiers, initial)?;
        state.watchers.entry(id.clone()).or_default().add(watcher, self.limits.max_watches)?;
        Ok(watch)
    }

    async fn stats(&self) -> Result<SessionStats, SessionError> {
        Ok(self.lock().stats)
    }

    fn subscribe(&self) -> SessionEvents {
        self.events.subscribe()
    }

    async fn sweep(&self) -> Result<usize, SessionError> {
        let state = &mut *self.lock();
        state.stats.sweeps += 1;
        Ok(self.reclaim(state))
    }
}
