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
pub(super) enum Operation {
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
pub(super) fn operation(max_bytes: usize) -> impl Strategy<Value = Operation> {
    let (session, owner, name) = (0..3_usize, 0..4_usize, 0..3_usize);
    let write = (name.clone(), 1..max_bytes, prop::option::weighted(0.2, 0..4_u32))
        .prop_map(|(name, size, expected)| Write { name, size, expected });
    let batch = prop_oneof![Just(Batch::Each), Just(Batch::Atomic)];
    prop_oneof![
        4 => (session.clone(), 5..30_u64, 0..60_usize)
            .prop_map(|(session, ttl, metadata)| Operation::Create { session, ttl, metadata }),
        1 => session.clone().prop_map(|session| Operation::Get { session }),
        1 => session.clone().prop_map(|session| Operation::Delete { session }),
        1 => (1..3_usize).prop_map(|size| Operation::List { size }),
        1 => session.clone().prop_map(|session| Operation::LastWorker { session }),
        4 => (session.clone(), name.clone(), 1..max_bytes)
            .prop_map(|(session, name, size)| Operation::Register { session, name, size }),
        6 => (session.clone(), prop::collection::vec(write, 0..4), batch)
            .prop_map(|(session, writes, batch)| Operation::Set { session, writes, batch }),
        2 => (session.clone(), prop::collection::vec(name.clone(), 0..4))
            .prop_map(|(session, names)| Operation::Read { session, names }),
        1 => (session.clone(), prop::sample::select(vec!["", "*", "n*", "*1", "m"]))
            .prop_map(|(session, pattern)| Operation::ListVariables { session, pattern }),
        2 => (session.clone(), name.clone(), 0..3_usize)
            .prop_map(|(session, name, limit)| Operation::History { session, name, limit }),
        2 => (session.clone(), name.clone(), 0..5_u32)
            .prop_map(|(session, name, version)| Operation::Rollback { session, name, version }),
        1 => (session, name.clone()).prop_map(|(session, name)| Operation::DeleteVariable { session, name }),
        // Larger than values, so that some programs exceed their limit.
        4 => (owner.clone(), name.clone(), 0..max_bytes + 60)
            .prop_map(|(owner, name, size)| Operation::PutProgram { owner, name, size }),
        2 => (owner.clone(), name.clone()).prop_map(|(owner, name)| Operation::Program { owner, name }),
        1 => owner.clone().prop_map(|owner| Operation::Programs { owner }),
        1 => (owner, name).prop_map(|(owner, name)| Operation::DeleteProgram { owner, name }),
        3 => (1..9_u64).prop_map(|seconds| Operation::Advance { seconds }),
        1 => Just(Operation::Sweep),
        2 => Just(Operation::Reopen),
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

fn describe_with<T>(outcome: Result<T, SessionError>, show: impl FnOnce(T) -> String) -> String {
    outcome.map_or_else(|error| format!("{error:?}"), show)
}

fn describe<T: Debug>(outcome: Result<T, SessionError>) -> String {
    describe_with(outcome, |output| format!("{output:?}"))
}

/// Runs an operation and returns its visible outcome.
pub(super) async fn run_operation(backend: &dyn SessionBackend, operation: Operation) -> String {
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
    match operation {
        Operation::Create { session: index, ttl, metadata } => {
            let metadata = [("k".to_owned(), "v".repeat(metadata))].into();
            let new = NewSession { metadata, ttl: Some(Duration::from_secs(ttl)) };
            let created = backend.create(&session(index), new).await;
            describe_with(created, |(session, created)| format!("{created:?} {}", describe_session(session)))
        }
        Operation::Get { session: index } => {
            describe_with(backend.get(&session(index)).await, describe_session)
        }
        Operation::Delete { session: index } => {
            describe_with(backend.delete(&session(index)).await, describe_session)
        }
        Operation::List { size } => {
            let listed = backend.list(PageRequest { size, token: None }).await;
            describe_with(listed, |page| {
                let items: Vec<_> = page.items.into_iter().map(describe_session).collect();
                format!("{items:?} {:?}", page.next)
            })
        }
        Operation::LastWorker { session: index } => {
            describe(backend.set_last_worker(&session(index), "w".into()).await)
        }
        Operation::Register { session: index, name, size } => {
            let ty = VariableType::new(ValueType::String).unwrap();
            let note = Note::from_metadata([("by".to_owned(), "x".repeat(size % 7))].into());
            let new = NewVariable { ty, value: value(size), note };
            let name = variable_name(&names(name));
            describe_with(backend.register_variable(&session(index), &name, new).await, |registered| {
                describe_variable(&registered)
            })
        }
        Operation::Set { session: index, writes, batch } => {
            let update = |Write { name, size, expected }| {
                let note = Note::from_metadata([("changed_by".to_owned(), "x".repeat(size % 5))].into());
                let update = SetVariable::new(names(name), value(size));
                SetVariable { note, expected_version: expected, ..update }
            };
            let updates = writes.into_iter().map(update).collect();
            describe(backend.set_variables(&session(index), updates, batch).await)
        }
        Operation::Read { session: index, names: identifiers } => {
            let identifiers: Vec<_> = identifiers.into_iter().map(names).collect();
            let identifiers: Vec<_> = identifiers.iter().map(String::as_str).collect();
            describe_with(backend.variables(&session(index), &identifiers).await, |found| {
                let found: Vec<_> = found.iter().map(|found| found.as_ref().map(describe_variable)).collect();
                format!("{found:?}")
            })
        }
        Operation::ListVariables { session: index, pattern } => {
            let listed = backend.list_variables(&session(index), pattern).await;
            describe_with(listed, |found| {
                format!("{:?}", found.iter().map(describe_variable).collect::<Vec<_>>())
            })
        }
        Operation::History { session: index, name, limit } => {
            let history = backend.variable_history(&session(index), &names(name), limit).await;
            describe_with(history, |found| {
                let versions = found.iter().map(|version| (version.version, &version.value, &version.note));
                format!("{:?}", versions.collect::<Vec<_>>())
            })
        }
        Operation::Rollback { session: index, name, version } => {
            let back =
                backend.rollback_variable(&session(index), &names(name), version, Note::default()).await;
            describe_with(back, |variable| describe_variable(&variable))
        }
        Operation::DeleteVariable { session: index, name } => {
            describe_with(backend.delete_variable(&session(index), &names(name)).await, |deleted| {
                describe_variable(&deleted)
            })
        }
        Operation::PutProgram { owner: index, name, size } => {
            let program = Program::new("x".repeat(size), "text/plain");
            let ttl = Some(Duration::from_secs(10));
            let program = Program { ttl, ..program };
            describe(backend.put_program(&owner(index), &program_name(&names(name)), program).await)
        }
        Operation::Program { owner: index, name } => {
            let found = backend.program(&owner(index), &program_name(&names(name))).await;
            describe_with(found, |found| format!("{:?} {} {:?}", found.data, found.content_type, found.ttl))
        }
        Operation::Programs { owner: index } => {
            describe_with(backend.programs(&owner(index)).await, |found| {
                let found = found.iter().map(|info| (&info.name, info.size, info.ttl));
                format!("{:?}", found.collect::<Vec<_>>())
            })
        }
        Operation::DeleteProgram { owner: index, name } => {
            describe(backend.delete_program(&owner(index), &program_name(&names(name))).await)
        }
        Operation::Sweep => {
            let swept = backend.sweep().await;
            assert!(swept.is_ok());
            let stats = backend.stats().await.unwrap();
            format!("{} {} {} {}", stats.live, stats.variables, stats.programs, stats.bytes)
        }
        Operation::Advance { .. } | Operation::Reopen => String::new(),
    }
}

/// Opens a backend on a simulated disk.
pub(super) async fn on_simulated_disk(limits: SessionLimits) -> RedbBackend {
    Disk::default().open(limits).await.unwrap()
}

async fn compare_with_memory(operations: Vec<Operation>) {
    let disk = Disk::default();
    let memory = MemoryBackend::new(limits());
    let mut durable = disk.open(limits()).await.unwrap();
    for operation in operations.into_iter().chain([Operation::Sweep]) {
        match operation {
            Operation::Advance { seconds } => tokio::time::advance(Duration::from_secs(seconds)).await,
            Operation::Reopen => {
                drop(durable);
                durable = disk.open(limits()).await.unwrap();
            }
            operation => {
                let (expected, found) = (
                    run_operation(&memory, operation.clone()).await,
                    run_operation(&durable, operation.clone()).await,
                );
                assert_eq!(found, expected, "{operation:?}");
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
    fn the_file_matches_the_memory_backend(operations in prop::collection::vec(operation(100), 1..120)) {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_time().start_paused(true).build().unwrap().block_on(compare_with_memory(operations));
    }
}
