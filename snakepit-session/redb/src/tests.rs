//! Tests of this backend beyond the contract. `tests/killed` contains the tests that kill a process.

use std::{
    collections::HashSet,
    io,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use redb::{StorageBackend, TableDefinition, backends::FileBackend};
use snakepit_session::{
    Created, NewSession, NewVariable, Note, PageRequest, Payload, Program, ProgramName, ProgramOwner,
    Session, SessionBackend, SessionEvent, SessionEventKind, SetVariable, ValueType, Variable, VariableName,
    VariableType, WatchEvent, error_chain,
};
use snakepit_session_testkit::{
    session_backend_contract, session_backend_linearizes, session_backend_matches_model,
};
use tempfile::TempDir;

use super::*;

mod disk;
mod failing;
mod files;
mod history;
mod matches_memory;
mod power;

fn id(text: &str) -> SessionId {
    SessionId::try_new(text).unwrap()
}

#[tokio::test]
async fn lookups_of_missing_rows_count_the_rows_once_per_commit() {
    let directory = directory();
    let backend = open(&directory).await;
    let session = id("s");
    backend.create(&session, NewSession::default()).await.unwrap();
    for n in 0..20 {
        register(&backend, "s", &format!("v{n}")).await.unwrap();
    }
    let scans = || backend.shared.row_counts.scans.load(Relaxed);
    let (owner, missing) = (ProgramOwner::Session(session.clone()), program_name("missing"));
    let before = scans();
    for round in 1..=3_usize {
        for _ in 0..5 {
            let found = backend.variables(&session, &["missing", "v1", "other"]).await.unwrap();
            assert_eq!(found.iter().map(Option::is_some).collect::<Vec<_>>(), [false, true, false]);
            assert!(backend.program(&owner, &missing).await.is_err());
        }
        assert_eq!(scans() - before, 2 * round, "one scan per table");
        set(&backend, "s", "v1", 7).await.unwrap();
    }
}

fn program_name(text: &str) -> ProgramName {
    ProgramName::try_new(text).unwrap()
}

fn variable_name(text: &str) -> VariableName {
    VariableName::try_new(text).unwrap()
}

fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

async fn try_open(path: impl AsRef<Path> + Send) -> Result<RedbBackend, SessionError> {
    RedbBackend::open(path, SessionLimits::default()).await
}

async fn open(directory: &TempDir) -> RedbBackend {
    try_open(directory.path().join("sessions")).await.unwrap()
}

/// Opens the file as a host would after the current host was killed.
async fn open_as_after_a_crash(directory: &TempDir) -> RedbBackend {
    let copy = directory.path().join("copy");
    std::fs::copy(directory.path().join("sessions"), &copy).unwrap();
    try_open(copy).await.unwrap()
}

/// Returns the error of opening a file, which must contain its name.
async fn open_error(path: &Path) -> String {
    let error = error_chain(&try_open(path).await.unwrap_err()).to_string();
    assert!(error.contains(path.to_str().unwrap()), "{error}");
    error
}

fn with_ttl(seconds: u64) -> NewSession {
    NewSession { ttl: Some(Duration::from_secs(seconds)), ..NewSession::default() }
}

async fn register(backend: &RedbBackend, session: &str, name: &str) -> Result<Variable, SessionError> {
    let (ty, value) = (VariableType::new(ValueType::Integer)?, Payload::try_from_serde(&0).unwrap());
    let new = NewVariable { ty, value, note: Note::default() };
    backend.register_variable(&id(session), &variable_name(name), new).await
}

async fn set(backend: &RedbBackend, session: &str, name: &str, value: u32) -> Result<u32, SessionError> {
    let value = Payload::try_from_serde(&value).unwrap();
    backend.set_variable(&id(session), SetVariable::new(name, value)).await
}

#[tokio::test(start_paused = true)]
async fn redb_keeps_the_contract() {
    let files = std::cell::RefCell::new(Vec::new());
    let make = async || {
        let directory = directory();
        let backend = open(&directory).await;
        files.borrow_mut().push(directory);
        backend
    };
    session_backend_contract(make, tokio::time::advance).await;
}

#[test]
fn random_operations_match_the_model() {
    session_backend_matches_model(matches_memory::on_simulated_disk, 60);
}

#[test]
fn concurrent_operations_are_linearizable() {
    session_backend_linearizes(matches_memory::on_simulated_disk, 60);
}

/// Returns the complete state of a backend, without remaining lifetimes.
async fn complete_state(backend: &RedbBackend) -> impl PartialEq + std::fmt::Debug + use<> {
    let mut sessions = Vec::new();
    for session in backend.list(PageRequest::default()).await.unwrap().items {
        let owner = ProgramOwner::Session(session.id.clone());
        let variables = backend.list_variables(&session.id, "").await.unwrap();
        let mut histories = Vec::new();
        for variable in &variables {
            histories.push(backend.variable_history(&session.id, variable.id.as_str(), 0).await.unwrap());
        }
        let programs = programs_of(backend, &owner).await;
        sessions.push((Session { expires_in: Duration::ZERO, ..session }, variables, histories, programs));
    }
    let stats = backend.stats().await.unwrap();
    let totals = (stats.live, stats.variables, stats.programs, stats.bytes);
    (sessions, programs_of(backend, &ProgramOwner::Global).await, totals)
}

async fn programs_of(backend: &RedbBackend, owner: &ProgramOwner) -> Vec<(ProgramName, Program)> {
    let mut programs = Vec::new();
    for info in backend.programs(owner).await.unwrap() {
        let program = backend.program(owner, &info.name).await.unwrap();
        programs.push((info.name, program));
    }
    programs
}

#[tokio::test]
async fn a_reopened_file_contains_everything() {
    let directory = directory();
    let backend = open(&directory).await;
    let metadata = [("user".to_owned(), "ada".to_owned())].into();
    backend.create(&id("one"), NewSession { metadata, ..with_ttl(500) }).await.unwrap();
    backend.create(&id("two"), NewSession::default()).await.unwrap();
    register(&backend, "one", "x").await.unwrap();
    register(&backend, "one", "y").await.unwrap();
    for value in 1..30 {
        set(&backend, "one", "x", value).await.unwrap();
    }
    let large = Program::new(vec![7; 3 * LARGE_READ_BYTES], "application/octet-stream");
    for owner in [ProgramOwner::Global, id("two").into()] {
        backend.put_program(&owner, &program_name("p"), large.clone()).await.unwrap();
        backend.put_program(&owner, &program_name("empty"), Program::new("", "text/plain")).await.unwrap();
    }
    backend.set_last_worker(&id("one"), "w-7".into()).await.unwrap();
    let before = complete_state(&backend).await;
    drop(backend);
    let backend = open(&directory).await;
    assert_eq!(complete_state(&backend).await, before);
    assert_eq!(backend.get(&id("one")).await.unwrap().last_worker.as_deref(), Some("w-7"));

    let crashed = open_as_after_a_crash(&directory).await;
    assert_eq!(
        crashed.get(&id("one")).await.unwrap().last_worker,
        None,
        "the last worker is lost with the host"
    );
    crashed.set_last_worker(&id("one"), "w-7".into()).await.unwrap();
    assert_eq!(complete_state(&crashed).await, before);
    assert_eq!(set(&crashed, "one", "x", 30).await.unwrap(), 30, "versions continue");
    for session in ["one", "two"] {
        crashed.delete(&id(session)).await.unwrap();
    }
    for program in ["p", "empty"] {
        crashed.delete_program(&ProgramOwner::Global, &program_name(program)).await.unwrap();
    }
    let stats = crashed.stats().await.unwrap();
    assert_eq!((stats.live, stats.variables, stats.programs, stats.bytes), (0, 0, 0, 0));
}

/// Returns the remaining lifetime of a session, rounded to seconds.
async fn remaining_seconds(backend: &RedbBackend, session: &str) -> u64 {
    let page = backend.list(PageRequest::default()).await.unwrap();
    let session = page.items.into_iter().find(|found| found.id == id(session)).unwrap();
    // Far less than a second of real time passes here.
    session.expires_in.as_secs_f64().round() as u64
}

#[tokio::test(start_paused = true)]
async fn ttls_continue_after_a_clean_shutdown_and_restart_after_a_crash() {
    let directory = directory();
    let backend = open(&directory).await;
    for session in ["idle", "used"] {
        backend.create(&id(session), with_ttl(100)).await.unwrap();
    }
    backend.create(&id("short"), with_ttl(10)).await.unwrap();
    let program = Program { ttl: Some(Duration::from_secs(10)), ..Program::new("x", "t") };
    backend.put_program(&ProgramOwner::Global, &program_name("p"), program).await.unwrap();
    tokio::time::advance(Duration::from_secs(60)).await;
    // This is only in memory.
    backend.get(&id("used")).await.unwrap();
    tokio::time::advance(Duration::from_secs(20)).await;

    let crashed = open_as_after_a_crash(&directory).await;
    assert_eq!(
        (remaining_seconds(&crashed, "idle").await, remaining_seconds(&crashed, "used").await),
        (100, 100)
    );
    crashed.get(&id("short")).await.unwrap();
    crashed.program(&ProgramOwner::Global, &program_name("p")).await.unwrap();
    drop(crashed);

    drop(backend);
    let backend = open(&directory).await;
    assert_eq!(
        (remaining_seconds(&backend, "idle").await, remaining_seconds(&backend, "used").await),
        (20, 80)
    );
    assert_eq!(
        backend.get(&id("short")).await.unwrap_err(),
        SessionError::NotFound { id: id("short") },
        "the session stays expired"
    );
    backend.program(&ProgramOwner::Global, &program_name("p")).await.unwrap_err();
    let mut events = backend.subscribe();
    assert_eq!(backend.sweep().await.unwrap(), 1);
    let SessionEvent { id: expired, kind, .. } = events.next().await.unwrap().unwrap();
    assert_eq!((expired, kind), (id("short"), SessionEventKind::Expired));

    // Stored expiries are valid for one start only.
    let crashed = open_as_after_a_crash(&directory).await;
    assert_eq!(remaining_seconds(&crashed, "idle").await, 100);
}

#[tokio::test(start_paused = true)]
async fn sweeps_take_many_transactions_for_many_sessions() {
    let directory = directory();
    let backend = Arc::new(open(&directory).await);
    let mut creators = tokio::task::JoinSet::new();
    for n in 0..SWEEP_ROWS + 10 {
        let backend = Arc::clone(&backend);
        creators.spawn(async move { backend.create(&id(&n.to_string()), with_ttl(10)).await.unwrap().1 });
    }
    assert!(creators.join_all().await.iter().all(|created| *created == Created::New));
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(backend.sweep().await.unwrap(), SWEEP_ROWS + 10);
    let stats = backend.stats().await.unwrap();
    assert_eq!((stats.live, stats.sweeps, stats.expired), (0, 1, SWEEP_ROWS as u64 + 10));
}

/// Inserts a row with plain redb.
fn insert_row<K: redb::Key + 'static, V: redb::Value + 'static>(
    path: &Path,
    table: TableDefinition<'_, K, V>,
    key: K::SelfType<'_>,
    value: V::SelfType<'_>,
) {
    let database = Database::create(path).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(table).unwrap().insert(key, value).unwrap();
    transaction.commit().unwrap();
}

#[tokio::test]
async fn foreign_files_and_other_schema_versions_are_rejected() {
    let directory = directory();
    let path = directory.path().join("sessions");
    drop(open(&directory).await);
    for version in [1, 3] {
        insert_row(&path, rows::SCHEMA, (), version);
        let error = open_error(&path).await;
        assert!(
            error.contains(&format!("is version {version}")) && error.contains("supports only version 2"),
            "{error}"
        );
    }

    let path = directory.path().join("other");
    insert_row(&path, TableDefinition::<u64, u64>::new("other"), 1, 1);
    assert!(open_error(&path).await.contains("not a session file"));
}

#[tokio::test]
async fn damaged_files_are_rejected_and_damaged_rows_affect_nothing_else() {
    let directory = directory();
    let path = directory.path().join("sessions");
    let backend = open(&directory).await;
    backend.create(&id("s"), NewSession::default()).await.unwrap();
    register(&backend, "s", "good").await.unwrap();
    register(&backend, "s", "bad").await.unwrap();
    drop(backend);
    insert_row(&path, rows::VARIABLES, ("s", "bad"), b"\x93garbage".as_slice());
    let backend = open(&directory).await;
    let (bad, good) = tokio::join!(set(&backend, "s", "bad", 1), set(&backend, "s", "good", 1));
    let bad = bad.unwrap_err().to_string();
    assert!(bad.contains("cannot read a record") && bad.contains(path.to_str().unwrap()), "{bad}");
    assert_eq!(good, Ok(1));
    backend.delete(&id("s")).await.unwrap();
    drop(backend);

    let mut bytes = std::fs::read(&path).unwrap();
    let (length, from) = (bytes.len(), 4096);
    bytes[from..length].fill(0xA5);
    std::fs::write(&path, bytes).unwrap();
    open_error(&path).await;
}

#[tokio::test]
async fn a_panic_rolls_back_only_its_group() {
    let directory = directory();
    let backend = open(&directory).await;
    backend.create(&id("s"), NewSession::default()).await.unwrap();
    register(&backend, "s", "x").await.unwrap();
    let mut watch = backend.watch_variables(&id("s"), &["x".to_owned()], false).await.unwrap();
    let panics = backend.write(0, |group| {
        group.delete(&id("s"))?;
        group.create(&id("t"), NewSession::default())?;
        panic!("a deliberate panic")
    });
    let error = panics.await.map(|(): ()| ()).unwrap_err();
    assert!(error.to_string().contains("panicked"), "{error}");
    backend.get(&id("t")).await.unwrap_err();
    assert_eq!(set(&backend, "s", "x", 1).await.unwrap(), 1);
    let WatchEvent::Update(update) = watch.next().await.unwrap().unwrap() else {
        panic!("an update was lost")
    };
    assert_eq!(update.variable.version, 1, "the watch continues");
    let stats = backend.stats().await.unwrap();
    assert_eq!((stats.live, stats.created, stats.deleted, stats.variables), (1, 1, 0, 1));
    assert_eq!(backend.delete(&id("s")).await.unwrap().variable_count, 1);
}

/// Flips bits of a file, which depend only on the seed.
fn flip_bits(path: &Path, bits: usize, seed: u64) {
    let mut bytes = std::fs::read(path).unwrap();
    let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    for _ in 0..bits {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let bit = random as usize % (bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn flipped_bits_never_lose_data_silently() {
    const VARIABLES: u32 = 200;
    let directory = directory();
    let backend = open(&directory).await;
    backend.create(&id("s"), with_ttl(100_000)).await.unwrap();
    for n in 0..VARIABLES {
        register(&backend, "s", &format!("x{n}")).await.unwrap();
        set(&backend, "s", &format!("x{n}"), n).await.unwrap();
    }
    drop(backend);
    let intact = std::fs::read(directory.path().join("sessions")).unwrap();
    let (mut opened, mut open_error) = (0, 0);
    for seed in 0..40 {
        let path = directory.path().join(format!("damaged-{seed}"));
        std::fs::write(&path, &intact).unwrap();
        flip_bits(&path, 20, seed);
        let Ok(backend) = try_open(&path).await else {
            open_error += 1;
            continue;
        };
        opened += 1;
        for n in 0..VARIABLES {
            let found = backend.variable(&id("s"), &format!("x{n}")).await;
            match found {
                Ok(variable) => assert_eq!(variable.value.to_serde::<u32>().unwrap(), n, "seed {seed}"),
                Err(error) => assert!(matches!(error, SessionError::Backend { .. }), "seed {seed}: {error}"),
            }
        }
    }
    assert!(open_error > 0, "of 40 files, {opened} were opened");
}

#[tokio::test]
async fn dropped_futures_apply_completely_or_not_at_all() {
    let directory = directory();
    let backend = open(&directory).await;
    backend.create(&id("s"), NewSession::default()).await.unwrap();
    let first = register(&backend, "s", "x");
    let mut first = std::pin::pin!(first);
    assert!(std::future::poll_fn(|cx| std::task::Poll::Ready(first.as_mut().poll(cx))).await.is_pending());
    // The dropped operation is in the queue, so it runs before the next one.
    assert_eq!(
        register(&backend, "s", "x").await.unwrap_err(),
        SessionError::VariableExists { session: id("s"), name: "x".to_owned() }
    );
}
