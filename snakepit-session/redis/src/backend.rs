//! The implementation of [`SessionBackend`].

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use snakepit_session::{
    Batch, Created, NewSession, NewVariable, Note, Page, PageRequest, Program, ProgramInfo, ProgramName,
    ProgramOwner, Session, SessionBackend, SessionError, SessionEvents, SessionId, SessionStats, SetVariable,
    UpdateKind, Variable, VariableName, VariableVersion, VariableWatch, Watcher, error_chain,
    kit::{CheckedValue, SessionHeader, matches_pattern},
};

use super::{
    RedisBackend,
    follow::WatchCursor,
    millis,
    plan::{LoadPlan, LoadedSession, Meta, Usage, decode_session, load_history},
    scripts,
};

/// The maximum number of sessions that one script visits, because a running script blocks Redis.
const SESSIONS_PER_SCRIPT: usize = 200;

impl RedisBackend {
    async fn load(&self, id: &SessionId, plan: &LoadPlan) -> Result<LoadedSession, SessionError> {
        LoadedSession::load(&self.connection, id, plan).await
    }

    /// Reclaims expired sessions and programs. Returns whether there were any.
    pub(super) async fn reclaim(&self) -> Result<bool, SessionError> {
        let (sessions, programs) = self.reclaim_all("first").await?;
        Ok(sessions + programs > 0)
    }

    /// Reclaims all expired sessions and global programs, and returns their numbers. Concurrent hosts reclaim different ones.
    /// `mode` is that of the script's first call: `sweep` or `first`.
    async fn reclaim_all(&self, mode: &'static str) -> Result<(usize, usize), SessionError> {
        let (mut call_mode, mut expired, mut programs) = (mode, 0, 0);
        loop {
            let call = self.connection.call(&scripts::RECLAIM).arg(SESSIONS_PER_SCRIPT).arg(call_mode);
            let (visited, more_expired, more_programs, is_inconsistent): (usize, usize, usize, bool) =
                call.run().await?;
            (expired, programs) = (expired + more_expired, programs + more_programs);
            if visited < SESSIONS_PER_SCRIPT {
                if is_inconsistent && mode == "sweep" {
                    expired += self.repair_indexes().await?;
                }
                return Ok((expired, programs));
            }
            call_mode = "next";
        }
    }
}

#[async_trait]
impl SessionBackend for RedisBackend {
    async fn create(&self, id: &SessionId, new: NewSession) -> Result<(Session, Created), SessionError> {
        self.limits.check_new(id, &new)?;
        let header = SessionHeader::new(new, &self.limits);
        let meta = Meta::encode(&header)?;
        let incarnation = uuid::Uuid::new_v4().simple().to_string();
        let (max_sessions, max_bytes) = (self.limits.max_sessions, self.limits.max_total_bytes);
        loop {
            let call = self
                .connection
                .call(&scripts::CREATE)
                .arg(id.as_str())
                .arg(&incarnation)
                .arg(millis(header.ttl));
            let call = call.arg(&meta).arg(header.bytes).arg(max_sessions).arg(max_bytes);
            type Reply = (String, usize, Option<Vec<u8>>, Option<String>, Option<String>);
            let (reply, size, meta, worker, usage): Reply = call.run().await?;
            let rejection = match &*reply {
                "created" => return Ok((header.snapshot(id, header.ttl), Created::New)),
                "found" => {
                    let (meta, usage) = (meta.unwrap_or_default(), usage.unwrap_or_default());
                    let mut found = decode_session(id, Duration::ZERO, &meta, worker, &usage)?;
                    found.expires_in = found.ttl;
                    return Ok((self.localize_last_worker(found), Created::Existing));
                }
                "sessions" => SessionError::TooManySessions { limit: max_sessions },
                _ => self.backend_full(size),
            };
            // Reclaim expired sessions before rejecting.
            if !self.reclaim().await? {
                return Err(rejection);
            }
        }
    }

    async fn get(&self, id: &SessionId) -> Result<Session, SessionError> {
        let header = self.load(id, &LoadPlan::session()).await?.record.header;
        Ok(self.localize_last_worker(header.snapshot(id, header.ttl)))
    }

    async fn delete(&self, id: &SessionId) -> Result<Session, SessionError> {
        let deleted: Option<(u64, Vec<u8>, Option<String>, String)> =
            self.connection.call(&scripts::DELETE).arg(id.as_str()).run().await?;
        let (remaining_ms, meta, worker, usage) =
            deleted.ok_or_else(|| SessionError::NotFound { id: id.clone() })?;
        decode_session(id, Duration::from_millis(remaining_ms), &meta, worker, &usage)
            .map(|deleted| self.localize_last_worker(deleted))
    }

    async fn list(&self, page: PageRequest) -> Result<Page<Session>, SessionError> {
        let (size, after) = page.parse()?;
        let mut after = after.map(|id| id.to_string()).unwrap_or_default();
        let mut items = Vec::new();
        // Request one more id, which shows whether there is another page.
        while items.len() <= size {
            let limit = (size + 1 - items.len()).min(SESSIONS_PER_SCRIPT);
            let call = self.connection.call(&scripts::LIST).arg(&after).arg(limit);
            type SessionRow = (String, u64, Vec<u8>, Option<String>, String);
            let (visited, last, found): (usize, String, Vec<SessionRow>) = call.run().await?;
            for (id, remaining_ms, meta, worker, usage) in found {
                let listed = SessionId::try_new(&id).and_then(|id| {
                    decode_session(&id, Duration::from_millis(remaining_ms), &meta, worker, &usage)
                });
                match listed {
                    Ok(listed) => items.push(self.localize_last_worker(listed)),
                    // An unreadable session must not hide the others.
                    Err(error) => {
                        tracing::error!(session = id, error = %error_chain(&error), "omitted an unreadable session from a listing");
                    }
                }
            }
            if visited < limit {
                break;
            }
            after = last;
        }
        let has_more = items.len() > size;
        items.truncate(size);
        let next = items.last().filter(|_| has_more).map(|last| last.id.to_string());
        Ok(Page { items, next })
    }

    async fn set_last_worker(&self, id: &SessionId, worker: Arc<str>) -> Result<(), SessionError> {
        let call = self.connection.call(&scripts::AFFINITY).arg(id.as_str()).arg(self.stored_worker(&worker));
        if call.run().await? { Ok(()) } else { Err(SessionError::NotFound { id: id.clone() }) }
    }

    async fn put_program(
        &self,
        owner: &ProgramOwner,
        name: &ProgramName,
        program: Program,
    ) -> Result<Created, SessionError> {
        let ProgramOwner::Session(id) = owner else { return self.put_global(name, program).await };
        self.change(id, &LoadPlan::program(name), |record, size_guard, changes| {
            let created = record.put_program(size_guard, name, program.clone())?;
            record.programs.get(name).into_iter().for_each(|stored| changes.add_program(stored));
            Ok(created)
        })
        .await
    }

    async fn program(&self, owner: &ProgramOwner, name: &ProgramName) -> Result<Program, SessionError> {
        match owner {
            ProgramOwner::Session(id) => self.load(id, &LoadPlan::data(name)).await?.record.program(id, name),
            ProgramOwner::Global => self.global_program(name).await,
        }
    }

    async fn programs(&self, owner: &ProgramOwner) -> Result<Vec<ProgramInfo>, SessionError> {
        let ProgramOwner::Session(id) = owner else { return self.global_programs().await };
        let programs = self.load(id, &LoadPlan::all_programs()).await?.record.programs;
        Ok(programs.into_values().map(|program| program.info).collect())
    }

    async fn delete_program(&self, owner: &ProgramOwner, name: &ProgramName) -> Result<(), SessionError> {
        let ProgramOwner::Session(id) = owner else { return self.delete_global(name).await };
        self.change(id, &LoadPlan::program(name), |record, size_guard, changes| {
            record.delete_program(size_guard, name)?;
            changes.delete_program(name);
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
        let checked = CheckedValue::for_new_variable(&self.limits, &new).await;
        self.change(id, &LoadPlan::variables([name.as_str()]), |record, size_guard, changes| {
            let created = record.register(size_guard, name, new.clone(), checked.clone())?;
            changes.add_variable(UpdateKind::Registered, created);
            Ok(created.variable.clone())
        })
        .await
    }

    async fn variables(
        &self,
        id: &SessionId,
        identifiers: &[&str],
    ) -> Result<Vec<Option<Variable>>, SessionError> {
        self.limits.check_names(identifiers.len())?;
        let record = self.load(id, &LoadPlan::variables(identifiers.iter().copied())).await?.record;
        let find = |identifier: &&str| Some(record.find(identifier)?.variable.clone());
        Ok(identifiers.iter().map(find).collect())
    }

    async fn set_variables(
        &self,
        id: &SessionId,
        updates: Vec<SetVariable>,
        batch: Batch,
    ) -> Result<Vec<Result<u32, SessionError>>, SessionError> {
        self.limits.check_names(updates.len())?;
        let plan = LoadPlan::variables(updates.iter().map(|update| &*update.identifier));
        self.change_variables(id, &plan, updates, |record, size_guard, changes, updates| {
            record.set_batch(size_guard, updates, batch, |changed| {
                changes.add_variable(UpdateKind::Set, changed);
            })
        })
        .await
    }

    async fn list_variables(&self, id: &SessionId, pattern: &str) -> Result<Vec<Variable>, SessionError> {
        let record = self.load(id, &LoadPlan::all_variables()).await?.record;
        let variables = record.variables.into_values().map(|record| record.variable);
        Ok(variables.filter(|variable| matches_pattern(pattern, variable.name.as_str())).collect())
    }

    async fn delete_variable(&self, id: &SessionId, identifier: &str) -> Result<Variable, SessionError> {
        self.change(id, &LoadPlan::variables([identifier]), |record, size_guard, changes| {
            let deleted = record.delete_variable(size_guard, identifier)?;
            changes.delete_variable(&deleted);
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
        let plan = LoadPlan::variables(identifiers.iter().copied());
        self.change(id, &plan, |record, size_guard, changes| {
            record.delete_variables(size_guard, identifiers, |deleted| changes.delete_variable(deleted))
        })
        .await
    }

    async fn variable_history(
        &self,
        id: &SessionId,
        identifier: &str,
        limit: usize,
    ) -> Result<Vec<VariableVersion>, SessionError> {
        Ok(load_history(&self.connection, id, identifier, limit).await?.history(limit).collect())
    }

    async fn rollback_variable(
        &self,
        id: &SessionId,
        identifier: &str,
        version: u32,
        note: Note,
    ) -> Result<Variable, SessionError> {
        self.change(id, &LoadPlan::version(identifier, version), |record, size_guard, changes| {
            let changed = record.rollback(size_guard, identifier, version, note.clone())?;
            changes.add_variable(UpdateKind::RolledBack, changed);
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
        let plan = match identifiers {
            [] if initial => LoadPlan::all_variables(),
            identifiers => LoadPlan::variables(identifiers.iter().map(|identifier| &**identifier)),
        };
        let LoadedSession { record, usage, seq, mark, .. } =
            self.load(id, &plan.with_watch_lease(self.watch_lease)).await?;
        let Usage { incarnation, .. } = usage;
        let (watcher, watch) = Watcher::for_record(&self.limits, id, &record, identifiers, initial)?;
        self.follower.add(
            id,
            &incarnation,
            WatchCursor { number: seq, mark },
            watcher,
            self.limits.max_watches,
        )?;
        Ok(watch)
    }

    async fn stats(&self) -> Result<SessionStats, SessionError> {
        let mut stats = SessionStats::default();
        [
            stats.created,
            stats.deleted,
            stats.expired,
            stats.sweeps,
            stats.live,
            stats.variables,
            stats.programs,
            stats.bytes,
        ] = self.connection.call(&scripts::STATS).run().await?;
        Ok(stats)
    }

    fn subscribe(&self) -> SessionEvents {
        self.follower.events.subscribe()
    }

    async fn sweep(&self) -> Result<usize, SessionError> {
        Ok(self.reclaim_all("sweep").await?.0)
    }
}
