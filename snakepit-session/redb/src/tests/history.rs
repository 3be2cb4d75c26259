//! The cost of a long history for operations that do not read it.

use redb::{ReadableDatabase, ReadableTableMetadata};
use snakepit_session::{
    Batch, NewSession, NewVariable, Note, Payload, SessionBackend, SessionLimits, SetVariable, ValueType,
    VariableType,
};

use super::{directory, disk::Disk, id, insert_row, open, rows, variable_name};
use crate::RedbBackend;

const SMALL: usize = 10;
/// The size of a value, such that twenty fit into a history.
const LARGE: usize = 700_000;

fn text(size: usize) -> Payload {
    Payload::try_from_serde(&"x".repeat(size)).unwrap()
}

async fn register(backend: &RedbBackend, name: &str) {
    register_in(backend, "s", name).await;
}

async fn register_in(backend: &RedbBackend, session: &str, name: &str) {
    let ty = VariableType::new(ValueType::String).unwrap();
    let new = NewVariable { ty, value: text(SMALL), note: Note::default() };
    backend.register_variable(&id(session), &variable_name(name), new).await.unwrap();
}

async fn set(backend: &RedbBackend, name: &str, size: usize) {
    backend.set_variable(&id("s"), SetVariable::new(name, text(size))).await.unwrap();
}

/// Creates a variable with a full history and a small current value.
async fn with_large_history(disk: &Disk) -> RedbBackend {
    let backend = disk.open(SessionLimits::default()).await.unwrap();
    backend.create(&id("s"), NewSession::default()).await.unwrap();
    register(&backend, "x").await;
    for _ in 0..20 {
        set(&backend, "x", LARGE).await;
    }
    set(&backend, "x", SMALL).await;
    backend
}

#[tokio::test]
async fn a_large_history_does_not_increase_the_cost_of_a_write() {
    let disk = Disk::default();
    let backend = with_large_history(&disk).await;
    register(&backend, "y").await;
    let cost = async |name| {
        let before = disk.written();
        set(&backend, name, SMALL).await;
        disk.written() - before
    };
    for _ in 0..20 {
        let (large, small) = (cost("x").await, cost("y").await);
        assert!(large < 2 * small, "{large} bytes were written, and {small} without a large history");
    }
    let history = backend.variable_history(&id("s"), "x", 0).await.unwrap();
    assert!(
        history.iter().all(|version| version.value.size() < LARGE),
        "the history has evicted the large versions"
    );
}

#[tokio::test]
async fn only_requests_for_older_versions_read_them() {
    let directory = directory();
    let backend = open(&directory).await;
    backend.create(&id("s"), NewSession::default()).await.unwrap();
    register(&backend, "x").await;
    for size in 1..4 {
        set(&backend, "x", size).await;
    }
    drop(backend);
    insert_row(&directory.path().join("sessions"), rows::VERSIONS, ("s", "x", 1), b"\x93garbage".as_slice());
    let backend = open(&directory).await;
    assert_eq!(backend.variable(&id("s"), "x").await.unwrap().version, 3);
    assert_eq!(backend.list_variables(&id("s"), "").await.unwrap().len(), 1);
    backend.watch_variables(&id("s"), &[], true).await.unwrap();
    let history = async |limit| backend.variable_history(&id("s"), "x", limit).await;
    assert_eq!(history(2).await.unwrap().len(), 2);
    assert!(history(3).await.unwrap_err().to_string().contains("cannot read a record"));
    let rollback = async |to| backend.rollback_variable(&id("s"), "x", to, Note::default()).await;
    assert!(rollback(1).await.unwrap_err().to_string().contains("cannot read a record"));
    assert_eq!(rollback(2).await.unwrap().value, text(2));
    set(&backend, "x", SMALL).await;
    backend.delete_variable(&id("s"), "x").await.unwrap();
    assert_eq!(older_versions(&backend), 0);
}

/// The number of older versions in the file.
pub(super) fn older_versions(backend: &RedbBackend) -> u64 {
    let database = backend.shared.database.try_read().unwrap();
    let view = database.as_ref().unwrap().begin_read().unwrap();
    view.open_table(rows::VERSIONS).unwrap().len().unwrap()
}

#[tokio::test(start_paused = true)]
async fn older_versions_are_deleted_with_their_variable() {
    let limits = SessionLimits::default().max_history(3);
    let backend = Disk::default().open(limits).await.unwrap();
    backend.create(&id("s"), NewSession::default()).await.unwrap();
    backend.create(&id("s1"), NewSession::default()).await.unwrap();
    for (session, name) in [("s", "x"), ("s", "x1"), ("s1", "x")] {
        register_in(&backend, session, name).await;
        let updates = (0..2).map(|_| SetVariable::new(name, text(SMALL))).collect();
        backend.set_variables(&id(session), updates, Batch::Each).await.unwrap();
    }
    assert_eq!(older_versions(&backend), 6);
    let updates = (0..10).map(|_| SetVariable::new("x", text(SMALL))).collect();
    backend.set_variables(&id("s"), updates, Batch::Each).await.unwrap();
    assert_eq!(older_versions(&backend), 7, "the limit applies to each variable");
    backend.delete_variable(&id("s"), "x").await.unwrap();
    assert_eq!(older_versions(&backend), 4);
    register(&backend, "x").await;
    set(&backend, "x", SMALL).await;
    assert_eq!(older_versions(&backend), 5);
    backend.delete(&id("s")).await.unwrap();
    assert_eq!(older_versions(&backend), 2, "only those of the other session remain");
    tokio::time::advance(SessionLimits::default().default_ttl).await;
    assert_eq!(backend.sweep().await.unwrap(), 1);
    assert_eq!(older_versions(&backend), 0);
}
