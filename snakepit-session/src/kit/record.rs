//! What a session is made of, and everything that can be done to it: the semantics that all backends share.
//!
//! A record changes entirely or not at all. It neither waits nor locks; a backend holds it to itself meanwhile. A backend
//! that keeps its sessions elsewhere may load a part of one: the head, and those variables and programs that the
//! operation names.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    Created, Metadata, NewSession, NewVariable, Note, Program, ProgramInfo, ProgramName, Session,
    SessionError, SessionId, SessionLimits, SetVariable, VariableId, VariableName, VariableType,
    kit::{Checked, size_of_metadata, size_of_program},
    variable_type::may_be_costly,
};

mod variable;

pub use variable::VariableRecord;
use variable::Write;

/// A session, or the part of it that was loaded.
#[derive(Debug)]
pub struct Record {
    /// What is true of the session as a whole. Always loaded.
    pub head: Head,
    /// The programs that are loaded.
    pub programs: BTreeMap<ProgramName, ProgramRecord>,
    /// The variables that are loaded. Boxed, so that few variables take little: a node of the map has room for eleven.
    pub variables: BTreeMap<VariableName, Box<VariableRecord>>,
}

/// What is true of the session as a whole.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Head {
    /// What its creator attached.
    pub metadata: Metadata,
    /// When it was created.
    pub created_at: SystemTime,
    /// How long it lives without use.
    pub ttl: Duration,
    /// The worker that served it last.
    pub last_worker: Option<Arc<str>>,
    /// What the session holds, as the limits count.
    pub bytes: usize,
    /// How many programs it has.
    pub programs: usize,
    /// How many variables it has.
    pub variables: usize,
}

/// A program as it is kept.
#[derive(Debug, Clone)]
pub struct ProgramRecord {
    /// Everything but its data.
    pub info: ProgramInfo,
    /// Empty where only the head of the program was loaded.
    pub data: Bytes,
}

/// A write, and what came of the check of its value if that was done before.
#[derive(Debug, Clone)]
pub struct Prepared {
    update: SetVariable,
    checked: Option<Checked>,
}

impl From<SetVariable> for Prepared {
    fn from(update: SetVariable) -> Self {
        Self { update, checked: None }
    }
}

/// Writes about to be prepared.
#[derive(Debug)]
pub struct Preparing(Vec<(SetVariable, Option<Arc<VariableType>>)>);

impl Preparing {
    /// Whether one of the values may be costly to check.
    pub fn is_needed<'a>(updates: impl IntoIterator<Item = &'a SetVariable>) -> bool {
        updates.into_iter().any(|update| may_be_costly(&update.value))
    }

    /// Notes the types of the variables, as they are now.
    pub fn of(limits: &SessionLimits, record: Option<&Record>, updates: Vec<SetVariable>) -> Self {
        let ty_of = |update: &SetVariable| {
            let found = record?.find(&update.identifier)?;
            let is_small = limits.check_value("", &update.value).is_ok();
            (is_small && may_be_costly(&update.value)).then(|| Arc::clone(&found.variable.ty))
        };
        let with_type = |update: SetVariable| {
            let ty = ty_of(&update);
            (update, ty)
        };
        Self(updates.into_iter().map(with_type).collect())
    }

    /// Checks what is costly to check, apart from everybody else.
    pub async fn prepare(self) -> Vec<Prepared> {
        let mut prepared = Vec::with_capacity(self.0.len());
        for (update, ty) in self.0 {
            let checked = match ty {
                Some(ty) => Checked::if_costly(&ty, &update.value).await,
                None => None,
            };
            prepared.push(Prepared { update, checked });
        }
        prepared
    }
}

/// Where a record grows.
#[expect(missing_debug_implementations, reason = "it borrows a closure")]
pub struct Room<'a> {
    /// The session, for errors.
    pub session: &'a SessionId,
    /// The limits of the backend.
    pub limits: &'a SessionLimits,
    /// Claims what the session is about to hold more, or gives back what it holds less: from so many bytes to so many.
    pub resize: &'a mut dyn FnMut(usize, usize) -> Result<(), SessionError>,
}

impl Head {
    /// The header of a new session, which [`SessionLimits::check_new`] allowed.
    pub fn new(new: NewSession, limits: &SessionLimits) -> Self {
        Self {
            bytes: size_of_metadata(&new.metadata),
            metadata: new.metadata.into(),
            created_at: SystemTime::now(),
            ttl: limits.ttl(new.ttl),
            last_worker: None,
            programs: 0,
            variables: 0,
        }
    }

    /// The session as callers see it, with so much time left.
    pub fn snapshot(&self, id: &SessionId, left: Duration) -> Session {
        Session {
            id: id.clone(),
            metadata: self.metadata.clone(),
            created_at: self.created_at,
            expires_in: left,
            ttl: self.ttl,
            program_count: self.programs,
            variable_count: self.variables,
            bytes: self.bytes,
            last_worker: self.last_worker.clone(),
        }
    }

    /// Grows or shrinks what the session holds, if there is room.
    fn resize(&mut self, room: &mut Room<'_>, size: usize) -> Result<(), SessionError> {
        if size == self.bytes {
            return Ok(());
        }
        if size > self.bytes {
            room.limits.check_size(room.session, size)?;
        }
        (room.resize)(self.bytes, size)?;
        self.bytes = size;
        Ok(())
    }
}

impl ProgramRecord {
    /// A program of a session.
    pub fn new(name: &ProgramName, program: Program) -> Self {
        let info = ProgramInfo {
            name: name.clone(),
            size: program.data.len(),
            content_type: program.content_type,
            metadata: program.metadata,
            ttl: program.ttl,
            updated_at: program.updated_at,
        };
        Self { info, data: program.data }
    }

    /// A global program, which has a TTL of its own.
    ///
    /// # Errors
    /// [`SessionError::ProgramTooLarge`] or [`SessionError::MetadataTooLarge`].
    pub fn global(
        limits: &SessionLimits,
        name: &ProgramName,
        program: Program,
    ) -> Result<Self, SessionError> {
        limits.check_program(name, &program)?;
        let ttl = Some(limits.ttl(program.ttl));
        Ok(Self::new(name, Program { updated_at: SystemTime::now(), ttl, ..program }))
    }

    /// The program as callers see it.
    ///
    /// # Errors
    /// [`SessionError::Backend`] when the storage lost the data of which it has the head.
    pub fn program(&self) -> Result<Program, SessionError> {
        let ProgramInfo { name, size, content_type, metadata, ttl, updated_at } = &self.info;
        if self.data.len() != *size {
            let problem = format!("of program `{name}`, {} of {size} bytes are there", self.data.len());
            return Err(SessionError::Backend { problem });
        }
        Ok(Program {
            data: self.data.clone(),
            content_type: content_type.clone(),
            metadata: metadata.clone(),
            ttl: *ttl,
            updated_at: *updated_at,
        })
    }

    /// What it takes of its session.
    pub fn size(&self) -> usize {
        let ProgramInfo { name, size, content_type, metadata, ttl: _, updated_at: _ } = &self.info;
        name.as_str().len() + size + content_type.len() + size_of_metadata(metadata)
    }
}

impl Record {
    /// A session of which only the header is loaded.
    pub const fn new(head: Head) -> Self {
        Self { head, programs: BTreeMap::new(), variables: BTreeMap::new() }
    }

    /// Stores a program. The one of its name must be loaded.
    pub fn put_program(
        &mut self,
        room: &mut Room<'_>,
        name: &ProgramName,
        program: Program,
    ) -> Result<Created, SessionError> {
        room.limits.check_program(name, &program)?;
        let replaced = self.programs.get(name).map(ProgramRecord::size);
        let limit = room.limits.max_programs;
        if replaced.is_none() && self.head.programs >= limit {
            return Err(SessionError::TooManyPrograms { session: room.session.clone(), limit });
        }
        let size = self.head.bytes - replaced.unwrap_or(0) + size_of_program(name, &program);
        self.head.resize(room, size)?;
        let program = Program { updated_at: SystemTime::now(), ttl: None, ..program };
        self.programs.insert(name.clone(), ProgramRecord::new(name, program));
        if replaced.is_some() {
            return Ok(Created::Existing);
        }
        self.head.programs += 1;
        Ok(Created::New)
    }

    /// A program. It must be loaded.
    pub fn program(&self, id: &SessionId, name: &ProgramName) -> Result<Program, SessionError> {
        self.programs.get(name).ok_or_else(|| no_program(Some(id), name))?.program()
    }

    /// Deletes a program. It must be loaded.
    pub fn delete_program(&mut self, room: &mut Room<'_>, name: &ProgramName) -> Result<(), SessionError> {
        let program = self.programs.remove(name).ok_or_else(|| no_program(Some(room.session), name))?;
        self.head.resize(room, self.head.bytes - program.size())?;
        self.head.programs -= 1;
        Ok(())
    }

    /// A variable by id or name, if there is one. The one of [`name_of`] must be loaded.
    pub fn find(&self, identifier: &str) -> Option<&VariableRecord> {
        let found = self.variables.get(name_of(identifier))?;
        found.is(identifier).then_some(found)
    }

    /// A variable by id or name. The one of [`name_of`] must be loaded.
    pub fn variable(&self, id: &SessionId, identifier: &str) -> Result<&VariableRecord, SessionError> {
        self.find(identifier).ok_or_else(|| no_variable(id, identifier))
    }

    /// Writes one variable if nothing speaks against it. It must be loaded.
    fn write(
        &mut self,
        room: &mut Room<'_>,
        identifier: &str,
        check: impl FnOnce(&VariableRecord, &SessionLimits) -> Result<Write, SessionError>,
    ) -> Result<&VariableRecord, SessionError> {
        let Self { head, variables, .. } = self;
        let found = variables.get_mut(name_of(identifier)).filter(|found| found.is(identifier));
        let variable = found.ok_or_else(|| no_variable(room.session, identifier))?;
        let write = check(variable, room.limits)?;
        head.resize(room, head.bytes + write.grows - write.shrinks)?;
        variable.apply(write);
        Ok(variable)
    }

    /// Registers a variable. The one of its name must be loaded.
    pub fn register(
        &mut self,
        room: &mut Room<'_>,
        name: &VariableName,
        new: NewVariable,
        checked: Option<Checked>,
    ) -> Result<&VariableRecord, SessionError> {
        if self.variables.contains_key(name) {
            return Err(SessionError::VariableExists {
                session: room.session.clone(),
                name: name.to_string(),
            });
        }
        let limit = room.limits.max_variables;
        if self.head.variables >= limit {
            return Err(SessionError::TooManyVariables { session: room.session.clone(), limit });
        }
        let made = VariableRecord::new(room.limits, name, new, checked)?;
        self.head.resize(room, self.head.bytes + made.size())?;
        self.head.variables += 1;
        Ok(self.variables.entry(name.clone()).or_insert(Box::new(made)))
    }

    /// Writes one variable. It must be loaded.
    pub fn set(
        &mut self,
        room: &mut Room<'_>,
        update: impl Into<Prepared>,
    ) -> Result<&VariableRecord, SessionError> {
        let Prepared { update, checked } = update.into();
        let SetVariable { identifier, value, note, expected_version } = update;
        self.write(room, &identifier, |variable, limits| {
            variable.check(limits, value, note, expected_version, checked)
        })
    }

    /// Writes all of these variables or none, and returns their names. They must be loaded.
    pub fn set_all(
        &mut self,
        room: &mut Room<'_>,
        updates: impl IntoIterator<Item: Into<Prepared>>,
    ) -> Result<Vec<VariableName>, SessionError> {
        let (mut names, mut writes, mut errors) = (Vec::new(), Vec::new(), BTreeMap::new());
        let mut seen = BTreeSet::new();
        for Prepared { update, checked } in updates.into_iter().map(Into::into) {
            let SetVariable { identifier, value, note, expected_version } = update;
            let write = self.variable(room.session, &identifier).and_then(|variable| {
                let name = &variable.variable.name;
                if !seen.insert(name.clone()) {
                    return Err(SessionError::WrittenTwice { variable: name.to_string() });
                }
                names.push(name.clone());
                variable.check(room.limits, value, note, expected_version, checked)
            });
            match write {
                Ok(write) => writes.push(write),
                Err(error) => drop(errors.insert(identifier, error)),
            }
        }
        if !errors.is_empty() {
            return Err(SessionError::BatchRefused { errors });
        }
        let grown = writes.iter().fold(self.head.bytes, |bytes, write| bytes + write.grows);
        let size = writes.iter().fold(grown, |bytes, write| bytes - write.shrinks);
        self.head.resize(room, size)?;
        for (name, write) in names.iter().zip(writes) {
            let variable = self.variables.get_mut(name);
            variable.ok_or_else(|| no_variable(room.session, name.as_str()))?.apply(write);
        }
        Ok(names)
    }

    /// Gives a variable the value of an earlier version, as a new one. It must be loaded.
    pub fn rollback(
        &mut self,
        room: &mut Room<'_>,
        identifier: &str,
        version: u32,
        note: Note,
    ) -> Result<&VariableRecord, SessionError> {
        self.write(room, identifier, |variable, limits| {
            let value = variable.value_of(version)?;
            let checked = Checked::sound(Arc::clone(&variable.variable.ty), value.clone());
            variable.check(limits, value, note, None, Some(checked))
        })
    }

    /// Deletes a variable and returns it. It must be loaded.
    pub fn delete_variable(
        &mut self,
        room: &mut Room<'_>,
        identifier: &str,
    ) -> Result<Box<VariableRecord>, SessionError> {
        let name = self.variable(room.session, identifier)?.variable.name.clone();
        let variable = self.variables.remove(&name).ok_or_else(|| no_variable(room.session, identifier))?;
        self.head.resize(room, self.head.bytes - variable.size())?;
        self.head.variables -= 1;
        Ok(variable)
    }
}

/// The name in an identifier, which is a name or an id. No name looks like an id.
pub fn name_of(identifier: &str) -> &str {
    VariableId::name_in(identifier).unwrap_or(identifier)
}

/// The error for a variable that the session does not have.
pub fn no_variable(id: &SessionId, identifier: &str) -> SessionError {
    SessionError::VariableNotFound { session: id.clone(), identifier: identifier.to_owned() }
}

/// The error for a program that is missing in the session, or among the global ones for `None`.
pub fn no_program(session: Option<&SessionId>, name: &ProgramName) -> SessionError {
    match session {
        Some(id) => SessionError::ProgramNotFound { session: id.clone(), name: name.to_string() },
        None => SessionError::GlobalProgramNotFound { name: name.to_string() },
    }
}

/// Whether a name is of this pattern, in which `*` stands for anything. Empty is `*`. Takes time linear in both.
pub fn is_like(pattern: &str, name: &str) -> bool {
    if pattern.is_empty() {
        return true;
    }
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_anything() {
        for (pattern, name, matches) in [
            ("", "any", true),
            ("*", "any", true),
            ("any", "any", true),
            ("any", "anything", false),
            ("any*", "anything", true),
            ("*thing", "anything", true),
            ("a*t*g", "anything", true),
            ("a*t*h", "anything", false),
            ("*a*", "b", false),
            ("ab*ba", "aba", false),
            ("**", "x", true),
            ("x*", "x", true),
        ] {
            assert_eq!(is_like(pattern, name), matches, "{pattern} {name}");
        }
    }
}
