//! Sample sessions, for tests that read the formats of earlier versions of a backend.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::time::Duration;

use serde::de::DeserializeOwned;
use snakepit_session::{
    Batch, PageRequest, Payload, ProgramName, ProgramOwner, SessionBackend, SessionId, SetVariable, ValueType,
};

async fn value<T: DeserializeOwned>(backend: &dyn SessionBackend, name: &str) -> T {
    let session = SessionId::try_new("full").unwrap();
    backend.variable(&session, name).await.unwrap().value.to_serde().unwrap()
}

/// Checks that a backend contains the sample sessions, and that they can be changed and deleted.
///
/// # Panics
/// If anything differs.
pub async fn check(backend: &dyn SessionBackend, last_worker: Option<&str>) {
    let full = SessionId::try_new("full").unwrap();
    let listed = backend.list(PageRequest::default()).await.unwrap().items;
    let ids: Vec<_> = listed.iter().map(|session| session.id.as_str()).collect();
    assert_eq!(ids, ["Grüße / empty", "full"]);
    let session = backend.get(&full).await.unwrap();
    assert_eq!((session.variable_count, session.program_count), (10, 1));
    assert_eq!(session.metadata.get("user"), Some("ada"));
    assert_eq!(session.ttl, Duration::from_secs(100 * 365 * 24 * 3600));
    assert_eq!(session.last_worker.as_deref(), last_worker);

    assert_eq!(value::<f64>(backend, "rate").await, 0.5);
    assert_eq!(value::<u32>(backend, "count").await, 25);
    assert_eq!(value::<String>(backend, "name").await, "ada");
    assert!(value::<bool>(backend, "flag").await);
    assert_eq!(value::<Vec<f64>>(backend, "vector").await, [1.0, 2.5, 3.0]);
    assert_eq!(
        value::<serde_json::Value>(backend, "map").await,
        serde_json::json!({"a": [1, null], "b": "c"})
    );
    let array = backend.variable(&full, "array").await.unwrap();
    assert_eq!((array.ty.kind(), array.value.binary().unwrap().len()), (ValueType::Tensor, 16));
    assert_eq!(array.metadata.get("why"), Some("first"));
    let history = backend.variable_history(&full, "count", 0).await.unwrap();
    let versions: Vec<_> = history.iter().map(|version| version.version).collect();
    assert_eq!(versions, (5..=25).rev().collect::<Vec<_>>());
    assert_eq!(history[3].note.changed_by.as_deref(), Some("writer-22"));
    let model = ProgramName::try_new("model").unwrap();
    for (owner, data) in
        [(ProgramOwner::Session(full.clone()), "weights"), (ProgramOwner::Global, "shared weights")]
    {
        let program = backend.program(&owner, &model).await.unwrap();
        assert_eq!((&program.data[..], &*program.content_type), (data.as_bytes(), "text/plain"));
    }
    let stats = backend.stats().await.unwrap();
    assert_eq!((stats.live, stats.variables, stats.programs), (2, 10, 2));

    // Writes are validated and reach watchers.
    let mut watch = backend.watch_variables(&full, &[], false).await.unwrap();
    let number = |n: u32| Payload::try_from_serde(&n).unwrap();
    let rejected =
        backend.set_variable(&full, SetVariable::new("name", Payload::try_from_serde(&"1").unwrap())).await;
    assert!(rejected.unwrap_err().to_string().contains("must match pattern"));
    let writes = vec![SetVariable::new("count", number(26)), SetVariable::new("rate", number(1))];
    backend.set_variables(&full, writes, Batch::Atomic).await.unwrap();
    for _ in 0..2 {
        watch.next().await.unwrap().unwrap();
    }
    assert_eq!(backend.rollback_variable(&full, "count", 10, Default::default()).await.unwrap().version, 27);
    assert_eq!(value::<u32>(backend, "count").await, 10);
    backend.set_last_worker(&full, "w".into()).await.unwrap();
    assert_eq!(backend.get(&full).await.unwrap().last_worker.as_deref(), Some("w"));
    backend.sweep().await.unwrap();
    for session in listed {
        backend.delete(&session.id).await.unwrap();
    }
    backend.delete_program(&ProgramOwner::Global, &model).await.unwrap();
    let stats = backend.stats().await.unwrap();
    assert_eq!((stats.live, stats.variables, stats.programs, stats.bytes), (0, 0, 0, 0));
}
