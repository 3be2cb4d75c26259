//! A session backend for a key-value store, written with the record kit.
//!
//! The store is a `BTreeMap` of JSON rows behind a mutex, in place of a storage with transactions. The kit implements the
//! semantics of every operation. This example only loads and stores rows, and keeps track of time. Run it with
//! `cargo run -p snakepit-session --example custom_backend`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use snakepit_session::{
    Batch, Created, NewSession, NewVariable, Note, Page, PageRequest, Payload, Program, ProgramInfo,
    ProgramName, ProgramOwner, Session, SessionBackend, SessionError, SessionEventKind, SessionEventSender,
    SessionEvents, SessionId, SessionLimits, SessionStats, SetVariable, UpdateKind, ValueType, Variable,
    VariableName, VariableType, VariableUpdate, VariableVersion, VariableWatch, Watcher,
    kit::{ProgramRecord, SessionHeader, SessionRecord, SizeGuard, VariableRecord, matches_pattern},
};
use tokio::time::Instant;

mod store;

use store::{GLOBAL, Store, Table, row};

#[tokio::main(flavor = "current_thread")]
#[expect(clippy::print_stdout, reason = "an example shows its result")]
async fn main() -> Result<(), SessionError> {
    let integer = |value: i64| Payload::try_from_serde(&value).expect("integers are JSON");
    let backend = KeyValueBackend::new(SessionLimits::default());
    let session = SessionId::try_new("user-1")?;
    backend.create(&session, NewSession::default()).await?;
    let ty = VariableType::new(ValueType::Integer)?;
    let new = NewVariable { ty, value: integer(1), note: Note::default() };
    backend.register_variable(&session, &VariableName::try_new("count")?, new).await?;
    backend.set_variable(&session, SetVariable::new("count", integer(2))).await?;
    for version in backend.variable_history(&session, "count", 0).await? {
        println!("version {}: {:?}", version.version, version.value);
    }
    Ok(())
}

/// Sessions in a key-value store.
#[derive(Debug)]
struct KeyValueBackend {
    limits: SessionLimits,
    events: SessionEventSender,
    store: Mutex<Store>,
}

impl KeyValueBackend {
    fn new(limits: SessionLimits) -> Self {
        Self { limits, events: SessionEventSender::new(), store: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Deletes expired sessions and global programs, so that they do not count against the limits.
    fn reclaim(&self, store: &mut Store) -> Result<usize, SessionError> {
        let now = Instant::now();
        let is_expired = |expires_at: &Instant| *expires_at <= now;
        let sessions: Vec<_> =
            store.sessions.iter().filter(|(_, at)| is_expired(at)).map(|(id, _)| id.clone()).collect();
        for id in &sessions {
            store.delete_session(id)?;
            store.stats.expired += 1;
            self.events.notify(id, SessionEventKind::Expired);
        }
        let globals: Vec<_> =
            store.globals.iter().filter(|(_, at)| is_expired(at)).map(|(name, _)| name.clone()).collect();
        for name in &globals {
            store.delete_global(name)?;
        }
        Ok(sessions.len())
    }

    /// Changes a total by the difference of two sizes, within the limit of the backend.
    fn resize(&self, total: &mut u64, from: usize, to: usize) -> Result<(), SessionError> {
        let (size, limit) = ((*total + to as u64).saturating_sub(from as u64), self.limits.max_total_bytes);
        if to > from && size > limit as u64 {
            return Err(SessionError::BackendFull {
                size: usize::try_from(size).unwrap_or(usize::MAX),
                limit,
            });
        }
        *total = size;
        Ok(())
    }

    /// Loads a record with the named variables, changes it, stores it and notifies watchers.
    fn change<T>(
        &self,
        id: &SessionId,
        identifiers: &[&str],
        operation: impl FnOnce(
            &mut Store,
            &mut SessionRecord,
            &mut SizeGuard<'_>,
            &mut Vec<VariableUpdate>,
        ) -> Result<T, SessionError>,
    ) -> Result<T, SessionError> {
        let store = &mut *self.lock();
        self.reclaim(store)?;
        let mut record = store.load(id)?;
        store.load_variables(id, &mut record, identifiers)?;
        let (programs_before, variables_before) =
            (record.header.programs as u64, record.header.variables as u64);
        let (mut total, mut updates) = (store.stats.bytes, Vec::new());
        let mut resize = |from, to| self.resize(&mut total, from, to);
        let mut size_guard = SizeGuard { session: id, limits: &self.limits, resize: &mut resize };
        let result = operation(store, &mut record, &mut size_guard, &mut updates)?;
        store.put(row(Table::Header, id.as_str(), ""), &record.header)?;
        for update in &updates {
            let name = &update.variable.name;
            store.store_variable(id, name, record.variables.get(name).map(|record| &**record))?;
        }
        store.stats.bytes = total;
        store.stats.programs = store.stats.programs + record.header.programs as u64 - programs_before;
        store.stats.variables = store.stats.variables + record.header.variables as u64 - variables_before;
        if let Some(watchers) = store.watchers.get_mut(id) {
            updates.iter().for_each(|update| watchers.notify(update));
        }
        Ok(result)
    }
}

#[async_trait]
impl SessionBackend for KeyValueBackend {
    async fn create(&self, id: &SessionId, new: NewSession) -> Result<(Session, Created), SessionError> {
        self.limits.check_new(id, &new)?;
        let store = &mut *self.lock();
        self.reclaim(store)?;
        if let Ok(record) = store.load(id) {
            return Ok((store.snapshot(id, &record.header), Created::Existing));
        }
        let limit = self.limits.max_sessions;
        if store.sessions.len() >= limit {
            return Err(SessionError::TooManySessions { limit });
        }
        let header = SessionHeader::new(new, &self.limits);
        self.resize(&mut store.stats.bytes, 0, header.bytes)?;
        store.put(row(Table::Header, id.as_str(), ""), &header)?;
        store.sessions.insert(id.clone(), Instant::now() + header.ttl);
        store.stats.live += 1;
        store.stats.created += 1;
        self.events.notify(id, SessionEventKind::Created);
        Ok((store.snapshot(id, &header), Created::New))
    }

    async fn get(&self, id: &SessionId) -> Result<Session, SessionError> {
        let mut store = self.lock();
        let record = store.load(id)?;
        Ok(store.snapshot(id, &record.header))
    }

    async fn delete(&self, id: &SessionId) -> Result<Session, SessionError> {
        let mut store = self.lock();
        let session = store.snapshot(id, &store.header(id)?);
        store.delete_session(id)?;
        store.stats.deleted += 1;
        self.events.notify(id, SessionEventKind::Deleted);
        Ok(session)
    }

    async fn list(&self, page: PageRequest) -> Result<Page<Session>, SessionError> {
        let (size, after) = page.parse()?;
        let store = self.lock();
        let ids = store.sessions.keys().filter(|id| after.as_ref().is_none_or(|after| *id > after));
        // Take one more than requested, which shows whether there is another page.
        let live = ids.filter_map(|id| Some(store.snapshot(id, &store.header(id).ok()?)));
        let mut items: Vec<_> = live.take(size + 1).collect();
        let has_more = items.len() > size;
        items.truncate(size);
        let next = items.last().filter(|_| has_more).map(|last| last.id.to_string());
        Ok(Page { items, next })
    }

    async fn set_last_worker(&self, id: &SessionId, worker: Arc<str>) -> Result<(), SessionError> {
        let mut store = self.lock();
        let header = SessionHeader { last_worker: Some(worker), ..store.header(id)? };
        store.put(row(Table::Header, id.as_str(), ""), &header)
    }

    async fn put_program(
        &self,
        owner: &ProgramOwner,
        name: &ProgramName,
        program: Program,
    ) -> Result<Created, SessionError> {
        let ProgramOwner::Session(id) = owner else {
            let program = ProgramRecord::global(&self.limits, name, program)?;
            let store = &mut *self.lock();
            self.reclaim(store)?;
            let replaced = store.load_program(GLOBAL, name, false)?;
            let limit = self.limits.max_programs;
            if replaced.is_none() && store.globals.len() >= limit {
                return Err(SessionError::TooManyGlobalPrograms { limit });
            }
            let size = replaced.as_ref().map_or(0, ProgramRecord::size);
            self.resize(&mut store.stats.bytes, size, program.size())?;
            store.store_program(GLOBAL, &program)?;
            store.globals.insert(name.clone(), Instant::now() + program.info.ttl.unwrap_or_default());
            store.stats.programs += u64::from(replaced.is_none());
            return Ok(if replaced.is_some() { Created::Existing } else { Created::New });
        };
        self.change(id, &[], |store, record, size_guard, _| {
            let replaced = store.load_program(id.as_str(), name, false)?;
            record.programs.extend(replaced.map(|program| (name.clone(), program)));
            let created = record.put_program(size_guard, name, program)?;
            store.store_program(id.as_str(), &record.programs[name])?;
            Ok(created)
        })
    }

    async fn program(&self, owner: &ProgramOwner, name: &ProgramName) -> Result<Program, SessionError> {
        let mut store = self.lock();
        match owner {
            ProgramOwner::Session(id) => {
                let mut record = store.load(id)?;
                let program = store.load_program(id.as_str(), name, true)?;
                record.programs.extend(program.map(|program| (name.clone(), program)));
                record.program(id, name)
            }
            ProgramOwner::Global => {
                let program = store.global(name)?;
                store.globals.insert(name.clone(), Instant::now() + program.info.ttl.unwrap_or_default());
                program.program()
            }
        }
    }

    async fn programs(&self, owner: &ProgramOwner) -> Result<Vec<ProgramInfo>, SessionError> {
        let store = &mut *self.lock();
        match owner {
            ProgramOwner::Session(id) => {
                store.load(id)?;
                store.scan(Table::ProgramInfo, id.as_str())
            }
            ProgramOwner::Global => {
                self.reclaim(store)?;
                store.scan(Table::ProgramInfo, GLOBAL)
            }
        }
    }

    async fn delete_program(&self, owner: &ProgramOwner, name: &ProgramName) -> Result<(), SessionError> {
        let ProgramOwner::Session(id) = owner else {
            let mut store = self.lock();
            store.global(name)?;
            return store.delete_global(name);
        };
        self.change(id, &[], |store, record, size_guard, _| {
            let program = store.load_program(id.as_str(), name, false)?;
            record.programs.extend(program.map(|program| (name.clone(), program)));
            record.delete_program(size_guard, name)?;
            store.delete_program(id.as_str(), name);
            Ok(())
        })
    }

    async fn register_variable(
        &self,
        id: &SessionId,
        name: &VariableName,
        new: NewVariable,
    ) -> Result<Variable, SessionError> {
        self.change(id, &[name.as_str()], |_, record, size_guard, updates| {
            let created = record.register(size_guard, name, new, None)?;
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
        let mut store = self.lock();
        let mut record = store.load(id)?;
        store.load_variables(id, &mut record, identifiers)?;
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
        let identifiers: Vec<_> = writes.iter().map(|write| write.identifier.clone()).collect();
        let identifiers: Vec<_> = identifiers.iter().map(|identifier| &**identifier).collect();
        self.change(id, &identifiers, |_, record, size_guard, updates| {
            record
                .set_batch(size_guard, writes, batch, |written| updates.push(written.update(UpdateKind::Set)))
        })
    }

    async fn list_variables(&self, id: &SessionId, pattern: &str) -> Result<Vec<Variable>, SessionError> {
        let mut store = self.lock();
        store.load(id)?;
        let records: Vec<VariableRecord> = store.scan(Table::Variable, id.as_str())?;
        let variables = records.into_iter().map(|record| record.variable);
        Ok(variables.filter(|variable| matches_pattern(pattern, variable.name.as_str())).collect())
    }

    async fn delete_variable(&self, id: &SessionId, identifier: &str) -> Result<Variable, SessionError> {
        self.change(id, &[identifier], |_, record, size_guard, updates| {
            let deleted = record.delete_variable(size_guard, identifier)?;
            updates.push(deleted.update(UpdateKind::Deleted));
            Ok(deleted.variable)
        })
    }

    async fn variable_history(
        &self,
        id: &SessionId,
        identifier: &str,
        limit: usize,
    ) -> Result<Vec<VariableVersion>, SessionError> {
        let mut store = self.lock();
        let mut record = store.load(id)?;
        store.load_variables(id, &mut record, &[identifier])?;
        let mut variable = record.variable(id, identifier)?.clone();
        store.load_history(id, &mut variable)?;
        Ok(variable.history(limit).collect())
    }

    async fn rollback_variable(
        &self,
        id: &SessionId,
        identifier: &str,
        version: u32,
        note: Note,
    ) -> Result<Variable, SessionError> {
        self.change(id, &[identifier], |store, record, size_guard, updates| {
            if let Some(variable) = record.variables.values_mut().next() {
                store.load_history(id, variable)?;
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
        let mut store = self.lock();
        let mut record = store.load(id)?;
        let all: Vec<VariableRecord> = store.scan(Table::Variable, id.as_str())?;
        let all = all.into_iter().map(|variable| (variable.variable.name.clone(), Box::new(variable)));
        record.variables.extend(all);
        let (watcher, watch) = Watcher::for_record(&self.limits, id, &record, identifiers, initial)?;
        store.watchers.entry(id.clone()).or_default().add(watcher, self.limits.max_watches)?;
        Ok(watch)
    }

    async fn stats(&self) -> Result<SessionStats, SessionError> {
        Ok(self.lock().stats)
    }

    fn subscribe(&self) -> SessionEvents {
        self.events.subscribe()
    }

    async fn sweep(&self) -> Result<usize, SessionError> {
        let store = &mut *self.lock();
        store.stats.sweeps += 1;
        self.reclaim(store)
    }
}

#[cfg(test)]
mod tests {
    use snakepit_session_testkit::{
        session_backend_contract, session_backend_linearizes, session_backend_matches_model,
    };

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_backend_keeps_the_contract() {
        let make = || async { KeyValueBackend::new(SessionLimits::default()) };
        session_backend_contract(make, tokio::time::advance).await;
    }

    #[test]
    fn random_operations_match_the_model() {
        session_backend_matches_model(|limits| async { KeyValueBackend::new(limits) }, 60);
    }

    #[test]
    fn concurrent_operations_are_linearizable() {
        session_backend_linearizes(|limits| async { KeyValueBackend::new(limits) }, 60);
    }
}
