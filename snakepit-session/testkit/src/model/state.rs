//! The model: sessions as plain maps. It does not share code with the backends, and recalculates all sizes for each operation.

use std::collections::BTreeMap;

use snakepit_session::{Note, SessionId, SessionLimits, UpdateKind, ValueType};

use super::operation::{
    Metadata, ProgramView, SessionView, StatsView, UpdateView, VariableView, VersionView,
};

mod apply;

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Model {
    limits: SessionLimits,
    sessions: BTreeMap<SessionId, Session>,
    globals: BTreeMap<String, ProgramView>,
    /// All watches so far.
    pub(super) watches: Vec<Watch>,
    created: u64,
    deleted: u64,
}

#[derive(Debug, Clone, Default, PartialEq)]
struct Session {
    metadata: Metadata,
    last_worker: Option<String>,
    programs: BTreeMap<String, ProgramView>,
    variables: BTreeMap<String, Variable>,
}

#[derive(Debug, Clone, PartialEq)]
struct Variable {
    id: String,
    ty: ValueType,
    constraints: String,
    metadata: Metadata,
    /// Oldest first. The last one is the current version.
    versions: Vec<VersionView>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Watch {
    session: SessionId,
    identifiers: Vec<String>,
    /// The expected updates, including initial values.
    pub(super) expected_updates: Vec<UpdateView>,
    /// Whether the session has ended or the watch was dropped.
    pub(super) has_ended: bool,
}

fn bytes_of(metadata: &Metadata) -> usize {
    metadata.iter().map(|(key, value)| key.len() + value.len()).sum()
}

fn bytes_of_note(note: &Note) -> usize {
    note.changed_by.as_deref().map_or(0, str::len) + bytes_of(&(&note.metadata).into())
}

fn bytes_of_program((name, program): (&String, &ProgramView)) -> usize {
    name.len() + program.data.len() + program.content_type.len() + bytes_of(&program.metadata)
}

impl VersionView {
    fn bytes(&self) -> usize {
        self.value.bytes() + bytes_of_note(&self.note)
    }
}

impl Variable {
    fn current(&self) -> &VersionView {
        self.versions.last().expect("a variable has a value")
    }

    fn view(&self, name: &str) -> VariableView {
        let VersionView { number, value, note } = self.current().clone();
        VariableView {
            id: self.id.clone(),
            name: name.to_owned(),
            ty: self.ty,
            constraints: self.constraints.clone(),
            value,
            version: number,
            metadata: self.metadata.clone(),
            source: note.source,
        }
    }

    fn bytes(&self, name: &str) -> usize {
        let versions: usize = self.versions.iter().map(VersionView::bytes).sum();
        self.id.len() + name.len() + self.constraints.len() + bytes_of(&self.metadata) + versions
    }
}

impl Session {
    fn view(&self, id: &SessionId) -> SessionView {
        SessionView {
            id: id.to_string(),
            metadata: self.metadata.clone(),
            last_worker: self.last_worker.clone(),
            programs: self.programs.len(),
            variables: self.variables.len(),
            bytes: self.bytes(),
        }
    }

    fn bytes(&self) -> usize {
        let programs: usize = self.programs.iter().map(bytes_of_program).sum();
        let variables: usize = self.variables.iter().map(|(name, variable)| variable.bytes(name)).sum();
        bytes_of(&self.metadata) + programs + variables
    }

    /// Finds a variable by its name, or else by its id.
    fn find(&self, identifier: &str) -> Option<(&String, &Variable)> {
        let by_id = || self.variables.iter().find(|(_, variable)| variable.id == identifier);
        self.variables.get_key_value(identifier).or_else(by_id)
    }
}

impl Model {
    pub(super) fn new(limits: SessionLimits) -> Self {
        Self {
            limits,
            sessions: BTreeMap::new(),
            globals: BTreeMap::new(),
            watches: Vec::new(),
            created: 0,
            deleted: 0,
        }
    }

    fn stats(&self) -> StatsView {
        let sum = |count: fn(&Session) -> usize| self.sessions.values().map(count).sum::<usize>();
        let globals: usize = self.globals.iter().map(bytes_of_program).sum();
        StatsView {
            created: self.created,
            deleted: self.deleted,
            live: self.sessions.len() as u64,
            variables: sum(|session| session.variables.len()) as u64,
            programs: (sum(|session| session.programs.len()) + self.globals.len()) as u64,
            bytes: (sum(Session::bytes) + globals) as u64,
        }
    }
}

impl Watch {
    fn notify(&mut self, session: &SessionId, kind: UpdateKind, name: &str, variable: &Variable) {
        let is_watched = |identifier: &String| identifier == name || *identifier == variable.id;
        if self.session != *session || self.has_ended {
            return;
        }
        if self.identifiers.is_empty() || self.identifiers.iter().any(is_watched) {
            let note = variable.current().note.clone();
            self.expected_updates.push(UpdateView { kind, variable: variable.view(name), note });
        }
    }
}
