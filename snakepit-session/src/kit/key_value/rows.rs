//! The rows of a key-value store: their keys, and the conversions between records and rows.
//!
//! A key consists of a table, the owner (a session, or nothing for global programs), a name, and the number of a
//! version. A zero byte ends the owner and the name, which contain no control characters, so keys sort by table, owner,
//! name and version.

use std::{collections::HashMap, ops::Range, time::SystemTime};

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use super::{KeyValueStore, StoreError, StoreWrites};
use crate::{
    ProgramInfo, ProgramName, SessionError, SessionId, VariableName, VariableVersion,
    kit::{ProgramRecord, SessionHeader, SessionRecord, VariableRecord, decode, encode, variable_name_in},
};

/// The owner in the keys of global programs.
pub(super) const GLOBAL: &str = "";

/// The table of a row. Keys contain the number, so it must not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Table {
    Header = 1,
    Variable = 2,
    Version = 3,
    ProgramInfo = 4,
    ProgramData = 5,
    /// The expiry time of a session or a global program. Stored only between `close` and the next start.
    Expiry = 6,
}

impl Table {
    /// The tables with rows of sessions.
    pub(super) const OF_SESSION: [Self; 5] =
        [Self::Header, Self::Variable, Self::Version, Self::ProgramInfo, Self::ProgramData];
}

/// The prefix of an owner's keys in a table.
fn prefix(table: Table, owner: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(owner.len() + 2);
    key.push(table as u8);
    key.extend_from_slice(owner.as_bytes());
    key.push(0);
    key
}

fn key(table: Table, owner: &str, name: &str) -> Vec<u8> {
    let mut key = prefix(table, owner);
    key.extend_from_slice(name.as_bytes());
    key.push(0);
    key
}

fn version_key(id: &SessionId, name: &VariableName, version: u32) -> Vec<u8> {
    let mut key = key(Table::Version, id.as_str(), name.as_str());
    key.extend_from_slice(&version.to_be_bytes());
    key
}

/// The writes of one commit.
#[derive(Debug, Default)]
pub(super) struct Writes(StoreWrites);

impl Writes {
    fn put(&mut self, key: Vec<u8>, value: &impl Serialize) -> Result<(), SessionError> {
        self.0.push((key, Some(encode(value)?)));
        Ok(())
    }

    fn delete(&mut self, key: Vec<u8>) {
        self.0.push((key, None));
    }

    pub(super) fn header(&mut self, id: &SessionId, header: &SessionHeader) -> Result<(), SessionError> {
        self.put(key(Table::Header, id.as_str(), ""), header)
    }

    /// Stores a variable, or deletes it if `record` is `None`. `stored` is the range of its older versions in the store.
    pub(super) fn variable(
        &mut self,
        id: &SessionId,
        name: &VariableName,
        record: Option<&VariableRecord>,
        stored: Range<u32>,
    ) -> Result<(), SessionError> {
        let variable_key = key(Table::Variable, id.as_str(), name.as_str());
        match record {
            Some(record) => self.put(variable_key, record)?,
            None => self.delete(variable_key),
        }
        let kept = record.map_or(0..0, VariableRecord::older);
        for version in stored.clone().filter(|version| !kept.contains(version)) {
            self.delete(version_key(id, name, version));
        }
        // The first entry of the history is the variable itself.
        let older = record.into_iter().flat_map(|record| record.history(0).skip(1));
        for version in older.filter(|version| version.version >= stored.end) {
            self.put(version_key(id, name, version.version), &version)?;
        }
        Ok(())
    }

    /// Stores the expiry time of a session or a global program.
    pub(super) fn expiry(
        &mut self,
        owner: &str,
        name: &str,
        expires: SystemTime,
    ) -> Result<(), SessionError> {
        self.put(key(Table::Expiry, owner, name), &expires)
    }

    /// Stores a program, or deletes it if `record` is `None`.
    pub(super) fn program(
        &mut self,
        owner: &str,
        name: &ProgramName,
        record: Option<&ProgramRecord>,
    ) -> Result<(), SessionError> {
        let (info_key, data_key) =
            (key(Table::ProgramInfo, owner, name.as_str()), key(Table::ProgramData, owner, name.as_str()));
        match record {
            Some(ProgramRecord { info, data }) => {
                self.put(info_key, info)?;
                self.0.push((data_key, Some(data.to_vec())));
            }
            None => {
                self.delete(info_key);
                self.delete(data_key);
            }
        }
        Ok(())
    }
}

/// Reads and writes records.
#[derive(Debug)]
pub(super) struct Rows<S>(S);

impl<S: KeyValueStore> Rows<S> {
    pub(super) const fn new(store: S) -> Self {
        Self(store)
    }

    pub(super) fn commit(&mut self, Writes(writes): Writes) -> Result<(), SessionError> {
        if writes.is_empty() {
            return Ok(());
        }
        self.0
            .commit(writes)
            .map_err(|error| SessionError::not_written("cannot write to the store").with_source(error))
    }

    fn get<T: DeserializeOwned>(&mut self, key: &[u8]) -> Result<Option<T>, SessionError> {
        self.0.get(key).map_err(read_error)?.map(|row| decode(&row)).transpose()
    }

    /// Decodes the rows whose keys begin with the prefix.
    fn scan<T: DeserializeOwned>(&mut self, prefix: &[u8]) -> Result<Vec<(Vec<u8>, T)>, SessionError> {
        let mut rows = Ok(Vec::new());
        let mut visit = |key: &[u8], row: &[u8]| {
            if let Ok(decoded) = &mut rows {
                match decode(row) {
                    Ok(row) => decoded.push((key.to_vec(), row)),
                    Err(error) => rows = Err(error),
                }
            }
        };
        self.0.scan(prefix, &mut visit).map_err(read_error)?;
        rows
    }

    /// Adds the deletion of an owner's rows in a table.
    pub(super) fn delete_all(
        &mut self,
        table: Table,
        owner: &str,
        writes: &mut Writes,
    ) -> Result<(), SessionError> {
        self.0.scan(&prefix(table, owner), &mut |key, _| writes.delete(key.to_vec())).map_err(read_error)
    }

    pub(super) fn header(&mut self, id: &SessionId) -> Result<Option<SessionHeader>, SessionError> {
        self.get(&key(Table::Header, id.as_str(), ""))
    }

    /// All sessions.
    pub(super) fn headers(&mut self) -> Result<Vec<(SessionId, SessionHeader)>, SessionError> {
        let id_of = |key: &[u8]| {
            let id = key.get(1..)?.split(|byte| *byte == 0).next()?;
            SessionId::try_new(std::str::from_utf8(id).ok()?).ok()
        };
        let named = |(key, header): (Vec<u8>, SessionHeader)| -> Result<_, SessionError> {
            let id = id_of(&key).ok_or_else(|| {
                SessionError::backend(format!("the key {key:?} of the store does not name a session"))
            })?;
            Ok((id, header))
        };
        self.scan(&[Table::Header as u8])?.into_iter().map(named).collect()
    }

    /// Loads and deletes the expiry times, by owner and name. Deletes them because a start after a crash must not use them.
    pub(super) fn take_expiries(&mut self) -> Result<HashMap<(String, String), SystemTime>, SessionError> {
        let (mut writes, mut expiries) = (Writes::default(), HashMap::new());
        for (key, expires) in self.scan(&[Table::Expiry as u8])? {
            let mut parts =
                key[1..].split(|byte| *byte == 0).map(|part| String::from_utf8_lossy(part).into_owned());
            if let (Some(owner), Some(name)) = (parts.next(), parts.next()) {
                expiries.insert((owner, name), expires);
            }
            writes.delete(key);
        }
        if !expiries.is_empty() {
            self.commit(writes)?;
        }
        Ok(expiries)
    }

    /// Loads the named variables into a record.
    pub(super) fn load_variables(
        &mut self,
        id: &SessionId,
        record: &mut SessionRecord,
        identifiers: &[&str],
    ) -> Result<(), SessionError> {
        for identifier in identifiers {
            let key = key(Table::Variable, id.as_str(), variable_name_in(identifier));
            if let Some(variable) = self.get::<VariableRecord>(&key)? {
                record.variables.insert(variable.variable.name.clone(), Box::new(variable));
            }
        }
        Ok(())
    }

    /// All variables of a session, ordered by name.
    pub(super) fn all_variables(&mut self, id: &SessionId) -> Result<Vec<VariableRecord>, SessionError> {
        let rows = self.scan(&prefix(Table::Variable, id.as_str()))?;
        Ok(rows.into_iter().map(|(_, variable)| variable).collect())
    }

    /// Loads the older versions of a variable.
    pub(super) fn load_history(
        &mut self,
        id: &SessionId,
        variable: &mut VariableRecord,
    ) -> Result<(), SessionError> {
        let prefix = key(Table::Version, id.as_str(), variable.variable.name.as_str());
        for (_, version) in self.scan::<VariableVersion>(&prefix)? {
            variable.load(version);
        }
        Ok(())
    }

    pub(super) fn program(
        &mut self,
        owner: &str,
        name: &ProgramName,
        with_data: bool,
    ) -> Result<Option<ProgramRecord>, SessionError> {
        let Some(info) = self.get(&key(Table::ProgramInfo, owner, name.as_str()))? else { return Ok(None) };
        let mut data = None;
        if with_data {
            data = self.0.get(&key(Table::ProgramData, owner, name.as_str())).map_err(read_error)?;
        }
        Ok(Some(ProgramRecord { info, data: Bytes::from(data.unwrap_or_default()) }))
    }

    /// The descriptions of an owner's programs, ordered by name.
    pub(super) fn program_infos(&mut self, owner: &str) -> Result<Vec<ProgramInfo>, SessionError> {
        let rows = self.scan(&prefix(Table::ProgramInfo, owner))?;
        Ok(rows.into_iter().map(|(_, info)| info).collect())
    }
}

fn read_error(error: StoreError) -> SessionError {
    SessionError::backend("cannot read the store").with_source(error)
}
