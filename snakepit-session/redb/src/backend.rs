//! The implementation of `SessionBackend`. Writes go through the writer; reads use a snapshot.

use std::sync::Arc;

use async_trait::async_trait;
use snakepit_session::{
    Batch, Created, NewSession, NewVariable, Note, Page, PageRequest, Program, ProgramInfo, ProgramName,
    ProgramOwner, Session, SessionBackend, SessionError, SessionEvents, SessionId, SessionStats, SetVariable,
    UpdateKind, Variable, VariableName, VariableVersion, VariableWatch, error_chain,
    kit::{
        CheckedValue, PreparedWrite, WritePreparation, decode, matches_pattern, program_not_found,
        size_of_metadata, size_of_program, size_of_version,
    },
};
use tokio::time::Instant;

use super::{
    RedbBackend, SWEEP_ROWS, SharedState,
    expiry::ExpiryKey,
    open::with_path,
    rows::{GLOBAL_OWNER, View},
};

#[async_trait]
impl SessionBackend for RedbBackend {
    async fn create(&self, id: &SessionId, new: NewSession) -> Result<(Session, Created), SessionError> {
        self.shared.limits.check_new(id, &new)?;
        // Most sessions exist already, and finding one does not need the writer.
        match self.get(id).await {
            Err(SessionError::NotFound { .. }) => {}
            found => return found.map(|session| (session, Created::Existing)),
        }
        let id = id.clone();
        self.write(size_of_metadata(&new.metadata), move |group| group.create(&id, new)).await
    }

    async fn get(&self, id: &SessionId) -> Result<Session, SessionError> {
        let expiry = self.renew(id)?;
        let mut has_retried = false;
        loop {
            let found = self.header(id).await;
            if !self.should_retry(&mut has_retried, &found).await {
                let (_, record) = found.map_err(|error| with_path(&self.shared.path, error))?;
                return Ok(expiry.snapshot(id, record.header, Instant::now()));
            }
        }
    }

    async fn delete(&self, id: &SessionId) -> Result<Session, SessionError> {
        let id = id.clone();
        self.write(0, move |group| group.delete(&id)).await
    }

    async fn list(&self, page: PageRequest) -> Result<Page<Session>, SessionError> {
        let (size, after) = page.parse()?;
        let mut has_retried = false;
        loop {
            let listed = async {
                let (view, shared, after) =
                    (self.shared.view().await?, Arc::clone(&self.shared), after.clone());
                // Metadata may make the page large.
                self.read(usize::MAX, move || list(&view, &shared, after.as_ref(), size)).await
            };
            let listed = listed.await;
            if !self.should_retry(&mut has_retried, &listed).await {
                return listed.map_err(|error| with_path(&self.shared.path, error));
            }
        }
    }

    async fn set_last_worker(&self, id: &SessionId, worker: Arc<str>) -> Result<(), SessionError> {
        let set = |expiry: &mut super::Expiry| expiry.last_worker = Some(worker);
        let expiry = self.shared.expiries.change(&ExpiryKey::Session(id.clone()), Instant::now(), set);
        expiry.map(drop).ok_or_else(|| SessionError::NotFound { id: id.clone() })
    }

    async fn put_program(
        &self,
        owner: &ProgramOwner,
        name: &ProgramName,
        program: Program,
    ) -> Result<Created, SessionError> {
        let (owner, name) = (owner.clone(), name.clone());
        self.write(size_of_program(&name, &program), move |group| match owner {
            ProgramOwner::Session(id) => group.put_program(&id, &name, program),
            ProgramOwner::Global => group.put_global(&name, program),
        })
        .await
    }

    async fn program(&self, owner: &ProgramOwner, name: &ProgramName) -> Result<Program, SessionError> {
        let name = name.clone();
        let ProgramOwner::Session(id) = owner else { return self.global_program(name).await };
        self.read_session(id, move |id, view, record| {
            let Some(info) = view.program_info(id.as_str(), &name)? else {
                view.check_missing_program(id, &name, &record.header)?;
                return Err(program_not_found(Some(id), &name));
            };
            view.program(id.as_str(), info)
        })
        .await
    }

    async fn programs(&self, owner: &ProgramOwner) -> Result<Vec<ProgramInfo>, SessionError> {
        let ProgramOwner::Session(id) = owner else {
            let now = Instant::now();
            let live = |info: &ProgramInfo| {
                self.shared.expiries.live(&ExpiryKey::Global(info.name.clone()), now).is_some()
            };
            let mut has_retried = false;
            loop {
                let programs = self.shared.view().await.and_then(|view| view.programs(GLOBAL_OWNER));
                if !self.should_retry(&mut has_retried, &programs).await {
                    let programs = programs.map_err(|error| with_path(&self.shared.path, error))?;
                    return Ok(programs.into_iter().filter(live).collect());
                }
            }
        };
        self.read_session(id, |id, view, _| view.programs(id.as_str())).await
    }

    async fn delete_program(&self, owner: &ProgramOwner, name: &ProgramName) -> Result<(), SessionError> {
        let (owner, name) = (owner.clone(), name.clone());
        self.write(0, move |group| match owner {
            ProgramOwner::Session(id) => group.delete_program(&id, &name),
            ProgramOwner::Global => group.delete_global(&name),
        })
        .await
    }

    async fn register_variable(
        &self,
        id: &SessionId,
        name: &VariableName,
        new: NewVariable,
    ) -> Result<Variable, SessionError> {
        let (id, name) = (id.clone(), name.clone());
        let checked = CheckedValue::for_new_variable(&self.shared.limits, &new).await;
        self.write(size_of_version(&new.value, &new.note), move |group| {
            group.change_variables(&id, &[name.to_string()], |record, size_guard, changes| {
                let registered = record.register(size_guard, &name, new, checked)?;
                changes.add(UpdateKind::Registered, registered);
                Ok(registered.variable.clone())
            })
        })
        .await
    }

    async fn variables(
        &self,
        id: &SessionId,
        identifiers: &[&str],
    ) -> Result<Vec<Option<Variable>>, SessionError> {
        self.shared.limits.check_names(identifiers.len())?;
        let identifiers: Vec<_> = identifiers.iter().map(ToString::to_string).collect();
        self.read_session(id, move |id, view, mut record| {
            view.load_variables(id, &identifiers, &mut record)?;
            let find = |identifier: &String| Some(record.find(identifier)?.variable.clone());
            Ok(identifiers.iter().map(find).collect())
        })
        .await
    }

    async fn set_variables(
        &self,
        id: &SessionId,
        updates: Vec<SetVariable>,
        batch: Batch,
    ) -> Result<Vec<Result<u32, SessionError>>, SessionError> {
        self.shared.limits.check_names(updates.len())?;
        let size = updates.iter().map(|update| size_of_version(&update.value, &update.note)).sum();
        let identifiers: Vec<_> = updates.iter().map(|update| update.identifier.clone()).collect();
        let updates = self.prepare(id, &identifiers, updates).await;
        let id = id.clone();
        self.write(size, move |group| {
            group.change_variables(&id, &identifiers, |record, size_guard, changes| {
                record.set_batch(size_guard, updates, batch, |changed| changes.add(UpdateKind::Set, changed))
            })
        })
        .await
    }

    async fn list_variables(&self, id: &SessionId, pattern: &str) -> Result<Vec<Variable>, SessionError> {
        let pattern = pattern.to_owned();
        self.read_session(id, move |id, view, record| {
            view.list_variables(id, &record.header, |name| matches_pattern(&pattern, name))
        })
        .await
    }

    async fn delete_variable(&self, id: &SessionId, identifier: &str) -> Result<Variable, SessionError> {
        let (id, identifier) = (id.clone(), identifier.to_owned());
        self.write(0, move |group| {
            group.change_variables(&id, std::slice::from_ref(&identifier), |record, size_guard, changes| {
                let deleted = record.delete_variable(size_guard, &identifier)?;
                changes.add(UpdateKind::Deleted, &deleted);
                Ok(deleted.variable)
            })
        })
        .await
    }

    async fn delete_variables(
        &self,
        id: &SessionId,
        identifiers: &[&str],
    ) -> Result<Vec<Option<Variable>>, SessionError> {
        self.shared.limits.check_names(identifiers.len())?;
        let id = id.clone();
        let identifiers: Vec<_> = identifiers.iter().map(|&identifier| identifier.to_owned()).collect();
        self.write(0, move |group| {
            group.change_variables(&id, &identifiers, |record, size_guard, changes| {
                record.delete_variables(size_guard, &identifiers, |deleted| {
                    changes.add(UpdateKind::Deleted, deleted);
                })
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
        let identifier = identifier.to_owned();
        self.read_session(id, move |id, view, mut record| {
            view.load_variables(id, std::slice::from_ref(&identifier), &mut record)?;
            view.history(id, record.variable(id, &identifier)?, limit)
        })
        .await
    }

    async fn rollback_variable(
        &self,
        id: &SessionId,
        identifier: &str,
        version: u32,
        note: Note,
    ) -> Result<Variable, SessionError> {
        let (id, identifier) = (id.clone(), identifier.to_owned());
        self.write(0, move |group| group.rollback(&id, &identifier, version, note)).await
    }

    async fn watch_variables(
        &self,
        id: &SessionId,
        identifiers: &[String],
        initial: bool,
    ) -> Result<VariableWatch, SessionError> {
        self.shared.limits.check_names(identifiers.len())?;
        let (id, identifiers) = (id.clone(), identifiers.to_vec());
        self.write(0, move |group| group.watch(&id, &identifiers, initial)).await
    }

    async fn stats(&self) -> Result<SessionStats, SessionError> {
        Ok(self.shared.stats())
    }

    fn subscribe(&self) -> SessionEvents {
        self.shared.events.subscribe()
    }

    async fn sweep(&self) -> Result<usize, SessionError> {
        let (mut swept, mut is_first) = (0, true);
        loop {
            let (reclaimed, has_more) = self.write(0, move |group| group.sweep(SWEEP_ROWS, is_first)).await?;
            (swept, is_first) = (swept + reclaimed, false);
            if !has_more {
                return Ok(swept);
            }
        }
    }
}

impl RedbBackend {
    /// Checks values whose checks are expensive before the operation reaches the writer, so that they do not delay other writes.
    async fn prepare(
        &self,
        id: &SessionId,
        identifiers: &[String],
        updates: Vec<SetVariable>,
    ) -> Vec<PreparedWrite> {
        if !WritePreparation::is_needed(&updates) {
            return updates.into_iter().map(PreparedWrite::from).collect();
        }
        let identifiers = identifiers.to_vec();
        let record = self.read_session(id, move |id, view, mut record| {
            view.load_variables(id, &identifiers, &mut record)?;
            Ok(record)
        });
        // An error can be ignored here, because the writer repeats the read and reports it. The writer also checks the values of
        // variables that another write registers in the meantime.
        let record = record.await.ok();
        WritePreparation::of(&self.shared.limits, record.as_ref(), updates).prepare().await
    }

    async fn global_program(&self, name: ProgramName) -> Result<Program, SessionError> {
        let missing = || program_not_found(None, &name);
        self.shared.expiries.renew(&ExpiryKey::Global(name.clone()), Instant::now()).ok_or_else(missing)?;
        let mut has_retried = false;
        loop {
            let read = async {
                let view = self.shared.view().await?;
                let info = view.program_info(GLOBAL_OWNER, &name)?.ok_or_else(missing)?;
                self.read(info.size, move || view.program(GLOBAL_OWNER, info)).await
            };
            let read = read.await;
            if !self.should_retry(&mut has_retried, &read).await {
                return read.map_err(|error| with_path(&self.shared.path, error));
            }
        }
    }
}

/// Reads a page of live sessions.
fn list(
    view: &View,
    shared: &SharedState,
    after: Option<&SessionId>,
    size: usize,
) -> Result<Page<Session>, SessionError> {
    let (mut items, mut has_more, now) = (Vec::new(), false, Instant::now());
    view.headers(after, |id, row| {
        let Some(expiry) = shared.expiries.live(&ExpiryKey::Session(id.clone()), now) else {
            return Ok(true);
        };
        has_more = items.len() == size;
        if !has_more {
            match decode(row) {
                Ok(header) => items.push(expiry.snapshot(&id, header, now)),
                // An unreadable session must not hide the others.
                Err(error) => {
                    tracing::error!(session = %id, error = %error_chain(&error), "omitted an unreadable session from a listing");
                }
            }
        }
        Ok(!has_more)
    })?;
    let next = items.last().filter(|_| has_more).map(|last: &Session| last.id.to_string());
    Ok(Page { items, next })
}
