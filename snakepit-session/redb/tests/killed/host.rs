//! The host process that the test kills. Its tasks write numbered values, so that the test can find the latest write.

use std::{collections::BTreeMap, io::Write, sync::Arc};

use bytes::Bytes;
use snakepit_session::{
    Batch, NewSession, NewVariable, Note, Payload, Program, ProgramOwner, SessionBackend, SessionError,
    SetVariable, ValueType, VariableType,
};
use snakepit_session_redb::RedbBackend;

use crate::{id, program_name, variable_name};

/// The prefix of an acknowledgement. A name and a count follow, up to the end of the line.
pub(crate) const ACKNOWLEDGED: &str = "acknowledged ";
/// The prefix of sessions that a host creates and deletes repeatedly. Their counts restart at 0 in each host.
pub(crate) const SHORT_LIVED_PREFIX: &str = "short-lived-";
/// The number of tasks that each write to their own session.
pub(crate) const SEPARATE_TASKS: u32 = 4;
/// The number of tasks that write batches to the same session.
pub(crate) const BATCH_TASKS: u32 = 3;
/// The variables of a batch.
pub(crate) const BATCH: [&str; 3] = ["a", "b", "c"];
/// The number of sessions that are created and deleted repeatedly.
pub(crate) const SHORT_LIVED_SESSIONS: u32 = 2;

fn acknowledge(name: &str, count: u32) {
    // Write the line in one call, so that no partial line is printed.
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(format!("{ACKNOWLEDGED}{name} {count}\n").as_bytes()).unwrap();
    stdout.flush().unwrap();
}

/// A value that contains its version.
fn value(version: u32) -> Payload {
    Payload::try_from_serde(&version).unwrap()
}

/// Data that depends on the count, in content and size.
pub(crate) fn data(count: u32) -> Bytes {
    count.to_be_bytes().repeat(1 + count as usize * 37 % 9000).into()
}

async fn create(backend: &RedbBackend, session: &str, names: &[&str]) {
    create_with_count(backend, session, names, 0).await;
}

async fn create_with_count(backend: &RedbBackend, session: &str, names: &[&str], count: u32) {
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

pub(crate) async fn write_forever(backend: RedbBackend) {
    let backend = Arc::new(backend);
    let mut tasks = tokio::task::JoinSet::new();
    create(&backend, "together", &BATCH).await;
    create(&backend, "programs", &[]).await;
    for task in 0..SEPARATE_TASKS {
        tasks.spawn(set_alone(Arc::clone(&backend), format!("alone-{task}")));
    }
    for _ in 0..BATCH_TASKS {
        tasks.spawn(set_batches(Arc::clone(&backend)));
    }
    for task in 0..SHORT_LIVED_SESSIONS {
        tasks.spawn(create_and_delete(Arc::clone(&backend), format!("{SHORT_LIVED_PREFIX}{task}")));
    }
    tasks.spawn(put_programs(Arc::clone(&backend), id("programs").into(), "program"));
    tasks.spawn(put_programs(Arc::clone(&backend), ProgramOwner::Global, "global"));
    tasks.spawn(register_and_delete(Arc::clone(&backend)));
    tasks.join_all().await;
}

async fn set_alone(backend: Arc<RedbBackend>, session: String) {
    create(&backend, &session, &["x"]).await;
    let mut version = backend.variable(&id(&session), "x").await.unwrap().version;
    loop {
        let update = SetVariable::new("x", value(version + 1)).if_version(version);
        version = backend.set_variable(&id(&session), update).await.unwrap();
        acknowledge(&session, version);
    }
}

async fn set_batches(backend: Arc<RedbBackend>) {
    loop {
        let version = backend.variable(&id("together"), "a").await.unwrap().version;
        let update = |name| SetVariable::new(name, value(version + 1)).if_version(version);
        let updates = BATCH.into_iter().map(update).collect();
        match backend.set_variables(&id("together"), updates, Batch::Atomic).await {
            Ok(_) => acknowledge("together", version + 1),
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
        acknowledge(kind, count);
    }
}

/// Creates and deletes a session in a loop. Acknowledges an odd count after each creation, and an even count after each deletion. The
/// metadata of the session contains the even count before its creation.
async fn create_and_delete(backend: Arc<RedbBackend>, session: String) {
    match backend.delete(&id(&session)).await {
        Ok(_) | Err(SessionError::NotFound { .. }) => {}
        Err(error) => panic!("{error}"),
    }
    for count in (0..).step_by(2) {
        create_with_count(&backend, &session, &["x", "y"], count).await;
        acknowledge(&session, count + 1);
        backend.delete(&id(&session)).await.unwrap();
        acknowledge(&session, count + 2);
    }
}

/// Changes the size of a session continuously. Its counters must stay correct.
async fn register_and_delete(backend: Arc<RedbBackend>) {
    for count in 1.. {
        create(&backend, "changing", &["x"]).await;
        backend.delete_variable(&id("changing"), "x").await.unwrap();
        acknowledge("changing", count);
    }
}
