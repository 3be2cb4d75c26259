//! Writes with optimistic concurrency: loads a session, changes it, and commits it if its revision is unchanged. Otherwise retries.

use std::{
    collections::{BTreeMap, hash_map::RandomState},
    hash::BuildHasher,
    time::Duration,
};

use bytes::Bytes;
use snakepit_session::{
    ProgramName, SessionError, SessionId, SetVariable, UpdateKind, VariableName,
    kit::{PreparedWrite, ProgramRecord, SessionRecord, SizeGuard, VariableRecord, WritePreparation, encode},
};
use tokio::sync::{Mutex, MutexGuard};

use super::{
    RedisBackend, back_off,
    plan::{LoadPlan, LoadedSession, Usage, encode_variable, older_field},
    scripts,
};

/// The maximum number of attempts. Each conflict means that another write succeeded, so the writers together make progress.
const MAX_ATTEMPTS: u32 = 256;

/// The minimum capacity of a watched session's log, in changes. The log buffers the changes to all variables for all hosts,
/// so it must be larger than the queue of one watcher.
const MIN_LOG_CHANGES: usize = 1024;
/// The minimum capacity of the log in bytes.
const MIN_LOG_BYTES: usize = 16 << 20;
/// The number of locks. More locks mean that fewer sessions share one.
const STRIPES: usize = 1024;

/// Striped locks that serialize the writers of this host for each session, so that they do not conflict with each other. Several
/// sessions share a stripe.
#[derive(Debug)]
pub(super) struct StripedLocks {
    locks: Box<[Mutex<()>]>,
    hasher: RandomState,
}

impl StripedLocks {
    pub(super) fn new() -> Self {
        Self { locks: (0..STRIPES).map(|_| Mutex::default()).collect(), hasher: RandomState::new() }
    }

    /// Waits for the lock of a session with a timeout. While Redis does not answer, waiting writers therefore time out together
    /// instead of one after another.
    async fn lock(&self, id: &SessionId, timeout: Duration) -> Option<MutexGuard<'_, ()>> {
        let stripe = usize::try_from(self.hasher.hash_one(id)).unwrap_or(usize::MAX) % self.locks.len();
        tokio::time::timeout(timeout, self.locks[stripe].lock()).await.ok()
    }
}

/// The changes of an operation, as arguments for the script.
#[derive(Debug)]
pub(super) struct Changes {
    arguments: Vec<Bytes>,
    /// The number of the last change to a variable.
    seq: u64,
    /// The oldest version in the history of each variable.
    oldest: BTreeMap<VariableName, u32>,
    problem: Option<SessionError>,
}

impl Changes {
    fn new(loaded: &LoadedSession) -> Self {
        let variables = loaded.record.variables.iter();
        Self {
            arguments: Vec::new(),
            seq: loaded.seq,
            oldest: variables.map(|(name, variable)| (name.clone(), variable.older().start)).collect(),
            problem: None,
        }
    }

    fn push<const N: usize>(&mut self, arguments: [Bytes; N]) {
        self.arguments.extend(arguments);
    }

    fn encoded(&mut self, encoded: Result<Bytes, SessionError>) -> Bytes {
        encoded.unwrap_or_else(|problem| {
            self.problem = Some(problem);
            Bytes::new()
        })
    }

    fn encode_variable(&mut self, kind: UpdateKind, variable: &VariableRecord) -> Bytes {
        self.seq += 1;
        self.encoded(encode_variable(self.seq, kind, variable))
    }

    fn delete_versions(&mut self, name: &VariableName, versions: impl Iterator<Item = u32>) {
        for version in versions {
            self.push([keyword("forget"), older_field(name.as_str(), version).into()]);
        }
    }

    /// Adds a variable that was registered or written.
    pub(super) fn add_variable(&mut self, kind: UpdateKind, variable: &VariableRecord) {
        let name = &variable.variable.name;
        let previous = variable.older().next_back();
        let previous = previous.map(|version| version.to_string().into()).unwrap_or_default();
        let encoded = self.encode_variable(kind, variable);
        self.push([keyword("set"), name.to_string().into(), previous, encoded]);
        let oldest = variable.older().start;
        let before = self.oldest.insert(name.clone(), oldest).unwrap_or(oldest);
        self.delete_versions(name, before..oldest);
    }

    /// Adds a deleted variable.
    pub(super) fn delete_variable(&mut self, variable: &VariableRecord) {
        let name = &variable.variable.name;
        let encoded = self.encode_variable(UpdateKind::Deleted, variable);
        self.push([keyword("unset"), name.to_string().into(), encoded]);
        self.delete_versions(name, variable.older());
        self.oldest.remove(name);
    }

    /// Adds a stored program.
    pub(super) fn add_program(&mut self, program: &ProgramRecord) {
        let info = encode(&program.info).map(Bytes::from);
        let info = self.encoded(info);
        self.push([keyword("put"), program.info.name.to_string().into(), info, program.data.clone()]);
    }

    /// Adds a deleted program.
    pub(super) fn delete_program(&mut self, name: &ProgramName) {
        self.push([keyword("remove"), name.to_string().into()]);
    }
}

const fn keyword(word: &'static str) -> Bytes {
    Bytes::from_static(word.as_bytes())
}

/// Returns a random revision for a commit, as an integer that Lua can represent exactly.
fn random_rev() -> u64 {
    (uuid::Uuid::new_v4().as_u64_pair().0 >> 12) | 1
}

impl RedisBackend {
    /// Runs an operation on a session and stores its changes. Retries after conflicts.
    pub(super) async fn change<T, F>(
        &self,
        id: &SessionId,
        plan: &LoadPlan,
        operation: F,
    ) -> Result<T, SessionError>
    where
        F: Fn(&mut SessionRecord, &mut SizeGuard<'_>, &mut Changes) -> Result<T, SessionError> + Send + Sync,
    {
        self.change_variables(id, plan, Vec::new(), |record, size_guard, changes, _| {
            operation(record, size_guard, changes)
        })
        .await
    }

    /// Like [`change`](Self::change), for writes of variables. Runs expensive checks only once, not in each attempt.
    pub(super) async fn change_variables<T, F>(
        &self,
        id: &SessionId,
        plan: &LoadPlan,
        updates: Vec<SetVariable>,
        operation: F,
    ) -> Result<T, SessionError>
    where
        F: Fn(
                &mut SessionRecord,
                &mut SizeGuard<'_>,
                &mut Changes,
                Vec<PreparedWrite>,
            ) -> Result<T, SessionError>
            + Send
            + Sync,
    {
        let lock = self.locks.lock(id, self.connection.timeout()).await;
        let _lock = lock.ok_or_else(|| {
            let timeout = self.connection.timeout();
            self.connection.not_written(&format!(
                "did not answer earlier writers of the session within {timeout:?}; nothing was written"
            ))
        })?;
        let (mut has_reclaimed, mut prepared) = (false, None::<Vec<PreparedWrite>>);
        for attempt in 0..MAX_ATTEMPTS {
            back_off(attempt).await;
            let mut loaded = LoadedSession::load(&self.connection, id, plan).await?;
            let writes = match &prepared {
                Some(prepared) => prepared.clone(),
                // If the type of a variable changes before a retry, the write checks the value again.
                None if WritePreparation::is_needed(&updates) => {
                    let preparation =
                        WritePreparation::of(&self.limits, Some(&loaded.record), updates.clone());
                    prepared.insert(preparation.prepare().await).clone()
                }
                None => prepared.insert(updates.iter().cloned().map(PreparedWrite::from).collect()).clone(),
            };
            let operation =
                |record: &mut SessionRecord, size_guard: &mut SizeGuard<'_>, changes: &mut Changes| {
                    operation(record, size_guard, changes, writes)
                };
            let (result, changes, is_full) = self.apply(id, &mut loaded, operation);
            // Reclaim expired sessions before rejecting.
            if is_full && !has_reclaimed {
                has_reclaimed = true;
                if self.reclaim().await? {
                    continue;
                }
            }
            let result = result?;
            if changes.arguments.is_empty() {
                return Ok(result);
            }
            match &*self.commit(id, &loaded, changes).await? {
                "done" => return Ok(result),
                "ended" => return Err(SessionError::NotFound { id: id.clone() }),
                // Another host changed the session, or used the remaining space.
                _ => {
                    tracing::trace!(session = %id, attempt, "conflict with a write of another host; retrying");
                }
            }
        }
        Err(self.connection.problem("too many hosts change the session concurrently; try again"))
    }

    /// Applies the operation to the loaded record. The flag is true if the limit of the total size rejected a change.
    fn apply<T>(
        &self,
        id: &SessionId,
        loaded: &mut LoadedSession,
        operation: impl FnOnce(&mut SessionRecord, &mut SizeGuard<'_>, &mut Changes) -> Result<T, SessionError>,
    ) -> (Result<T, SessionError>, Changes, bool) {
        let mut changes = Changes::new(loaded);
        let (mut is_full, limit) = (false, self.limits.max_total_bytes);
        let total = &mut loaded.total;
        let mut resize = |from: usize, to: usize| {
            let size = (*total + to).saturating_sub(from);
            if to > from && size > limit {
                is_full = true;
                return Err(SessionError::BackendFull { size, limit });
            }
            *total = size;
            Ok(())
        };
        let mut size_guard = SizeGuard { session: id, limits: &self.limits, resize: &mut resize };
        let result = operation(&mut loaded.record, &mut size_guard, &mut changes);
        (result, changes, is_full)
    }

    async fn commit(
        &self,
        id: &SessionId,
        loaded: &LoadedSession,
        changes: Changes,
    ) -> Result<String, SessionError> {
        if let Some(problem) = changes.problem {
            return Err(problem);
        }
        let (header, usage) = (&loaded.record.header, &loaded.usage);
        let growth = |after: usize, before: usize| after as i128 - before as i128;
        let mut call = self
            .connection
            .call(&scripts::COMMIT)
            .arg(id.as_str())
            .arg(&usage.incarnation)
            .arg(loaded.rev)
            .arg(random_rev())
            .arg(Usage::of(header, &usage.incarnation))
            .arg(growth(header.bytes, usage.bytes).to_string())
            .arg(growth(header.variables, usage.variables).to_string())
            .arg(growth(header.programs, usage.programs).to_string())
            .arg(self.limits.max_total_bytes)
            .arg(self.limits.max_watch_backlog.max(MIN_LOG_CHANGES))
            .arg(self.limits.max_watch_backlog_bytes.max(MIN_LOG_BYTES));
        for argument in &changes.arguments {
            call = call.arg(&argument[..]);
        }
        call.run().await
    }
}
