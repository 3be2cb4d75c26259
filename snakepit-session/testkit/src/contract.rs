//! The contract: rules that every backend must follow.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::Arc,
    time::Duration,
};

use snakepit_session::{
    Created, NewSession, PageRequest, Program, ProgramName, ProgramOwner, SessionBackend, SessionError,
    SessionEventKind, SessionId, SessionLimits, ValueType,
};

mod variables;
mod watches;

/// The TTL in tests of expiry. It is short, for backends whose clock cannot be paused.
const TTL: Duration = Duration::from_secs(2);

fn id(text: &str) -> SessionId {
    SessionId::try_new(text).expect("the contract's ids are valid")
}

fn name(text: &str) -> ProgramName {
    ProgramName::try_new(text).expect("the contract's names are valid")
}

fn with_ttl(ttl: Duration) -> NewSession {
    NewSession { ttl: Some(ttl), ..NewSession::default() }
}

/// Runs the contract. `make` returns a new backend without sessions. `advance` waits on the backend's clock: pass
/// `tokio::time::advance` if the clock is paused, and otherwise `tokio::time::sleep`.
///
/// # Panics
/// If the backend violates a rule.
pub async fn session_backend_contract<B, Make, Made, Advance, Advanced>(make: Make, advance: Advance)
where
    B: SessionBackend,
    Make: Fn() -> Made,
    Made: Future<Output = B>,
    Advance: Fn(Duration) -> Advanced,
    Advanced: Future<Output = ()>,
{
    racing_creators_share_one_session(Arc::new(make().await)).await;
    existing_sessions_keep_their_state(&make().await).await;
    used_sessions_live_and_unused_ones_expire(&make().await, &advance).await;
    every_operation_on_a_missing_session_fails(&make().await, &advance).await;
    pages_list_each_session_once(&make().await).await;
    programs_are_stored_by_name(&make().await).await;
    global_programs_outlive_sessions_and_expire(&make().await, &advance).await;
    variables::contract(&make, &advance).await;
    watches::contract(&make, &advance).await;
    events_and_statistics_match(&make().await, &advance).await;
    sweeps_count_expired_sessions(&make().await, &advance).await;
}

async fn racing_creators_share_one_session<B: SessionBackend>(backend: Arc<B>) {
    let mut tasks = tokio::task::JoinSet::new();
    for creator in 0..1000 {
        let backend = Arc::clone(&backend);
        tasks.spawn(async move {
            let metadata = BTreeMap::from([("creator".to_owned(), creator.to_string())]);
            backend.create(&id("shared"), NewSession { metadata, ttl: None }).await
        });
    }
    let (mut new, mut creators) = (0, BTreeSet::new());
    for outcome in tasks.join_all().await {
        let (session, created) = outcome.expect("creating succeeds");
        new += usize::from(created == Created::New);
        creators.insert(session.metadata["creator"].to_owned());
    }
    assert_eq!(new, 1, "exactly one of the racing creators creates the session");
    assert_eq!(creators.len(), 1, "all of them get the same session");
}

async fn existing_sessions_keep_their_state(backend: &impl SessionBackend) {
    let metadata = BTreeMap::from([("user".to_owned(), "ada".to_owned())]);
    let (first, created) =
        backend.create(&id("s"), NewSession { metadata, ttl: Some(TTL * 10) }).await.expect("created");
    assert_eq!(created, Created::New);
    let (second, created) = backend.create(&id("s"), NewSession::default()).await.expect("found");
    assert_eq!(created, Created::Existing);
    assert_eq!(
        (&second.metadata, second.ttl, second.created_at),
        (&first.metadata, TTL * 10, first.created_at)
    );

    let metadata =
        BTreeMap::from([("large".to_owned(), "x".repeat(SessionLimits::default().max_metadata_bytes))]);
    let rejected = backend.create(&id("s"), NewSession { metadata, ttl: None }).await.expect_err("too large");
    assert!(
        matches!(rejected, SessionError::MetadataTooLarge { .. }),
        "the parameters are checked even if the session exists: {rejected}"
    );

    assert_eq!(second.last_worker, None);
    backend.set_last_worker(&id("s"), "w-1".into()).await.expect("set");
    backend.set_last_worker(&id("s"), "w-2".into()).await.expect("set");
    assert_eq!(backend.get(&id("s")).await.expect("the session is live").last_worker.as_deref(), Some("w-2"));

    let unusual = id("a b/c:ü\u{1F40D}");
    backend.create(&unusual, NewSession::default()).await.expect("unusual ids are valid");
    assert_eq!(backend.get(&unusual).await.expect("the session is live").id, unusual);
}

async fn used_sessions_live_and_unused_ones_expire<P: Future<Output = ()>>(
    backend: &impl SessionBackend,
    advance: &impl Fn(Duration) -> P,
) {
    backend.create(&id("used"), with_ttl(TTL)).await.expect("created");
    backend.create(&id("idle"), with_ttl(TTL)).await.expect("created");
    for _ in 0..3 {
        advance(TTL / 2).await;
        backend.get(&id("used")).await.expect("use renews a session");
    }
    let missing = backend.get(&id("idle")).await.expect_err("an unused session expires");
    assert_eq!(missing, SessionError::NotFound { id: id("idle") });
    // Operations that do not use a session do not renew it.
    backend.set_last_worker(&id("used"), "w".into()).await.expect("the session is live");
    advance(TTL / 2).await;
    backend.set_last_worker(&id("used"), "w".into()).await.expect("the session is live");
    backend.list(PageRequest::default()).await.expect("listed");
    advance(TTL / 2).await;
    backend.get(&id("used")).await.expect_err("neither affinity nor a listing renews a session");
    let (session, created) = backend.create(&id("used"), NewSession::default()).await.expect("created again");
    assert_eq!((created, session.last_worker), (Created::New, None), "an expired session leaves no state");
}

async fn every_operation_on_a_missing_session_fails<P: Future<Output = ()>>(
    backend: &impl SessionBackend,
    advance: &impl Fn(Duration) -> P,
) {
    backend.create(&id("deleted"), NewSession::default()).await.expect("created");
    let deleted = backend.delete(&id("deleted")).await.expect("deleted");
    assert_eq!(deleted.id, id("deleted"));
    backend.create(&id("expired"), with_ttl(TTL)).await.expect("created");
    advance(TTL).await;
    for missing in [id("never"), id("deleted"), id("expired")] {
        let expected = SessionError::NotFound { id: missing.clone() };
        let program = || Program::new("x", "text/plain");
        assert_eq!(backend.get(&missing).await.expect_err("the session is missing"), expected);
        assert_eq!(backend.delete(&missing).await.expect_err("the session is missing"), expected);
        assert_eq!(
            backend.set_last_worker(&missing, "w".into()).await.expect_err("the session is missing"),
            expected
        );
        assert_eq!(
            backend
                .put_program(&missing.clone().into(), &name("p"), program())
                .await
                .expect_err("the session is missing"),
            expected
        );
        assert_eq!(
            backend.program(&missing.clone().into(), &name("p")).await.expect_err("the session is missing"),
            expected
        );
        assert_eq!(
            backend.programs(&missing.clone().into()).await.expect_err("the session is missing"),
            expected
        );
        assert_eq!(
            backend
                .delete_program(&missing.clone().into(), &name("p"))
                .await
                .expect_err("the session is missing"),
            expected
        );
        variables::check_missing_session(backend, &missing).await;
    }
    assert!(backend.list(PageRequest::default()).await.expect("listed").items.is_empty());
}

async fn pages_list_each_session_once(backend: &impl SessionBackend) {
    let expected: BTreeSet<_> = (0..250).map(|n| id(&format!("s-{n:03}"))).collect();
    for id in &expected {
        backend.create(id, NewSession::default()).await.expect("created");
    }
    for size in [0, 1, 7, 250, 100_000] {
        let (mut listed, mut token) = (Vec::new(), None);
        loop {
            let page = backend.list(PageRequest { size, token }).await.expect("listed");
            assert!(size == 0 || page.items.len() <= size, "a page does not exceed the requested size");
            listed.extend(page.items.into_iter().map(|session| session.id));
            match page.next {
                Some(next) => token = Some(next),
                None => break,
            }
        }
        assert!(listed.iter().eq(&expected), "pages of {size} list each session once, by id");
    }
}

async fn programs_are_stored_by_name(backend: &impl SessionBackend) {
    let session = id("s");
    let owner = ProgramOwner::Session(session.clone());
    backend.create(&session, NewSession::default()).await.expect("created");
    let missing = SessionError::ProgramNotFound { session: session.clone(), name: "m".to_owned() };
    assert_eq!(backend.program(&owner, &name("m")).await.expect_err("missing"), missing);
    assert_eq!(backend.delete_program(&owner, &name("m")).await.expect_err("missing"), missing);

    let mut program = Program::new(&b"\x00\xff weights"[..], "application/octet-stream");
    program.metadata.insert("kind".into(), "linear".into());
    let put = backend.put_program(&owner, &name("m"), program.clone()).await;
    assert_eq!(put.expect("stored"), Created::New);
    let found = backend.program(&owner, &name("m")).await.expect("found");
    assert_eq!(
        (found.data, &found.metadata, &found.content_type),
        (program.data, &program.metadata, &program.content_type)
    );
    let put = backend.put_program(&owner, &name("m"), Program::new("{}", "application/json")).await;
    assert_eq!(put.expect("stored"), Created::Existing);
    backend
        .put_program(&owner, &name("a"), Program::new("", "text/plain"))
        .await
        .expect("an empty program is valid");

    let listed = backend.programs(&owner).await.expect("listed");
    let listed: Vec<_> =
        listed.iter().map(|info| (info.name.as_str(), info.size, &*info.content_type)).collect();
    assert_eq!(listed, [("a", 0, "text/plain"), ("m", 2, "application/json")]);
    assert_eq!(backend.get(&session).await.expect("the session is live").program_count, 2);
    backend.delete_program(&owner, &name("m")).await.expect("deleted");
    assert_eq!(backend.get(&session).await.expect("the session is live").program_count, 1);
}

async fn sweeps_count_expired_sessions<P: Future<Output = ()>>(
    backend: &impl SessionBackend,
    advance: &impl Fn(Duration) -> P,
) {
    backend.create(&id("short"), with_ttl(TTL)).await.expect("created");
    backend.create(&id("long"), with_ttl(TTL * 100)).await.expect("created");
    assert_eq!(backend.sweep().await.expect("swept"), 0);
    advance(TTL).await;
    assert_eq!(backend.sweep().await.expect("swept"), 1);
    assert_eq!(backend.sweep().await.expect("swept"), 0, "a session expires once");
    backend.get(&id("long")).await.expect("other sessions remain");
}

async fn global_programs_outlive_sessions_and_expire<P: Future<Output = ()>>(
    backend: &impl SessionBackend,
    advance: &impl Fn(Duration) -> P,
) {
    let global = ProgramOwner::Global;
    let missing = SessionError::GlobalProgramNotFound { name: "m".to_owned() };
    assert_eq!(backend.program(&global, &name("m")).await.expect_err("missing"), missing);
    assert_eq!(backend.delete_program(&global, &name("m")).await.expect_err("missing"), missing);

    let program = |data: &'static str, ttl| Program { ttl: Some(ttl), ..Program::new(data, "text/plain") };
    let put = backend.put_program(&global, &name("m"), program("1", TTL)).await;
    assert_eq!(put.expect("stored"), Created::New);
    let put = backend.put_program(&global, &name("m"), program("2", TTL)).await;
    assert_eq!(put.expect("stored"), Created::Existing);
    backend.put_program(&global, &name("idle"), program("3", TTL)).await.expect("stored");
    backend.put_program(&global, &name("a"), program("4", TTL * 100)).await.expect("stored");

    // Global programs and the programs of a session are separate.
    backend.create(&id("s"), NewSession::default()).await.expect("created");
    let own = ProgramOwner::Session(id("s"));
    backend.program(&own, &name("m")).await.expect_err("a session sees its own programs only");
    backend.put_program(&own, &name("own"), Program::new("5", "text/plain")).await.expect("stored");
    let sessions = backend.list(PageRequest::default()).await.expect("listed").items;
    assert_eq!(sessions.len(), 1, "global programs are not sessions");

    for _ in 0..3 {
        advance(TTL / 2).await;
        let program = backend.program(&global, &name("m")).await.expect("a read renews it");
        assert_eq!((&program.data[..], program.ttl), (&b"2"[..], Some(TTL)));
    }
    let missing = SessionError::GlobalProgramNotFound { name: "idle".to_owned() };
    assert_eq!(backend.program(&global, &name("idle")).await.expect_err("expired"), missing);
    assert_eq!(backend.delete_program(&global, &name("idle")).await.expect_err("expired"), missing);
    let names: Vec<_> = backend.programs(&global).await.expect("listed");
    let names: Vec<_> = names.iter().map(|info| info.name.as_str()).collect();
    assert_eq!(names, ["a", "m"]);
    let put = backend.put_program(&global, &name("idle"), program("6", TTL)).await;
    assert_eq!(put.expect("stored"), Created::New, "an expired program leaves no state");
    backend.delete(&id("s")).await.expect("deleted");
    backend.delete_program(&global, &name("a")).await.expect("deleted");
    backend.program(&global, &name("a")).await.expect_err("deleted");
}

async fn events_and_statistics_match<P: Future<Output = ()>>(
    backend: &impl SessionBackend,
    advance: &impl Fn(Duration) -> P,
) {
    let mut events = backend.subscribe();
    let before = backend.stats().await.expect("counted");
    assert_eq!((before.live, before.variables, before.programs, before.bytes), (0, 0, 0, 0));

    let metadata = BTreeMap::from([("k".to_owned(), "value".to_owned())]);
    for (session, ttl) in [("short", TTL), ("long", TTL * 100), ("deleted", TTL * 100)] {
        let new = NewSession { metadata: metadata.clone(), ttl: Some(ttl) };
        backend.create(&id(session), new).await.expect("created");
    }
    backend.create(&id("long"), NewSession::default()).await.expect("found");
    let program = || Program { ttl: Some(TTL * 100), ..Program::new("data", "t") };
    backend.put_program(&id("short").into(), &name("p"), program()).await.expect("stored");
    backend.put_program(&ProgramOwner::Global, &name("p"), program()).await.expect("stored");
    variables::register(backend, "short", "x", ValueType::Integer, "", "1").await.expect("registered");
    let counted = backend.stats().await.expect("counted");
    assert_eq!((counted.live, counted.created - before.created), (3, 3));
    assert_eq!((counted.variables, counted.programs), (1, 2));
    let bytes_of = |session: &'static str| async move {
        backend.get(&id(session)).await.expect("the session is live").bytes
    };
    assert_eq!(bytes_of("long").await, "k".len() + "value".len());
    let in_sessions = bytes_of("short").await + bytes_of("long").await + bytes_of("deleted").await;
    assert_eq!(counted.bytes, (in_sessions + "p".len() + "data".len() + "t".len()) as u64);

    backend.delete(&id("deleted")).await.expect("deleted");
    advance(TTL).await;
    backend.sweep().await.expect("swept");
    let counted = backend.stats().await.expect("counted");
    assert_eq!((counted.live, counted.deleted - before.deleted, counted.expired - before.expired), (1, 1, 1));
    assert_eq!((counted.variables, counted.programs), (0, 1));
    assert_eq!(counted.bytes, 6 + 6, "only live sessions and programs count");
    assert!(counted.sweeps > before.sweeps);

    let mut notified = Vec::new();
    while notified.len() < 5 {
        let event =
            events.next().await.expect("the backend is open").expect("five events fit into the queue");
        notified.push((event.id.to_string(), event.kind));
    }
    use SessionEventKind::{Created as SessionCreated, Deleted, Expired};
    let expected = [
        ("short", SessionCreated),
        ("long", SessionCreated),
        ("deleted", SessionCreated),
        ("deleted", Deleted),
        ("short", Expired),
    ];
    assert_eq!(notified, expected.map(|(id, kind)| (id.to_owned(), kind)));
}
