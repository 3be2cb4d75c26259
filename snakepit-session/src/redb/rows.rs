//! Which rows a file has, and how they are read. Writing them is left to `group`.
//!
//! All keys are pairs, whose first part is a session: the rows of one session are a range of their table. What belongs to
//! no session has an empty one there, which is no id.

use std::ops::Range;

use bytes::Bytes;
use redb::{ReadTransaction, ReadableTable, TableDefinition};
use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    Note, Program, ProgramInfo, ProgramName, SessionError, SessionId, Variable,
    record::{Head, ProgramRecord, Record, VariableRecord, name_of},
    stored::decode,
};

pub(super) type Key = (&'static str, &'static str);
pub(super) type Row = &'static [u8];
type Definition = TableDefinition<'static, Key, Row>;

/// The heads of sessions, under `(session, "")`.
pub(super) const SESSIONS: Definition = Definition::new("sessions");
/// Variables with their history, under `(session, name)`.
pub(super) const VARIABLES: Definition = Definition::new("variables");
/// Programs without their data, under `(session, name)`; the global ones under `("", name)`.
pub(super) const PROGRAMS: Definition = Definition::new("programs");
/// The data of programs as it is, under the same keys.
pub(super) const DATA: Definition = Definition::new("program_data");
/// What `lease` keeps in memory, under the key of the session or the global program. There is such a table only from an
/// orderly end of the host to its next start.
pub(super) const LEASES: Definition = Definition::new("leases");
/// The version of all this, in its only row.
pub(super) const SCHEMA: TableDefinition<'static, (), u64> = TableDefinition::new("schema");

/// Whose rows belong to no session.
pub(super) const NOBODY: &str = "";

/// What is needed of a head where its metadata does not matter.
#[derive(Debug, Deserialize)]
pub(super) struct Held {
    pub(super) ttl: std::time::Duration,
    pub(super) bytes: usize,
    pub(super) programs: usize,
    pub(super) variables: usize,
}

/// What is needed of a variable where its history does not matter.
#[derive(Deserialize)]
struct Current {
    variable: Variable,
    note: Note,
}

pub(super) fn failed(error: impl Into<redb::Error>) -> SessionError {
    SessionError::Backend { problem: error.into().to_string() }
}

/// The key of a session's head.
pub(super) fn head_of(id: &SessionId) -> (&str, &str) {
    (id.as_str(), "")
}

/// The end of the rows of this owner: what follows it and sorts before every other, for no id holds control characters.
pub(super) fn end_of(owner: &str) -> String {
    format!("{owner}\0")
}

/// The rows of this owner, up to what [`end_of`] made of it.
pub(super) fn rows_of<'a>(owner: &'a str, end: &'a str) -> Range<(&'a str, &'a str)> {
    (owner, "")..(end, "")
}

pub(super) fn get<T: DeserializeOwned>(
    table: &impl ReadableTable<Key, Row>,
    key: (&str, &str),
) -> Result<Option<T>, SessionError> {
    let row = table.get(key).map_err(failed)?;
    row.map(|row| decode(row.value())).transpose()
}

/// Those rows of an owner whose names are wanted, in the order of the names.
pub(super) fn scan<T: DeserializeOwned>(
    table: &impl ReadableTable<Key, Row>,
    owner: &str,
    is_wanted: impl Fn(&str) -> bool,
) -> Result<Vec<T>, SessionError> {
    let end = end_of(owner);
    let mut found = Vec::new();
    for entry in table.range(rows_of(owner, &end)).map_err(failed)? {
        let (key, row) = entry.map_err(failed)?;
        if is_wanted(key.value().1) {
            found.push(decode(row.value())?);
        }
    }
    Ok(found)
}

/// Loads the variables that these identifiers name, with their history.
pub(super) fn load_variables(
    table: &impl ReadableTable<Key, Row>,
    id: &SessionId,
    identifiers: &[String],
    record: &mut Record,
) -> Result<(), SessionError> {
    for name in identifiers.iter().map(|identifier| name_of(identifier)) {
        if record.variables.contains_key(name) {
            continue;
        }
        if let Some(found) = get::<VariableRecord>(table, (id.as_str(), name))? {
            record.variables.insert(found.variable.name.clone(), Box::new(found));
        }
    }
    Ok(())
}

/// Loads the variable that an identifier names, or all, without their history.
pub(super) fn load_current(
    table: &impl ReadableTable<Key, Row>,
    id: &SessionId,
    identifier: Option<&str>,
    record: &mut Record,
) -> Result<(), SessionError> {
    let found: Vec<Current> = match identifier {
        Some(identifier) => get(table, (id.as_str(), name_of(identifier)))?.into_iter().collect(),
        None => scan(table, id.as_str(), |_| true)?,
    };
    for Current { variable, note } in found {
        let name = variable.name.clone();
        record.variables.insert(name, Box::new(VariableRecord::without_history(variable, note)));
    }
    Ok(())
}

/// Everything as it was at one moment.
pub(super) struct View {
    transaction: ReadTransaction,
}

impl View {
    pub(super) const fn new(transaction: ReadTransaction) -> Self {
        Self { transaction }
    }

    fn table(&self, definition: Definition) -> Result<redb::ReadOnlyTable<Key, Row>, SessionError> {
        self.transaction.open_table(definition).map_err(failed)
    }

    /// The head of a session.
    ///
    /// # Errors
    /// [`SessionError::NotFound`].
    pub(super) fn record(&self, id: &SessionId) -> Result<Record, SessionError> {
        let head: Option<Head> = get(&self.table(SESSIONS)?, head_of(id))?;
        head.map(Record::new).ok_or_else(|| SessionError::NotFound { id: id.clone() })
    }

    /// Shows heads in the order of their ids, beginning after one, until `show` has seen enough. It gets a head as it is
    /// written, to read only those that it wants.
    pub(super) fn heads(
        &self,
        after: Option<&SessionId>,
        mut show: impl FnMut(SessionId, &[u8]) -> Result<bool, SessionError>,
    ) -> Result<(), SessionError> {
        let end = after.map(|id| end_of(id.as_str()));
        let first = (end.as_deref().unwrap_or_default(), "");
        for entry in self.table(SESSIONS)?.range(first..).map_err(failed)? {
            let (key, row) = entry.map_err(failed)?;
            if !show(SessionId::try_new(key.value().0)?, row.value())? {
                break;
            }
        }
        Ok(())
    }

    /// Loads the variables that these identifiers name, without their history.
    pub(super) fn load_current(
        &self,
        id: &SessionId,
        identifiers: &[String],
        record: &mut Record,
    ) -> Result<(), SessionError> {
        let table = self.table(VARIABLES)?;
        identifiers.iter().try_for_each(|identifier| load_current(&table, id, Some(identifier), record))
    }

    /// Loads the variables that these identifiers name, with their history.
    pub(super) fn load_variables(
        &self,
        id: &SessionId,
        identifiers: &[String],
        record: &mut Record,
    ) -> Result<(), SessionError> {
        load_variables(&self.table(VARIABLES)?, id, identifiers, record)
    }

    /// The variables whose names are wanted, in their order.
    pub(super) fn list_variables(
        &self,
        id: &SessionId,
        is_wanted: impl Fn(&str) -> bool,
    ) -> Result<Vec<Variable>, SessionError> {
        let found: Vec<Current> = scan(&self.table(VARIABLES)?, id.as_str(), is_wanted)?;
        Ok(found.into_iter().map(|current| current.variable).collect())
    }

    pub(super) fn program_info(
        &self,
        owner: &str,
        name: &ProgramName,
    ) -> Result<Option<ProgramInfo>, SessionError> {
        get(&self.table(PROGRAMS)?, (owner, name.as_str()))
    }

    /// The program that this is said of.
    pub(super) fn program(&self, owner: &str, info: ProgramInfo) -> Result<Program, SessionError> {
        let row = self.table(DATA)?.get((owner, info.name.as_str())).map_err(failed)?;
        let data = row.map(|row| Bytes::copy_from_slice(row.value())).unwrap_or_default();
        ProgramRecord { info, data }.program()
    }

    pub(super) fn programs(&self, owner: &str) -> Result<Vec<ProgramInfo>, SessionError> {
        scan(&self.table(PROGRAMS)?, owner, |_| true)
    }
}
