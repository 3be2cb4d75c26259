//! The contract of watches.

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use snakepit_session::{
    Batch, NewSession, Note, SessionBackend, SessionError, SetVariable, UpdateKind, ValueType, VariableWatch,
    WatchEvent,
};

use super::{
    TTL, id,
    variables::{note, register, value},
    with_ttl,
};

pub(super) async fn contract<B, Make, Made, Advance, Advanced>(make: &Make, advance: &Advance)
where
    B: SessionBackend,
    Make: Fn() -> Made,
    Made: Future<Output = B>,
    Advance: Fn(Duration) -> Advanced,
    Advanced: Future<Output = ()>,
{
    watchers_receive_every_change_once_and_in_order(&make().await).await;
    concurrent_writes_are_delivered_in_version_order(Arc::new(make().await)).await;
    slow_watchers_do_not_block_writers(&make().await).await;
    watches_end_with_their_session(&make().await, advance).await;
}

type Update = (UpdateKind, String, u32, String);

async fn next(watch: &mut VariableWatch) -> Update {
    match watch.next().await.expect("the watch continues").expect("the session is live") {
        WatchEvent::Update(update) => {
            let json = String::from_utf8_lossy(update.variable.value.json()).into_owned();
            (update.kind, update.variable.name.to_string(), update.variable.version, json)
        }
        WatchEvent::Lost(lost) => panic!("{lost} updates are lost"),
    }
}

fn update_of(kind: UpdateKind, name: &str, version: u32, json: &str) -> Update {
    (kind, name.to_owned(), version, json.to_owned())
}

fn set(identifier: &str, json: &str) -> SetVariable {
    SetVariable::new(identifier, value(json))
}

async fn watchers_receive_every_change_once_and_in_order(backend: &impl SessionBackend) {
    let session = id("s");
    backend.create(&session, NewSession::default()).await.expect("created");
    let missing = backend.watch_variables(&session, &["x".to_owned()], true).await.expect_err("missing");
    assert_eq!(missing, SessionError::VariableNotFound { session: session.clone(), identifier: "x".into() });
    let x = register(backend, "s", "x", ValueType::Integer, "", "0").await.expect("registered");
    register(backend, "s", "y", ValueType::Integer, "", "0").await.expect("registered");

    let mut by_name = backend.watch_variables(&session, &["x".to_owned()], true).await.expect("watched");
    let mut by_id = backend.watch_variables(&session, &[x.id.to_string()], false).await.expect("watched");
    let mut all = backend.watch_variables(&session, &[], true).await.expect("watched");

    backend.set_variable(&session, set("x", "1")).await.expect("set");
    backend.set_variable(&session, set("y", "1")).await.expect("set");
    let batch = vec![set("y", "2"), SetVariable { note: note("eve", &[("why", "test")]), ..set("x", "2") }];
    backend.set_variables(&session, batch, Batch::Atomic).await.expect("set");
    backend.set_variables(&session, vec![set("x", "no")], Batch::Each).await.expect("the session is live");
    backend.rollback_variable(&session, "x", 0, Note::default()).await.expect("rolled back");
    backend.delete_variable(&session, "x").await.expect("deleted");
    register(backend, "s", "x", ValueType::String, "", r#""new""#).await.expect("registered again");

    use UpdateKind::{Deleted, Initial, Registered, RolledBack, Set};
    let changes = [
        update_of(Set, "x", 1, "1"),
        update_of(Set, "x", 2, "2"),
        update_of(RolledBack, "x", 3, "0"),
        update_of(Deleted, "x", 3, "0"),
    ];
    assert_eq!(next(&mut by_name).await, update_of(Initial, "x", 0, "0"));
    for change in &changes {
        assert_eq!(next(&mut by_name).await, *change);
        assert_eq!(next(&mut by_id).await, *change);
    }
    // A watch by name follows a new variable with that name; a watch by id does not.
    assert_eq!(next(&mut by_name).await, update_of(Registered, "x", 0, r#""new""#));
    backend.set_variable(&session, set("x", r#""last""#)).await.expect("set");
    assert_eq!(next(&mut by_name).await, update_of(Set, "x", 1, r#""last""#));

    let mut delivered = Vec::new();
    while delivered.last() != Some(&update_of(Set, "x", 1, r#""last""#)) {
        let update = all.next().await.expect("the watch continues").expect("the session is live");
        let WatchEvent::Update(update) = update else { panic!("{update:?}") };
        if update.variable.value.json() == "2" && update.variable.name.as_str() == "x" {
            assert_eq!((update.note.author(), &update.note.metadata["why"]), ("eve", "test"));
        }
        let json = String::from_utf8_lossy(update.variable.value.json()).into_owned();
        delivered.push((update.kind, update.variable.name.to_string(), update.variable.version, json));
    }
    assert_eq!(delivered[..2], [update_of(Initial, "x", 0, "0"), update_of(Initial, "y", 0, "0")]);
    let of =
        |name: &str| delivered[2..].iter().filter(|update| update.1 == name).cloned().collect::<Vec<_>>();
    assert_eq!(of("y"), [update_of(Set, "y", 1, "1"), update_of(Set, "y", 2, "2")]);
    assert_eq!(of("x")[..4], changes);
    assert_eq!(delivered.len(), 2 + 2 + 6);
}

async fn concurrent_writes_are_delivered_in_version_order<B: SessionBackend>(backend: Arc<B>) {
    const WRITERS: u32 = 4;
    const EACH: u32 = 50;
    let session = id("s");
    backend.create(&session, NewSession::default()).await.expect("created");
    register(&*backend, "s", "x", ValueType::Integer, "", "0").await.expect("registered");
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let backend = Arc::clone(&backend);
        writers.spawn(async move {
            for n in 0..EACH {
                let json = (writer * EACH + n).to_string();
                backend.set_variable(&id("s"), set("x", &json)).await.expect("set");
            }
        });
    }
    // This watch starts during the writes. Initial values and changes must have neither gaps nor duplicates.
    let mut watch = backend.watch_variables(&session, &["x".to_owned()], true).await.expect("watched");
    let (kind, _, mut version, _) = next(&mut watch).await;
    assert_eq!(kind, UpdateKind::Initial);
    let mut values = BTreeMap::new();
    while version < WRITERS * EACH {
        let (kind, _, after, json) = next(&mut watch).await;
        assert_eq!((kind, after), (UpdateKind::Set, version + 1));
        assert_eq!(values.insert(json, after), None, "each write is delivered once");
        version = after;
    }
    writers.join_all().await;
}

async fn slow_watchers_do_not_block_writers(backend: &impl SessionBackend) {
    let session = id("s");
    backend.create(&session, NewSession::default()).await.expect("created");
    register(backend, "s", "x", ValueType::Integer, "", "0").await.expect("registered");
    let mut watch = backend.watch_variables(&session, &[], false).await.expect("watched");
    // The default limits queue 1024 updates.
    const WRITES: u32 = 1500;
    for n in 1..=WRITES {
        backend
            .set_variable(&session, set("x", &n.to_string()))
            .await
            .expect("writers do not wait for watchers");
    }
    let (mut delivered, mut lost, mut last) = (0, 0, 0);
    while last < WRITES {
        match watch.next().await.expect("the watch continues").expect("the session is live") {
            WatchEvent::Lost(updates) => lost += u32::try_from(updates).expect("the number is small"),
            WatchEvent::Update(update) => {
                assert_eq!(
                    update.variable.version,
                    delivered + lost + 1,
                    "lost updates are reported in order"
                );
                (delivered, last) = (delivered + 1, update.variable.version);
            }
        }
    }
    assert_eq!(delivered + lost, WRITES, "every update is delivered or reported as lost");
    assert!(lost > 0, "the queue of a slow watcher is bounded");
}

async fn watches_end_with_their_session<P: Future<Output = ()>>(
    backend: &impl SessionBackend,
    advance: &impl Fn(Duration) -> P,
) {
    backend.create(&id("deleted"), NewSession::default()).await.expect("created");
    backend.create(&id("expired"), with_ttl(TTL)).await.expect("created");
    let mut watches = Vec::new();
    for session in ["deleted", "expired"] {
        register(backend, session, "x", ValueType::Integer, "", "0").await.expect("registered");
        watches.push(backend.watch_variables(&id(session), &[], false).await.expect("watched"));
    }
    backend.set_variable(&id("deleted"), set("x", "1")).await.expect("set");
    backend.delete(&id("deleted")).await.expect("deleted");
    assert_eq!(next(&mut watches[0]).await.2, 1, "earlier updates precede the end");
    advance(TTL).await;
    backend.sweep().await.expect("swept");
    for (watch, session) in watches.iter_mut().zip(["deleted", "expired"]) {
        let end = watch.next().await.expect("the watch ends").expect_err("the session has ended");
        assert_eq!(end, SessionError::NotFound { id: id(session) });
        assert!(watch.next().await.is_none(), "the stream ends after the error");
    }
}
