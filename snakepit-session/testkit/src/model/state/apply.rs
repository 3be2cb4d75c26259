//! The operations of the model.

use std::collections::BTreeMap;

use snakepit_session::{Batch, Created, Note, SessionError, SessionId, SessionLimits, UpdateKind, ValueType};

use super::{Model, Session, Variable, Watch, bytes_of, bytes_of_note};
use crate::model::{
    operation::{Act, Answer, Metadata, Operation, ProgramSeen, VersionSeen, Write},
    value::Value,
};

impl Model {
    /// Applies an operation. `seen` is the answer of the backend, from which the model takes only the random ids of variables.
    pub(in super::super) fn apply(
        &mut self,
        operation: &Operation,
        seen: &Result<Answer, SessionError>,
    ) -> Result<Answer, SessionError> {
        let Operation { session: id, act } = operation;
        match act {
            Act::Create(metadata) => return self.create(id, metadata),
            Act::Sessions => {
                return Ok(Answer::Sessions(self.sessions.iter().map(|(id, s)| s.seen(id)).collect()));
            }
            Act::Stats => return Ok(Answer::Stats(self.stats())),
            Act::PutProgram { global: true, .. }
            | Act::Program { global: true, .. }
            | Act::Programs { global: true }
            | Act::DeleteProgram { global: true, .. } => return self.global(act),
            _ => {}
        }
        // Other operations change a copy of the session, which replaces it on success.
        let Some(before) = self.sessions.get(id) else {
            return Err(SessionError::NotFound { id: id.clone() });
        };
        let mut after = before.clone();
        let mut changes = Vec::new();
        let answer = match act {
            Act::Get => Answer::Session(before.seen(id)),
            Act::Delete => {
                let deleted = before.seen(id);
                self.sessions.remove(id);
                self.deleted += 1;
                for watch in self.watches.iter_mut().filter(|watch| watch.session == *id) {
                    watch.ended = true;
                }
                return Ok(Answer::Session(deleted));
            }
            Act::SetLastWorker(worker) => {
                after.last_worker = Some(worker.clone());
                Answer::Done
            }
            Act::Variable(identifier) => {
                let (name, variable) = existing(id, before, identifier)?;
                Answer::Variable(variable.seen(name))
            }
            Act::Variables(identifiers) => {
                let find = |identifier: &String| before.find(identifier).map(|(name, v)| v.seen(name));
                Answer::Variables(identifiers.iter().map(find).collect())
            }
            Act::List(pattern) => {
                let like = |name: &str| pattern.is_empty() || is_like(pattern.as_bytes(), name.as_bytes());
                let listed = before.variables.iter().filter(|(name, _)| like(name));
                Answer::Variables(listed.map(|(name, variable)| Some(variable.seen(name))).collect())
            }
            Act::History { identifier, limit } => {
                let (_, variable) = existing(id, before, identifier)?;
                let limit = if *limit == 0 { usize::MAX } else { *limit };
                Answer::History(variable.versions.iter().rev().take(limit).cloned().collect())
            }
            Act::Register { name, ty, constraints, value, note } => {
                if before.variables.contains_key(name) {
                    return Err(SessionError::VariableExists { session: id.clone(), name: name.clone() });
                }
                let limit = self.limits.max_variables;
                if before.variables.len() >= limit {
                    return Err(SessionError::TooManyVariables { session: id.clone(), limit });
                }
                let value = self.value(name, *ty, constraints, value, note)?;
                let id = match seen {
                    Ok(Answer::Variable(seen)) => seen.id.clone(),
                    // The length of the id counts even if the registration fails.
                    _ => format!("var_{:032}_{name}", 0),
                };
                let variable = Variable {
                    id,
                    ty: *ty,
                    constraints: constraints.clone(),
                    metadata: (&note.metadata).into(),
                    versions: vec![VersionSeen { number: 0, value, note: note.clone() }],
                };
                after.variables.insert(name.clone(), variable.clone());
                changes.push((UpdateKind::Registered, name.clone(), variable.clone()));
                Answer::Variable(variable.seen(name))
            }
            Act::Set(write) => {
                let (name, variable) = self.written(id, before, write)?;
                let version = variable.now().number;
                after.variables.insert(name.clone(), variable.clone());
                changes.push((UpdateKind::Set, name, variable));
                Answer::Version(version)
            }
            Act::SetMany(writes, Batch::Atomic) => {
                let mut errors = BTreeMap::new();
                let mut versions = Vec::new();
                for (n, write) in writes.iter().enumerate() {
                    let name = |write: &Write| before.find(&write.identifier).map(|(name, _)| name);
                    let twice = name(write).filter(|own| writes[..n].iter().any(|w| name(w) == Some(own)));
                    let written = match twice {
                        Some(name) => Err(SessionError::WrittenTwice { variable: name.clone() }),
                        None => self.written(id, before, write),
                    };
                    match written {
                        Ok((name, variable)) => {
                            versions.push(Ok(variable.now().number));
                            after.variables.insert(name.clone(), variable.clone());
                            changes.push((UpdateKind::Set, name, variable));
                        }
                        Err(error) => drop(errors.insert(write.identifier.clone(), error)),
                    }
                }
                if !errors.is_empty() {
                    return Err(SessionError::BatchRejected { errors });
                }
                Answer::Versions(versions)
            }
            Act::SetMany(writes, Batch::Each) => {
                let mut versions = Vec::new();
                for write in writes {
                    let alone = Operation { session: id.clone(), act: Act::Set(write.clone()) };
                    versions.push(match self.apply(&alone, seen) {
                        Ok(Answer::Version(version)) => Ok(version),
                        Ok(other) => unreachable!("a write answers with a version, not {other:?}"),
                        Err(error) => Err(error),
                    });
                }
                return Ok(Answer::Versions(versions));
            }
            Act::DeleteVariable(identifier) => {
                let (name, variable) = existing(id, before, identifier)?;
                after.variables.remove(name);
                changes.push((UpdateKind::Deleted, name.clone(), variable.clone()));
                Answer::Variable(variable.seen(name))
            }
            Act::Rollback { identifier, version, note } => {
                let (name, variable) = existing(id, before, identifier)?;
                let Some(target) = variable.versions.iter().find(|kept| kept.number == *version) else {
                    return Err(SessionError::VersionNotKept {
                        variable: name.clone(),
                        version: *version,
                        oldest: variable.versions[0].number,
                        newest: variable.now().number,
                    });
                };
                let write = Write {
                    identifier: name.clone(),
                    value: target.value.clone(),
                    note: note.clone(),
                    expected: None,
                };
                let (name, variable) = self.written(id, before, &write)?;
                after.variables.insert(name.clone(), variable.clone());
                let answer = Answer::Variable(variable.seen(&name));
                changes.push((UpdateKind::RolledBack, name, variable));
                answer
            }
            Act::Watch { identifiers, initial } => {
                for identifier in identifiers {
                    existing(id, before, identifier)?;
                }
                let mut watch = Watch {
                    session: id.clone(),
                    identifiers: identifiers.clone(),
                    notified: Vec::new(),
                    ended: false,
                };
                if *initial {
                    for (name, variable) in &before.variables {
                        watch.notify(id, UpdateKind::Initial, name, variable);
                    }
                }
                let (limit, live) = (self.limits.max_watches, |w: &&Watch| w.session == *id && !w.ended);
                if self.watches.iter().filter(live).count() >= limit {
                    return Err(SessionError::TooManyWatches { limit });
                }
                self.watches.push(watch);
                Answer::Done
            }
            Act::PutProgram { name, program, .. } => {
                let name = name.as_str();
                self.check_program(name, program)?;
                let limit = self.limits.max_programs;
                if !before.programs.contains_key(name) && before.programs.len() >= limit {
                    return Err(SessionError::TooManyPrograms { session: id.clone(), limit });
                }
                stored(&mut after.programs, name, ProgramSeen { ttl: None, ..program.clone() })
            }
            Act::Program { name, .. } => {
                let program = before.programs.get(name.as_str());
                Answer::Program(program.ok_or_else(|| no_program(id, name.as_str()))?.clone())
            }
            Act::Programs { .. } => listed(&before.programs),
            Act::DeleteProgram { name, .. } => {
                after.programs.remove(name.as_str()).ok_or_else(|| no_program(id, name.as_str()))?;
                Answer::Done
            }
            Act::Create(_) | Act::Sessions | Act::Stats => unreachable!("answered above"),
        };
        // A session above the limit may still shrink.
        if after.bytes() > before.bytes() {
            self.check_size(id, after.bytes())?;
        }
        self.sessions.insert(id.clone(), after);
        for (kind, name, variable) in &changes {
            self.watches.iter_mut().for_each(|watch| watch.notify(id, *kind, name, variable));
        }
        Ok(answer)
    }

    fn create(&mut self, id: &SessionId, metadata: &Metadata) -> Result<Answer, SessionError> {
        self.check_metadata(metadata.len(), bytes_of(metadata))?;
        self.check_size(id, bytes_of(metadata))?;
        if let Some(session) = self.sessions.get(id) {
            return Ok(Answer::Created(session.seen(id), Created::Existing));
        }
        let limit = self.limits.max_sessions;
        if self.sessions.len() >= limit {
            return Err(SessionError::TooManySessions { limit });
        }
        let session = Session { metadata: metadata.clone(), ..Session::default() };
        let answer = Answer::Created(session.seen(id), Created::New);
        self.sessions.insert(id.clone(), session);
        self.created += 1;
        Ok(answer)
    }

    fn global(&mut self, act: &Act) -> Result<Answer, SessionError> {
        let missing = |name: &str| SessionError::GlobalProgramNotFound { name: name.to_owned() };
        Ok(match act {
            Act::PutProgram { name, program, .. } => {
                let name = name.as_str();
                self.check_program(name, program)?;
                let limit = self.limits.max_programs;
                if !self.globals.contains_key(name) && self.globals.len() >= limit {
                    return Err(SessionError::TooManyGlobalPrograms { limit });
                }
                let ttl = program.ttl.or(Some(self.limits.default_ttl));
                stored(&mut self.globals, name, ProgramSeen { ttl, ..program.clone() })
            }
            Act::Program { name, .. } => {
                let program = self.globals.get(name.as_str());
                Answer::Program(program.ok_or_else(|| missing(name.as_str()))?.clone())
            }
            Act::DeleteProgram { name, .. } => {
                self.globals.remove(name.as_str()).ok_or_else(|| missing(name.as_str()))?;
                Answer::Done
            }
            _ => listed(&self.globals),
        })
    }

    /// Returns a variable after a write, with its name.
    fn written(
        &self,
        id: &SessionId,
        session: &Session,
        write: &Write,
    ) -> Result<(String, Variable), SessionError> {
        let (name, variable) = existing(id, session, &write.identifier)?;
        let actual = variable.now().number;
        if let Some(expected) = write.expected.filter(|expected| *expected != actual) {
            return Err(SessionError::VersionConflict { variable: name.clone(), expected, actual });
        }
        let value = self.value(name, variable.ty, &variable.constraints, &write.value, &write.note)?;
        let mut after = variable.clone();
        after.metadata.extend(Metadata::from(&write.note.metadata));
        self.check_metadata(after.metadata.len(), bytes_of(&after.metadata))?;
        // The current versions become the history. Drop the oldest while it exceeds the limits.
        let bytes = |versions: &[VersionSeen]| versions.iter().map(VersionSeen::bytes).sum::<usize>();
        while after.versions.len() > self.limits.max_history
            || bytes(&after.versions) > self.limits.max_history_bytes
        {
            after.versions.remove(0);
        }
        after.versions.push(VersionSeen { number: actual + 1, value, note: write.note.clone() });
        Ok((name.clone(), after))
    }

    /// The stored form of a value in a variable.
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
        value.stored(ty, constraints).ok_or_else(invalid)
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

    fn check_program(&self, name: &str, program: &ProgramSeen) -> Result<(), SessionError> {
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

fn stored(programs: &mut BTreeMap<String, ProgramSeen>, name: &str, program: ProgramSeen) -> Answer {
    let replaced = programs.insert(name.to_owned(), program);
    Answer::Stored(if replaced.is_some() { Created::Existing } else { Created::New })
}

fn listed(programs: &BTreeMap<String, ProgramSeen>) -> Answer {
    let listed = programs.iter().map(|(name, program)| {
        (name.clone(), program.data.len(), ProgramSeen { data: Vec::new(), ..program.clone() })
    });
    Answer::Programs(listed.collect())
}

fn is_like(pattern: &[u8], name: &[u8]) -> bool {
    match pattern.split_first() {
        None => name.is_empty(),
        Some((b'*', rest)) => is_like(rest, name) || (!name.is_empty() && is_like(pattern, &name[1..])),
        Some((letter, rest)) => name.first() == Some(letter) && is_like(rest, &name[1..]),
    }
}
