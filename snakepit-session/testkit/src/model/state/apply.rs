//! The operations of the model.

use std::collections::BTreeMap;

use snakepit_session::{Batch, Created, Note, SessionError, SessionId, SessionLimits, UpdateKind, ValueType};

use super::{Model, Session, Variable, Watch, bytes_of, bytes_of_note};
use crate::model::{
    operation::{Action, Metadata, Operation, Output, ProgramView, VersionView, Write},
    value::Value,
};

impl Model {
    /// Applies an operation. `actual` is the output of the backend. The model uses only the random ids of variables in it.
    pub(in super::super) fn apply(
        &mut self,
        operation: &Operation,
        actual: &Result<Output, SessionError>,
    ) -> Result<Output, SessionError> {
        let Operation { session: id, action } = operation;
        match action {
            Action::Create(metadata) => return self.create(id, metadata),
            Action::Sessions => {
                return Ok(Output::Sessions(self.sessions.iter().map(|(id, s)| s.view(id)).collect()));
            }
            Action::Stats => return Ok(Output::Stats(self.stats())),
            Action::PutProgram { is_global: true, .. }
            | Action::Program { is_global: true, .. }
            | Action::Programs { is_global: true }
            | Action::DeleteProgram { is_global: true, .. } => return self.global(action),
            _ => {}
        }
        // Other operations change a copy of the session, which replaces it on success.
        let Some(before) = self.sessions.get(id) else {
            return Err(SessionError::NotFound { id: id.clone() });
        };
        let mut after = before.clone();
        let mut changes = Vec::new();
        let output = match action {
            Action::Get => Output::Session(before.view(id)),
            Action::Delete => {
                let deleted = before.view(id);
                self.sessions.remove(id);
                self.deleted += 1;
                for watch in self.watches.iter_mut().filter(|watch| watch.session == *id) {
                    watch.has_ended = true;
                }
                return Ok(Output::Session(deleted));
            }
            Action::SetLastWorker(worker) => {
                after.last_worker = Some(worker.clone());
                Output::Done
            }
            Action::Variable(identifier) => {
                let (name, variable) = existing(id, before, identifier)?;
                Output::Variable(variable.view(name))
            }
            Action::Variables(identifiers) => {
                let find = |identifier: &String| before.find(identifier).map(|(name, v)| v.view(name));
                Output::Variables(identifiers.iter().map(find).collect())
            }
            Action::List(pattern) => {
                let is_match =
                    |name: &str| pattern.is_empty() || matches_pattern(pattern.as_bytes(), name.as_bytes());
                let listed = before.variables.iter().filter(|(name, _)| is_match(name));
                Output::Variables(listed.map(|(name, variable)| Some(variable.view(name))).collect())
            }
            Action::History { identifier, limit } => {
                let (_, variable) = existing(id, before, identifier)?;
                let limit = if *limit == 0 { usize::MAX } else { *limit };
                Output::History(variable.versions.iter().rev().take(limit).cloned().collect())
            }
            Action::Register { name, ty, constraints, value, note } => {
                if before.variables.contains_key(name) {
                    return Err(SessionError::VariableExists { session: id.clone(), name: name.clone() });
                }
                let limit = self.limits.max_variables;
                if before.variables.len() >= limit {
                    return Err(SessionError::TooManyVariables { session: id.clone(), limit });
                }
                let value = self.value(name, *ty, constraints, value, note)?;
                let id = match actual {
                    Ok(Output::Variable(variable)) => variable.id.clone(),
                    // The length of the id counts even if the registration fails.
                    _ => format!("var_{:032}_{name}", 0),
                };
                let variable = Variable {
                    id,
                    ty: *ty,
                    constraints: constraints.clone(),
                    metadata: (&note.metadata).into(),
                    versions: vec![VersionView { number: 0, value, note: note.clone() }],
                };
                after.variables.insert(name.clone(), variable.clone());
                changes.push((UpdateKind::Registered, name.clone(), variable.clone()));
                Output::Variable(variable.view(name))
            }
            Action::Set(write) => {
                let (name, variable) = self.apply_write(id, before, write)?;
                let version = variable.current().number;
                after.variables.insert(name.clone(), variable.clone());
                changes.push((UpdateKind::Set, name, variable));
                Output::Version(version)
            }
            Action::SetMany(writes, Batch::Atomic) => {
                let mut errors = BTreeMap::new();
                let mut versions = Vec::new();
                for (n, write) in writes.iter().enumerate() {
                    let name = |write: &Write| before.find(&write.identifier).map(|(name, _)| name);
                    let written_twice =
                        name(write).filter(|same| writes[..n].iter().any(|w| name(w) == Some(same)));
                    let written = match written_twice {
                        Some(name) => Err(SessionError::WrittenTwice { variable: name.clone() }),
                        None => self.apply_write(id, before, write),
                    };
                    match written {
                        Ok((name, variable)) => {
                            versions.push(Ok(variable.current().number));
                            after.variables.insert(name.clone(), variable.clone());
                            changes.push((UpdateKind::Set, name, variable));
                        }
                        Err(error) => drop(errors.insert(write.identifier.clone(), error)),
                    }
                }
                if !errors.is_empty() {
                    return Err(SessionError::BatchRejected { errors });
                }
                Output::Versions(versions)
            }
            Action::SetMany(writes, Batch::Each) => {
                let mut versions = Vec::new();
                for write in writes {
                    let alone = Operation { session: id.clone(), action: Action::Set(write.clone()) };
                    versions.push(match self.apply(&alone, actual) {
                        Ok(Output::Version(version)) => Ok(version),
                        Ok(other) => unreachable!("a write returns a version, not {other:?}"),
                        Err(error) => Err(error),
                    });
                }
                return Ok(Output::Versions(versions));
            }
            Action::DeleteVariable(identifier) => {
                let (name, variable) = existing(id, before, identifier)?;
                after.variables.remove(name);
                changes.push((UpdateKind::Deleted, name.clone(), variable.clone()));
                Output::Variable(variable.view(name))
            }
            Action::Rollback { identifier, version, note } => {
                let (name, variable) = existing(id, before, identifier)?;
                let Some(target) = variable.versions.iter().find(|target| target.number == *version) else {
                    return Err(SessionError::VersionNotKept {
                        variable: name.clone(),
                        version: *version,
                        oldest: variable.versions[0].number,
                        newest: variable.current().number,
                    });
                };
                let write = Write {
                    identifier: name.clone(),
                    value: target.value.clone(),
                    note: note.clone(),
                    expected: None,
                };
                let (name, variable) = self.apply_write(id, before, &write)?;
                after.variables.insert(name.clone(), variable.clone());
                let output = Output::Variable(variable.view(&name));
                changes.push((UpdateKind::RolledBack, name, variable));
                output
            }
            Action::Watch { identifiers, initial } => {
                for identifier in identifiers {
                    existing(id, before, identifier)?;
                }
                let mut watch = Watch {
                    session: id.clone(),
                    identifiers: identifiers.clone(),
                    expected_updates: Vec::new(),
                    has_ended: false,
                };
                if *initial {
                    for (name, variable) in &before.variables {
                        watch.notify(id, UpdateKind::Initial, name, variable);
                    }
                }
                let (limit, is_live) =
                    (self.limits.max_watches, |w: &&Watch| w.session == *id && !w.has_ended);
                if self.watches.iter().filter(is_live).count() >= limit {
                    return Err(SessionError::TooManyWatches { limit });
                }
                self.watches.push(watch);
                Output::Done
            }
            Action::PutProgram { name, program, .. } => {
                let name = name.as_str();
                self.check_program(name, program)?;
                let limit = self.limits.max_programs;
                if !before.programs.contains_key(name) && before.programs.len() >= limit {
                    return Err(SessionError::TooManyPrograms { session: id.clone(), limit });
                }
                put(&mut after.programs, name, ProgramView { ttl: None, ..program.clone() })
            }
            Action::Program { name, .. } => {
                let program = before.programs.get(name.as_str());
                Output::Program(program.ok_or_else(|| no_program(id, name.as_str()))?.clone())
            }
            Action::Programs { .. } => listed(&before.programs),
            Action::DeleteProgram { name, .. } => {
                after.programs.remove(name.as_str()).ok_or_else(|| no_program(id, name.as_str()))?;
                Output::Done
            }
            Action::Create(_) | Action::Sessions | Action::Stats => unreachable!("handled above"),
        };
        // A session that exceeds the limit may still shrink.
        if after.bytes() > before.bytes() {
            self.check_size(id, after.bytes())?;
        }
        self.sessions.insert(id.clone(), after);
        for (kind, name, variable) in &changes {
            self.watches.iter_mut().for_each(|watch| watch.notify(id, *kind, name, variable));
        }
        Ok(output)
    }

    fn create(&mut self, id: &SessionId, metadata: &Metadata) -> Result<Output, SessionError> {
        self.check_metadata(metadata.len(), bytes_of(metadata))?;
        self.check_size(id, bytes_of(metadata))?;
        if let Some(session) = self.sessions.get(id) {
            return Ok(Output::Created(session.view(id), Created::Existing));
        }
        let limit = self.limits.max_sessions;
        if self.sessions.len() >= limit {
            return Err(SessionError::TooManySessions { limit });
        }
        let session = Session { metadata: metadata.clone(), ..Session::default() };
        let output = Output::Created(session.view(id), Created::New);
        self.sessions.insert(id.clone(), session);
        self.created += 1;
        Ok(output)
    }

    fn global(&mut self, action: &Action) -> Result<Output, SessionError> {
        let missing = |name: &str| SessionError::GlobalProgramNotFound { name: name.to_owned() };
        Ok(match action {
            Action::PutProgram { name, program, .. } => {
                let name = name.as_str();
                self.check_program(name, program)?;
                let limit = self.limits.max_programs;
                if !self.globals.contains_key(name) && self.globals.len() >= limit {
                    return Err(SessionError::TooManyGlobalPrograms { limit });
                }
                let ttl = program.ttl.or(Some(self.limits.default_ttl));
                put(&mut self.globals, name, ProgramView { ttl, ..program.clone() })
            }
            Action::Program { name, .. } => {
                let program = self.globals.get(name.as_str());
                Output::Program(program.ok_or_else(|| missing(name.as_str()))?.clone())
            }
            Action::DeleteProgram { name, .. } => {
                self.globals.remove(name.as_str()).ok_or_else(|| missing(name.as_str()))?;
                Output::Done
            }
            _ => listed(&self.globals),
        })
    }

    /// Returns a variable after a write, with its name.
    fn apply_write(
        &self,
        id: &SessionId,
        session: &Session,
        write: &Write,
    ) -> Result<(String, Variable), SessionError> {
        let (name, variable) = existing(id, session, &write.identifier)?;
        let actual = variable.current().number;
        if let Some(expected) = write.expected.filter(|expected| *expected != actual) {
            return Err(SessionError::VersionConflict { variable: name.clone(), expected, actual });
        }
        let value = self.value(name, variable.ty, &variable.constraints, &write.value, &write.note)?;
        let mut after = variable.clone();
        after.metadata.extend(Metadata::from(&write.note.metadata));
        self.check_metadata(after.metadata.len(), bytes_of(&after.metadata))?;
        // The versions so far become the history. Drop the oldest while the history exceeds the limits.
        let bytes = |versions: &[VersionView]| versions.iter().map(VersionView::bytes).sum::<usize>();
        while after.versions.len() > self.limits.max_history
            || bytes(&after.versions) > self.limits.max_history_bytes
        {
            after.versions.remove(0);
        }
        after.versions.push(VersionView { number: actual + 1, value, note: write.note.clone() });
        Ok((name.clone(), after))
    }

    /// Returns the stored form of a value in a variable.
    fn value(
        &self,
        name: &str,
        ty: ValueType,
        constraints: &str,
        value: &Value,
        note: &Note,
    ) -> Result<Value, SessionError> {
        let (size, limit) = (value.bytes(), self.limits.max_value_bytes);
        if size > limit {
            return Err(SessionError::ValueTooLarge { variable: name.to_owned(), size, limit });
        }
        self.check_metadata(note.metadata.len(), bytes_of_note(note))?;
        let invalid = || SessionError::InvalidValue { variable: name.to_owned(), problem: String::new() };
        value.to_stored(ty, constraints).ok_or_else(invalid)
    }

    fn check_size(&self, id: &SessionId, size: usize) -> Result<(), SessionError> {
        let limit = self.limits.max_session_bytes;
        if size > limit {
            return Err(SessionError::SessionTooLarge { session: id.clone(), size, limit });
        }
        Ok(())
    }

    fn check_metadata(&self, entries: usize, bytes: usize) -> Result<(), SessionError> {
        let SessionLimits { max_metadata_entries: max_entries, max_metadata_bytes: max_bytes, .. } =
            self.limits;
        if entries > max_entries || bytes > max_bytes {
            return Err(SessionError::MetadataTooLarge { entries, bytes, max_entries, max_bytes });
        }
        Ok(())
    }

    fn check_program(&self, name: &str, program: &ProgramView) -> Result<(), SessionError> {
        let (size, limit) = (program.data.len(), self.limits.max_program_bytes);
        if size > limit {
            return Err(SessionError::ProgramTooLarge { name: name.to_owned(), size, limit });
        }
        self.check_metadata(program.metadata.len(), bytes_of(&program.metadata))
    }
}

fn existing<'a>(
    id: &SessionId,
    session: &'a Session,
    identifier: &str,
) -> Result<(&'a String, &'a Variable), SessionError> {
    session.find(identifier).ok_or_else(|| SessionError::VariableNotFound {
        session: id.clone(),
        identifier: identifier.to_owned(),
    })
}

fn no_program(session: &SessionId, name: &str) -> SessionError {
    SessionError::ProgramNotFound { session: session.clone(), name: name.to_owned() }
}

fn put(programs: &mut BTreeMap<String, ProgramView>, name: &str, program: ProgramView) -> Output {
    let replaced = programs.insert(name.to_owned(), program);
    Output::Stored(if replaced.is_some() { Created::Existing } else { Created::New })
}

fn listed(programs: &BTreeMap<String, ProgramView>) -> Output {
    let listed = programs.iter().map(|(name, program)| {
        (name.clone(), program.data.len(), ProgramView { data: Vec::new(), ..program.clone() })
    });
    Output::Programs(listed.collect())
}

fn matches_pattern(pattern: &[u8], name: &[u8]) -> bool {
    match pattern.split_first() {
        None => name.is_empty(),
        Some((b'*', rest)) => {
            matches_pattern(rest, name) || (!name.is_empty() && matches_pattern(pattern, &name[1..]))
        }
        Some((letter, rest)) => name.first() == Some(letter) && matches_pattern(rest, &name[1..]),
    }
}
