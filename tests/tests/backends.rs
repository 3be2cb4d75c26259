//! Daemons that store their sessions in a file or in Redis.

use std::time::Duration;

use snakepit_proto::{pb, status::details_of};
use snakepit_server::{ValueType, VariableType};
use snakepit_tests::{
    Client, Redis, SHOWCASE, Sandbox, SandboxBuilder, Signal, eventually, result_of, signal, tool_request,
};
use tokio::task::JoinSet;
use tonic::Code;

fn daemon(sessions: &str) -> SandboxBuilder {
    Sandbox::adapter(SHOWCASE, 1).args(&["--sessions", sessions])
}

async fn open(client: &mut Client, id: &str, ttl_seconds: i64) {
    let request = pb::InitializeSessionRequest { session_id: id.into(), ttl_seconds, ..Default::default() };
    client.initialize_session(request).await.unwrap();
}

fn number(n: u32) -> Option<pb::Any> {
    let type_url = "type.googleapis.com/snakepit.integer".to_owned();
    Some(pb::Any { type_url, value: n.to_string().into() })
}

async fn register(client: &mut Client, session: &str, name: &str) {
    let request = pb::RegisterVariableRequest {
        session_id: session.into(),
        name: name.into(),
        r#type: "integer".into(),
        initial_value: number(0),
        ..Default::default()
    };
    client.register_variable(request).await.unwrap();
}

fn write(session: &str, name: &str, n: u32) -> pb::SetVariableRequest {
    pb::SetVariableRequest {
        session_id: session.into(),
        variable_identifier: name.into(),
        value: number(n),
        ..Default::default()
    }
}

async fn read(client: &mut Client, session: &str, name: &str) -> pb::Variable {
    let request = pb::GetVariableRequest {
        session_id: session.into(),
        variable_identifier: name.into(),
        bypass_cache: false,
    };
    client.get_variable(request).await.unwrap().into_inner().variable.unwrap()
}

#[tokio::test]
async fn a_session_file_opens_without_a_warning_after_a_clean_shutdown() {
    let files = tempfile::tempdir().unwrap();
    let sessions = format!("file:{}", files.path().join("sessions.redb").display());
    for _ in 0..2 {
        let sandbox = daemon(&sessions).start().await;
        let mut client = sandbox.client().await;
        open(&mut client, "s", 3600).await;
        let log = sandbox.log();
        assert!(!log.contains("WARN"), "{log}");
        assert_eq!(sandbox.stop().await, Some(0));
    }
}

#[tokio::test]
async fn acknowledged_writes_survive_a_kill_of_the_daemon() {
    const WRITERS: u32 = 4;
    let files = tempfile::tempdir().unwrap();
    let sessions = format!("file:{}", files.path().join("sessions.redb").display());
    let mut acknowledged = vec![0; WRITERS as usize];
    let mut sandbox = daemon(&sessions).start().await;
    let mut client = sandbox.client().await;
    open(&mut client, "s", 3600).await;
    for writer in 0..WRITERS {
        register(&mut client, "s", &format!("x{writer}")).await;
    }
    let program = pb::Program { name: "m".into(), data: "weights".into(), ..Default::default() };
    let put = pb::PutProgramRequest { session_id: "s".into(), program: Some(program), global: false };
    client.put_program(put).await.unwrap();
    for round in 0..5 {
        let mut writers = JoinSet::new();
        for writer in 0..WRITERS {
            let (mut client, mut written) = (sandbox.client().await, acknowledged[writer as usize]);
            let pid = sandbox.pid();
            writers.spawn(async move {
                let name = format!("x{writer}");
                loop {
                    match client.set_variable(write("s", &name, written + 1)).await {
                        Ok(response) => {
                            written += 1;
                            assert_eq!(response.into_inner().new_version.cast_unsigned(), written);
                        }
                        Err(_) => return (writer, written),
                    }
                    // Kill the daemon while the other writers are writing.
                    if writer == 0 && written % 50 == 20 + round {
                        signal(pid, Signal::SIGKILL);
                    }
                }
            });
        }
        for (writer, written) in writers.join_all().await {
            acknowledged[writer as usize] = written;
        }
        sandbox.wait(Duration::from_secs(20)).await;
        sandbox = daemon(&sessions).after(sandbox).start().await;
        let mut client = sandbox.client().await;
        for (writer, written) in acknowledged.iter_mut().enumerate() {
            let found = read(&mut client, "s", &format!("x{writer}")).await;
            let version = found.version.cast_unsigned();
            // One write per writer may be stored although its acknowledgement was lost.
            assert!(version == *written || version == *written + 1, "{version} of {written}");
            assert_eq!(found.value, number(version));
            *written = version;
        }
    }
    let get = pb::GetProgramRequest { session_id: "s".into(), name: "m".into(), ..Default::default() };
    let program = sandbox.client().await.get_program(get).await.unwrap().into_inner().program.unwrap();
    assert_eq!(program.data, "weights");
    let rejected = daemon(&sessions).try_start().await.unwrap_err();
    assert!(rejected.line().contains("sessions.redb"), "{}", rejected.line());
}

#[tokio::test]
async fn two_daemons_on_one_redis_share_sessions_watches_and_events() {
    const EACH: u32 = 40;
    let redis = Redis::start().await;
    let (one, other) = tokio::join!(daemon(&redis.url()).start(), daemon(&redis.url()).start());
    let (mut first, mut second) = (one.client().await, other.client().await);
    let mut events = second.watch_sessions(pb::WatchSessionsRequest {}).await.unwrap().into_inner();
    open(&mut first, "s", 0).await;
    register(&mut first, "s", "x").await;
    assert_eq!(read(&mut second, "s", "x").await.version, 0);
    let mut call = tool_request("add", &serde_json::json!({"a": 1, "b": 2}));
    call.session_id = "s".into();
    let response = second.execute_tool(call).await.unwrap().into_inner();
    assert_eq!(result_of(response), 3, "a call in a session that the other daemon created");

    // Both daemons increment with compare-and-swap while the first one watches.
    let watch = pb::WatchVariablesRequest {
        session_id: "s".into(),
        variable_identifiers: vec!["x".into()],
        include_initial_values: true,
    };
    let mut updates = first.watch_variables(watch).await.unwrap().into_inner();
    let mut writers = JoinSet::new();
    for mut client in [one.client().await, other.client().await] {
        writers.spawn(async move {
            for _ in 0..EACH {
                loop {
                    let current = read(&mut client, "s", "x").await;
                    let request = pb::SetVariableRequest {
                        expected_version: current.version,
                        check_version: true,
                        ..write("s", "x", current.version.cast_unsigned() + 1)
                    };
                    match client.set_variable(request).await {
                        Ok(_) => break,
                        Err(status) => assert_eq!(status.code(), Code::Aborted, "{status:?}"),
                    }
                }
            }
        });
    }
    writers.join_all().await;
    for version in 0..=2 * EACH {
        let variable = updates.message().await.unwrap().unwrap().variable.unwrap();
        assert_eq!(variable.version.cast_unsigned(), version, "every change once and in order");
        assert_eq!(variable.value, number(version), "no increment is lost");
    }

    open(&mut second, "short", 1).await;
    let cleanup = pb::CleanupSessionRequest { session_id: "s".into(), force: false };
    second.cleanup_session(cleanup).await.unwrap();
    let end = updates.message().await.unwrap_err();
    assert_eq!(end.code(), Code::NotFound, "{end:?}");
    let mut received = Vec::new();
    while received.len() < 4 {
        let event = tokio::time::timeout(Duration::from_secs(60), events.message()).await;
        let event = event.expect("an event arrives").unwrap().unwrap();
        received.push((event.session_id, event.event));
    }
    let expected = [("s", "created"), ("short", "created"), ("s", "deleted"), ("short", "expired")];
    assert_eq!(received, expected.map(|(id, event)| (id.to_owned(), event.to_owned())));
    let stats = first.get_session_stats(pb::GetSessionStatsRequest {}).await.unwrap().into_inner();
    assert_eq!((stats.created, stats.live, stats.deleted, stats.expired), (2, 0, 1, 1));
}

#[tokio::test]
async fn an_unusable_session_url_is_named_in_the_error() {
    for (sessions, needle) in [
        ("disk", "file:PATH"),
        ("file:/nonexistent/dir/sessions.redb", "/nonexistent/dir"),
        ("redis+unix:///nonexistent/socket", "/nonexistent/socket"),
    ] {
        let failure = daemon(sessions).try_start().await.unwrap_err();
        assert!(failure.stderr.contains(needle), "{sessions}: {}", failure.stderr);
    }
}

#[tokio::test]
async fn concurrent_updates_of_six_clients_on_two_daemons_all_succeed() {
    const EACH: u32 = 50;
    let redis = Redis::start().await;
    let (one, other) = tokio::join!(daemon(&redis.url()).start(), daemon(&redis.url()).start());
    let client = snakepit_server::Client::connect(one.url()).await.unwrap();
    let number = VariableType::new(ValueType::Integer).unwrap();
    client.session("s").await.unwrap().register("n", number, 0).await.unwrap();
    let mut writers = JoinSet::new();
    for writer in 0..6 {
        let url = if writer % 2 == 0 { one.url() } else { other.url() }.to_owned();
        writers.spawn(async move {
            let client = snakepit_server::Client::connect(&url).await.unwrap();
            let session = client.session("s").await.unwrap();
            for _ in 0..EACH {
                session.update("n", |n: u32| n + 1).await.unwrap();
            }
        });
    }
    writers.join_all().await;
    let session = client.session("s").await.unwrap();
    assert_eq!(session.get::<u32>("n").await.unwrap(), 6 * EACH);
}

#[tokio::test]
async fn a_redis_that_may_evict_sessions_causes_a_warning() {
    const WARNING: &str = "redis may evict sessions when its memory is full";
    let redis = Redis::start().await;
    let sandbox = daemon(&redis.url()).start().await;
    let client = redis::Client::open(redis.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let mut set = redis::cmd("CONFIG");
    set.arg("SET").arg("maxmemory-policy").arg("allkeys-lru").exec_async(&mut connection).await.unwrap();
    let warned = daemon(&redis.url()).start().await;
    eventually(WARNING, Duration::from_secs(10), async || warned.log().contains(WARNING)).await;
    assert!(!sandbox.log().contains(WARNING), "this daemon started before the change");
    let log = warned.log();
    let line = log.lines().find(|line| line.contains(WARNING)).expect(&log);
    assert!(line.contains("WARN") && line.contains("policy=\"allkeys-lru\""), "{line}");
    assert!(line.contains("set `maxmemory-policy noeviction`"), "{line}");
}

/// The file is on a small tmpfs in a mount namespace of the daemon.
#[tokio::test]
async fn a_full_disk_rejects_writes_until_space_is_free() {
    let can_mount = tokio::process::Command::new("unshare").args(["-rm", "true"]).status().await;
    if !can_mount.is_ok_and(|status| status.success()) {
        eprintln!("skipped: mount namespaces are not available");
        return;
    }
    let mount = tempfile::tempdir().unwrap();
    let disk = mount.path().display();
    let shell =
        format!("exec unshare -rm sh -c 'mount -t tmpfs -o size=8m tmpfs {disk} && exec \"$@\"' sh \"$@\"");
    let sandbox = daemon(&format!("file:{disk}/sessions.redb")).shell(shell).start().await;
    let mut client = sandbox.client().await;
    open(&mut client, "s", 3600).await;
    let program = |name: &str| pb::PutProgramRequest {
        session_id: "s".into(),
        program: Some(pb::Program {
            name: name.into(),
            data: vec![7; 512 * 1024].into(),
            ..Default::default()
        }),
        global: false,
    };
    let mut stored = Vec::new();
    let rejected = loop {
        let name = format!("p{}", stored.len());
        match client.put_program(program(&name)).await {
            Ok(_) => stored.push(name),
            Err(status) => break status,
        }
        assert!(stored.len() < 16, "the disk accepts more programs than it has space for");
    };
    assert!(!stored.is_empty());
    let hint = "writes succeed again once enough space is free";
    assert!(
        rejected.message().contains("the disk is almost full: ") && rejected.message().contains(hint),
        "{rejected:?}"
    );
    assert!(details_of(&rejected).cannot_have_run(), "nothing was written: {rejected:?}");
    for name in &stored {
        let get = pb::GetProgramRequest { session_id: "s".into(), name: name.clone(), ..Default::default() };
        let found = client.get_program(get).await.unwrap().into_inner().program.unwrap();
        assert_eq!(found.data.len(), 512 * 1024);
        let delete = pb::DeleteProgramRequest { session_id: "s".into(), name: name.clone(), global: false };
        client.delete_program(delete).await.unwrap();
    }
    client.put_program(program("again")).await.unwrap();
}
