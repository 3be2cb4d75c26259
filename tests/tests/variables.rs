//! Variables, watches, statistics and session events over gRPC.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use snakepit_proto::pb;
use snakepit_tests::{Client, SHOWCASE, Sandbox};
use tonic::{Code, Streaming};
use tonic_types::StatusExt;

/// A daemon with one worker, and a client with an open session `s`.
async fn start() -> (Sandbox, Client) {
    let sandbox = Sandbox::adapter(SHOWCASE, 1).start().await;
    let mut client = sandbox.client().await;
    let request = pb::InitializeSessionRequest { session_id: "s".into(), ..Default::default() };
    client.initialize_session(request).await.unwrap();
    (sandbox, client)
}

fn any(ty: &str, value: impl Into<Bytes>) -> pb::Any {
    pb::Any { type_url: format!("type.googleapis.com/{ty}"), value: value.into() }
}

fn registration(name: &str, ty: &str, constraints: &str, value: pb::Any) -> pb::RegisterVariableRequest {
    pb::RegisterVariableRequest {
        session_id: "s".into(),
        name: name.into(),
        r#type: ty.into(),
        initial_value: Some(value),
        constraints_json: constraints.into(),
        ..Default::default()
    }
}

fn write(name: &str, value: pb::Any) -> pb::SetVariableRequest {
    pb::SetVariableRequest {
        session_id: "s".into(),
        variable_identifier: name.into(),
        value: Some(value),
        ..Default::default()
    }
}

fn read(name: &str) -> pb::GetVariableRequest {
    pb::GetVariableRequest { session_id: "s".into(), variable_identifier: name.into(), bypass_cache: false }
}

async fn get(client: &mut Client, name: &str) -> pb::Variable {
    client.get_variable(read(name)).await.unwrap().into_inner().variable.unwrap()
}

#[tokio::test]
async fn variables_are_registered_read_written_listed_rolled_back_and_deleted() {
    let (_sandbox, mut client) = start().await;
    let mut request = registration("rate", "float", r#"{"min": 0, "max": 10}"#, any("snakepit.float", "1.5"));
    request.metadata =
        [("source".to_owned(), "python".to_owned()), ("unit".to_owned(), "Hz".to_owned())].into();
    let response = client.register_variable(request.clone()).await.unwrap().into_inner();
    assert!(response.success && response.variable_id.starts_with("var_"), "{response:?}");
    let taken = client.register_variable(request).await.unwrap_err();
    assert_eq!((taken.code(), taken.message().contains("already exists")), (Code::AlreadyExists, true));

    let found = get(&mut client, "rate").await;
    assert_eq!(found, get(&mut client, &response.variable_id).await);
    assert_eq!((&*found.r#type, found.version, found.source), ("float", 0, 1));
    assert_eq!(found.value, Some(any("snakepit.float", "1.5")));
    assert_eq!((&*found.constraints_json, &*found.metadata["unit"]), (r#"{"min": 0, "max": 10}"#, "Hz"));
    assert_eq!(found.metadata.len(), 1, "the source is not part of the variable's metadata");
    assert!(found.last_updated_at.unwrap().seconds > 1_600_000_000);

    // All forms in which clients send numbers.
    let int64 = any("google.protobuf.Int64Value", 2_i64.encode_to_vec());
    let double = any("google.protobuf.DoubleValue", 2.5_f64.encode_to_vec());
    let bare = any("google.protobuf.StringValue", "3");
    let value = any("google.protobuf.Value", "3.5");
    for (version, (sent, stored)) in
        (1..).zip([(int64, "2.0"), (double, "2.5"), (bare, "3.0"), (value, "3.5")])
    {
        let response = client.set_variable(write("rate", sent)).await.unwrap().into_inner();
        assert_eq!((response.success, response.new_version), (true, version));
        assert_eq!(get(&mut client, "rate").await.value, Some(any("snakepit.float", stored)));
    }

    let listed = |pattern: &str| pb::ListVariablesRequest { session_id: "s".into(), pattern: pattern.into() };
    client
        .register_variable(registration("mode", "choice", "", any("snakepit.choice", r#""a""#)))
        .await
        .unwrap();
    for (pattern, expected) in [("", &["mode", "rate"][..]), ("r*", &["rate"]), ("x*", &[])] {
        let variables = client.list_variables(listed(pattern)).await.unwrap().into_inner().variables;
        let names: Vec<_> = variables.iter().map(|variable| &*variable.name).collect();
        assert_eq!(names, expected);
    }
    let session = pb::GetSessionRequest { session_id: "s".into() };
    assert_eq!(client.get_session(session).await.unwrap().into_inner().variable_count, 2);

    let history = pb::GetVariableHistoryRequest {
        session_id: "s".into(),
        variable_identifier: "rate".into(),
        limit: 2,
    };
    let entries = client.get_variable_history(history.clone()).await.unwrap().into_inner().entries;
    let versions: Vec<_> = entries.iter().map(|entry| (entry.version, &*entry.changed_by)).collect();
    assert_eq!(versions, [(4, "host"), (3, "host")]);
    let rollback = |target_version| pb::RollbackVariableRequest {
        session_id: "s".into(),
        variable_identifier: "rate".into(),
        target_version,
        metadata: [("changed_by".to_owned(), "ada".to_owned())].into(),
    };
    let back = client.rollback_variable(rollback(0)).await.unwrap().into_inner().variable.unwrap();
    assert_eq!((back.version, back.value), (5, Some(any("snakepit.float", "1.5"))));
    let entries = client.get_variable_history(history).await.unwrap().into_inner().entries;
    assert_eq!((entries[0].version, &*entries[0].changed_by), (5, "ada"));
    let unknown = client.rollback_variable(rollback(99)).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    assert!(unknown.message().contains("versions 0 to 5 are kept"), "{unknown:?}");

    let delete = pb::DeleteVariableRequest {
        session_id: "s".into(),
        variable_identifier: response.variable_id.clone(),
    };
    assert!(client.delete_variable(delete.clone()).await.unwrap().into_inner().success);
    for missing in [
        client.delete_variable(delete).await.unwrap_err(),
        client.get_variable(read("rate")).await.unwrap_err(),
        client.set_variable(write("rate", any("snakepit.float", "1"))).await.unwrap_err(),
    ] {
        assert_eq!(missing.code(), Code::NotFound);
        assert!(missing.message().contains("not found"), "{missing:?}");
    }
    let cleanup = pb::CleanupSessionRequest { session_id: "s".into(), force: false };
    assert_eq!(client.cleanup_session(cleanup).await.unwrap().into_inner().resources_cleaned, 1);
}

#[tokio::test]
async fn invalid_input_is_rejected_with_its_field_and_limit() {
    let (_sandbox, mut client) = start().await;
    let number = |json: &str| any("snakepit.integer", json.to_owned());
    let registered = registration("n", "integer", r#"{"min": 0, "max": 10}"#, number("5"));
    client.register_variable(registered.clone()).await.unwrap();

    let long = "x".repeat(300);
    let huge = any("snakepit.string", format!("\"{}\"", "x".repeat(10 * 1024 * 1024)));
    for (request, needle) in [
        (
            pb::RegisterVariableRequest { name: String::new(), ..registered.clone() },
            "variable name: it is empty",
        ),
        (
            pb::RegisterVariableRequest { name: long.clone(), ..registered.clone() },
            "300 bytes, the limit is 256",
        ),
        (pb::RegisterVariableRequest { name: "a\nb".into(), ..registered.clone() }, "control characters"),
        (pb::RegisterVariableRequest { name: "a*".into(), ..registered.clone() }, "holds `*`"),
        (
            pb::RegisterVariableRequest { session_id: String::new(), ..registered.clone() },
            "session id: it is empty",
        ),
        (registration("m", "decimal", "", number("1")), "`decimal` of a variable: variables are float"),
        (registration("m", "null", "", number("1")), "invalid type `null`"),
        (
            registration("m", "integer", r#"{"minimum": 1}"#, number("1")),
            "`minimum` is unknown; the type takes min, max",
        ),
        (
            registration("m", "string", r#"{"pattern": "("}"#, any("snakepit.string", "\"\"")),
            "not a valid regular expression",
        ),
        (registration("m", "integer", r#"{"max": 3}"#, number("4")), "value 4 is above maximum 3"),
        (
            registration("m", "tensor", r#"{"shape": [2]}"#, any("snakepit.tensor", "[1]")),
            "shape must be [2]",
        ),
        (
            registration("m", "embedding", r#"{"dimensions": 2}"#, any("snakepit.embedding", "[1]")),
            "must have exactly 2 dimensions",
        ),
        (registration("m", "string", "", huge), "above the limit of 10485760"),
        (registration("m", "integer", "", any("snakepit.integer", "not json")), "it is malformed"),
        (registration("m", "integer", "", any("example.com/Thing", "1")), "`initial_value` cannot be read"),
        (
            pb::RegisterVariableRequest { initial_value: None, ..registered.clone() },
            "`initial_value` is missing",
        ),
    ] {
        let rejected = client.register_variable(request).await.unwrap_err();
        assert_eq!(rejected.code(), Code::InvalidArgument, "{rejected:?}");
        assert!(rejected.message().contains(needle), "{needle}: {rejected:?}");
    }

    let set = |value: pb::Any| write("n", value);
    for (request, needle) in [
        (set(number("11")), "value 11 is above maximum 10"),
        (set(number("-1")), "value -1 is below minimum 0"),
        (set(any("snakepit.float", "\"NaN\"")), "must be of type integer"),
        (set(any("snakepit.null", "null")), "must be of type integer, it is null"),
        (pb::SetVariableRequest { value: None, ..set(number("1")) }, "`value` is missing"),
        (pb::SetVariableRequest { expected_version: -1, ..set(number("1")) }, "`expected_version` is -1"),
        (
            pb::SetVariableRequest { variable_identifier: String::new(), ..set(number("1")) },
            "`variable_identifier` is empty",
        ),
        (
            pb::SetVariableRequest {
                metadata: [("k".into(), "x".repeat(2 << 20))].into(),
                ..set(number("1"))
            },
            "above the limit of 1000 entries and 1048576 bytes",
        ),
    ] {
        let rejected = client.set_variable(request).await.unwrap_err();
        assert_eq!(rejected.code(), Code::InvalidArgument, "{rejected:?}");
        assert!(rejected.message().contains(needle), "{needle}: {rejected:?}");
    }
    let history =
        pb::GetVariableHistoryRequest { session_id: "s".into(), variable_identifier: "n".into(), limit: -1 };
    assert!(
        client.get_variable_history(history).await.unwrap_err().message().contains("`limit` is negative")
    );
    let unchanged = get(&mut client, "n").await;
    assert_eq!((unchanged.version, unchanged.value), (0, Some(number("5"))));

    // Float bounds and NaN.
    client.register_variable(registration("f", "float", "", any("snakepit.float", "\"NaN\""))).await.unwrap();
    assert_eq!(get(&mut client, "f").await.value, Some(any("snakepit.float", "\"NaN\"")));
    let bounded = registration("g", "float", r#"{"min": 0}"#, any("snakepit.float", "\"NaN\""));
    let rejected = client.register_variable(bounded).await.unwrap_err();
    assert!(rejected.message().contains("value NaN cannot be compared with the bound 0"), "{rejected:?}");
    // All RPCs for variables reject an unknown session.
    let unknown = || "nowhere".to_owned();
    let name = || "n".to_owned();
    for rejected in [
        client
            .register_variable(pb::RegisterVariableRequest { session_id: unknown(), ..registered })
            .await
            .err(),
        client.get_variable(pb::GetVariableRequest { session_id: unknown(), ..read("n") }).await.err(),
        client
            .set_variable(pb::SetVariableRequest { session_id: unknown(), ..write("n", number("1")) })
            .await
            .err(),
        client
            .get_variables(pb::BatchGetVariablesRequest { session_id: unknown(), ..Default::default() })
            .await
            .err(),
        client
            .set_variables(pb::BatchSetVariablesRequest { session_id: unknown(), ..Default::default() })
            .await
            .err(),
        client
            .list_variables(pb::ListVariablesRequest { session_id: unknown(), pattern: String::new() })
            .await
            .err(),
        client
            .delete_variable(pb::DeleteVariableRequest { session_id: unknown(), variable_identifier: name() })
            .await
            .err(),
        client
            .watch_variables(pb::WatchVariablesRequest { session_id: unknown(), ..Default::default() })
            .await
            .err(),
        client
            .get_variable_history(pb::GetVariableHistoryRequest {
                session_id: unknown(),
                variable_identifier: name(),
                limit: 0,
            })
            .await
            .err(),
        client
            .rollback_variable(pb::RollbackVariableRequest {
                session_id: unknown(),
                variable_identifier: name(),
                target_version: 0,
                ..Default::default()
            })
            .await
            .err(),
    ] {
        let rejected = rejected.expect("the session does not exist");
        assert_eq!(rejected.code(), Code::NotFound);
        assert!(rejected.message().contains("not found"), "{rejected:?}");
    }
}

#[tokio::test]
async fn a_version_conflict_names_both_versions() {
    let (_sandbox, mut client) = start().await;
    let number = |json: &str| any("snakepit.integer", json.to_owned());
    client.register_variable(registration("n", "integer", "", number("0"))).await.unwrap();
    let cas = |expected_version, check_version| pb::SetVariableRequest {
        expected_version,
        check_version,
        ..write("n", number("1"))
    };
    client.set_variable(cas(0, true)).await.unwrap();
    client.set_variable(cas(0, false)).await.unwrap();
    client.set_variable(cas(2, false)).await.unwrap();
    for stale in [cas(2, false), cas(0, true)] {
        let expected = stale.expected_version;
        let conflict = client.set_variable(stale).await.unwrap_err();
        assert_eq!(conflict.code(), Code::Aborted);
        let message = format!("at version 3, not at the expected version {expected}");
        assert!(conflict.message().contains(&message), "{conflict:?}");
        let details = conflict.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!((&*info.reason, &*info.metadata["actual"]), ("VERSION_CONFLICT", "3"));
    }
}

/// Returns the code and reason of each rejected write of a batch. The status of a single write has the same ones.
fn reasons(response: &pb::BatchSetVariablesResponse) -> Vec<(&str, Code, &str)> {
    assert!(response.reasons.keys().eq(response.errors.keys()), "{response:?}");
    response.reasons.iter().map(|(name, reason)| (&**name, reason.code.into(), &*reason.reason)).collect()
}

#[tokio::test]
async fn batches_read_and_write_atomically_or_individually() {
    const MISSING: (&str, Code, &str) = ("c", Code::NotFound, "VARIABLE_NOT_FOUND");
    let (_sandbox, mut client) = start().await;
    let number = |json: &str| any("snakepit.integer", json.to_owned());
    for name in ["a", "b"] {
        client.register_variable(registration(name, "integer", r#"{"max": 10}"#, number("0"))).await.unwrap();
    }
    let batch = |updates: &[(&str, &str)], atomic| pb::BatchSetVariablesRequest {
        session_id: "s".into(),
        updates: updates.iter().map(|(name, json)| ((*name).to_owned(), number(json))).collect(),
        atomic,
        ..Default::default()
    };
    let response = client.set_variables(batch(&[("a", "1"), ("b", "2")], true)).await.unwrap().into_inner();
    assert!(response.success && response.errors.is_empty());
    assert_eq!(response.new_versions, [("a".to_owned(), 1), ("b".to_owned(), 1)].into());

    let bad = [("a", "3"), ("b", "11"), ("c", "1")];
    let response = client.set_variables(batch(&bad, true)).await.unwrap().into_inner();
    assert!(!response.success && response.new_versions.is_empty());
    assert!(response.errors["b"].contains("above maximum 10") && response.errors["c"].contains("not found"));
    assert_eq!(reasons(&response), [("b", Code::InvalidArgument, "INVALID_VALUE"), MISSING]);
    assert_eq!(get(&mut client, "a").await.version, 1, "no write of the batch was applied");

    let response = client.set_variables(batch(&bad, false)).await.unwrap().into_inner();
    assert!(!response.success);
    assert_eq!(response.new_versions, [("a".to_owned(), 2)].into(), "the other writes failed");
    assert_eq!(reasons(&response), [("b", Code::InvalidArgument, "INVALID_VALUE"), MISSING]);

    for atomic in [true, false] {
        let mut unreadable = batch(&[("a", "3"), ("c", "1")], atomic);
        unreadable.updates.insert("b".to_owned(), any("snakepit.unheard", "1".to_owned()));
        let response = client.set_variables(unreadable).await.unwrap().into_inner();
        assert!(response.errors["b"].contains("cannot be read"), "{response:?}");
        assert_eq!(reasons(&response), [("b", Code::InvalidArgument, "INVALID_ARGUMENT"), MISSING]);
    }

    let mut stale = batch(&[("a", "4"), ("b", "4")], true);
    stale.expected_versions = [("a".to_owned(), 3), ("b".to_owned(), 0)].into();
    let response = client.set_variables(stale.clone()).await.unwrap().into_inner();
    assert!(response.errors["b"].contains("not at the expected version 0"), "{response:?}");
    assert_eq!(reasons(&response), [("b", Code::Aborted, "VERSION_CONFLICT")]);
    let versions = ["actual", "expected"].map(|key| &*response.reasons["b"].metadata[key]);
    assert_eq!(versions, ["1", "0"]);
    stale.expected_versions.insert("b".to_owned(), 1);
    assert!(client.set_variables(stale.clone()).await.unwrap().into_inner().success);
    stale.expected_versions.insert("z".to_owned(), 1);
    let rejected = client.set_variables(stale).await.unwrap_err();
    assert!(rejected.message().contains("`expected_versions[z]` names none of the updates"), "{rejected:?}");

    let request = pb::BatchGetVariablesRequest {
        session_id: "s".into(),
        variable_identifiers: ["a", "missing", "b"].map(str::to_owned).into(),
        ..Default::default()
    };
    let response = client.get_variables(request).await.unwrap().into_inner();
    assert_eq!(response.missing_variables, ["missing"]);
    assert_eq!(response.variables.keys().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(response.variables["a"].value, Some(number("4")));
}

#[tokio::test]
async fn values_history_and_watches_carry_tensors_as_raw_buffers() {
    let (_sandbox, mut client) = start().await;
    let metadata = r#"{"shape":[2,2],"dtype":"float32","binary_format":"raw","type":"tensor"}"#;
    let value = any("snakepit.tensor.binary", metadata);
    let buffer = Bytes::from_static(&[7; 16]);
    let mut request = registration("t", "tensor", r#"{"shape": [2, 2]}"#, value.clone());
    request.initial_binary_value = buffer.clone();
    client.register_variable(request).await.unwrap();
    let found = get(&mut client, "t").await;
    assert_eq!((found.value, found.binary_value), (Some(value.clone()), buffer.clone()));

    let mut updates = watch(&mut client, &["t"], true).await;
    let mut set = write("t", value.clone());
    set.binary_value = Bytes::from_static(&[8; 15]);
    let rejected = client.set_variable(set.clone()).await.unwrap_err();
    assert!(rejected.message().contains("buffer has 15 bytes"), "{rejected:?}");
    set.binary_value = Bytes::from_static(&[8; 16]);
    client.set_variable(set).await.unwrap();
    for byte in [7, 8] {
        let variable = updates.message().await.unwrap().unwrap().variable.unwrap();
        assert_eq!((variable.value, &variable.binary_value[..]), (Some(value.clone()), &[byte; 16][..]));
    }
    let history =
        pb::GetVariableHistoryRequest { session_id: "s".into(), variable_identifier: "t".into(), limit: 0 };
    let entries = client.get_variable_history(history).await.unwrap().into_inner().entries;
    assert_eq!(&entries[1].binary_value, &buffer);
}

async fn watch(client: &mut Client, names: &[&str], initial: bool) -> Streaming<pb::VariableUpdate> {
    let request = pb::WatchVariablesRequest {
        session_id: "s".into(),
        variable_identifiers: names.iter().map(|name| (*name).to_owned()).collect(),
        include_initial_values: initial,
    };
    client.watch_variables(request).await.unwrap().into_inner()
}

#[tokio::test]
async fn watchers_receive_every_change_and_the_end_of_the_session() {
    let (_sandbox, mut client) = start().await;
    let number = |json: &str| any("snakepit.integer", json.to_owned());
    client.register_variable(registration("x", "integer", "", number("0"))).await.unwrap();
    let unknown = pb::WatchVariablesRequest {
        session_id: "s".into(),
        variable_identifiers: vec!["nothing".into()],
        include_initial_values: false,
    };
    assert_eq!(client.watch_variables(unknown).await.unwrap_err().code(), Code::NotFound);

    let mut named = watch(&mut client, &["x"], true).await;
    let mut all = watch(&mut client, &[], false).await;
    let mut request = write("x", number("1"));
    request.metadata =
        [("changed_by", "ada"), ("why", "test")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    client.set_variable(request).await.unwrap();
    client.register_variable(registration("y", "integer", "", number("7"))).await.unwrap();
    let cleanup = pb::CleanupSessionRequest { session_id: "s".into(), force: false };
    client.cleanup_session(cleanup).await.unwrap();

    let first = named.message().await.unwrap().unwrap();
    assert_eq!((&*first.update_type, first.variable.unwrap().version), ("initial", 0));
    for updates in [&mut named, &mut all] {
        let set = updates.message().await.unwrap().unwrap();
        let variable = set.variable.unwrap();
        assert_eq!((&*set.update_type, &variable.id, variable.version), ("set", &set.variable_id, 1));
        assert_eq!((&*set.update_source, &*set.update_metadata["why"]), ("ada", "test"));
        assert!(set.timestamp.is_some());
    }
    let registered = all.message().await.unwrap().unwrap();
    assert_eq!((&*registered.update_type, registered.variable.unwrap().name), ("registered", "y".to_owned()));
    for mut updates in [named, all] {
        let end = updates.message().await.unwrap_err();
        assert_eq!((end.code(), end.message().contains("not found")), (Code::NotFound, true));
    }
}

#[tokio::test]
async fn a_stopping_host_ends_its_watches() {
    let (sandbox, mut client) = start().await;
    let mut updates = watch(&mut client, &[], true).await;
    let mut events = client.watch_sessions(pb::WatchSessionsRequest {}).await.unwrap().into_inner();
    let stopped = tokio::time::timeout(Duration::from_secs(20), sandbox.stop()).await;
    assert_eq!(stopped.expect("watchers do not delay shutdown"), Some(0));
    assert!(matches!(updates.message().await, Ok(None) | Err(_)));
    assert!(matches!(events.message().await, Ok(None) | Err(_)));
}

#[tokio::test]
async fn sessions_are_counted_and_their_events_are_streamed() {
    let (_sandbox, mut client) = start().await;
    let mut events = client.watch_sessions(pb::WatchSessionsRequest {}).await.unwrap().into_inner();
    for (id, ttl_seconds) in [("short", 1), ("long", 0)] {
        let request =
            pb::InitializeSessionRequest { session_id: id.into(), ttl_seconds, ..Default::default() };
        client.initialize_session(request).await.unwrap();
    }
    let number = any("snakepit.integer", "1");
    let request =
        pb::RegisterVariableRequest { session_id: "long".into(), ..registration("x", "integer", "", number) };
    client.register_variable(request).await.unwrap();
    let stats = client.get_session_stats(pb::GetSessionStatsRequest {}).await.unwrap().into_inner();
    assert_eq!((stats.created, stats.live, stats.variables, stats.deleted), (3, 3, 1, 0));
    assert!(stats.bytes > 0);
    let cleanup = pb::CleanupSessionRequest { session_id: "long".into(), force: false };
    client.cleanup_session(cleanup).await.unwrap();

    // The host removes the expired session without a request.
    let mut received = Vec::new();
    while received.len() < 4 {
        let event = tokio::time::timeout(Duration::from_secs(60), events.message()).await;
        let event = event.expect("an event arrives").unwrap().unwrap();
        received.push((event.session_id, event.event));
    }
    let expected = [("short", "created"), ("long", "created"), ("long", "deleted"), ("short", "expired")];
    assert_eq!(received, expected.map(|(id, event)| (id.to_owned(), event.to_owned())));
    let stats = client.get_session_stats(pb::GetSessionStatsRequest {}).await.unwrap().into_inner();
    assert_eq!((stats.live, stats.variables, stats.deleted, stats.expired), (1, 0, 1, 1));
    assert!(stats.sweeps > 0);
}
