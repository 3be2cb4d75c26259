//! The tables of a file, and functions that read their rows. The module `group` writes them.
//!
//! The first part of every key is the owner: a session id, or the empty string for global rows, which is not a valid id. The
//! rows of an owner are therefore a contiguous range.

use std::{borrow::Borrow, ops::Range, sync::Arc};

use bytes::Bytes;
use redb::{Database, ReadTransaction, ReadableTable, TableDefinition};
use serde::{Deserialize, de::DeserializeOwned};
use snakepit_session::{
    Program, ProgramInfo, ProgramName, SessionError, SessionId, Variable, VariableVersion,
    kit::{ProgramRecord, SessionHeader, SessionRecord, VariableRecord, decode, variable_name_in},
};
use tokio::sync::OwnedRwLockReadGuard;

use super::row_counts::RowCounts;

pub(super) type Key = (&'static str, &'static str);
pub(super) type VersionKey = (&'static str, &'static str, u32);
pub(super) type Row = &'static [u8];
type Definition = TableDefinition<'static, Key, Row>;

/// Session headers, by `(session, "")`.
pub(super) const SESSIONS: Definition = Definition::new("sessions");
/// The current state of variables, by `(session, name)`. It lists the older versions.
pub(super) const VARIABLES: Definition = Definition::new("variables");
/// Older versions, by `(session, name, version)`.
pub(super) const VERSIONS: TableDefinition<'static, VersionKey, Row> = TableDefinition::new("versions");
/// Descriptions of programs, by `(session, name)`, or `("", name)` for global programs.
pub(super) const PROGRAMS: Definition = Definition::new("programs");
/// The raw data of programs, by the same keys.
pub(super) const DATA: Definition = Definition::new("program_data");
/// Expiries, by the key of the session or the global program. This table exists only between a clean shutdown and the next start.
/// Its name in the file is part of the format.
pub(super) const EXPIRIES: Definition = Definition::new("leases");
/// One row with the schema version.
pub(super) const SCHEMA: TableDefinition<'static, (), u64> = TableDefinition::new("schema");

/// The owner of global rows.
pub(super) const GLOBAL_OWNER: &str = "";

/// The session header without its metadata.
#[derive(Debug, Deserialize)]
pub(super) struct HeaderSummary {
    pub(super) ttl: std::time::Duration,
    pub(super) bytes: usize,
    pub(super) programs: usize,
    pub(super) variables: usize,
}

/// The prefix of disk errors.
const DISK_FAILED: &str = "the disk failed";

/// Converts a redb error.
pub(super) fn backend_error(error: impl Into<redb::Error>) -> SessionError {
    match error.into() {
        error @ (redb::Error::Io(_) | redb::Error::PreviousIo | redb::Error::DatabaseClosed) => {
            SessionError::backend(DISK_FAILED).with_source(error)
        }
        redb::Error::Corrupted(problem) => damaged_error(&problem),
        error => SessionError::backend("the database failed").with_source(error),
    }
}

/// Whether the database rejects all operations until it is reopened.
pub(super) fn is_disk_error(error: &SessionError) -> bool {
    matches!(error, SessionError::Backend { problem, .. } if problem.starts_with(DISK_FAILED))
}

/// The error for a damaged file.
pub(super) fn damaged_error(problem: &str) -> SessionError {
    SessionError::backend(format!("it is damaged; restore it from a copy: {problem}"))
}

/// The key of a session's header.
pub(super) fn header_key(id: &SessionId) -> (&str, &str) {
    (id.as_str(), "")
}

/// The exclusive end of an owner's rows. It sorts directly after the owner, because ids contain no control characters.
pub(super) fn end_of(owner: &str) -> String {
    format!("{owner}\0")
}

/// The keys of an owner's rows. `end` is [`end_of`] the owner.
pub(super) fn rows_of<'a>(owner: &'a str, end: &'a str) -> Range<(&'a str, &'a str)> {
    (owner, "")..(end, "")
}

/// Reads and decodes a row.
pub(super) fn get<'k, T: DeserializeOwned, K: redb::Key + 'static>(
    table: &impl ReadableTable<K, Row>,
    key: impl Borrow<K::SelfType<'k>>,
) -> Result<Option<T>, SessionError> {
    let row = table.get(key).map_err(backend_error)?;
    row.map(|row| decode(row.value())).transpose()
}

/// Decodes the rows of an owner that `is_wanted` accepts by name, sorted by name.
pub(super) fn scan<T: DeserializeOwned>(
    table: &impl ReadableTable<Key, Row>,
    owner: &str,
    mut is_wanted: impl FnMut(&str) -> bool,
) -> Result<Vec<T>, SessionError> {
    let end = end_of(owner);
    let mut found = Vec::new();
    for entry in table.range(rows_of(owner, &end)).map_err(backend_error)? {
        let (key, row) = entry.map_err(backend_error)?;
        if is_wanted(key.value().1) {
            found.push(decode(row.value())?);
        }
    }
    Ok(found)
}

/// Loads the named variables, without their older versions.
pub(super) fn load_variables(
    table: &impl ReadableTable<Key, Row>,
    id: &SessionId,
    identifiers: &[String],
    record: &mut SessionRecord,
) -> Result<(), SessionError> {
    for name in identifiers.iter().map(|identifier| variable_name_in(identifier)) {
        if record.variables.contains_key(name) {
            continue;
        }
        if let Some(found) = get::<VariableRecord, _>(table, (id.as_str(), name))? {
            record.variables.insert(found.variable.name.clone(), Box::new(found));
        }
    }
    Ok(())
}

/// Loads all variables of a session, without their older versions.
pub(super) fn load_all_variables(
    table: &impl ReadableTable<Key, Row>,
    id: &SessionId,
    record: &mut SessionRecord,
) -> Result<(), SessionError> {
    let found = scan::<VariableRecord>(table, id.as_str(), |_| true)?;
    record.variables.extend(found.into_iter().map(|found| (found.variable.name.clone(), Box::new(found))));
    Ok(())
}

/// Checks that a missing row was never written. If the session contains fewer rows than its header counts, the file is damaged.
fn count_rows(
    table: &impl ReadableTable<Key, Row>,
    owner: &str,
    name: &str,
    expected: usize,
) -> Result<(), SessionError> {
    let end = end_of(owner);
    let mut rows = 0;
    for entry in table.range(rows_of(owner, &end)).map_err(backend_error)? {
        let (key, _) = entry.map_err(backend_error)?;
        if key.value().1 == name {
            return Err(damaged_error(&format!("the row of `{name}` in session `{owner}` is out of order")));
        }
        rows += 1;
    }
    check_count(owner, "rows", rows, expected)
}

fn check_count(owner: &str, unit: &str, found: usize, expected: usize) -> Result<(), SessionError> {
    if found == expected {
        return Ok(());
    }
    Err(damaged_error(&format!("session `{owner}` has {found} {unit} instead of {expected}")))
}

/// A consistent snapshot of the file.
pub(super) struct View {
    transaction: ReadTransaction,
    row_counts: Arc<RowCounts>,
    /// The number of commits before the snapshot.
    commits: u64,
    /// Keeps the file open.
    _database: OwnedRwLockReadGuard<Result<Arc<Database>, SessionError>>,
}

impl View {
    pub(super) const fn new(
        transaction: ReadTransaction,
        row_counts: Arc<RowCounts>,
        commits: u64,
        database: OwnedRwLockReadGuard<Result<Arc<Database>, SessionError>>,
    ) -> Self {
        Self { transaction, row_counts, commits, _database: database }
    }

    /// Checks that a missing row was never written. Counts the rows of a session once per commit.
    fn check_missing(
        &self,
        definition: (&'static str, Definition),
        id: &SessionId,
        name: &str,
        expected: usize,
    ) -> Result<(), SessionError> {
        let (table, definition) = definition;
        if self.row_counts.are_counted(self.commits, table, id.as_str()) {
            return Ok(());
        }
        #[cfg(test)]
        self.row_counts.scans.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        count_rows(&self.table(definition)?, id.as_str(), name, expected)?;
        self.row_counts.record(self.commits, table, id.as_str());
        Ok(())
    }

    fn table<K: redb::Key + 'static>(
        &self,
        definition: TableDefinition<'_, K, Row>,
    ) -> Result<redb::ReadOnlyTable<K, Row>, SessionError> {
        self.transaction.open_table(definition).map_err(backend_error)
    }

    /// Loads the header of a session.
    ///
    /// # Errors
    /// [`SessionError::NotFound`].
    pub(super) fn record(&self, id: &SessionId) -> Result<SessionRecord, SessionError> {
        let header: Option<SessionHeader> = get(&self.table(SESSIONS)?, header_key(id))?;
        header.map(SessionRecord::new).ok_or_else(|| SessionError::NotFound { id: id.clone() })
    }

    /// Passes encoded headers to `visit` in order of their ids, starting after `after`, until it returns false.
    pub(super) fn headers(
        &self,
        after: Option<&SessionId>,
        mut visit: impl FnMut(SessionId, &[u8]) -> Result<bool, SessionError>,
    ) -> Result<(), SessionError> {
        let end = after.map(|id| end_of(id.as_str()));
        let first = (end.as_deref().unwrap_or_default(), "");
        for entry in self.table(SESSIONS)?.range(first..).map_err(backend_error)? {
            let (key, row) = entry.map_err(backend_error)?;
            if !visit(SessionId::try_new(key.value().0)?, row.value())? {
                break;
            }
        }
        Ok(())
    }

    /// Loads the named variables, without their older versions.
    pub(super) fn load_variables(
        &self,
        id: &SessionId,
        identifiers: &[String],
        record: &mut SessionRecord,
    ) -> Result<(), SessionError> {
        let table = self.table(VARIABLES)?;
        load_variables(&table, id, identifiers, record)?;
        let is_missing = |identifier: &String| !record.variables.contains_key(variable_name_in(identifier));
        let missing = identifiers.iter().find(|identifier| is_missing(identifier));
        missing.map_or(Ok(()), |missing| {
            self.check_missing(
                ("variables", VARIABLES),
                id,
                variable_name_in(missing),
                record.header.variables,
            )
        })
    }

    /// Returns the variables that `is_wanted` accepts by name, sorted by name. Checks that the session has as many
    /// variables as its header counts.
    pub(super) fn list_variables(
        &self,
        id: &SessionId,
        header: &SessionHeader,
        is_wanted: impl Fn(&str) -> bool,
    ) -> Result<Vec<Variable>, SessionError> {
        let mut rows = 0;
        let count_and_filter = |name: &str| {
            rows += 1;
            is_wanted(name)
        };
        let found: Vec<VariableRecord> = scan(&self.table(VARIABLES)?, id.as_str(), count_and_filter)?;
        check_count(id.as_str(), "variables", rows, header.variables)?;
        Ok(found.into_iter().map(|found| found.variable).collect())
    }

    /// Returns the newest versions of a variable, newest first: at most `limit`, or all for 0.
    pub(super) fn history(
        &self,
        id: &SessionId,
        variable: &VariableRecord,
        limit: usize,
    ) -> Result<Vec<VariableVersion>, SessionError> {
        let mut versions: Vec<_> = variable.history(1).collect();
        let older_limit = if limit == 0 { usize::MAX } else { limit - 1 };
        let table = self.table(VERSIONS)?;
        let name = variable.variable.name.as_str();
        for version in variable.older().rev().take(older_limit) {
            let found = get::<VariableVersion, _>(&table, (id.as_str(), name, version))?;
            let missing = || damaged_error(&format!("version {version} of variable `{name}` is missing"));
            versions.push(found.ok_or_else(missing)?);
        }
        Ok(versions)
    }

    pub(super) fn program_info(
        &self,
        owner: &str,
        name: &ProgramName,
    ) -> Result<Option<ProgramInfo>, SessionError> {
        get(&self.table(PROGRAMS)?, (owner, name.as_str()))
    }

    /// Checks that a missing program was never written, by comparing the number of programs with the header.
    pub(super) fn check_missing_program(
        &self,
        id: &SessionId,
        name: &ProgramName,
        header: &SessionHeader,
    ) -> Result<(), SessionError> {
        self.check_missing(("programs", PROGRAMS), id, name.as_str(), header.programs)
    }

    /// Loads the data of a program.
    pub(super) fn program(&self, owner: &str, info: ProgramInfo) -> Result<Program, SessionError> {
        let row = self.table(DATA)?.get((owner, info.name.as_str())).map_err(backend_error)?;
        let data = row.map(|row| Bytes::copy_from_slice(row.value())).unwrap_or_default();
        ProgramRecord { info, data }.program()
    }

    pub(super) fn programs(&self, owner: &str) -> Result<Vec<ProgramInfo>, SessionError> {
        scan(&self.table(PROGRAMS)?, owner, |_| true)
    }
}
