//! Restarts, failed commits and keys of a key-value backend. The example `sqlite_backend` runs the suites of all
//! backends.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use serde_json::json;

use super::*;
use crate::{
    Created, NewSession, NewVariable, Note, Payload, Program, ProgramOwner, SessionBackend, SetVariable,
    ValueType, VariableName, VariableType, error_chain,
};

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// Rows in a map that several backends may open one after another. Commits fail on request.
#[derive(Debug, Clone, Default)]
struct SharedMap {
    rows: Arc<Mutex<Map>>,
    is_full: Arc<AtomicBool>,
    /// Commits that delete this key fail.
    undeletable: Arc<Mutex<Option<Vec<u8>>>>,
    /// The number of writes in the largest commit.
    largest_commit: Arc<AtomicUsize>,
    /// The time that each read takes, in seconds. Needs a paused clock.
    read_seconds: Arc<AtomicU64>,
}

/// Advances the paused clock.
fn advance(time: Duration) {
    let advancing = std::pin::pin!(tokio::time::advance(time));
    let _ = advancing.poll(&mut std::task::Context::from_waker(std::task::Waker::noop()));
}

impl KeyValueStore for SharedMap {
    fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        match self.read_seconds.load(Ordering::Relaxed) {
            0 => {}
            seconds => advance(Duration::from_secs(seconds)),
        }
        Ok(self.rows.lock().unwrap().get(key).cloned())
    }

    fn scan(&mut self, prefix: &[u8], visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), StoreError> {
        let rows = self.rows.lock().unwrap();
        let found = rows.range(prefix.to_vec()..).take_while(|(key, _)| key.starts_with(prefix));
        found.for_each(|(key, value)| visit(key, value));
        Ok(())
    }

    fn commit(&mut self, writes: StoreWrites) -> Result<(), StoreError> {
        if self.is_full.load(Ordering::Relaxed) {
            return Err("the disk is full".into());
        }
        if let Some(undeletable) = &*self.undeletable.lock().unwrap()
            && writes.iter().any(|(key, value)| value.is_none() && key == undeletable)
        {
            return Err("a bad sector".into());
        }
        self.largest_commit.fetch_max(writes.len(), Ordering::Relaxed);
        let mut rows = self.rows.lock().unwrap();
        for (key, value) in writes {
            match value {
                Some(value) => drop(rows.insert(key, value)),
                None => drop(rows.remove(&key)),
            }
        }
        Ok(())
    }
}

fn open(store: &SharedMap) -> KeyValueBackend<SharedMap> {
    KeyValueBackend::open(store.clone(), SessionLimits::default()).unwrap()
}

fn integer(value: i64) -> Payload {
    Payload::try_from_serde(&value).unwrap()
}

/// A session with a variable at version 2 and a program, and a global program.
async fn fill(backend: &impl SessionBackend) -> SessionId {
    let id = SessionId::try_new("s").unwrap();
    backend.create(&id, NewSession::default()).await.unwrap();
    let new = NewVariable {
        ty: VariableType::new(ValueType::Integer).unwrap(),
        value: integer(0),
        note: Note::default(),
    };
    backend.register_variable(&id, &VariableName::try_new("n").unwrap(), new).await.unwrap();
    for value in [1, 2] {
        backend.set_variable(&id, SetVariable::new("n", integer(value))).await.unwrap();
    }
    let program = Program {
        data: "weights".into(),
        content_type: String::new(),
        metadata: BTreeMap::new(),
        ttl: None,
        updated_at: std::time::SystemTime::UNIX_EPOCH,
    };
    let name = ProgramName::try_new("model").unwrap();
    for owner in [ProgramOwner::Session(id.clone()), ProgramOwner::Global] {
        backend.put_program(&owner, &name, program.clone()).await.unwrap();
    }
    id
}

#[tokio::test]
async fn sessions_survive_a_restart() {
    let store = SharedMap::default();
    let first = open(&store);
    let id = fill(&first).await;
    let stats = first.stats().await.unwrap();
    drop(first);

    let second = open(&store);
    let restored = second.stats().await.unwrap();
    assert_eq!(
        (restored.live, restored.variables, restored.programs, restored.bytes),
        (stats.live, stats.variables, stats.programs, stats.bytes)
    );
    assert_eq!((restored.variables, restored.programs, restored.created), (1, 2, 0));
    assert_eq!(second.create(&id, NewSession::default()).await.unwrap().1, Created::Existing);
    let history = second.variable_history(&id, "n", 0).await.unwrap();
    let values: Vec<_> = history.iter().map(|version| version.value.to_serde::<i64>().unwrap()).collect();
    assert_eq!(values, [2, 1, 0]);
    let name = ProgramName::try_new("model").unwrap();
    for owner in [ProgramOwner::Session(id.clone()), ProgramOwner::Global] {
        assert_eq!(second.program(&owner, &name).await.unwrap().data, "weights");
        second.delete_program(&owner, &name).await.unwrap();
    }
    second.delete(&id).await.unwrap();
    assert_eq!(second.stats().await.unwrap().bytes, 0);
    assert!(store.rows.lock().unwrap().is_empty(), "rows are left: {:?}", store.rows);
}

#[tokio::test]
async fn a_failed_commit_changes_nothing() {
    let store = SharedMap::default();
    let backend = open(&store);
    let id = fill(&backend).await;
    let mut watch = backend.watch_variables(&id, &[], false).await.unwrap();
    let rows = store.rows.lock().unwrap().clone();
    let stats = backend.stats().await.unwrap();

    store.is_full.store(true, Ordering::Relaxed);
    let failed = backend.set_variable(&id, SetVariable::new("n", integer(3))).await.unwrap_err();
    assert!(matches!(failed, SessionError::NotWritten { .. }), "{failed}");
    let chain = error_chain(&failed).to_string();
    assert!(chain.ends_with("cannot write to the store: the disk is full"), "{chain}");
    assert!(backend.delete(&id).await.is_err());
    assert!(backend.create(&SessionId::try_new("t").unwrap(), NewSession::default()).await.is_err());
    assert_eq!(*store.rows.lock().unwrap(), rows);
    assert_eq!(backend.stats().await.unwrap(), stats);

    store.is_full.store(false, Ordering::Relaxed);
    assert_eq!(backend.set_variable(&id, SetVariable::new("n", integer(4))).await, Ok(3));
    // The watcher receives only the change that was stored.
    let Some(Ok(crate::WatchEvent::Update(update))) = watch.next().await else { panic!("no update") };
    assert_eq!(update.variable.value.to_serde::<serde_json::Value>().unwrap(), json!(4));
}

#[tokio::test]
async fn the_names_of_owners_do_not_overlap() {
    let backend = open(&SharedMap::default());
    let ids = ["a", "a b", "ab"].map(|id| SessionId::try_new(id).unwrap());
    for id in &ids {
        backend.create(id, NewSession::default()).await.unwrap();
        let new = NewVariable {
            ty: VariableType::new(ValueType::Integer).unwrap(),
            value: integer(1),
            note: Note::default(),
        };
        backend.register_variable(id, &VariableName::try_new("b").unwrap(), new).await.unwrap();
    }
    backend.delete(&ids[0]).await.unwrap();
    for id in &ids[1..] {
        assert_eq!(backend.list_variables(id, "").await.unwrap().len(), 1);
    }
}

#[test]
fn a_store_with_other_rows_is_rejected() {
    let store = SharedMap::default();
    store.rows.lock().unwrap().insert(vec![1, b's', 0, 0], b"?".to_vec());
    let error = KeyValueBackend::open(store, SessionLimits::default()).unwrap_err().to_string();
    assert!(error.contains("cannot read a record"), "{error}");
}

fn with_ttl(seconds: u64) -> NewSession {
    NewSession { ttl: Some(Duration::from_secs(seconds)), ..NewSession::default() }
}

#[tokio::test(start_paused = true)]
async fn an_expired_session_that_cannot_be_deleted_does_not_block_others() {
    let store = SharedMap::default();
    let backend = open(&store);
    let [bad, good, later] = ["bad", "good", "later"].map(|id| SessionId::try_new(id).unwrap());
    backend.create(&bad, with_ttl(10)).await.unwrap();
    backend.create(&good, with_ttl(10)).await.unwrap();
    let key =
        store.rows.lock().unwrap().keys().find(|key| key.windows(3).any(|part| part == b"bad")).cloned();
    *store.undeletable.lock().unwrap() = key;
    tokio::time::advance(Duration::from_secs(11)).await;

    assert_eq!(backend.sweep().await.unwrap(), 1, "the other session is deleted");
    backend.create(&later, with_ttl(100)).await.unwrap();
    assert!(matches!(backend.get(&bad).await, Err(SessionError::NotFound { .. })));
    let listed = backend.list(crate::PageRequest::default()).await.unwrap();
    assert_eq!(listed.items.iter().map(|session| session.id.as_str()).collect::<Vec<_>>(), ["later"]);
    assert!(backend.create(&bad, with_ttl(10)).await.is_err(), "its old rows are still stored");
    assert_eq!(backend.stats().await.unwrap().live, 2);

    *store.undeletable.lock().unwrap() = None;
    assert_eq!(backend.sweep().await.unwrap(), 0, "the next attempt is later");
    tokio::time::advance(RETRY_PAUSE).await;
    assert_eq!(backend.sweep().await.unwrap(), 1);
    assert_eq!(backend.stats().await.unwrap().live, 1);
}

#[tokio::test(start_paused = true)]
async fn all_steps_of_an_operation_have_the_same_time() {
    let store = SharedMap::default();
    let backend = open(&store);
    for id in ["a", "b"] {
        backend.create(&SessionId::try_new(id).unwrap(), with_ttl(10)).await.unwrap();
    }
    store.read_seconds.store(20, Ordering::Relaxed);
    let listed = backend.list(crate::PageRequest::default()).await.unwrap();
    assert_eq!(listed.items.len(), 2, "both were live when the operation began");
}

#[tokio::test(start_paused = true)]
async fn expiry_times_survive_a_clean_end_but_not_a_crash() {
    let store = SharedMap::default();
    let first = open(&store);
    let id = SessionId::try_new("s").unwrap();
    first.create(&id, with_ttl(100)).await.unwrap();
    tokio::time::advance(Duration::from_secs(60)).await;
    let crashed = store.rows.lock().unwrap().clone();
    first.close().unwrap();
    drop(first);

    let remaining = async |backend: &KeyValueBackend<SharedMap>| {
        let listed = backend.list(crate::PageRequest::default()).await.unwrap();
        listed.items[0].expires_in.as_secs()
    };
    let second = open(&store);
    let left = remaining(&second).await;
    assert!((30..=40).contains(&left), "{left}");
    assert_eq!(*store.rows.lock().unwrap(), crashed, "the times are deleted at startup");
    drop(second);
    assert_eq!(*store.rows.lock().unwrap(), crashed, "a drop writes nothing");

    let left = remaining(&open(&store)).await;
    assert!((90..=100).contains(&left), "{left}");
}

#[tokio::test]
async fn expiry_times_are_stored_in_batches() {
    let store = SharedMap::default();
    let backend = open(&store);
    for index in 0..EXPIRIES_PER_COMMIT + 10 {
        let id = SessionId::try_new(format!("s{index}")).unwrap();
        backend.create(&id, NewSession::default()).await.unwrap();
    }
    let before = store.rows.lock().unwrap().len();
    backend.close().unwrap();
    assert_eq!(store.largest_commit.load(Ordering::Relaxed), EXPIRIES_PER_COMMIT);
    assert_eq!(store.rows.lock().unwrap().len() - before, EXPIRIES_PER_COMMIT + 10);
    store.is_full.store(true, Ordering::Relaxed);
    assert!(matches!(backend.close(), Err(SessionError::NotWritten { .. })));
}
