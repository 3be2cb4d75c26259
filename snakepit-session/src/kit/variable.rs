//! The record of a variable: its current value and its history.

use std::{collections::VecDeque, ops::Range, time::SystemTime};

use serde::{Deserialize, Serialize};

use crate::{
    Metadata, NewVariable, Note, Payload, SessionError, SessionLimits, UpdateKind, Variable, VariableId,
    VariableName, VariableUpdate, VariableVersion,
    kit::{CheckedValue, size_of_version},
};

/// Versions are `int32` in the protocol.
const LAST_VERSION: u32 = i32::MAX as u32;

/// A variable with its history. The names of the serialized fields are stable.
///
/// The serialized form lists the older versions without their values. A backend stores each older version separately, so that
/// a write does not rewrite the whole history.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VariableRecord {
    /// The variable as callers see it.
    pub variable: Variable,
    /// The note of the current version.
    pub note: Note,
    /// Consecutive versions before the current one, oldest first.
    older: VecDeque<OlderVersion>,
    older_bytes: usize,
}

/// A version before the current one. Serialized as a tuple, because there are many of them.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(from = "(u32, usize)", into = "(u32, usize)")]
struct OlderVersion {
    version: u32,
    /// The size in bytes, as [`SessionLimits`] counts it.
    size: usize,
    /// `None` if the version is not loaded. Writes need only its size.
    content: Option<VariableVersion>,
}

impl From<(u32, usize)> for OlderVersion {
    fn from((version, size): (u32, usize)) -> Self {
        Self { version, size, content: None }
    }
}

impl From<OlderVersion> for (u32, usize) {
    fn from(OlderVersion { version, size, content: _ }: OlderVersion) -> Self {
        (version, size)
    }
}

/// A write that passed all checks.
#[derive(Debug)]
pub(super) struct Write {
    value: Payload,
    note: Note,
    /// The variable's new metadata, if it changes.
    metadata: Option<Metadata>,
    /// The number of the oldest versions to evict from the history. The version that the write replaces counts as the newest.
    evicted_versions: usize,
    /// The number of bytes that the write adds to the session.
    pub(super) added_bytes: usize,
    /// The number of bytes that the write removes from the session.
    pub(super) removed_bytes: usize,
}

impl VariableRecord {
    pub(super) fn new(
        limits: &SessionLimits,
        name: &VariableName,
        new: NewVariable,
        checked: Option<CheckedValue>,
    ) -> Result<Self, SessionError> {
        let NewVariable { ty, value, note } = new;
        limits.check_value(name.as_str(), &value)?;
        limits.check_note(&note)?;
        let checked = checked.and_then(|checked| checked.for_type(&ty)).unwrap_or_else(|| ty.check(value));
        let value = checked.map_err(|problem| invalid(name, problem))?;
        let variable = Variable {
            id: VariableId::random(name),
            name: name.clone(),
            ty,
            value,
            version: 0,
            metadata: note.metadata.clone(),
            source: note.source,
            updated_at: SystemTime::now(),
        };
        Ok(Self { variable, note, older: VecDeque::new(), older_bytes: 0 })
    }

    /// Whether the identifier is the name or the id of the variable.
    pub fn is(&self, identifier: &str) -> bool {
        let Variable { id, name, .. } = &self.variable;
        identifier == name.as_str() || identifier == id.as_str()
    }

    /// The size in bytes, as [`SessionLimits`] counts it.
    pub fn size(&self) -> usize {
        let Variable { id, name, ty, value, metadata, .. } = &self.variable;
        id.as_str().len()
            + name.as_str().len()
            + ty.constraints_json().len()
            + metadata.size()
            + size_of_version(value, &self.note)
            + self.older_bytes
    }

    /// Checks a write, and computes its effect on the history and the size.
    pub(super) fn check(
        &self,
        limits: &SessionLimits,
        value: Payload,
        note: Note,
        expected: Option<u32>,
        checked: Option<CheckedValue>,
    ) -> Result<Write, SessionError> {
        let Variable { name, ty, version, metadata, .. } = &self.variable;
        if let Some(expected) = expected.filter(|expected| expected != version) {
            return Err(SessionError::VersionConflict {
                variable: name.to_string(),
                expected,
                actual: *version,
            });
        }
        if *version >= LAST_VERSION {
            let problem =
                format!("it is at version {version}, the highest possible; delete and register it again");
            return Err(invalid(name, problem));
        }
        limits.check_value(name.as_str(), &value)?;
        limits.check_note(&note)?;
        let checked = checked.and_then(|checked| checked.for_type(ty)).unwrap_or_else(|| ty.check(value));
        let value = checked.map_err(|problem| invalid(name, problem))?;
        let merged = if note.metadata.is_empty() {
            None
        } else {
            let merged = metadata.merged(&note.metadata);
            limits.check_metadata_of(merged.len(), merged.size())?;
            Some(merged)
        };

        let current = size_of_version(&self.variable.value, &self.note);
        let (mut history_len, mut history_bytes) = (self.older.len() + 1, self.older_bytes + current);
        let mut oldest = self.older.iter().map(|version| version.size);
        let (mut evicted_versions, mut removed_bytes) = (0, 0);
        while history_len > limits.max_history || history_bytes > limits.max_history_bytes {
            let size = oldest.next().unwrap_or(current);
            (history_len, evicted_versions) = (history_len - 1, evicted_versions + 1);
            (history_bytes, removed_bytes) = (history_bytes - size, removed_bytes + size);
            if history_len == 0 {
                break;
            }
        }
        let mut added_bytes = size_of_version(&value, &note);
        if let Some(merged) = &merged {
            added_bytes += merged.size();
            removed_bytes += metadata.size();
        }
        Ok(Write { value, note, metadata: merged, evicted_versions, added_bytes, removed_bytes })
    }

    pub(super) fn apply(&mut self, write: Write) {
        let Write { value, note, metadata, evicted_versions, .. } = write;
        let now = SystemTime::now();
        self.variable.source = note.source;
        let replaced = VariableVersion {
            version: self.variable.version,
            value: std::mem::replace(&mut self.variable.value, value),
            at: std::mem::replace(&mut self.variable.updated_at, now),
            note: std::mem::replace(&mut self.note, note),
        };
        self.variable.version += 1;
        if let Some(metadata) = metadata {
            self.variable.metadata = metadata;
        }
        let size = size_of_version(&replaced.value, &replaced.note);
        self.older_bytes += size;
        // Evict old versions first, so that a full history does not reallocate.
        let evicts_replaced = evicted_versions > self.older.len();
        for evicted in self.older.drain(..evicted_versions.min(self.older.len())) {
            self.older_bytes -= evicted.size;
        }
        if evicts_replaced {
            self.older_bytes -= size;
        } else {
            self.older.push_back(OlderVersion { version: replaced.version, size, content: Some(replaced) });
        }
    }

    /// Returns the loaded versions, newest first: at most `limit`, or all for 0.
    pub fn history(&self, limit: usize) -> impl Iterator<Item = VariableVersion> {
        let limit = if limit == 0 { usize::MAX } else { limit };
        let current = VariableVersion {
            version: self.variable.version,
            value: self.variable.value.clone(),
            at: self.variable.updated_at,
            note: self.note.clone(),
        };
        let older = self.older.iter().rev().filter_map(|older| older.content.clone());
        std::iter::once(current).chain(older).take(limit)
    }

    /// The numbers of the versions in the history, without the current one.
    pub fn older(&self) -> Range<u32> {
        let newest = self.variable.version;
        self.older.front().map_or(newest, |oldest| oldest.version)..newest
    }

    /// Adds a stored version to the history. Versions that are not in [`older`](Self::older) are ignored.
    pub fn load(&mut self, version: VariableVersion) {
        if let Some(older) = self.older.iter_mut().find(|older| older.version == version.version) {
            older.content = Some(version);
        }
    }

    /// The value of a loaded version.
    pub(super) fn value_of(&self, version: u32) -> Result<Payload, SessionError> {
        let newest = self.variable.version;
        if version == newest {
            return Ok(self.variable.value.clone());
        }
        let found = self.older.iter().find(|older| older.version == version);
        let content = found.and_then(|older| older.content.as_ref());
        content.map(|content| content.value.clone()).ok_or_else(|| SessionError::VersionNotKept {
            variable: self.variable.name.to_string(),
            version,
            oldest: self.older().start,
            newest,
        })
    }

    /// The update to send to watchers.
    #[must_use]
    pub fn update(&self, kind: UpdateKind) -> VariableUpdate {
        VariableUpdate { kind, variable: self.variable.clone(), note: self.note.clone() }
    }
}

fn invalid(name: &VariableName, problem: String) -> SessionError {
    SessionError::InvalidValue { variable: name.to_string(), problem }
}
