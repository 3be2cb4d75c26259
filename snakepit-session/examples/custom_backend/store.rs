//! The rows of the key-value store, and the functions that load and store records.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use snakepit_session::{
    ProgramName, Session, SessionError, SessionId, SessionStats, VariableName,
    kit::{
        ProgramRecord, SessionHeader, SessionRecord, VariableRecord, Watchers, program_not_found,
        variable_name_in,
    },
};
use tokio::time::Instant;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Table {
    Header,
    Variable,
    Version,
    ProgramInfo,
    ProgramData,
}

/// The key of a row: table, session (empty for global programs), name, version.
pub(crate) type Key = (Table, String, String, u32);

/// The rows, and the state that is not persistent: expiry times, watchers and counters.
#[derive(Debug, Default)]
pub(crate) struct Store {
    pub(crate) rows: BTreeMap<Key, Bytes>,
    pub(crate) sessions: BTreeMap<SessionId, Instant>,
    pub(crate) globals: BTreeMap<ProgramName, Instant>,
    pub(crate) watchers: HashMap<SessionId, Watchers>,
    pub(crate) stats: SessionStats,
}

/// The owner in the keys of global programs.
pub(crate) const GLOBAL: &str = "";

impl Store {
    pub(crate) fn get<T: DeserializeOwned>(&self, key: &Key) -> Result<Option<T>, SessionError> {
        let decode = |row: &Bytes| serde_json::from_slice(row).map_err(codec_error);
        self.rows.get(key).map(decode).transpose()
    }

    pub(crate) fn put(&mut self, key: Key, value: &impl Serialize) -> Result<(), SessionError> {
        let row = serde_json::to_vec(value).map_err(codec_error)?;
        self.rows.insert(key, row.into());
        Ok(())
    }

    /// Decodes the rows of one table that belong to an owner.
    pub(crate) fn scan<T: DeserializeOwned>(
        &self,
        table: Table,
        owner: &str,
    ) -> Result<Vec<T>, SessionError> {
        let first = (table, owner.to_owned(), String::new(), 0);
        let rows = self.rows.range(first..).take_while(|(key, _)| key.0 == table && key.1 == owner);
        rows.map(|(_, row)| serde_json::from_slice(row).map_err(codec_error)).collect()
    }

    /// Loads the header of a live session and renews its TTL.
    pub(crate) fn load(&mut self, id: &SessionId) -> Result<SessionRecord, SessionError> {
        let header = self.header(id)?;
        self.sessions.insert(id.clone(), Instant::now() + header.ttl);
        Ok(SessionRecord::new(header))
    }

    pub(crate) fn header(&self, id: &SessionId) -> Result<SessionHeader, SessionError> {
        let is_live = self.sessions.get(id).is_some_and(|expires_at| *expires_at > Instant::now());
        let header = if is_live { self.get(&row(Table::Header, id.as_str(), ""))? } else { None };
        header.ok_or_else(|| SessionError::NotFound { id: id.clone() })
    }

    pub(crate) fn snapshot(&self, id: &SessionId, header: &SessionHeader) -> Session {
        let expires_at = self.sessions.get(id).copied().unwrap_or_else(Instant::now);
        header.snapshot(id, expires_at.saturating_duration_since(Instant::now()))
    }

    pub(crate) fn load_variables(
        &self,
        id: &SessionId,
        record: &mut SessionRecord,
        names: &[&str],
    ) -> Result<(), SessionError> {
        for identifier in names {
            let key = row(Table::Variable, id.as_str(), variable_name_in(identifier));
            if let Some(variable) = self.get::<VariableRecord>(&key)? {
                record.variables.insert(variable.variable.name.clone(), Box::new(variable));
            }
        }
        Ok(())
    }

    pub(crate) fn load_history(
        &self,
        id: &SessionId,
        variable: &mut VariableRecord,
    ) -> Result<(), SessionError> {
        for number in variable.older() {
            let key = (Table::Version, id.to_string(), variable.variable.name.to_string(), number);
            if let Some(version) = self.get(&key)? {
                variable.load(version);
            }
        }
        Ok(())
    }

    /// Stores a variable, or deletes it if `record` is `None`.
    pub(crate) fn store_variable(
        &mut self,
        id: &SessionId,
        name: &VariableName,
        record: Option<&VariableRecord>,
    ) -> Result<(), SessionError> {
        let key = row(Table::Variable, id.as_str(), name.as_str());
        match record {
            Some(record) => self.put(key, record)?,
            None => drop(self.rows.remove(&key)),
        }
        let older = record.map_or(0..0, VariableRecord::older);
        self.rows.retain(|(table, owner, row_name, number), _| {
            (*table, &**owner, &**row_name) != (Table::Version, id.as_str(), name.as_str())
                || older.contains(number)
        });
        // The newest entry of the history is the variable itself.
        for version in record.into_iter().flat_map(|record| record.history(0).skip(1)) {
            self.put((Table::Version, id.to_string(), name.to_string(), version.version), &version)?;
        }
        Ok(())
    }

    pub(crate) fn store_program(&mut self, owner: &str, program: &ProgramRecord) -> Result<(), SessionError> {
        let name = program.info.name.as_str();
        self.put(row(Table::ProgramInfo, owner, name), &program.info)?;
        self.rows.insert(row(Table::ProgramData, owner, name), program.data.clone());
        Ok(())
    }

    pub(crate) fn load_program(
        &self,
        owner: &str,
        name: &ProgramName,
        with_data: bool,
    ) -> Result<Option<ProgramRecord>, SessionError> {
        let info = self.get(&row(Table::ProgramInfo, owner, name.as_str()))?;
        let data = || self.rows.get(&row(Table::ProgramData, owner, name.as_str())).cloned();
        let data = if with_data { data().unwrap_or_default() } else { Bytes::new() };
        Ok(info.map(|info| ProgramRecord { info, data }))
    }

    pub(crate) fn delete_program(&mut self, owner: &str, name: &ProgramName) {
        self.rows.remove(&row(Table::ProgramInfo, owner, name.as_str()));
        self.rows.remove(&row(Table::ProgramData, owner, name.as_str()));
    }

    pub(crate) fn delete_session(&mut self, id: &SessionId) -> Result<(), SessionError> {
        if let Some(header) = self.get::<SessionHeader>(&row(Table::Header, id.as_str(), ""))? {
            self.stats.live -= 1;
            self.stats.bytes -= header.bytes as u64;
            self.stats.variables -= header.variables as u64;
            self.stats.programs -= header.programs as u64;
        }
        self.rows.retain(|key, _| key.1 != id.as_str());
        self.sessions.remove(id);
        if let Some(watchers) = self.watchers.remove(id) {
            watchers.end(&SessionError::NotFound { id: id.clone() });
        }
        Ok(())
    }

    pub(crate) fn delete_global(&mut self, name: &ProgramName) -> Result<(), SessionError> {
        if let Some(program) = self.load_program(GLOBAL, name, false)? {
            self.stats.bytes -= program.size() as u64;
            self.stats.programs -= 1;
        }
        self.delete_program(GLOBAL, name);
        self.globals.remove(name);
        Ok(())
    }

    pub(crate) fn global(&mut self, name: &ProgramName) -> Result<ProgramRecord, SessionError> {
        let is_live = self.globals.get(name).is_some_and(|expires_at| *expires_at > Instant::now());
        let program = if is_live { self.load_program(GLOBAL, name, true)? } else { None };
        program.ok_or_else(|| program_not_found(None, name))
    }
}

pub(crate) fn row(table: Table, owner: &str, name: &str) -> Key {
    (table, owner.to_owned(), name.to_owned(), 0)
}

fn codec_error(error: serde_json::Error) -> SessionError {
    SessionError::backend("a row is not valid JSON").with_source(error)
}
