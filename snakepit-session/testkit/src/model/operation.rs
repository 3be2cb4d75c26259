//! Operations and their answers, in a form that backends and the model share.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use snakepit_session::{
    Batch, Created, NewSession, NewVariable, Note, PageRequest, Program, ProgramInfo, ProgramName,
    ProgramOwner, Session, SessionBackend, SessionError, SessionId, SetVariable, Source, UpdateKind,
    ValueType, Variable, VariableName, VariableType, VariableUpdate, VariableVersion, VariableWatch,
};

use super::value::Value;

/// [`Metadata`](snakepit_session::Metadata) as a plain map.
pub(super) type Metadata = BTreeMap<String, String>;

/// One operation. Those on global programs and on all sessions ignore the session.
#[derive(Debug, Clone)]
pub(super) struct Operation {
    pub(super) session: SessionId,
    pub(super) act: Act,
}

#[derive(Debug, Clone)]
pub(super) enum Act {
    Create(Metadata),
    Get,
    Delete,
    SetLastWorker(String),
    Sessions,
    Stats,
    PutProgram { global: bool, name: ProgramName, program: ProgramSeen },
    Program { global: bool, name: ProgramName },
    Programs { global: bool },
    DeleteProgram { global: bool, name: ProgramName },
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

/// The answer of a successful operation.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Answer {
    Done,
    Session(SessionSeen),
    Created(SessionSeen, Created),
    Sessions(Vec<SessionSeen>),
    Stats(StatsSeen),
    Stored(Created),
    Program(ProgramSeen),
    Programs(Vec<(String, usize, ProgramSeen)>),
    Variable(VariableSeen),
    Variables(Vec<Option<VariableSeen>>),
    Version(u32),
    Versions(Vec<Result<u32, SessionError>>),
    History(Vec<VersionSeen>),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct SessionSeen {
    pub(super) id: String,
    pub(super) metadata: Metadata,
    pub(super) last_worker: Option<String>,
    pub(super) programs: usize,
    pub(super) variables: usize,
    pub(super) bytes: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct StatsSeen {
    pub(super) created: u64,
    pub(super) deleted: u64,
    pub(super) live: u64,
    pub(super) variables: u64,
    pub(super) programs: u64,
    pub(super) bytes: u64,
}

/// A program; in listings without its data.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ProgramSeen {
    pub(super) data: Vec<u8>,
    pub(super) content_type: String,
    pub(super) metadata: Metadata,
    pub(super) ttl: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct VariableSeen {
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
pub(super) struct VersionSeen {
    pub(super) number: u32,
    pub(super) value: Value,
    pub(super) note: Note,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct UpdateSeen {
    pub(super) kind: UpdateKind,
    pub(super) variable: VariableSeen,
    pub(super) note: Note,
}

impl From<Session> for SessionSeen {
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

impl From<Program> for ProgramSeen {
    fn from(program: Program) -> Self {
        let Program { data, content_type, metadata, ttl, updated_at: _ } = program;
        Self { data: data.to_vec(), content_type, metadata, ttl }
    }
}

fn listed(info: ProgramInfo) -> (String, usize, ProgramSeen) {
    let ProgramInfo { name, size, content_type, metadata, ttl, updated_at: _ } = info;
    (name.to_string(), size, ProgramSeen { data: Vec::new(), content_type, metadata, ttl })
}

impl From<Variable> for VariableSeen {
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

impl From<VariableVersion> for VersionSeen {
    fn from(version: VariableVersion) -> Self {
        Self { number: version.version, value: Value::of(&version.value), note: version.note }
    }
}

impl From<VariableUpdate> for UpdateSeen {
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

impl Act {
    /// Replaces `#n` in a generated operation by the n-th id that the backend has issued.
    pub(super) fn name_ids(&mut self, ids: &[String]) {
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

/// Removes the reasons from errors about values, because the model does not have the same words.
pub(super) fn without_texts(answer: Result<Answer, SessionError>) -> Result<Answer, SessionError> {
    match answer {
        Ok(Answer::Versions(versions)) => {
            Ok(Answer::Versions(versions.into_iter().map(|version| version.map_err(without_text)).collect()))
        }
        answer => answer.map_err(without_text),
    }
}

fn without_text(error: SessionError) -> SessionError {
    match error {
        SessionError::InvalidValue { variable, problem: _ } => {
            SessionError::InvalidValue { variable, problem: String::new() }
        }
        SessionError::BatchRejected { errors } => SessionError::BatchRejected {
            errors: errors.into_iter().map(|(name, error)| (name, without_text(error))).collect(),
        },
        error => error,
    }
}

impl Operation {
    fn owner(&self, global: bool) -> ProgramOwner {
        if global { ProgramOwner::Global } else { self.session.clone().into() }
    }

    /// Runs the operation on a backend. Adds a new watch to `watches`.
    pub(super) async fn run(
        &self,
        backend: &impl SessionBackend,
        watches: &mut Vec<VariableWatch>,
    ) -> Result<Answer, SessionError> {
        let id = &self.session;
        Ok(match &self.act {
            Act::Create(metadata) => {
                let new = NewSession { metadata: metadata.clone(), ttl: None };
                let (session, created) = backend.create(id, new).await?;
                Answer::Created(session.into(), created)
            }
            Act::Get => Answer::Session(backend.get(id).await?.into()),
            Act::Delete => Answer::Session(backend.delete(id).await?.into()),
            Act::SetLastWorker(worker) => {
                backend.set_last_worker(id, Arc::from(worker.as_str())).await?;
                Answer::Done
            }
            Act::Sessions => {
                let page = backend.list(PageRequest::default()).await?;
                Answer::Sessions(page.items.into_iter().map(Into::into).collect())
            }
            Act::Stats => {
                let stats = backend.stats().await?;
                Answer::Stats(StatsSeen {
                    created: stats.created,
                    deleted: stats.deleted,
                    live: stats.live,
                    variables: stats.variables,
                    programs: stats.programs,
                    bytes: stats.bytes,
                })
            }
            Act::PutProgram { global, name, program } => {
                let program = Program {
                    metadata: program.metadata.clone(),
                    ttl: program.ttl,
                    ..Program::new(program.data.clone(), program.content_type.clone())
                };
                Answer::Stored(backend.put_program(&self.owner(*global), name, program).await?)
            }
            Act::Program { global, name } => {
                Answer::Program(backend.program(&self.owner(*global), name).await?.into())
            }
            Act::Programs { global } => {
                let programs = backend.programs(&self.owner(*global)).await?;
                Answer::Programs(programs.into_iter().map(listed).collect())
            }
            Act::DeleteProgram { global, name } => {
                backend.delete_program(&self.owner(*global), name).await?;
                Answer::Done
            }
            Act::Register { name, ty, constraints, value, note } => {
                let name = VariableName::try_new(name).expect("the names used here are sound");
                let ty = VariableType::with_constraints(*ty, constraints);
                let ty = ty.expect("the types used here are sound");
                let new = NewVariable { ty, value: value.payload(), note: note.clone() };
                Answer::Variable(backend.register_variable(id, &name, new).await?.into())
            }
            Act::Variable(identifier) => Answer::Variable(backend.variable(id, identifier).await?.into()),
            Act::Variables(identifiers) => {
                let identifiers: Vec<_> = identifiers.iter().map(String::as_str).collect();
                let found = backend.variables(id, &identifiers).await?;
                Answer::Variables(found.into_iter().map(|variable| variable.map(Into::into)).collect())
            }
            Act::Set(write) => Answer::Version(backend.set_variable(id, write.update()).await?),
            Act::SetMany(writes, batch) => {
                let updates = writes.iter().map(Write::update).collect();
                Answer::Versions(backend.set_variables(id, updates, *batch).await?)
            }
            Act::List(pattern) => {
                let variables = backend.list_variables(id, pattern).await?;
                Answer::Variables(variables.into_iter().map(|variable| Some(variable.into())).collect())
            }
            Act::DeleteVariable(identifier) => {
                Answer::Variable(backend.delete_variable(id, identifier).await?.into())
            }
            Act::History { identifier, limit } => {
                let versions = backend.variable_history(id, identifier, *limit).await?;
                Answer::History(versions.into_iter().map(Into::into).collect())
            }
            Act::Rollback { identifier, version, note } => {
                let rolled = backend.rollback_variable(id, identifier, *version, note.clone()).await?;
                Answer::Variable(rolled.into())
            }
            Act::Watch { identifiers, initial } => {
                watches.push(backend.watch_variables(id, identifiers, *initial).await?);
                Answer::Done
            }
        })
    }
}
