//! Operations on variables. A variable has one row for its current state, and one for each older version, so the cost of a write
//! does not depend on the size of the history.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use snakepit_session::{
    Note, SessionError, SessionId, UpdateKind, Variable, VariableName, VariableUpdate, VariableWatch,
    Watcher,
    kit::{SessionRecord, SizeGuard, VariableRecord, encode, variable_name_in},
};

use super::{Group, erase, put};
use crate::{
    rows::{get, load_all_variables, load_variables},
    state::Notification,
};

/// The changes of an operation.
pub(crate) struct Changes {
    names: BTreeSet<VariableName>,
    /// The updates for the watchers, if there are any.
    updates: Option<Vec<VariableUpdate>>,
}

impl Changes {
    pub(crate) fn add(&mut self, kind: UpdateKind, changed: &VariableRecord) {
        self.names.insert(changed.variable.name.clone());
        if let Some(updates) = &mut self.updates {
            updates.push(changed.update(kind));
        }
    }
}

impl Group<'_> {
    /// Runs an operation on the variables that the identifiers name.
    pub(crate) fn change_variables<T>(
        &mut self,
        id: &SessionId,
        identifiers: &[String],
        operation: impl FnOnce(&mut SessionRecord, &mut SizeGuard<'_>, &mut Changes) -> Result<T, SessionError>,
    ) -> Result<T, SessionError> {
        let mut record = self.renew_and_load(id)?;
        load_variables(&self.variables, id, identifiers, &mut record)?;
        self.change_loaded(id, record, operation)
    }

    pub(crate) fn rollback(
        &mut self,
        id: &SessionId,
        identifier: &str,
        version: u32,
        note: Note,
    ) -> Result<Variable, SessionError> {
        let mut record = self.renew_and_load(id)?;
        load_variables(&self.variables, id, &[identifier.to_owned()], &mut record)?;
        let name = variable_name_in(identifier);
        if let Some(variable) = record.variables.get_mut(name)
            && let Some(older) = get(&self.versions, (id.as_str(), name, version))?
        {
            variable.load(older);
        }
        self.change_loaded(id, record, |record, size_guard, changes| {
            let changed = record.rollback(size_guard, identifier, version, note)?;
            changes.add(UpdateKind::RolledBack, changed);
            Ok(changed.variable.clone())
        })
    }

    fn change_loaded<T>(
        &mut self,
        id: &SessionId,
        mut record: SessionRecord,
        operation: impl FnOnce(&mut SessionRecord, &mut SizeGuard<'_>, &mut Changes) -> Result<T, SessionError>,
    ) -> Result<T, SessionError> {
        let variables = record.variables.iter();
        let older_before: BTreeMap<_, _> =
            variables.map(|(name, variable)| (name.clone(), variable.older())).collect();
        let watchers = self.state.watchers.get_mut(id).and_then(|watchers| watchers.snapshot());
        let mut changes = Changes { names: BTreeSet::new(), updates: watchers.is_some().then(Vec::new) };
        let result =
            self.edit(id, &mut record, |record, size_guard| operation(record, size_guard, &mut changes))?;
        for name in changes.names {
            let older_before = older_before.get(&name).cloned().unwrap_or_default();
            self.write_variable(
                id,
                &name,
                older_before,
                record.variables.get(&name).map(|variable| &**variable),
            )?;
        }
        if let (Some(watchers), Some(updates)) = (watchers, changes.updates) {
            self.state.staged.notifications.push(Notification::Changed { watchers, updates });
        }
        Ok(result)
    }

    /// Stores a variable after an operation that may have deleted it. `older_before` has its older versions before the operation.
    fn write_variable(
        &mut self,
        id: &SessionId,
        name: &VariableName,
        older_before: Range<u32>,
        variable: Option<&VariableRecord>,
    ) -> Result<(), SessionError> {
        let key = (id.as_str(), name.as_str());
        self.count_writes(1);
        match variable {
            Some(variable) => put(&mut self.variables, key, &encode(variable)?)?,
            None => erase(&mut self.variables, key)?,
        }
        let oldest = variable.map_or(older_before.end, |variable| variable.older().start);
        for evicted in older_before.start..older_before.end.min(oldest) {
            self.count_writes(1);
            erase(&mut self.versions, (key.0, key.1, evicted))?;
        }
        let older = variable.into_iter().flat_map(|variable| variable.history(0).skip(1));
        for new in older.take_while(|older| older.version >= older_before.end) {
            self.count_writes(1);
            put(&mut self.versions, (key.0, key.1, new.version), &encode(&new)?)?;
        }
        Ok(())
    }

    pub(crate) fn watch(
        &mut self,
        id: &SessionId,
        identifiers: &[String],
        initial: bool,
    ) -> Result<VariableWatch, SessionError> {
        let mut record = self.renew_and_load(id)?;
        load_variables(&self.variables, id, identifiers, &mut record)?;
        if identifiers.is_empty() && initial {
            load_all_variables(&self.variables, id, &mut record)?;
        }
        let limits = &self.shared.limits;
        let (watcher, watch) = Watcher::for_record(limits, id, &record, identifiers, initial)?;
        self.state.watchers.entry(id.clone()).or_default().add(watcher, limits.max_watches)?;
        Ok(watch)
    }
}
