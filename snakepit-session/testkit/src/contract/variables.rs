//! The contract of variables. The model tests cover random sequences.

use std::{future::Future, sync::Arc, time::Duration};

use snakepit_session::{
    Batch, NewSession, NewVariable, Note, Payload, SessionBackend, SessionError, SessionId, SetVariable,
    Source, UpdateKind, ValueType, Variable, VariableName, VariableType, WatchEvent,
};

use super::{TTL, id, with_ttl};

fn name(text: &str) -> VariableName {
    VariableName::try_new(text).expect("the contract's names are valid")
}

pub(super) fn value(json: &str) -> Payload {
    Payload::of_json(json.to_owned().into())
}

fn set(identifier: &str, json: &str) -> SetVariable {
    SetVariable::new(identifier, value(json))
}

pub(super) fn note(by: &str, metadata: &[(&str, &str)]) -> Note {
    let metadata = metadata.iter().copied();
    Note { source: Source::Python, changed_by: Some(by.into()), metadata: metadata.collect() }
}

pub(super) async fn register(
    backend: &impl SessionBackend,
    session: &str,
    variable: &str,
    kind: ValueType,
    constraints: &str,
    json: &str,
) -> Result<Variable, SessionError> {
    let ty = VariableType::with_constraints(kind, constraints)?;
    let new = NewVariable { ty, value: value(json), note: Note::default() };
    backend.register_variable(&id(session), &name(variable), new).await
}

async fn json_of(backend: &impl SessionBackend, session: &str, identifier: &str) -> (String, u32) {
    let variable = backend.variable(&id(session), identifier).await.expect("found");
    (String::from_utf8_lossy(variable.value.json()).into_owned(), variable.version)
}

async fn operations_with_too_many_names_are_rejected(backend: &impl SessionBackend) {
    backend.create(&id("s"), with_ttl(TTL)).await.expect("created");
    let names: Vec<String> = (0..100_000).map(|n| format!("x{n}")).collect();
    let identifiers: Vec<&str> = names.iter().map(String::as_str).collect();
    let is_rejected = |error| matches!(error, SessionError::TooManyNames { given: 100_000, .. });
    assert!(is_rejected(backend.variables(&id("s"), &identifiers).await.expect_err("too many")));
    assert!(is_rejected(backend.watch_variables(&id("s"), &names, false).await.expect_err("too many")));
    for batch in [Batch::Atomic, Batch::Each] {
        let updates = names.iter().map(|name| set(name, "1")).collect();
        assert!(is_rejected(backend.set_variables(&id("s"), updates, batch).await.expect_err("too many")));
    }
    assert!(is_rejected(backend.delete_variables(&id("s"), &identifiers).await.expect_err("too many")));
    let few = backend.variables(&id("s"), &identifiers[..100]).await.expect("read");
    assert!(few.iter().all(Option::is_none));
}

pub(super) async fn contract<B, Make, Made, Advance, Advanced>(make: &Make, advance: &Advance)
where
    B: SessionBackend,
    Make: Fn() -> Made,
    Made: Future<Output = B>,
    Advance: Fn(Duration) -> Advanced,
    Advanced: Future<Output = ()>,
{
    variables_have_ids_names_types_and_versions(&make().await).await;
    invalid_values_change_nothing(&make().await).await;
    compare_and_set_has_one_winner(Arc::new(make().await)).await;
    atomic_batches_apply_together_and_others_separately(&make().await).await;
    operations_with_too_many_names_are_rejected(&make().await).await;
    batches_of_deletions_apply_together(&make().await).await;
    listings_are_ordered_by_name_and_filtered_by_pattern(&make().await).await;
    history_is_bounded_and_allows_rollback(&make().await).await;
    large_values_and_buffers_round_trip(&make().await).await;
    variables_end_with_their_session(&make().await, advance).await;
}

/// Checks that every operation on the variables of a missing session fails.
pub(super) async fn check_missing_session(backend: &impl SessionBackend, missing: &SessionId) {
    let expected = SessionError::NotFound { id: missing.clone() };
    let ty = VariableType::new(ValueType::Integer).expect("a type");
    let new = NewVariable { ty, value: value("1"), note: Note::default() };
    assert_eq!(
        backend.register_variable(missing, &name("x"), new).await.expect_err("the session is missing"),
        expected
    );
    assert_eq!(backend.variable(missing, "x").await.expect_err("the session is missing"), expected);
    assert_eq!(backend.variables(missing, &["x"]).await.expect_err("the session is missing"), expected);
    assert_eq!(
        backend.set_variable(missing, set("x", "1")).await.expect_err("the session is missing"),
        expected
    );
    for batch in [Batch::Atomic, Batch::Each] {
        let written = backend.set_variables(missing, vec![set("x", "1")], batch).await;
        assert_eq!(written.expect_err("the session is missing"), expected);
    }
    assert_eq!(backend.list_variables(missing, "").await.expect_err("the session is missing"), expected);
    assert_eq!(backend.delete_variable(missing, "x").await.expect_err("the session is missing"), expected);
    for identifiers in [&["x"][..], &[]] {
        let deleted = backend.delete_variables(missing, identifiers).await;
        assert_eq!(deleted.expect_err("the session is missing"), expected);
    }
    assert_eq!(
        backend.variable_history(missing, "x", 0).await.expect_err("the session is missing"),
        expected
    );
    let rolled_back = backend.rollback_variable(missing, "x", 0, Note::default()).await;
    assert_eq!(rolled_back.expect_err("the session is missing"), expected);
    assert_eq!(
        backend.watch_variables(missing, &[], true).await.expect_err("the session is missing"),
        expected
    );
}

async fn variables_have_ids_names_types_and_versions(backend: &impl SessionBackend) {
    backend.create(&id("s"), NewSession::default()).await.expect("created");
    let missing = SessionError::VariableNotFound { session: id("s"), identifier: "x".to_owned() };
    assert_eq!(backend.variable(&id("s"), "x").await.expect_err("missing"), missing);
    assert_eq!(backend.set_variable(&id("s"), set("x", "1")).await.expect_err("missing"), missing);
    assert_eq!(backend.delete_variable(&id("s"), "x").await.expect_err("missing"), missing);
    assert_eq!(backend.variable_history(&id("s"), "x", 0).await.expect_err("missing"), missing);
    let rolled_back = backend.rollback_variable(&id("s"), "x", 0, Note::default()).await;
    assert_eq!(rolled_back.expect_err("missing"), missing);

    let ty = VariableType::with_constraints(ValueType::Float, r#"{"max": 10}"#).expect("a type");
    let new = NewVariable { ty, value: value("1"), note: note("ada", &[("unit", "m")]) };
    let registered = backend.register_variable(&id("s"), &name("x"), new).await.expect("registered");
    assert!(registered.id.as_str().starts_with("var_"), "{}", registered.id);
    assert_eq!(
        (registered.version, &registered.value.json()[..], registered.source),
        (0, &b"1.0"[..], Source::Python)
    );
    assert_eq!((&registered.metadata["unit"], registered.ty.constraints_json()), ("m", r#"{"max": 10}"#));
    let taken = register(backend, "s", "x", ValueType::Integer, "", "1").await.expect_err("taken");
    assert_eq!(taken, SessionError::VariableExists { session: id("s"), name: "x".to_owned() });

    // Writes by id and by name create versions, and their metadata is merged into the metadata of the variable.
    let by_id = SetVariable { note: note("eve", &[("seen", "yes")]), ..set(registered.id.as_str(), "2.5") };
    assert_eq!(backend.set_variable(&id("s"), by_id).await.expect("set"), 1);
    assert_eq!(backend.set_variable(&id("s"), set("x", "3.5")).await.expect("set"), 2);
    let found = backend.variable(&id("s"), registered.id.as_str()).await.expect("found");
    assert_eq!((found.version, &found.value.json()[..], found.source), (2, &b"3.5"[..], Source::Host));
    let metadata = [("seen", "yes"), ("unit", "m")].into_iter().collect();
    assert_eq!(found.metadata, metadata);
    assert_eq!(found, backend.variable(&id("s"), "x").await.expect("found"));

    for kind in [
        (ValueType::Integer, "1"),
        (ValueType::String, r#""s""#),
        (ValueType::Boolean, "true"),
        (ValueType::Choice, r#""c""#),
        (ValueType::Module, r#""m""#),
        (ValueType::Embedding, "[1,2]"),
        (ValueType::Tensor, "[[1],[2]]"),
        (ValueType::Map, r#"{"a":1}"#),
        (ValueType::List, "[1,null]"),
    ] {
        let (kind, json) = kind;
        register(backend, "s", kind.as_str(), kind, "", json).await.expect("registered");
        let found = backend.variable(&id("s"), kind.as_str()).await.expect("found");
        assert_eq!(
            (found.ty.kind(), found.value.ty(), &found.value.json()[..]),
            (kind, kind, json.as_bytes())
        );
    }
    let unusual = "a b/c:ü\u{1F40D}_\"'";
    register(backend, "s", unusual, ValueType::Integer, "", "7").await.expect("unusual names are valid");
    assert_eq!(json_of(backend, "s", unusual).await.0, "7");
    let identifiers = [unusual, "nothing", registered.id.as_str(), "x"];
    let batch = backend.variables(&id("s"), &identifiers).await.expect("read");
    let versions: Vec<_> = batch.iter().map(|found| found.as_ref().map(|found| found.version)).collect();
    assert_eq!(versions, [Some(0), None, Some(2), Some(2)]);

    let deleted = backend.delete_variable(&id("s"), registered.id.as_str()).await.expect("deleted");
    assert_eq!(deleted.version, 2);
    backend.variable(&id("s"), "x").await.expect_err("deleted");
    let again = register(backend, "s", "x", ValueType::Integer, "", "1").await.expect("registered again");
    assert!(again.id != registered.id, "a new variable has a new id");
    backend.variable(&id("s"), registered.id.as_str()).await.expect_err("the old id is not found");
}

async fn invalid_values_change_nothing(backend: &impl SessionBackend) {
    backend.create(&id("s"), NewSession::default()).await.expect("created");
    let first = register(backend, "s", "x", ValueType::Integer, r#"{"min": 0}"#, "-1").await;
    assert!(matches!(first, Err(SessionError::InvalidValue { .. })), "{first:?}");
    backend.variable(&id("s"), "x").await.expect_err("a rejected variable is not registered");
    register(backend, "s", "x", ValueType::Integer, r#"{"min": 0, "max": 10}"#, "5")
        .await
        .expect("registered");
    let bytes = backend.get(&id("s")).await.expect("the session is live").bytes;
    for bad in ["-1", "11", "1.5", r#""5""#, "null", "[]"] {
        let rejected = backend.set_variable(&id("s"), set("x", bad)).await.expect_err("outside the type");
        assert!(
            matches!(&rejected, SessionError::InvalidValue { variable, .. } if variable == "x"),
            "{rejected}"
        );
    }
    assert_eq!(json_of(backend, "s", "x").await, ("5".to_owned(), 0));
    assert_eq!(backend.variable_history(&id("s"), "x", 0).await.expect("read").len(), 1);
    assert_eq!(backend.get(&id("s")).await.expect("the session is live").bytes, bytes);
}

async fn compare_and_set_has_one_winner<B: SessionBackend>(backend: Arc<B>) {
    backend.create(&id("s"), NewSession::default()).await.expect("created");
    register(&*backend, "s", "x", ValueType::Integer, "", "0").await.expect("registered");
    let wrong = set("x", "1").if_version(7);
    let conflict = SessionError::VersionConflict { variable: "x".to_owned(), expected: 7, actual: 0 };
    assert_eq!(backend.set_variable(&id("s"), wrong).await.expect_err("a conflict"), conflict);

    // One of several writers that saw the same version wins; the others succeed after retries.
    const WRITERS: u32 = 8;
    const EACH: u32 = 25;
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..WRITERS {
        let backend = Arc::clone(&backend);
        writers.spawn(async move {
            for _ in 0..EACH {
                loop {
                    let read = backend.variable(&id("s"), "x").await.expect("found");
                    let incremented: u32 = read.value.to_serde::<u32>().expect("a number") + 1;
                    let write = set("x", &incremented.to_string()).if_version(read.version);
                    match backend.set_variable(&id("s"), write).await {
                        Ok(version) => break assert_eq!(version, read.version + 1),
                        Err(SessionError::VersionConflict { .. }) => tokio::task::yield_now().await,
                        Err(error) => panic!("{error}"),
                    }
                }
            }
        });
    }
    writers.join_all().await;
    let sum = WRITERS * EACH;
    assert_eq!(json_of(&*backend, "s", "x").await, (sum.to_string(), sum), "no increment is lost");
}

async fn atomic_batches_apply_together_and_others_separately(backend: &impl SessionBackend) {
    backend.create(&id("s"), NewSession::default()).await.expect("created");
    for variable in ["a", "b"] {
        register(backend, "s", variable, ValueType::Integer, r#"{"max": 10}"#, "0")
            .await
            .expect("registered");
    }
    let both = |a: &str, b: &str| vec![set("a", a), set("b", b)];
    let written = backend.set_variables(&id("s"), both("1", "2"), Batch::Atomic).await.expect("written");
    assert_eq!(written, [Ok(1), Ok(1)]);

    let mut bad = both("3", "11");
    bad.push(set("nothing", "1"));
    bad.push(set("a", "4").if_version(1));
    let rejected = backend.set_variables(&id("s"), bad, Batch::Atomic).await.expect_err("rejected");
    let SessionError::BatchRejected { errors } = &rejected else { panic!("{rejected}") };
    assert!(matches!(errors["b"], SessionError::InvalidValue { .. }), "{errors:?}");
    assert!(matches!(errors["nothing"], SessionError::VariableNotFound { .. }), "{errors:?}");
    assert!(matches!(errors["a"], SessionError::WrittenTwice { .. }), "{errors:?}");
    assert_eq!(json_of(backend, "s", "a").await, ("1".to_owned(), 1), "none of a rejected batch is written");

    let stale = vec![set("a", "5"), set("b", "6").if_version(0)];
    let rejected = backend.set_variables(&id("s"), stale.clone(), Batch::Atomic).await.expect_err("stale");
    assert!(matches!(rejected, SessionError::BatchRejected { .. }), "{rejected}");
    let written = backend.set_variables(&id("s"), stale, Batch::Each).await.expect("the session lives");
    let conflict = SessionError::VersionConflict { variable: "b".to_owned(), expected: 0, actual: 1 };
    assert_eq!(written, [Ok(2), Err(conflict)]);
    assert_eq!(json_of(backend, "s", "a").await, ("5".to_owned(), 2));
    assert_eq!(json_of(backend, "s", "b").await, ("2".to_owned(), 1));
    let none =
        backend.set_variables(&id("s"), Vec::new(), Batch::Atomic).await.expect("an empty batch is valid");
    assert!(none.is_empty());
}

async fn batches_of_deletions_apply_together(backend: &impl SessionBackend) {
    let session = id("s");
    backend.create(&session, NewSession::default()).await.expect("created");
    let mut ids = Vec::new();
    for variable in ["a", "b", "c"] {
        let new = register(backend, "s", variable, ValueType::Integer, "", "1").await.expect("registered");
        ids.push(new.id.to_string());
    }
    let mut watch = backend.watch_variables(&session, &[], false).await.expect("watched");
    let identifiers = [ids[2].as_str(), "missing", "a", "a"];
    let deleted = backend.delete_variables(&session, &identifiers).await.expect("deleted");
    let names: Vec<_> = deleted.iter().map(|found| found.as_ref().map(|found| found.name.as_str())).collect();
    assert_eq!(names, [Some("c"), None, Some("a"), None], "a variable exists only once");
    for expected in ["c", "a"] {
        let update = watch.next().await.expect("the watch continues").expect("the session is live");
        let WatchEvent::Update(update) = update else { panic!("{update:?}") };
        assert_eq!((update.kind, update.variable.name.as_str()), (UpdateKind::Deleted, expected));
    }
    let left = backend.list_variables(&session, "").await.expect("listed");
    assert_eq!(left.iter().map(|left| left.name.as_str()).collect::<Vec<_>>(), ["b"]);
    assert_eq!(backend.get(&session).await.expect("live").variable_count, 1);
    assert_eq!(backend.stats().await.expect("counted").variables, 1);
    assert!(backend.delete_variables(&session, &[]).await.expect("an empty batch is valid").is_empty());
    register(backend, "s", "a", ValueType::String, "", r#""new""#).await.expect("the name is free again");
}

async fn listings_are_ordered_by_name_and_filtered_by_pattern(backend: &impl SessionBackend) {
    backend.create(&id("s"), NewSession::default()).await.expect("created");
    for variable in ["model.b", "model.a", "rate", "model"] {
        register(backend, "s", variable, ValueType::Integer, "", "0").await.expect("registered");
    }
    for (pattern, expected) in [
        ("", &["model", "model.a", "model.b", "rate"][..]),
        ("*", &["model", "model.a", "model.b", "rate"]),
        ("model.*", &["model.a", "model.b"]),
        ("*a*e", &["rate"]),
        ("model", &["model"]),
        ("none*", &[]),
    ] {
        let listed = backend.list_variables(&id("s"), pattern).await.expect("listed");
        let names: Vec<_> = listed.iter().map(|variable| variable.name.as_str()).collect();
        assert_eq!(names, expected, "{pattern}");
    }
    assert_eq!(backend.get(&id("s")).await.expect("the session is live").variable_count, 4);
}

async fn history_is_bounded_and_allows_rollback(backend: &impl SessionBackend) {
    backend.create(&id("s"), NewSession::default()).await.expect("created");
    register(backend, "s", "x", ValueType::Integer, "", "0").await.expect("registered");
    let mut bytes = 0;
    for n in 1..=30_u32 {
        let write =
            SetVariable { note: note(&format!("w{}", n % 10), &[]), ..set("x", &(n + 100).to_string()) };
        assert_eq!(backend.set_variable(&id("s"), write).await.expect("set"), n);
        let new_bytes = backend.get(&id("s")).await.expect("the session is live").bytes;
        assert!(n < 25 || new_bytes == bytes, "a full history does not grow: {bytes} to {new_bytes}");
        bytes = new_bytes;
    }
    // The default limits keep twenty versions before the current one.
    let history = backend.variable_history(&id("s"), "x", 0).await.expect("read");
    let versions: Vec<_> = history.iter().map(|version| version.version).collect();
    assert_eq!(versions, (10..=30).rev().collect::<Vec<_>>());
    assert_eq!((&history[20].value.json()[..], history[20].note.author()), (&b"110"[..], "w0"));
    assert_eq!(backend.variable_history(&id("s"), "x", 3).await.expect("read"), history[..3]);

    let lost = backend.rollback_variable(&id("s"), "x", 9, Note::default()).await.expect_err("not kept");
    let variable = "x".to_owned();
    assert_eq!(lost, SessionError::VersionNotKept { variable, version: 9, oldest: 10, newest: 30 });
    let back = backend.rollback_variable(&id("s"), "x", 12, note("undo", &[])).await.expect("kept");
    assert_eq!((back.version, &back.value.json()[..]), (31, &b"112"[..]));
    let history = backend.variable_history(&id("s"), "x", 1).await.expect("read");
    assert_eq!((history[0].version, history[0].note.author()), (31, "undo"));
}

async fn large_values_and_buffers_round_trip(backend: &impl SessionBackend) {
    backend.create(&id("s"), NewSession::default()).await.expect("created");
    let buffer: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
    let metadata = r#"{"shape":[262144],"dtype":"float32","binary_format":"raw","type":"embedding"}"#;
    let value = Payload::from_buffer(ValueType::Embedding, metadata.into(), buffer.clone().into());
    let ty =
        VariableType::with_constraints(ValueType::Embedding, r#"{"dimensions": 262144}"#).expect("a type");
    let new = NewVariable { ty, value: value.clone(), note: Note::default() };
    backend.register_variable(&id("s"), &name("big"), new).await.expect("registered");
    let found = backend.variable(&id("s"), "big").await.expect("found");
    assert_eq!(found.value, value);

    let limit = 10 * 1024 * 1024;
    let json = format!("\"{}\"", "x".repeat(limit));
    let rejected = register(backend, "s", "huge", ValueType::String, "", &json).await.expect_err("too large");
    let size = limit + 2;
    assert_eq!(rejected, SessionError::ValueTooLarge { variable: "huge".to_owned(), size, limit });
}

async fn variables_end_with_their_session<P: Future<Output = ()>>(
    backend: &impl SessionBackend,
    advance: &impl Fn(Duration) -> P,
) {
    backend.create(&id("s"), with_ttl(TTL)).await.expect("created");
    register(backend, "s", "x", ValueType::Integer, "", "0").await.expect("registered");
    // Reads and writes of variables renew the session.
    advance(TTL / 2).await;
    backend.variable(&id("s"), "x").await.expect("the session is live");
    advance(TTL / 2).await;
    backend.set_variable(&id("s"), set("x", "1")).await.expect("the session is live");
    advance(TTL / 2).await;
    assert_eq!(backend.list_variables(&id("s"), "").await.expect("the session is live").len(), 1);
    advance(TTL).await;
    backend.variable(&id("s"), "x").await.expect_err("expired");
    backend.create(&id("s"), NewSession::default()).await.expect("created again");
    assert!(backend.list_variables(&id("s"), "").await.expect("listed").is_empty());
    assert_eq!(backend.get(&id("s")).await.expect("the session is live").bytes, 0);
}
