//! Tests on real servers. Each test starts its servers.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use super::*;

mod hosts;
mod limits;
mod losses;
mod model;
mod outages;
mod server;
mod starts;

use server::{Proxy, Server};
use snakepit_session::{
    Created, NewSession, NewVariable, Note, PageRequest, Payload, Program, ProgramName, ProgramOwner,
    SessionBackend, SessionEventKind, SessionEvents, SessionId, SetVariable, UpdateKind, ValueType,
    VariableName, VariableType, VariableWatch, WatchEvent, error_chain,
};

fn id(text: &str) -> SessionId {
    SessionId::try_new(text).unwrap()
}

fn name(text: &str) -> ProgramName {
    ProgramName::try_new(text).unwrap()
}

fn with_ttl_ms(ttl: u64) -> NewSession {
    NewSession { ttl: Some(Duration::from_millis(ttl)), ..NewSession::default() }
}

fn set(variable: &str, value: u32) -> SetVariable {
    SetVariable::new(variable, Payload::try_from_serde(&value).unwrap())
}

/// Creates a session with an integer `x` of 0.
async fn create_with_x(backend: &RedisBackend, session: &str, new: NewSession) {
    backend.create(&id(session), new).await.unwrap();
    let ty = VariableType::new(ValueType::Integer).unwrap();
    let x = NewVariable { ty, value: Payload::try_from_serde(&0).unwrap(), note: Note::default() };
    backend.register_variable(&id(session), &VariableName::try_new("x").unwrap(), x).await.unwrap();
}

async fn x(backend: &RedisBackend, session: &str) -> (u32, u32) {
    let x = backend.variable(&id(session), "x").await.unwrap();
    (x.value.to_serde().unwrap(), x.version)
}

/// Waits with a timeout.
async fn soon<T>(event: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), event).await.expect("the event happens before the timeout")
}

/// Waits until a session has expired, without reclaiming it.
async fn wait_for_expiry(server: &Server, session: &str) {
    let key = format!("{{snakepit}}:s:{session}");
    soon(async { while server.query(&["EXISTS", &key]).await {} }).await;
}

/// Returns the kind and version of the next update.
async fn next_update(watch: &mut VariableWatch) -> (UpdateKind, u32) {
    match soon(watch.next()).await.unwrap().unwrap() {
        WatchEvent::Update(update) => (update.kind, update.variable.version),
        WatchEvent::Lost(lost) => panic!("{lost} updates are lost"),
    }
}

async fn next_event(events: &mut SessionEvents) -> (String, SessionEventKind) {
    let event = soon(events.next()).await.unwrap().unwrap();
    (event.id.to_string(), event.kind)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_keeps_the_contract() {
    let server = Server::start();
    let backend_count = AtomicUsize::new(0);
    let make = || async {
        let prefix = format!("contract-{}", backend_count.fetch_add(1, Relaxed));
        let config = RedisConfig { prefix, ..RedisConfig::default() };
        RedisBackend::connect(&server.url, config, SessionLimits::default()).await.unwrap()
    };
    snakepit_session_testkit::session_backend_contract(make, tokio::time::sleep).await;
}

#[tokio::test]
async fn a_password_is_used_and_never_printed() {
    let server = Server::with_password("s3cret-word");
    let connect = |password: &str, database: u32| {
        let url = format!("redis://:{password}@{}/{database}", server.url);
        async move { RedisBackend::connect(&url, RedisConfig::default(), SessionLimits::default()).await }
    };
    let backend = connect("s3cret-word", 0).await.unwrap();
    backend.create(&id("s"), NewSession::default()).await.unwrap();
    assert!(
        format!("{backend:?}").contains(&server.url) && !format!("{backend:?}").contains("s3cret"),
        "{backend:?}"
    );

    let rejected = error_chain(&connect("an0ther-word", 0).await.unwrap_err()).to_string();
    assert!(rejected.contains(&server.url) && !rejected.contains("an0ther"), "{rejected}");
    let malformed = RedisBackend::connect("http://:w0rd@x", RedisConfig::default(), SessionLimits::default());
    let malformed = error_chain(&malformed.await.unwrap_err()).to_string();
    assert!(malformed.contains("redis://") && !malformed.contains("w0rd"), "{malformed}");

    // The databases of a server share channels, so the names of channels contain the database.
    let other_database = connect("s3cret-word", 3).await.unwrap();
    let (mut events, mut other_events) = (backend.subscribe(), other_database.subscribe());
    other_database.create(&id("t"), NewSession::default()).await.unwrap();
    assert_eq!(next_event(&mut other_events).await.0, "t");
    backend.create(&id("u"), NewSession::default()).await.unwrap();
    assert_eq!(next_event(&mut events).await.0, "u", "databases have separate events");
    other_database.get(&id("s")).await.unwrap_err();
}

#[tokio::test]
async fn large_sessions_are_decoded_on_a_blocking_thread() {
    let thread_for = |size| decode_sized(size, || Ok(std::thread::current().id()));
    let runtime = std::thread::current().id();
    assert_eq!(thread_for(MAX_INLINE_DECODE).await.unwrap(), runtime);
    assert_ne!(thread_for(MAX_INLINE_DECODE + 1).await.unwrap(), runtime);
}
