//! The host that is killed: its tasks write values that show how often they wrote.

use std::{collections::BTreeMap, io::Write, sync::Arc};

use bytes::Bytes;
use snakepit_session::{
    Batch, NewSession, NewVariable, Note, Payload, Program, ProgramOwner, SessionBackend, SessionError,
    SetVariable, ValueType, VariableType,
};
use snakepit_session_redb::RedbBackend;

use crate::{id, program_name, variable_name};

/// Precedes an acknowledgement, which is a name and a count at the end of a line.
pub(crate) const DID: &str = "did ";
/// The prefix of sessions for which every host counts from 0.
pub(crate) const COUNTS_ANEW: &str = "fleeting-";
/// The number of sessions with one task each.
pub(crate) const ALONE: u32 = 4;
/// The number of tasks that write batches to the same session.
pub(crate) const TOGETHER: u32 = 3;
/// The variables of a batch.
pub(crate) const BATCH: [&str; 3] = ["a", "b", "c"];
/// The number of sessions that are created and deleted repeatedly.
pub(crate) const FLEETING: u32 = 2;

fn did(what: &str, count: u32) {
    // Write the line at once, so that no partial line is printed.
    let mut out = std::io::stdout().lock();
    out.write_all(format!("{DID}{what} {count}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

/// A value that contains its version.
fn value(version: u32) -> Payload {
    Payload::try_from_serde(&version).unwrap()
}

/// Data that depends on the count, in content and size.
pub(crate) fn data(count: u32) -> Bytes {
    count.to_be_bytes().repeat(1 + count as usize * 37 % 9000).into()
}

async fn make(backend: &RedbBackend, session: &str, names: &[&str]) {
    make_at(backend, session, names, 0).await;
}

async fn make_at(backend: &RedbBackend, session: &str, names: &[&str], count: u32) {
    let metadata = BTreeMap::from([("count".to_owned(), count.to_string())]);
    backend.create(&id(session), NewSession { metadata, ttl: None }).await.unwrap();
    for name in names {
        let ty = VariableType::new(ValueType::Integer).unwrap();
        let new = NewVariable { ty, value: value(0), note: Note::default() };
        match backend.register_variable(&id(session), &variable_name(name), new).await {
            Ok(_) | Err(SessionError::VariableExists { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

pub(crate) async fn write_for_ever(backend: RedbBackend) {
    let backend = Arc::new(backend);
    let mut tasks = tokio::task::JoinSet::new();
    make(&backend, "together", &BATCH).await;
    make(&backend, "programs", &[]).await;
    for task in 0..ALONE {
        tasks.spawn(set_alone(Arc::clone(&backend), format!("alone-{task}")));
    }
    for _ in 0..TOGETHER {
        tasks.spawn(set_batches(Arc::clone(&backend)));
    }
    for task in 0..FLEETING {
        tasks.spawn(come_and_go(Arc::clone(&backend), format!("{COUNTS_ANEW}{task}")));
    }
    tasks.spawn(put_programs(Arc::clone(&backend), id("programs").into(), "program"));
    tasks.spawn(put_programs(Arc::clone(&backend), ProgramOwner::Global, "global"));
    tasks.spawn(register_and_delete(Arc::clone(&backend)));
    tasks.join_all().await;
}

async fn set_alone(backend: Arc<RedbBackend>, session: String) {
    make(&backend, &session, &["x"]).await;
    let mut version = backend.variable(&id(&session), "x").await.unwrap().version;
    loop {
        let update = SetVariable::new("x", value(version + 1)).if_version(version);
        version = backend.set_variable(&id(&session), update).await.unwrap();
        did(&session, version);
    }
}

async fn set_batches(backend: Arc<RedbBackend>) {
    loop {
        let version = backend.variable(&id("together"), "a").await.unwrap().version;
        let update = |name| SetVariable::new(name, value(version + 1)).if_version(version);
        let updates = BATCH.into_iter().map(update).collect();
        match backend.set_variables(&id("together"), updates, Batch::Atomic).await {
            Ok(_) => did("together", version + 1),
            Err(SessionError::BatchRejected { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

async fn put_programs(backend: Arc<RedbBackend>, owner: ProgramOwner, kind: &'static str) {
    let mut count = match backend.program(&owner, &program_name("p")).await {
        Ok(program) => program.metadata["count"].parse().unwrap(),
        Err(_) => 0,
    };
    loop {
        count += 1;
        let metadata = BTreeMap::from([("count".to_owned(), count.to_string())]);
        let program = Program { metadata, ..Program::new(data(count), "application/octet-stream") };
        backend.put_program(&owner, &program_name("p"), program).await.unwrap();
        did(kind, count);
    }
}

/// Counts up: odd while the session exists, and even otherwise. The session contains the previous count.
async fn come_and_go(backend: Arc<RedbBackend>, session: String) {
    match backend.delete(&id(&session)).await {
        Ok(_) | Err(SessionError::NotFound { .. }) => {}
        Err(error) => panic!("{error}"),
    }
    for count in (0..).step_by(2) {
        make_at(&backend, &session, &["x", "y"], count).await;
        did(&session, count + 1);
        backend.delete(&id(&session)).await.unwrap();
        did(&session, count + 2);
    }
}

/// Changes the size of a session continuously; its counters must stay correct.
async fn register_and_delete(backend: Arc<RedbBackend>) {
    for count in 1.. {
        make(&backend, "changing", &["x"]).await;
        backend.delete_variable(&id("changing"), "x").await.unwrap();
        did("changing", count);
    }
}
