//! Compares this backend with the memory backend under random operations, with restarts in between.

use std::{fmt::Debug, time::Duration};

use proptest::prelude::*;
use snakepit_session::{
    Batch, MemoryBackend, NewSession, NewVariable, Note, PageRequest, Payload, Program, ProgramOwner,
    SessionBackend, SessionError, SessionLimits, SetVariable, ValueType, Variable, VariableType,
};

use super::{disk::Disk, history::older_versions, id, program_name, variable_name};
use crate::RedbBackend;

/// A random operation. Names come from a small set.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Create { session: usize, ttl: u64, metadata: usize },
    Get { session: usize },
    Delete { session: usize },
    List { size: usize },
    LastWorker { session: usize },
    Register { session: usize, name: usize, size: usize },
    Set { session: usize, writes: Vec<Write>, batch: Batch },
    Read { session: usize, names: Vec<usize> },
    ListVariables { session: usize, pattern: &'static str },
    History { session: usize, name: usize, limit: usize },
    Rollback { session: usize, name: usize, version: u32 },
    DeleteVariable { session: usize, name: usize },
    PutProgram { owner: usize, name: usize, size: usize },
    Program { owner: usize, name: usize },
    Programs { owner: usize },
    DeleteProgram { owner: usize, name: usize },
    Advance { seconds: u64 },
    Sweep,
    Reopen,
}

#[derive(Debug, Clone)]
pub(super) struct Write {
    name: usize,
    size: usize,
    expected: Option<u32>,
}

fn limits() -> SessionLimits {
    SessionLimits::default()
        .default_ttl(Duration::from_secs(20))
        .max_sessions(2)
        .max_session_bytes(400)
        .max_total_bytes(600)
        .max_metadata_bytes(50)
        .max_program_bytes(150)
        .max_programs(2)
        .max_variables(2)
        .max_value_bytes(90)
        .max_history(3)
        .max_history_bytes(150)
}

/// Generates operations whose variable values and programs have up to about `max_bytes`.
pub(super) fn step(max_bytes: usize) -> impl Strategy<Value = Step> {
    let (session, owner, name) = (0..3_usize, 0..4_usize, 0..3_usize);
    let write = (name.clone(), 1..max_bytes, prop::option::weighted(0.2, 0..4_u32))
        .prop_map(|(name, size, expected)| Write { name, size, expected });
    let batch = prop_oneof![Just(Batch::Each), Just(Batch::Atomic)];
    prop_oneof![
        4 => (session.clone(), 5..30_u64, 0..60_usize)
            .prop_map(|(session, ttl, metadata)| Step::Create { session, ttl, metadata }),
        1 => session.clone().prop_map(|session| Step::Get { session }),
        1 => session.clone().prop_map(|session| Step::Delete { session }),
        1 => (1..3_usize).prop_map(|size| Step::List { size }),
        1 => session.clone().prop_map(|session| Step::LastWorker { session }),
        4 => (session.clone(), name.clone(), 1..max_bytes)
            .prop_map(|(session, name, size)| Step::Register { session, name, size }),
        6 => (session.clone(), prop::collection::vec(write, 0..4), batch)
            .prop_map(|(session, writes, batch)| Step::Set { session, writes, batch }),
        2 => (session.clone(), prop::collection::vec(name.clone(), 0..4))
            .prop_map(|(session, names)| Step::Read { session, names }),
        1 => (session.clone(), prop::sample::select(vec!["", "*", "n*", "*1", "m"]))
            .prop_map(|(session, pattern)| Step::ListVariables { session, pattern }),
        2 => (session.clone(), name.clone(), 0..3_usize)
            .prop_map(|(session, name, limit)| Step::History { session, name, limit }),
        2 => (session.clone(), name.clone(), 0..5_u32)
            .prop_map(|(session, name, version)| Step::Rollback { session, name, version }),
        1 => (session, name.clone()).prop_map(|(session, name)| Step::DeleteVariable { session, name }),
        4 => (owner.clone(), name.clone(), 0..max_bytes + 60)
            .prop_map(|(owner, name, size)| Step::PutProgram { owner, name, size }),
        2 => (owner.clone(), name.clone()).prop_map(|(owner, name)| Step::Program { owner, name }),
        1 => owner.clone().prop_map(|owner| Step::Programs { owner }),
        1 => (owner, name).prop_map(|(owner, name)| Step::DeleteProgram { owner, name }),
        3 => (1..9_u64).prop_map(|seconds| Step::Advance { seconds }),
        1 => Just(Step::Sweep),
        2 => Just(Step::Reopen),
    ]
}

fn value(size: usize) -> Payload {
    Payload::from_json(ValueType::String, format!("\"{}\"", "x".repeat(size)).into())
}

/// Describes the parts of a variable that do not depend on the backend.
fn describe_variable(variable: &Variable) -> String {
    let Variable { id: _, name, ty, value, version, metadata, source, updated_at: _ } = variable;
    format!("{name} {:?} {value:?} {version} {metadata:?} {source:?}", ty.kind())
}

fn outcome_of<T>(outcome: Result<T, SessionError>, show: impl FnOnce(T) -> String) -> String {
    outcome.map_or_else(|error| format!("{error:?}"), show)
}

fn describe<T: Debug>(outcome: Result<T, SessionError>) -> String {
    outcome_of(outcome, |output| format!("{output:?}"))
}

/// Runs a step and returns its visible outcome.
pub(super) async fn run_step(backend: &dyn SessionBackend, step: Step) -> String {
    let session = |session: usize| id(&format!("s{session}"));
    let owner = |owner| if owner == 3 { ProgramOwner::Global } else { session(owner).into() };
    let names = |name: usize| format!("n{name}");
    let describe_session = |found: snakepit_session::Session| {
        format!(
            "{} {:?} {:?} {:?} {} {} {} {:?}",
            found.id,
            found.metadata,
            found.ttl,
            found.expires_in.as_secs_f64().round(),
            found.program_count,
            found.variable_count,
            found.bytes,
            found.last_worker
        )
    };
    match step {
        Step::Create { session: at, ttl, metadata } => {
            let metadata = [("k".to_owned(), "v".repeat(metadata))].into();
            let new = NewSession { metadata, ttl: Some(Duration::from_secs(ttl)) };
            let created = backend.create(&session(at), new).await;
            outcome_of(created, |(session, created)| format!("{created:?} {}", describe_session(session)))
        }
        Step::Get { session: at } => outcome_of(backend.get(&session(at)).await, describe_session),
        Step::Delete { session: at } => outcome_of(backend.delete(&session(at)).await, describe_session),
        Step::List { size } => {
            let listed = backend.list(PageRequest { size, token: None }).await;
            outcome_of(listed, |page| {
                let items: Vec<_> = page.items.into_iter().map(describe_session).collect();
                format!("{items:?} {:?}", page.next)
            })
        }
        Step::LastWorker { session: at } => describe(backend.set_last_worker(&session(at), "w".into()).await),
        Step::Register { session: at, name, size } => {
            let ty = VariableType::new(ValueType::String).unwrap();
            let note = Note::from_metadata([("by".to_owned(), "x".repeat(size % 7))].into());
            let new = NewVariable { ty, value: value(size), note };
            let name = variable_name(&names(name));
            outcome_of(backend.register_variable(&session(at), &name, new).await, |registered| {
                describe_variable(&registered)
            })
        }
        Step::Set { session: at, writes, batch } => {
            let update = |Write { name, size, expected }| {
                let note = Note::from_metadata([("changed_by".to_owned(), "x".repeat(size % 5))].into());
                let update = SetVariable::new(names(name), value(size));
                SetVariable { note, expected_version: expected, ..update }
            };
            let updates = writes.into_iter().map(update).collect();
            describe(backend.set_variables(&session(at), updates, batch).await)
        }
        Step::Read { session: at, names: identifiers } => {
            let identifiers: Vec<_> = identifiers.into_iter().map(names).collect();
            let identifiers: Vec<_> = identifiers.iter().map(String::as_str).collect();
            outcome_of(backend.variables(&session(at), &identifiers).await, |found| {
                let found: Vec<_> = found.iter().map(|found| found.as_ref().map(describe_variable)).collect();
                format!("{found:?}")
            })
        }
        Step::ListVariables { session: at, pattern } => {
            let listed = backend.list_variables(&session(at), pattern).await;
            outcome_of(listed, |found| {
                format!("{:?}", found.iter().map(describe_variable).collect::<Vec<_>>())
            })
        }
        Step::History { session: at, name, limit } => {
            let history = backend.variable_history(&session(at), &names(name), limit).await;
            outcome_of(history, |found| {
                let versions = found.iter().map(|version| (version.version, &version.value, &version.note));
                format!("{:?}", versions.collect::<Vec<_>>())
            })
        }
        Step::Rollback { session: at, name, version } => {
            let back = backend.rollback_variable(&session(at), &names(name), version, Note::default()).await;
            outcome_of(back, |variable| describe_variable(&variable))
        }
        Step::DeleteVariable { session: at, name } => {
            outcome_of(backend.delete_variable(&session(at), &names(name)).await, |deleted| {
                describe_variable(&deleted)
            })
        }
        Step::PutProgram { owner: at, name, size } => {
            let program = Program::new("x".repeat(size), "text/plain");
            let ttl = Some(Duration::from_secs(10));
            let program = Program { ttl, ..program };
            describe(backend.put_program(&owner(at), &program_name(&names(name)), program).await)
        }
        Step::Program { owner: at, name } => {
            let found = backend.program(&owner(at), &program_name(&names(name))).await;
            outcome_of(found, |found| format!("{:?} {} {:?}", found.data, found.content_type, found.ttl))
        }
        Step::Programs { owner: at } => outcome_of(backend.programs(&owner(at)).await, |found| {
            let found = found.iter().map(|info| (&info.name, info.size, info.ttl));
            format!("{:?}", found.collect::<Vec<_>>())
        }),
        Step::DeleteProgram { owner: at, name } => {
            describe(backend.delete_program(&owner(at), &program_name(&names(name))).await)
        }
        Step::Sweep => {
            let swept = backend.sweep().await;
            assert!(swept.is_ok());
            let stats = backend.stats().await.unwrap();
            format!("{} {} {} {}", stats.live, stats.variables, stats.programs, stats.bytes)
        }
        Step::Advance { .. } | Step::Reopen => String::new(),
    }
}

/// Opens a backend on a simulated disk.
pub(super) async fn in_memory(limits: SessionLimits) -> RedbBackend {
    Disk::default().open(limits).await.unwrap()
}

async fn compare_with_memory(steps: Vec<Step>) {
    let disk = Disk::default();
    let memory = MemoryBackend::new(limits());
    let mut durable = disk.open(limits()).await.unwrap();
    for step in steps.into_iter().chain([Step::Sweep]) {
        match step {
            Step::Advance { seconds } => tokio::time::advance(Duration::from_secs(seconds)).await,
            Step::Reopen => {
                drop(durable);
                durable = disk.open(limits()).await.unwrap();
            }
            step => {
                let (expected, found) =
                    (run_step(&memory, step.clone()).await, run_step(&durable, step.clone()).await);
                assert_eq!(found, expected, "{step:?}");
            }
        }
    }
    let mut older = 0;
    for session in durable.list(PageRequest::default()).await.unwrap().items {
        for variable in durable.list_variables(&session.id, "").await.unwrap() {
            older +=
                durable.variable_history(&session.id, variable.name.as_str(), 0).await.unwrap().len() - 1;
        }
    }
    assert_eq!(older_versions(&durable), older as u64, "every older version belongs to a variable");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn the_file_matches_the_memory_backend(steps in prop::collection::vec(step(100), 1..120)) {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_time().start_paused(true).build().unwrap().block_on(compare_with_memory(steps));
    }
}
