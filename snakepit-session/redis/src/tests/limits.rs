//! Limits, and the cleanup of keys.

use super::*;

fn program(bytes: usize) -> Program {
    Program::new("x".repeat(bytes), "t")
}

fn with_ten_bytes(ttl: Option<Duration>) -> NewSession {
    NewSession { metadata: BTreeMap::from([("name".to_owned(), "123456".to_owned())]), ttl }
}

#[tokio::test]
async fn expired_sessions_are_reclaimed_before_a_rejection() {
    let server = Server::start();
    let limits = SessionLimits::default().max_sessions(2).max_total_bytes(100);
    let (a, b) = (server.host_with(limits.clone()).await, server.host_with(limits).await);
    let short = with_ten_bytes(Some(Duration::from_millis(300)));
    a.create(&id("short"), short.clone()).await.unwrap();
    a.create(&id("long"), with_ten_bytes(None)).await.unwrap();
    let rejected = b.create(&id("third"), with_ten_bytes(None)).await.unwrap_err();
    assert_eq!(rejected, SessionError::TooManySessions { limit: 2 });
    b.put_program(&id("short").into(), &name("p"), program(48)).await.unwrap();
    a.put_program(&id("long").into(), &name("p"), program(28)).await.unwrap();
    assert_eq!(b.stats().await.unwrap().bytes, 100);
    let rejected = a.put_program(&id("long").into(), &name("p"), program(29)).await.unwrap_err();
    assert_eq!(rejected, SessionError::BackendFull { size: 101, limit: 100 });
    let rejected = a.put_program(&ProgramOwner::Global, &name("g"), program(0)).await.unwrap_err();
    assert_eq!(rejected, SessionError::BackendFull { size: 102, limit: 100 });

    wait_for_expiry(&server, "short").await;
    a.put_program(&id("long").into(), &name("p"), program(88)).await.unwrap();
    assert_eq!(b.stats().await.unwrap().bytes, 100);
    b.delete_program(&id("long").into(), &name("p")).await.unwrap();
    b.create(&id("short"), short).await.unwrap();
    wait_for_expiry(&server, "short").await;
    b.create(&id("third"), with_ten_bytes(None)).await.unwrap();
    let counted = a.stats().await.unwrap();
    assert_eq!((counted.live, counted.expired, counted.bytes), (2, 2, 20));

    let short = Program { ttl: Some(Duration::from_millis(10)), ..program(50) };
    a.put_program(&ProgramOwner::Global, &name("g"), short).await.unwrap();
    wait_for_global_expiry(&server, "g").await;
    b.put_program(&id("third").into(), &name("p"), program(78)).await.unwrap();
    assert_eq!(a.stats().await.unwrap().bytes, 100, "expired global programs do not count");
    for session in ["long", "third"] {
        a.delete(&id(session)).await.unwrap();
    }
    let counted = b.stats().await.unwrap();
    assert_eq!((counted.live, counted.variables, counted.programs, counted.bytes), (0, 0, 0, 0));
}

async fn wait_for_global_expiry(server: &Server, program: &str) {
    let key = format!("{{snakepit}}:g:{program}");
    soon(async { while server.query(&["EXISTS", &key]).await {} }).await;
}

#[tokio::test]
async fn the_limit_of_global_programs_is_exact() {
    let server = Server::start();
    let host = server.host_with(SessionLimits::default().max_programs(2)).await;
    let put = |program: &'static str, ttl: u64| {
        let new = Program { ttl: Some(Duration::from_millis(ttl)), ..Program::new("x", "t") };
        let host = &host;
        async move { host.put_program(&ProgramOwner::Global, &name(program), new).await }
    };
    put("a", 100_000).await.unwrap();
    put("b", 300).await.unwrap();
    assert_eq!(put("b", 300).await.unwrap(), Created::Existing);
    assert_eq!(put("c", 1000).await.unwrap_err(), SessionError::TooManyGlobalPrograms { limit: 2 });
    wait_for_global_expiry(&server, "b").await;
    assert_eq!(put("c", 100_000).await.unwrap(), Created::New);
    assert_eq!(host.stats().await.unwrap().programs, 2);
}

#[tokio::test]
async fn older_versions_are_stored_separately_and_deleted_with_their_variable() {
    let server = Server::start();
    let host = server.host_with(SessionLimits::default().max_history(3)).await;
    create_with_x(&host, "s", NewSession::default()).await;
    let older_fields = || async {
        let mut fields: Vec<String> = server.query(&["HKEYS", "{snakepit}:d:s"]).await;
        fields.sort();
        fields
    };
    for n in 1..=5 {
        host.set_variable(&id("s"), set("x", n)).await.unwrap();
    }
    assert_eq!(older_fields().await, ["h:2:x", "h:3:x", "h:4:x"]);
    // One batch writes many versions of a variable, and evicts some of them in the same commit.
    let batch = (6..=20).map(|n| set("x", n)).collect();
    let written = host.set_variables(&id("s"), batch, snakepit_session::Batch::Each).await.unwrap();
    assert_eq!(written.last(), Some(&Ok(20)));
    assert_eq!(older_fields().await, ["h:17:x", "h:18:x", "h:19:x"]);
    let history = host.variable_history(&id("s"), "x", 0).await.unwrap();
    let values: Vec<(u32, u32)> =
        history.iter().map(|version| (version.version, version.value.to_serde().unwrap())).collect();
    assert_eq!(values, [(20, 20), (19, 19), (18, 18), (17, 17)]);
    host.delete_variable(&id("s"), "x").await.unwrap();
    assert!(older_fields().await.is_empty());

    let without_history = server.host_with(SessionLimits::default().max_history(0)).await;
    create_with_x(&without_history, "s", NewSession::default()).await;
    for n in 1..=3 {
        without_history.set_variable(&id("s"), set("x", n)).await.unwrap();
    }
    assert!(older_fields().await.is_empty());
    assert_eq!(without_history.variable_history(&id("s"), "x", 0).await.unwrap().len(), 1);
}

#[tokio::test]
async fn ended_sessions_leave_no_keys() {
    let server = Server::start();
    let config = RedisConfig { watch_lease: Duration::from_millis(100), ..RedisConfig::default() };
    let host = RedisBackend::connect(&server.url, config, SessionLimits::default()).await.unwrap();
    let mut watches = Vec::new();
    for (session, ttl) in [("deleted", 100_000), ("expired", 300)] {
        create_with_x(&host, session, with_ttl_ms(ttl)).await;
        host.put_program(&id(session).into(), &name("p"), program(10)).await.unwrap();
        watches.push(host.watch_variables(&id(session), &[], true).await.unwrap());
        host.set_variable(&id(session), set("x", 1)).await.unwrap();
    }
    let short = Program { ttl: Some(Duration::from_millis(10)), ..program(1) };
    host.put_program(&ProgramOwner::Global, &name("g"), short).await.unwrap();
    host.delete(&id("deleted")).await.unwrap();
    wait_for_expiry(&server, "expired").await;
    wait_for_global_expiry(&server, "g").await;
    host.sweep().await.unwrap();
    let remaining = soon(async {
        loop {
            let mut keys: Vec<String> = server.query(&["KEYS", "*"]).await;
            keys.sort();
            // The logs of watched sessions expire.
            if !keys.iter().any(|key| key.starts_with("{snakepit}:w:")) {
                break keys;
            }
        }
    });
    assert_eq!(remaining.await, ["{snakepit}:log", "{snakepit}:totals"]);
}

#[tokio::test]
async fn the_log_of_a_watched_session_is_bounded() {
    let server = Server::start();
    let limits = SessionLimits::default().max_watch_backlog(10).max_watch_backlog_bytes(1000);
    let host = server.host_with(limits).await;
    host.create(&id("s"), NewSession::default()).await.unwrap();
    let ty = VariableType::new(ValueType::String).unwrap();
    let value = |bytes: usize| Payload::try_from_serde(&"x".repeat(bytes)).unwrap();
    let new = NewVariable { ty, value: value(1), note: Note::default() };
    host.register_variable(&id("s"), &VariableName::try_new("text").unwrap(), new).await.unwrap();
    host.set_variable(&id("s"), SetVariable::new("text", value(1))).await.unwrap();
    let logs = || server.query::<Vec<String>>(&["KEYS", "{snakepit}:w:*"]);
    assert!(logs().await.is_empty(), "unwatched sessions do not have a log");

    let watch = host.watch_variables(&id("s"), &[], false).await.unwrap();
    let mut log_lengths = Vec::new();
    for (writes, bytes) in [(1100, 1), (6, 4_000_000), (2, 9_000_000), (30, 1)] {
        for _ in 0..writes {
            host.set_variable(&id("s"), SetVariable::new("text", value(bytes))).await.unwrap();
        }
        log_lengths.push(server.query::<usize>(&["XLEN", &logs().await[0]]).await);
    }
    assert_eq!(
        log_lengths,
        [1024, 4, 1, 31],
        "the limits of entries and bytes apply, but the last entry always remains"
    );
    drop(watch);
}
