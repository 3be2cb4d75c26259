//! [`Group`]: the operations of one transaction, which run in sequence. Each operation makes all its changes or none. Changes to
//! the state in memory are staged until the commit.

use std::{
    borrow::Borrow,
    ops::{Bound, Range},
};

use bytes::Bytes;
use redb::{Table, WriteTransaction};
use snakepit_session::{
    Created, NewSession, Program, ProgramInfo, ProgramName, Session, SessionError, SessionEventKind,
    SessionId,
    kit::{ProgramRecord, SessionHeader, SessionRecord, SizeGuard, encode, program_not_found},
};
use tokio::time::Instant;

use super::{
    SharedState,
    expiry::{Expiry, ExpiryKey},
    rows::{
        DATA, GLOBAL_OWNER, HeaderSummary, Key, PROGRAMS, Row, SESSIONS, VARIABLES, VERSIONS, VersionKey,
        backend_error, damaged_error, end_of, get, header_key, rows_of,
    },
    state::{Notification, StagedChanges, State, Totals},
};

mod variables;

/// An open transaction and its tables.
pub(super) struct Group<'a> {
    shared: &'a SharedState,
    state: &'a mut State,
    /// The start of the current operation. Sessions that are live then do not expire during it.
    now: Instant,
    sessions: Rows<'a>,
    variables: Rows<'a>,
    versions: Table<'a, VersionKey, Row>,
    programs: Rows<'a>,
    data: Rows<'a>,
}

type Rows<'a> = Table<'a, Key, Row>;

impl<'a> Group<'a> {
    pub(super) fn begin(
        shared: &'a SharedState,
        state: &'a mut State,
        transaction: &'a WriteTransaction,
    ) -> Result<Self, SessionError> {
        state.begin_group();
        let table = |definition| transaction.open_table(definition).map_err(backend_error);
        Ok(Self {
            shared,
            state,
            now: Instant::now(),
            sessions: table(SESSIONS)?,
            variables: table(VARIABLES)?,
            versions: transaction.open_table(VERSIONS).map_err(backend_error)?,
            programs: table(PROGRAMS)?,
            data: table(DATA)?,
        })
    }

    /// Sets the time of the next operation.
    pub(super) fn begin_operation(&mut self) {
        self.now = Instant::now();
    }

    /// The number of rows written so far, including failed writes.
    pub(super) const fn writes(&self) -> usize {
        self.state.staged.writes
    }

    const fn totals(&mut self) -> &mut Totals {
        &mut self.state.staged.totals
    }

    /// Counts rows before they are written. If the write fails, their state is unknown.
    const fn count_writes(&mut self, rows: usize) {
        self.state.staged.writes += rows;
    }

    fn put_header(&mut self, id: &SessionId, header: &SessionHeader) -> Result<(), SessionError> {
        self.count_writes(1);
        put(&mut self.sessions, header_key(id), &encode(header)?)
    }

    /// Returns the expiry of an owner, expired or not, including changes of this group.
    fn expiry(&self, owner: &ExpiryKey) -> Option<Expiry> {
        match self.state.staged.expiries.get(owner) {
            Some(staged) => staged.clone(),
            None => self.shared.expiries.get(owner),
        }
    }

    /// Returns the expiry of an owner that has not expired.
    fn live_expiry(&self, owner: &ExpiryKey) -> Option<Expiry> {
        self.expiry(owner).filter(|expiry| !expiry.is_expired(self.now))
    }

    /// Renews an owner that has not expired, and returns its expiry.
    fn renew(&mut self, owner: &ExpiryKey) -> Option<Expiry> {
        match self.state.staged.expiries.get_mut(owner) {
            Some(staged) => {
                let expiry = staged.as_mut().filter(|expiry| !expiry.is_expired(self.now))?;
                expiry.renew(self.now);
                Some(expiry.clone())
            }
            None => self.shared.expiries.renew(owner, self.now),
        }
    }

    fn record(&self, id: &SessionId) -> Result<SessionRecord, SessionError> {
        let header: Option<SessionHeader> = get(&self.sessions, header_key(id))?;
        header.map(SessionRecord::new).ok_or_else(|| SessionError::NotFound { id: id.clone() })
    }

    /// Renews a live session and returns its header.
    fn renew_and_load(&mut self, id: &SessionId) -> Result<SessionRecord, SessionError> {
        match self.renew(&ExpiryKey::Session(id.clone())) {
            Some(_) => self.record(id).map_err(|error| match error {
                SessionError::NotFound { .. } => damaged_error(&format!("session `{id}` is missing")),
                error => error,
            }),
            None => Err(SessionError::NotFound { id: id.clone() }),
        }
    }

    pub(super) fn create(
        &mut self,
        id: &SessionId,
        new: NewSession,
    ) -> Result<(Session, Created), SessionError> {
        let owner = ExpiryKey::Session(id.clone());
        if let Some(expiry) = self.renew(&owner) {
            return Ok((expiry.snapshot(id, self.record(id)?.header, self.now), Created::Existing));
        }
        self.expire(&owner)?;
        // Reclaim expired sessions before rejecting.
        let limit = self.shared.limits.max_sessions;
        self.reclaim(|staged| staged.totals.sessions < limit)?;
        if self.totals().sessions >= limit {
            return Err(SessionError::TooManySessions { limit });
        }
        let header = SessionHeader::new(new, &self.shared.limits);
        self.resize(0, header.bytes)?;
        self.put_header(id, &header)?;
        let expiry = Expiry::new(header.ttl, self.now);
        let session = expiry.snapshot(id, header, self.now);
        self.state.staged.expiries.insert(owner, Some(expiry));
        self.state.staged.notifications.push(Notification::Created(id.clone()));
        self.totals().sessions += 1;
        self.totals().created += 1;
        Ok((session, Created::New))
    }

    pub(super) fn delete(&mut self, id: &SessionId) -> Result<Session, SessionError> {
        let owner = ExpiryKey::Session(id.clone());
        let expiry = self.live_expiry(&owner).ok_or_else(|| SessionError::NotFound { id: id.clone() })?;
        let session = expiry.snapshot(id, self.record(id)?.header, self.now);
        self.remove(&owner, SessionEventKind::Deleted)?;
        Ok(session)
    }

    /// Runs an operation on a record. Stores the header if the size or a count changed.
    fn edit<T>(
        &mut self,
        id: &SessionId,
        record: &mut SessionRecord,
        operation: impl FnOnce(&mut SessionRecord, &mut SizeGuard<'_>) -> Result<T, SessionError>,
    ) -> Result<T, SessionError> {
        let usage = |header: &SessionHeader| (header.bytes, header.programs, header.variables);
        let before = usage(&record.header);
        let limits = &self.shared.limits;
        let mut resize = |from, to| self.resize(from, to);
        let result = operation(record, &mut SizeGuard { session: id, limits, resize: &mut resize })?;
        if usage(&record.header) != before {
            let totals = self.totals();
            totals.session_programs = totals.session_programs + record.header.programs - before.1;
            totals.variables = totals.variables + record.header.variables - before.2;
            self.put_header(id, &record.header)?;
        }
        Ok(result)
    }

    pub(super) fn put_program(
        &mut self,
        id: &SessionId,
        name: &ProgramName,
        program: Program,
    ) -> Result<Created, SessionError> {
        let mut record = self.with_program(id, name)?;
        let created =
            self.edit(id, &mut record, |record, size_guard| record.put_program(size_guard, name, program))?;
        if let Some(program) = record.programs.get(name) {
            self.write_program(id.as_str(), program)?;
        }
        Ok(created)
    }

    pub(super) fn delete_program(&mut self, id: &SessionId, name: &ProgramName) -> Result<(), SessionError> {
        let mut record = self.with_program(id, name)?;
        self.edit(id, &mut record, |record, size_guard| record.delete_program(size_guard, name))?;
        self.erase_program(id.as_str(), name)
    }

    /// Renews a live session and loads it, with the named program if that exists.
    fn with_program(&mut self, id: &SessionId, name: &ProgramName) -> Result<SessionRecord, SessionError> {
        let mut record = self.renew_and_load(id)?;
        if let Some(info) = get(&self.programs, (id.as_str(), name.as_str()))? {
            record.programs.insert(name.clone(), ProgramRecord { info, data: Bytes::new() });
        }
        Ok(record)
    }

    pub(super) fn put_global(
        &mut self,
        name: &ProgramName,
        program: Program,
    ) -> Result<Created, SessionError> {
        let limits = &self.shared.limits;
        let program = ProgramRecord::global(limits, name, program)?;
        let owner = ExpiryKey::Global(name.clone());
        let is_live = self.live_expiry(&owner).is_some();
        if !is_live {
            self.expire(&owner)?;
            let limit = limits.max_programs;
            self.reclaim(|staged| staged.totals.global_programs < limit)?;
            if self.totals().global_programs >= limit {
                return Err(SessionError::TooManyGlobalPrograms { limit });
            }
        }
        self.resize(self.size_of_global(name)?, program.size())?;
        self.write_program(GLOBAL_OWNER, &program)?;
        let expiry = Expiry::new(limits.ttl(program.info.ttl), self.now);
        self.state.staged.expiries.insert(owner, Some(expiry));
        if is_live {
            return Ok(Created::Existing);
        }
        self.totals().global_programs += 1;
        Ok(Created::New)
    }

    pub(super) fn delete_global(&mut self, name: &ProgramName) -> Result<(), SessionError> {
        let owner = ExpiryKey::Global(name.clone());
        if self.live_expiry(&owner).is_none() {
            return Err(program_not_found(None, name));
        }
        self.remove(&owner, SessionEventKind::Deleted)
    }

    /// Reclaims expired sessions and programs, up to about `max_rows` rows. Returns the number of sessions, and whether more may
    /// be due. `is_first` marks the first transaction of a sweep.
    pub(super) fn sweep(&mut self, max_rows: usize, is_first: bool) -> Result<(usize, bool), SessionError> {
        self.totals().sweeps += u64::from(is_first);
        let (expired, max_writes) = (self.totals().expired, self.writes() + max_rows);
        self.reclaim(|staged| staged.writes >= max_writes)?;
        let swept = usize::try_from(self.totals().expired - expired).unwrap_or(usize::MAX);
        Ok((swept, self.writes() >= max_writes))
    }

    /// Reclaims expired sessions and programs until `is_enough`.
    fn reclaim(&mut self, is_enough: impl Fn(&StagedChanges) -> bool) -> Result<(), SessionError> {
        let mut last = None;
        while !is_enough(&self.state.staged) {
            // Owners that ended in this group stay in the queue until the commit, so continue after the last entry.
            let after = last.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
            let next = self.state.queue.range((after, Bound::Unbounded)).next();
            let Some(due) = next.filter(|(expiry, _)| *expiry <= self.now).cloned() else { break };
            let owner = &due.1;
            if self.state.staged.expiries.contains_key(owner) {
                // This group has replaced or ended the owner; the entry is removed with the commit.
            } else if self.shared.expiries.get(owner).is_some_and(|expiry| expiry.is_expired(self.now)) {
                self.remove(owner, SessionEventKind::Expired)?;
            } else {
                self.state.queue.remove(&due);
                let requeued = self.shared.expiries.requeue(owner);
                self.state.queue.extend(requeued.map(|expiry| (expiry, owner.clone())));
            }
            last = Some(due);
        }
        Ok(())
    }

    /// Removes the rows of an expired owner.
    fn expire(&mut self, owner: &ExpiryKey) -> Result<(), SessionError> {
        match self.expiry(owner) {
            Some(_) => self.remove(owner, SessionEventKind::Expired),
            None => Ok(()),
        }
    }

    /// Removes a session or a global program with all its rows.
    fn remove(&mut self, owner: &ExpiryKey, kind: SessionEventKind) -> Result<(), SessionError> {
        match owner {
            ExpiryKey::Session(id) => self.remove_session(id, kind)?,
            ExpiryKey::Global(name) => {
                let size = self.size_of_global(name)?;
                self.erase_program(GLOBAL_OWNER, name)?;
                self.totals().global_programs -= 1;
                self.totals().bytes -= size;
            }
        }
        self.state.staged.expiries.insert(owner.clone(), None);
        Ok(())
    }

    fn remove_session(&mut self, id: &SessionId, kind: SessionEventKind) -> Result<(), SessionError> {
        let summary: Option<HeaderSummary> = get(&self.sessions, header_key(id))?;
        let Some(HeaderSummary { bytes, programs, variables, .. }) = summary else { return Ok(()) };
        self.count_writes(1 + variables + 2 * programs);
        erase(&mut self.sessions, header_key(id))?;
        let end = end_of(id.as_str());
        if variables > 0 {
            erase_all(&mut self.variables, rows_of(id.as_str(), &end))?;
            let versions = erase_all(&mut self.versions, (id.as_str(), "", 0)..(&end, "", 0))?;
            self.count_writes(versions);
        }
        if programs > 0 {
            erase_all(&mut self.programs, rows_of(id.as_str(), &end))?;
            erase_all(&mut self.data, rows_of(id.as_str(), &end))?;
        }
        let totals = self.totals();
        totals.sessions -= 1;
        totals.variables -= variables;
        totals.session_programs -= programs;
        totals.bytes -= bytes;
        match kind {
            SessionEventKind::Created => {}
            SessionEventKind::Expired => totals.expired += 1,
            SessionEventKind::Deleted => totals.deleted += 1,
        }
        let watchers = self.state.watchers.remove(id);
        self.state.staged.notifications.push(Notification::Ended { id: id.clone(), kind, watchers });
        Ok(())
    }

    /// Adjusts the total size when an object's size changes.
    ///
    /// # Errors
    /// [`SessionError::BackendFull`].
    fn resize(&mut self, from: usize, to: usize) -> Result<(), SessionError> {
        let limit = self.shared.limits.max_total_bytes;
        let size = |staged: &StagedChanges| (staged.totals.bytes - from).saturating_add(to);
        if to > from {
            self.reclaim(|staged| size(staged) <= limit)?;
            let size = size(&self.state.staged);
            if size > limit {
                return Err(SessionError::BackendFull { size, limit });
            }
        }
        self.totals().bytes = size(&self.state.staged);
        Ok(())
    }

    /// The size of a global program, expired or not; 0 if it does not exist.
    fn size_of_global(&self, name: &ProgramName) -> Result<usize, SessionError> {
        let info: Option<ProgramInfo> = get(&self.programs, (GLOBAL_OWNER, name.as_str()))?;
        Ok(info.map_or(0, |info| ProgramRecord { info, data: Bytes::new() }.size()))
    }

    fn write_program(&mut self, owner: &str, program: &ProgramRecord) -> Result<(), SessionError> {
        let key = (owner, program.info.name.as_str());
        self.count_writes(2);
        put(&mut self.programs, key, &encode(&program.info)?)?;
        put(&mut self.data, key, &program.data)
    }

    fn erase_program(&mut self, owner: &str, name: &ProgramName) -> Result<(), SessionError> {
        let key = (owner, name.as_str());
        self.count_writes(2);
        erase(&mut self.programs, key)?;
        erase(&mut self.data, key)
    }
}

fn put<'k, K: redb::Key + 'static>(
    table: &mut Table<'_, K, Row>,
    key: impl Borrow<K::SelfType<'k>>,
    row: &[u8],
) -> Result<(), SessionError> {
    table.insert(key, row).map(drop).map_err(backend_error)
}

fn erase<'k, K: redb::Key + 'static>(
    table: &mut Table<'_, K, Row>,
    key: impl Borrow<K::SelfType<'k>>,
) -> Result<(), SessionError> {
    table.remove(key).map(drop).map_err(backend_error)
}

/// Deletes a range of rows and returns their number.
fn erase_all<'k, K: redb::Key + 'static>(
    table: &mut Table<'_, K, Row>,
    rows: Range<K::SelfType<'k>>,
) -> Result<usize, SessionError> {
    let mut erased = 0;
    let erase = |_: K::SelfType<'_>, _: &[u8]| {
        erased += 1;
        false
    };
    table.retain_in(rows, erase).map_err(backend_error)?;
    Ok(erased)
}
