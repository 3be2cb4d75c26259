//! Operations and their outputs, in a form that backends and the model share.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use snakepit_session::{
    Batch, Created, NewSession, NewVariable, Note, PageRequest, Program, ProgramInfo, ProgramName,
    ProgramOwner, Session, SessionBackend, SessionError, SessionId, SetVariable, Source, UpdateKind,
    ValueType, Variable, VariableName, VariableType, VariableUpdate, VariableVersion, VariableWatch,
};

use super::value::Value;

/// [`Metadata`](snakepit_session::Metadata) as a plain map.
pub(super) type Metadata = BTreeMap<String, String>;

/// An operation. Operations on global programs and on all sessions ignore the session.
#[derive(Debug, Clone)]
pub(super) struct Operation {
    pub(super) session: SessionId,
    pub(super) action: Action,
}

#[derive(Debug, Clone)]
pub(super) enum Action {
    Create(Metadata),
    Get,
    Delete,
    SetLastWorker(String),
    Sessions,
    Stats,
    PutProgram { is_global: bool, name: ProgramName, program: ProgramView },
    Program { is_global: bool, name: ProgramName },
    Programs { is_global: bool },
    DeleteProgram { is_global: bool, name: ProgramName },
    Register { name: String, ty: ValueType, constraints: String, value: Value, note: Note },
    Variable(String),
    Variables(Vec<String>),
    Set(Write),
    SetMany(Vec<Write>, Batch),
    List(String),
    DeleteVariable(String),
    History { identifier: String, limit: usize },
    Rollback { identifier: String, version: u32, note: Note },
    Watch { identifiers: Vec<String>, initial: bool },
}

#[derive(Debug, Clone)]
pub(super) struct Write {
    pub(super) identifier: String,
    pub(super) value: Value,
    pub(super) note: Note,
    pub(super) expected: Option<u32>,
}

/// The output of a successful operation.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Output {
    Done,
    Session(SessionView),
    Created(SessionView, Created),
    Sessions(Vec<SessionView>),
    Stats(StatsView),
    Stored(Created),
    Program(ProgramView),
    Programs(Vec<(String, usize, ProgramView)>),
    Variable(VariableView),
    Variables(Vec<Option<VariableView>>),
    Version(u32),
    Versions(Vec<Result<u32, SessionError>>),
    History(Vec<VersionView>),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct SessionView {
    pub(super) id: String,
    pub(super) metadata: Metadata,
    pub(super) last_worker: Option<String>,
    pub(super) programs: usize,
    pub(super) variables: usize,
    pub(super) bytes: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct StatsView {
    pub(super) created: u64,
    pub(super) deleted: u64,
    pub(super) live: u64,
    pub(super) variables: u64,
    pub(super) programs: u64,
    pub(super) bytes: u64,
}

/// A program; in listings without its data.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ProgramView {
    pub(super) data: Vec<u8>,
    pub(super) content_type: String,
    pub(super) metadata: Metadata,
    pub(super) ttl: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct VariableView {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) ty: ValueType,
    pub(super) constraints: String,
    pub(super) value: Value,
    pub(super) version: u32,
    pub(super) metadata: Metadata,
    pub(super) source: Source,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct VersionView {
    pub(super) number: u32,
    pub(super) value: Value,
    pub(super) note: Note,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct UpdateView {
    pub(super) kind: UpdateKind,
    pub(super) variable: VariableView,
    pub(super) note: Note,
}

impl From<Session> for SessionView {
    fn from(session: Session) -> Self {
        Self {
            id: session.id.to_string(),
            metadata: (&session.metadata).into(),
            last_worker: session.last_worker.as_deref().map(str::to_owned),
            programs: session.program_count,
            variables: session.variable_count,
            bytes: session.bytes,
        }
    }
}

impl From<Program> for ProgramView {
    fn from(program: Program) -> Self {
        let Program { data, content_type, metadata, ttl, updated_at: _ } = program;
        Self { data: data.to_vec(), content_type, metadata, ttl }
    }
}

fn list_entry(info: ProgramInfo) -> (String, usize, ProgramView) {
    let ProgramInfo { name, size, content_type, metadata, ttl, updated_at: _ } = info;
    (name.to_string(), size, ProgramView { data: Vec::new(), content_type, metadata, ttl })
}

impl From<Variable> for VariableView {
    fn from(variable: Variable) -> Self {
        Self {
            id: variable.id.to_string(),
            name: variable.name.to_string(),
            ty: variable.ty.kind(),
            constraints: variable.ty.constraints_json().to_owned(),
            value: Value::of(&variable.value),
            version: variable.version,
            metadata: (&variable.metadata).into(),
            source: variable.source,
        }
    }
}

impl From<VariableVersion> for VersionView {
    fn from(version: VariableVersion) -> Self {
        Self { number: version.version, value: Value::of(&version.value), note: version.note }
    }
}

impl From<VariableUpdate> for UpdateView {
    fn from(update: VariableUpdate) -> Self {
        Self { kind: update.kind, variable: update.variable.into(), note: update.note }
    }
}

impl Write {
    fn update(&self) -> SetVariable {
        SetVariable {
            identifier: self.identifier.clone(),
            value: self.value.payload(),
            note: self.note.clone(),
            expected_version: self.expected,
        }
    }
}

impl Action {
    /// Replaces `#n` in a generated operation with the n-th id that the backend has issued.
    pub(super) fn resolve_ids(&mut self, ids: &[String]) {
        let id = |text: &mut String| {
            let Some(n) = text.strip_prefix('#').and_then(|n| n.parse::<usize>().ok()) else { return };
            *text = if ids.is_empty() { "var_none".to_owned() } else { ids[n % ids.len()].clone() };
        };
        match self {
            Self::Variable(identifier)
            | Self::DeleteVariable(identifier)
            | Self::History { identifier, .. }
            | Self::Rollback { identifier, .. }
            | Self::Set(Write { identifier, .. }) => id(identifier),
            Self::Variables(identifiers) | Self::Watch { identifiers, .. } => {
                identifiers.iter_mut().for_each(id);
            }
            Self::SetMany(writes, _) => writes.iter_mut().for_each(|write| id(&mut write.identifier)),
            Self::Register { .. }
            | Self::List(_)
            | Self::Create(_)
            | Self::Get
            | Self::Delete
            | Self::SetLastWorker(_)
            | Self::Sessions
            | Self::Stats
            | Self::PutProgram { .. }
            | Self::Program { .. }
            | Self::Programs { .. }
            | Self::DeleteProgram { .. } => {}
        }
    }
}

/// Removes the reasons from errors about values, because the model does not produce the same strings.
pub(super) fn without_problems(output: Result<Output, SessionError>) -> Result<Output, SessionError> {
    match output {
        Ok(Output::Versions(versions)) => Ok(Output::Versions(
            versions.into_iter().map(|version| version.map_err(without_problem)).collect(),
        )),
        output => output.map_err(without_problem),
    }
}

fn without_problem(error: SessionError) -> SessionError {
    match error {
        SessionError::InvalidValue { variable, problem: _ } => {
            SessionError::InvalidValue { variable, problem: String::new() }
        }
        SessionError::BatchRejected { errors } => SessionError::BatchRejected {
            errors: errors.into_iter().map(|(name, error)| (name, without_problem(error))).collect(),
        },
        error => error,
    }
}

impl Operation {
    fn owner(&self, is_global: bool) -> ProgramOwner {
        if is_global { ProgramOwner::Global } else { self.session.clone().into() }
    }

    /// Runs the operation on a backend. Adds a new watch to `watches`.
    pub(super) async fn run(
        &self,
        backend: &impl SessionBackend,
        watches: &mut Vec<VariableWatch>,
    ) -> Result<Output, SessionError> {
        let id = &self.session;
        Ok(match &self.action {
            Action::Create(metadata) => {
                let new = NewSession { metadata: metadata.clone(), ttl: None };
                let (session, created) = backend.create(id, new).await?;
                Output::Created(session.into(), created)
            }
            Action::Get => Output::Session(backend.get(id).await?.into()),
            Action::Delete => Output::Session(backend.delete(id).await?.into()),
            Action::SetLastWorker(worker) => {
                backend.set_last_worker(id, Arc::from(worker.as_str())).await?;
                Output::Done
            }
            Action::Sessions => {
                let page = backend.list(PageRequest::default()).await?;
                Output::Sessions(page.items.into_iter().map(Into::into).collect())
            }
            Action::Stats => {
                let stats = backend.stats().await?;
                Output::Stats(StatsView {
                    created: stats.created,
                    deleted: stats.deleted,
                    live: stats.live,
                    variables: stats.variables,
                    programs: stats.programs,
                    bytes: stats.bytes,
                })
            }
            Action::PutProgram { is_global, name, program } => {
                let program = Program {
                    metadata: program.metadata.clone(),
                    ttl: program.ttl,
                    ..Program::new(program.data.clone(), program.content_type.clone())
                };
                Output::Stored(backend.put_program(&self.owner(*is_global), name, program).await?)
            }
            Action::Program { is_global, name } => {
                Output::Program(backend.program(&self.owner(*is_global), name).await?.into())
            }
            Action::Programs { is_global } => {
                let programs = backend.programs(&self.owner(*is_global)).await?;
                Output::Programs(programs.into_iter().map(list_entry).collect())
            }
            Action::DeleteProgram { is_global, name } => {
                backend.delete_program(&self.owner(*is_global), name).await?;
                Output::Done
            }
            Action::Register { name, ty, constraints, value, note } => {
                let name = VariableName::try_new(name).expect("the names used here are valid");
                let ty = VariableType::with_constraints(*ty, constraints);
                let ty = ty.expect("the types used here are valid");
                let new = NewVariable { ty, value: value.payload(), note: note.clone() };
                Output::Variable(backend.register_variable(id, &name, new).await?.into())
            }
            Action::Variable(identifier) => Output::Variable(backend.variable(id, identifier).await?.into()),
            Action::Variables(identifiers) => {
                let identifiers: Vec<_> = identifiers.iter().map(String::as_str).collect();
                let found = backend.variables(id, &identifiers).await?;
                Output::Variables(found.into_iter().map(|variable| variable.map(Into::into)).collect())
            }
            Action::Set(write) => Output::Version(backend.set_variable(id, write.update()).await?),
            Action::SetMany(writes, batch) => {
                let updates = writes.iter().map(Write::update).collect();
                Output::Versions(backend.set_variables(id, updates, *batch).await?)
            }
            Action::List(pattern) => {
                let variables = backend.list_variables(id, pattern).await?;
                Output::Variables(variables.into_iter().map(|variable| Some(variable.into())).collect())
            }
            Action::DeleteVariable(identifier) => {
                Output::Variable(backend.delete_variable(id, identifier).await?.into())
            }
            Action::History { identifier, limit } => {
                let versions = backend.variable_history(id, identifier, *limit).await?;
                Output::History(versions.into_iter().map(Into::into).collect())
            }
            Action::Rollback { identifier, version, note } => {
                let rolled = backend.rollback_variable(id, identifier, *version, note.clone()).await?;
                Output::Variable(rolled.into())
            }
            Action::Watch { identifiers, initial } => {
                watches.push(backend.watch_variables(id, identifiers, *initial).await?);
                Output::Done
            }
        })
    }
}
