//! The record of a session and its operations.
//!
//! An operation changes the record completely or not at all. It neither waits nor locks, so the backend must ensure exclusive
//! access. A backend may load only a part of a record: the header, and the variables and programs that the operation names.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::SystemTime,
};

use super::{
    CheckedValue, PreparedWrite, ProgramRecord, SessionHeader, SizeGuard, VariableRecord, program_not_found,
    size_of_program, variable::Write, variable_name_in, variable_not_found,
};
use crate::{
    Batch, Created, NewVariable, Note, Program, ProgramName, SessionError, SessionId, SessionLimits,
    SetVariable, Variable, VariableName,
};

/// A session, or the loaded part of one.
///
/// Methods that name a variable or a program require that it is loaded, if it exists. [`variable_name_in`] returns the name
/// to load for an identifier. If an operation fails, the record is unchanged.
#[derive(Debug)]
pub struct SessionRecord {
    /// The session without its variables and programs. Always loaded.
    pub header: SessionHeader,
    /// The loaded programs.
    pub programs: BTreeMap<ProgramName, ProgramRecord>,
    /// The loaded variables. Boxed, because a node of the map has space for eleven entries.
    pub variables: BTreeMap<VariableName, Box<VariableRecord>>,
}

impl SessionRecord {
    /// Creates a record without loaded variables and programs.
    pub const fn new(header: SessionHeader) -> Self {
        Self { header, programs: BTreeMap::new(), variables: BTreeMap::new() }
    }

    /// Stores a program.
    ///
    /// # Errors
    /// Those of [`SessionBackend::put_program`](crate::SessionBackend::put_program) for a session's program.
    pub fn put_program(
        &mut self,
        size_guard: &mut SizeGuard<'_>,
        name: &ProgramName,
        program: Program,
    ) -> Result<Created, SessionError> {
        size_guard.limits.check_program(name, &program)?;
        let replaced = self.programs.get(name).map(ProgramRecord::size);
        let limit = size_guard.limits.max_programs;
        if replaced.is_none() && self.header.programs >= limit {
            return Err(SessionError::TooManyPrograms { session: size_guard.session.clone(), limit });
        }
        let size = self.header.bytes - replaced.unwrap_or(0) + size_of_program(name, &program);
        self.header.resize(size_guard, size)?;
        let program = Program { updated_at: SystemTime::now(), ttl: None, ..program };
        self.programs.insert(name.clone(), ProgramRecord::new(name, program));
        if replaced.is_some() {
            return Ok(Created::Existing);
        }
        self.header.programs += 1;
        Ok(Created::New)
    }

    /// Returns a program, whose data must be loaded.
    ///
    /// # Errors
    /// [`SessionError::ProgramNotFound`], or [`SessionError::Backend`] if the storage lost the data.
    pub fn program(&self, id: &SessionId, name: &ProgramName) -> Result<Program, SessionError> {
        self.programs.get(name).ok_or_else(|| program_not_found(Some(id), name))?.program()
    }

    /// Deletes a program.
    ///
    /// # Errors
    /// [`SessionError::ProgramNotFound`].
    pub fn delete_program(
        &mut self,
        size_guard: &mut SizeGuard<'_>,
        name: &ProgramName,
    ) -> Result<(), SessionError> {
        let program =
            self.programs.remove(name).ok_or_else(|| program_not_found(Some(size_guard.session), name))?;
        self.header.resize(size_guard, self.header.bytes - program.size())?;
        self.header.programs -= 1;
        Ok(())
    }

    /// Returns the variable with this id or name.
    #[must_use]
    pub fn find(&self, identifier: &str) -> Option<&VariableRecord> {
        let found = self.variables.get(variable_name_in(identifier))?;
        found.is(identifier).then_some(found)
    }

    /// Returns the variable with this id or name.
    ///
    /// # Errors
    /// [`SessionError::VariableNotFound`].
    pub fn variable(&self, id: &SessionId, identifier: &str) -> Result<&VariableRecord, SessionError> {
        self.find(identifier).ok_or_else(|| variable_not_found(id, identifier))
    }

    /// Applies the write that `check` returns for a variable, if the limits allow it.
    fn write(
        &mut self,
        size_guard: &mut SizeGuard<'_>,
        identifier: &str,
        check: impl FnOnce(&VariableRecord, &SessionLimits) -> Result<Write, SessionError>,
    ) -> Result<&VariableRecord, SessionError> {
        let Self { header, variables, .. } = self;
        let found = variables.get_mut(variable_name_in(identifier)).filter(|found| found.is(identifier));
        let variable = found.ok_or_else(|| variable_not_found(size_guard.session, identifier))?;
        let write = check(variable, size_guard.limits)?;
        header.resize(size_guard, header.bytes + write.added_bytes - write.removed_bytes)?;
        variable.apply(write);
        Ok(variable)
    }

    /// Registers a variable. `checked` is the result of an earlier check, if there was one.
    ///
    /// # Errors
    /// Those of [`SessionBackend::register_variable`](crate::SessionBackend::register_variable).
    pub fn register(
        &mut self,
        size_guard: &mut SizeGuard<'_>,
        name: &VariableName,
        new: NewVariable,
        checked: Option<CheckedValue>,
    ) -> Result<&VariableRecord, SessionError> {
        if self.variables.contains_key(name) {
            return Err(SessionError::VariableExists {
                session: size_guard.session.clone(),
                name: name.to_string(),
            });
        }
        let limit = size_guard.limits.max_variables;
        if self.header.variables >= limit {
            return Err(SessionError::TooManyVariables { session: size_guard.session.clone(), limit });
        }
        let registered = VariableRecord::new(size_guard.limits, name, new, checked)?;
        self.header.resize(size_guard, self.header.bytes + registered.size())?;
        self.header.variables += 1;
        Ok(self.variables.entry(name.clone()).or_insert(Box::new(registered)))
    }

    /// Writes one variable.
    ///
    /// # Errors
    /// Those of [`SessionBackend::set_variable`](crate::SessionBackend::set_variable).
    pub fn set(
        &mut self,
        size_guard: &mut SizeGuard<'_>,
        update: impl Into<PreparedWrite>,
    ) -> Result<&VariableRecord, SessionError> {
        let PreparedWrite { update, checked } = update.into();
        let SetVariable { identifier, value, note, expected_version } = update;
        self.write(size_guard, &identifier, |variable, limits| {
            variable.check(limits, value, note, expected_version, checked)
        })
    }

    /// Writes variables, and calls `on_write` with each written variable. Returns the new version of each variable, or the
    /// error of its write.
    ///
    /// # Errors
    /// An [`Atomic`](Batch::Atomic) batch writes all variables or none. It fails with [`SessionError::BatchRejected`], which
    /// contains the reason for each rejected write, or with an error of the size limits.
    pub fn set_batch(
        &mut self,
        size_guard: &mut SizeGuard<'_>,
        updates: impl IntoIterator<Item: Into<PreparedWrite>>,
        batch: Batch,
        mut on_write: impl FnMut(&VariableRecord),
    ) -> Result<Vec<Result<u32, SessionError>>, SessionError> {
        match batch {
            Batch::Atomic => {
                let names = self.set_all(size_guard, updates)?;
                let version = |name: &VariableName| {
                    let changed = self.variable(size_guard.session, name.as_str())?;
                    on_write(changed);
                    Ok(Ok(changed.variable.version))
                };
                names.iter().map(version).collect()
            }
            Batch::Each => {
                let write = |update| {
                    let changed = self.set(size_guard, update)?;
                    on_write(changed);
                    Ok(changed.variable.version)
                };
                Ok(updates.into_iter().map(write).collect())
            }
        }
    }

    /// Writes all of these variables or none, and returns their names.
    fn set_all(
        &mut self,
        size_guard: &mut SizeGuard<'_>,
        updates: impl IntoIterator<Item: Into<PreparedWrite>>,
    ) -> Result<Vec<VariableName>, SessionError> {
        let (mut names, mut writes, mut errors) = (Vec::new(), Vec::new(), BTreeMap::new());
        let mut written = BTreeSet::new();
        for PreparedWrite { update, checked } in updates.into_iter().map(Into::into) {
            let SetVariable { identifier, value, note, expected_version } = update;
            let write = self.variable(size_guard.session, &identifier).and_then(|variable| {
                let name = &variable.variable.name;
                if !written.insert(name.clone()) {
                    return Err(SessionError::WrittenTwice { variable: name.to_string() });
                }
                names.push(name.clone());
                variable.check(size_guard.limits, value, note, expected_version, checked)
            });
            match write {
                Ok(write) => writes.push(write),
                Err(error) => drop(errors.insert(identifier, error)),
            }
        }
        if !errors.is_empty() {
            return Err(SessionError::BatchRejected { errors });
        }
        // Add first, so that no intermediate sum is negative.
        let grown = writes.iter().fold(self.header.bytes, |bytes, write| bytes + write.added_bytes);
        let size = writes.iter().fold(grown, |bytes, write| bytes - write.removed_bytes);
        self.header.resize(size_guard, size)?;
        for (name, write) in names.iter().zip(writes) {
            let variable = self.variables.get_mut(name);
            variable.ok_or_else(|| variable_not_found(size_guard.session, name.as_str()))?.apply(write);
        }
        Ok(names)
    }

    /// Writes the value of an earlier version as a new version. That version must be loaded.
    ///
    /// # Errors
    /// Those of [`SessionBackend::rollback_variable`](crate::SessionBackend::rollback_variable).
    pub fn rollback(
        &mut self,
        size_guard: &mut SizeGuard<'_>,
        identifier: &str,
        version: u32,
        note: Note,
    ) -> Result<&VariableRecord, SessionError> {
        self.write(size_guard, identifier, |variable, limits| {
            let value = variable.value_of(version)?;
            let checked = CheckedValue::valid(Arc::clone(&variable.variable.ty), value.clone());
            variable.check(limits, value, note, None, Some(checked))
        })
    }

    /// Deletes a variable and returns it.
    ///
    /// # Errors
    /// [`SessionError::VariableNotFound`].
    pub fn delete_variable(
        &mut self,
        size_guard: &mut SizeGuard<'_>,
        identifier: &str,
    ) -> Result<Box<VariableRecord>, SessionError> {
        let name = self.variable(size_guard.session, identifier)?.variable.name.clone();
        let variable =
            self.variables.remove(&name).ok_or_else(|| variable_not_found(size_guard.session, identifier))?;
        self.header.resize(size_guard, self.header.bytes - variable.size())?;
        self.header.variables -= 1;
        Ok(variable)
    }

    /// Deletes variables, passes each to `on_deleted`, and returns their last states, with `None` for missing ones.
    ///
    /// # Errors
    /// An error of the limits.
    pub fn delete_variables<S: AsRef<str>>(
        &mut self,
        size_guard: &mut SizeGuard<'_>,
        identifiers: &[S],
        mut on_deleted: impl FnMut(&VariableRecord),
    ) -> Result<Vec<Option<Variable>>, SessionError> {
        let mut delete = |identifier: &S| {
            if self.find(identifier.as_ref()).is_none() {
                return Ok(None);
            }
            let deleted = self.delete_variable(size_guard, identifier.as_ref())?;
            on_deleted(&deleted);
            Ok(Some(deleted.variable))
        };
        identifiers.iter().map(&mut delete).collect()
    }
}
