//! Tests of the memory backend beyond the contract.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::*;
use crate::{
    NewVariable, Note, Page, PageRequest, Payload, Program, ProgramName, SessionBackend, SetVariable,
    ValueType, VariableName, VariableType,
};

fn id(text: &str) -> SessionId {
    SessionId::try_new(text).unwrap()
}

fn name(text: &str) -> ProgramName {
    ProgramName::try_new(text).unwrap()
}

/// Stores a program `p`.
async fn put(backend: &MemoryBackend, session: &str, program: Program) -> Result<Created, SessionError> {
    backend.put_program(&id(session).into(), &name("p"), program).await
}

#[tokio::test(start_paused = true)]
async fn the_session_limit_is_exact_and_expired_sessions_do_not_count() {
    let backend = MemoryBackend::new(SessionLimits { max_sessions: 2, ..SessionLimits::default() });
    let short = NewSession { ttl: Some(Duration::from_secs(1)), ..NewSession::default() };
    backend.create(&id("a"), short).await.unwrap();
    backend.create(&id("b"), NewSession::default()).await.unwrap();
    backend.create(&id("b"), NewSession::default()).await.unwrap();
    let rejected = backend.create(&id("c"), NewSession::default()).await.unwrap_err();
    assert_eq!(rejected, SessionError::TooManySessions { limit: 2 });
    tokio::time::advance(Duration::from_secs(1)).await;
    backend.create(&id("c"), NewSession::default()).await.unwrap();
    backend.delete(&id("c")).await.unwrap();
    backend.create(&id("d"), NewSession::default()).await.unwrap();
    assert_eq!(backend.count.load(Relaxed), backend.sessions.len());
    assert_eq!(backend.index().due.len(), backend.sessions.len());
}

#[tokio::test(start_paused = true)]
async fn the_bytes_of_all_sessions_are_counted_exactly() {
    let backend = MemoryBackend::new(SessionLimits { max_total_bytes: 100, ..SessionLimits::default() });
    let total_bytes = || backend.bytes.load(Relaxed);
    // A program takes one byte for its name and one for its type; this metadata takes ten.
    let program = |bytes: usize| Program::new("x".repeat(bytes), "t");
    let new = |ttl: u64| NewSession {
        metadata: BTreeMap::from([("name".to_owned(), "123456".to_owned())]),
        ttl: Some(Duration::from_secs(ttl)),
    };
    backend.create(&id("short"), new(10)).await.unwrap();
    backend.create(&id("short"), new(10)).await.unwrap();
    backend.create(&id("long"), new(1000)).await.unwrap();
    assert_eq!(total_bytes(), 20, "a live session is not created again");
    put(&backend, "short", program(48)).await.unwrap();
    put(&backend, "long", program(28)).await.unwrap();
    assert_eq!(total_bytes(), 100);
    let full = SessionError::BackendFull { size: 101, limit: 100 };
    assert_eq!(put(&backend, "long", program(29)).await.unwrap_err(), full);
    let rejected = backend.create(&id("third"), new(10)).await.unwrap_err();
    assert_eq!(rejected, SessionError::BackendFull { size: 110, limit: 100 });
    assert_eq!(backend.count.load(Relaxed), 2, "a rejected session takes no space");
    put(&backend, "long", program(8)).await.unwrap();
    assert_eq!(total_bytes(), 80);
    tokio::time::advance(Duration::from_secs(10)).await;
    // The expired session's 60 bytes are free once they are needed.
    put(&backend, "long", program(88)).await.unwrap();
    assert_eq!(total_bytes(), 100);
    backend.delete_program(&id("long").into(), &name("p")).await.unwrap();
    assert_eq!(total_bytes(), 10);
    backend.create(&id("short"), new(10)).await.unwrap();
    tokio::time::advance(Duration::from_secs(10)).await;
    backend.create(&id("short"), new(10)).await.unwrap();
    assert_eq!(total_bytes(), 20, "the new session replaces the expired one with its id");
    backend.delete(&id("long")).await.unwrap();
    backend.delete(&id("short")).await.unwrap();
    assert_eq!((total_bytes(), backend.count.load(Relaxed)), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_sweep_visits_only_due_sessions() {
    let backend = MemoryBackend::new(SessionLimits::default());
    for n in 0..100 {
        backend.create(&id(&format!("long-{n}")), NewSession::default()).await.unwrap();
    }
    let short = NewSession { ttl: Some(Duration::from_secs(5)), ..NewSession::default() };
    backend.create(&id("used"), short.clone()).await.unwrap();
    backend.create(&id("idle"), short).await.unwrap();
    tokio::time::advance(Duration::from_secs(3)).await;
    backend.get(&id("used")).await.unwrap();
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(backend.sweep().await.unwrap(), 1, "only the idle session expires");
    assert_eq!(
        backend.index().due.first().unwrap().1,
        id("used"),
        "the renewed session has moved in the index"
    );
    assert_eq!(backend.index().due.len(), 101);
    tokio::time::advance(Duration::from_secs(3)).await;
    assert_eq!(backend.sweep().await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_longest_ttl_is_a_century() {
    let backend = MemoryBackend::new(SessionLimits::default());
    let forever = NewSession { ttl: Some(Duration::MAX), ..NewSession::default() };
    let (session, _) = backend.create(&id("s"), forever).await.unwrap();
    assert_eq!(session.ttl, Duration::from_secs(100 * 365 * 24 * 3600));
}

fn metadata(entries: usize, bytes: usize) -> BTreeMap<String, String> {
    (0..entries).map(|n| (format!("{n:04}"), "x".repeat(bytes - 4))).collect()
}

#[tokio::test]
async fn the_number_of_programs_of_a_session_is_bounded() {
    let backend = MemoryBackend::new(SessionLimits { max_programs: 2, ..SessionLimits::default() });
    backend.create(&id("s"), NewSession::default()).await.unwrap();
    for program in ["a", "b", "b"] {
        backend.put_program(&id("s").into(), &name(program), Program::new("x", "t")).await.unwrap();
    }
    let rejected =
        backend.put_program(&id("s").into(), &name("c"), Program::new("x", "t")).await.unwrap_err();
    assert_eq!(rejected, SessionError::TooManyPrograms { session: id("s"), limit: 2 });
    backend.delete_program(&id("s").into(), &name("a")).await.unwrap();
    backend.put_program(&id("s").into(), &name("c"), Program::new("x", "t")).await.unwrap();
}

#[tokio::test]
async fn the_bytes_of_a_session_are_counted_exactly() {
    let backend = MemoryBackend::new(SessionLimits { max_session_bytes: 100, ..SessionLimits::default() });
    let new = NewSession { metadata: metadata(1, 10), ttl: None };
    backend.create(&id("s"), new).await.unwrap();
    // The metadata takes 10 bytes, each program one for its name and one for its type.
    let program = |bytes: usize| Program::new("x".repeat(bytes), "t");
    backend.put_program(&id("s").into(), &name("a"), program(40)).await.unwrap();
    backend.put_program(&id("s").into(), &name("b"), program(46)).await.unwrap();
    let rejected = backend.put_program(&id("s").into(), &name("a"), program(41)).await.unwrap_err();
    assert_eq!(rejected, SessionError::SessionTooLarge { session: id("s"), size: 101, limit: 100 });
    let stored = backend.program(&id("s").into(), &name("a")).await.unwrap();
    assert_eq!(stored.data.len(), 40, "a rejected program replaces nothing");
    backend.put_program(&id("s").into(), &name("a"), program(10)).await.unwrap();
    backend.delete_program(&id("s").into(), &name("b")).await.unwrap();
    backend.put_program(&id("s").into(), &name("c"), program(76)).await.unwrap();
    assert_eq!(backend.get(&id("s")).await.unwrap().bytes, 100);
}

#[tokio::test]
async fn metadata_is_bounded_in_sessions_and_programs() {
    let config =
        SessionLimits { max_metadata_entries: 3, max_metadata_bytes: 100, ..SessionLimits::default() };
    let backend = MemoryBackend::new(config);
    for bad in [metadata(4, 5), metadata(2, 51)] {
        let new = NewSession { metadata: bad.clone(), ttl: None };
        let rejected = backend.create(&id("s"), new).await.unwrap_err();
        assert!(matches!(rejected, SessionError::MetadataTooLarge { .. }), "{rejected:?}");
        backend.create(&id("other"), NewSession::default()).await.unwrap();
        let program = Program { metadata: bad, ..Program::new("x", "t") };
        let rejected = backend.put_program(&id("other").into(), &name("a"), program).await.unwrap_err();
        assert!(matches!(rejected, SessionError::MetadataTooLarge { .. }), "{rejected:?}");
    }
    let new = NewSession { metadata: metadata(2, 50), ttl: None };
    backend.create(&id("s"), new).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn expired_sessions_are_reclaimed_for_every_write_of_a_variable() {
    let backend = MemoryBackend::new(SessionLimits { max_total_bytes: 300, ..SessionLimits::default() });
    let new = |bytes: usize, ttl: u64| NewSession {
        metadata: [("k".to_owned(), "x".repeat(bytes - 1))].into(),
        ttl: Some(Duration::from_secs(ttl)),
    };
    backend.create(&id("short"), new(200, 10)).await.unwrap();
    backend.create(&id("long"), new(10, 1000)).await.unwrap();
    tokio::time::advance(Duration::from_secs(10)).await;
    // The value and note would fit together with the expired session, but not together with the names.
    let new = NewVariable {
        ty: VariableType::new(ValueType::String).unwrap(),
        value: Payload::from_json(ValueType::String, format!("\"{}\"", "x".repeat(60)).into()),
        note: Note::default(),
    };
    let name = VariableName::try_new("variable").unwrap();
    backend.register_variable(&id("long"), &name, new).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn short_lived_sessions_leave_no_index_entries() {
    let backend = Arc::new(MemoryBackend::new(SessionLimits::default()));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let backend = Arc::clone(&backend);
        tasks.spawn(async move {
            for n in 0..20_000 {
                let (id, ttl) = (id(&format!("s{}", n % 3)), Some(Duration::from_millis(n % 2)));
                backend.create(&id, NewSession { ttl, ..NewSession::default() }).await.unwrap();
                let _ = backend.delete(&id).await;
                if n % 100 == 0 {
                    backend.sweep().await.unwrap();
                }
            }
        });
    }
    tasks.join_all().await;
    assert_eq!(backend.index().due.len(), backend.sessions.len());
    assert_eq!(backend.count.load(Relaxed), backend.sessions.len());
    let stats = backend.stats().await.unwrap();
    assert_eq!(stats.created, stats.deleted + stats.expired + stats.live);
}

#[tokio::test(start_paused = true)]
async fn an_index_entry_without_a_session_does_not_stop_a_sweep() {
    let backend = MemoryBackend::new(SessionLimits::default());
    let now = backend.now();
    backend.index().due.insert((now, id("orphan")));
    let short = NewSession { ttl: Some(Duration::from_secs(1)), ..NewSession::default() };
    backend.create(&id("short"), short).await.unwrap();
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(backend.sweep().await.unwrap(), 1);
    assert!(backend.index().due.is_empty());
}

#[tokio::test(start_paused = true)]
async fn creating_a_session_at_the_limit_reclaims_only_what_is_needed() {
    const EXPIRED: usize = 5000;
    let backend = MemoryBackend::new(SessionLimits { max_sessions: EXPIRED, ..SessionLimits::default() });
    for n in 0..EXPIRED {
        let short = NewSession { ttl: Some(Duration::from_secs(1)), ..NewSession::default() };
        backend.create(&id(&n.to_string()), short).await.unwrap();
    }
    tokio::time::advance(Duration::from_secs(1)).await;
    backend.create(&id("new"), NewSession::default()).await.unwrap();
    let remaining = backend.sessions.len();
    assert!(remaining > EXPIRED / 2, "{remaining} sessions remain");
    assert_eq!(backend.sweep().await.unwrap(), remaining - 1);
    let index = backend.index();
    assert_eq!((index.ids.len(), index.due.len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn pages_skip_expired_sessions() {
    let backend = MemoryBackend::new(SessionLimits::default());
    for n in 0..3000 {
        let ttl = if n % 1000 == 999 { 100 } else { 1 };
        let new = NewSession { ttl: Some(Duration::from_secs(ttl)), ..NewSession::default() };
        backend.create(&id(&format!("{n:04}")), new).await.unwrap();
    }
    tokio::time::advance(Duration::from_secs(1)).await;
    let mut page = backend.list(PageRequest { size: 2, token: None }).await.unwrap();
    let ids =
        |page: &Page<Session>| page.items.iter().map(|session| session.id.to_string()).collect::<Vec<_>>();
    assert_eq!(ids(&page), ["0999", "1999"]);
    page = backend.list(PageRequest { size: 2, token: page.next }).await.unwrap();
    assert_eq!((ids(&page), page.next), (vec!["2999".to_owned()], None));
}

#[tokio::test]
async fn large_values_are_checked_without_the_lock() {
    let backend = MemoryBackend::new(SessionLimits::default());
    backend.create(&id("s"), NewSession::default()).await.unwrap();
    let list =
        |items: usize| Payload::from_json(ValueType::List, format!("[1{}]", ",1".repeat(items)).into());
    let ty = VariableType::new(ValueType::List).unwrap();
    let new = NewVariable { ty, value: list(1), note: Note::default() };
    let large = VariableName::try_new("large").unwrap();
    backend.register_variable(&id("s"), &large, new).await.unwrap();
    let session = id("s");
    let write = backend.set_variable(&session, SetVariable::new("large", list(1 << 20)));
    let mut write = std::pin::pin!(write);
    let polled = std::future::poll_fn(|cx| std::task::Poll::Ready(write.as_mut().poll(cx)));
    assert!(polled.await.is_pending(), "the value is checked on another thread");
    assert_eq!(backend.variable(&id("s"), "large").await.unwrap().version, 0);
    assert_eq!(write.await, Ok(1));
    let malformed = Payload::from_json(ValueType::List, format!("[1{}", ",1".repeat(1 << 20)).into());
    let rejected = backend.set_variable(&id("s"), SetVariable::new("large", malformed)).await.unwrap_err();
    assert!(matches!(rejected, SessionError::InvalidValue { .. }), "{rejected}");
}
