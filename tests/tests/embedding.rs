//! The embedding API with real workers: calls, streams, host tools, shutdown, sessions, variables and programs.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::TryStreamExt;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use snakepit_proto::pb;
use snakepit_server::{
    Builder, Client as Remote, Created, Error, FnTool, HostHandle, NewSession, NewVariable, Note, Payload,
    Program, SessionError, SessionHandle, SetVariable, Snakepit, Source, StartError, StartErrorKind,
    ToolError, ValueType, Variable, VariableType, WatchEvent, error_chain,
};
use snakepit_tests::{Client, SHOWCASE, Signal, eventually, is_alive, python, root, signal, tool_request};
use tokio::sync::Notify;
use tonic::transport::Endpoint;

#[derive(Deserialize, JsonSchema)]
struct Pair {
    a: i64,
    b: i64,
}

fn builder(run_dir: &tempfile::TempDir) -> Builder {
    Snakepit::builder()
        .adapter(SHOWCASE)
        .python(python())
        .run_dir(run_dir.path())
        .workers(2)
        .multiplex(!snakepit_tests::plain_calls())
        .host_tool("multiply", |pair: Pair| async move { Ok::<_, Infallible>(pair.a * pair.b) })
        .host_tool("refuse", |_: Value| async move { Err::<Value, _>("not today") })
        .host_tool("panic", |_: Value| async move {
            if true {
                panic!("on purpose");
            }
            Ok::<_, Infallible>(())
        })
}

async fn start(run_dir: &tempfile::TempDir) -> Snakepit {
    builder(run_dir).start().await.unwrap()
}

#[tokio::test]
#[allow(clippy::disallowed_methods, reason = "the test starts processes")]
async fn shutdown_does_not_kill_daemons_of_the_embedding_program() {
    let dir = tempfile::tempdir().unwrap();
    let daemonize = || {
        let script = "(setsid sh -c 'echo $$; exec sleep 600 >/dev/null 2>&1' &)";
        let pid = std::process::Command::new("sh").args(["-c", script]).output().unwrap().stdout;
        String::from_utf8(pid).unwrap().trim().parse::<u32>().unwrap()
    };
    let mut pids = vec![daemonize()];
    let snakepit = start(&dir).await;
    pids.push(daemonize());
    for worker in snakepit.status().workers.iter().filter_map(|worker| worker.pid) {
        signal(worker, Signal::SIGKILL);
        eventually("the worker is dead", Duration::from_secs(10), async || !is_alive(worker)).await;
    }
    pids.push(daemonize());
    snakepit.shutdown().await.unwrap();
    for pid in pids {
        assert!(is_alive(pid), "the daemon does not belong to a worker");
        signal(pid, Signal::SIGKILL);
    }
}

/// Opens a connection to a host that listens on TCP.
async fn client(snakepit: &Snakepit) -> Client {
    let url = format!("http://{}", snakepit.address().unwrap());
    Client::new(Endpoint::from_shared(url).unwrap().connect().await.unwrap())
}

#[tokio::test]
async fn typed_calls_and_streams_work_until_shutdown() {
    let dir = tempfile::tempdir().unwrap();
    let snakepit = start(&dir).await;
    let sum: i64 = snakepit.execute("add", json!({"a": 1, "b": 2})).await.unwrap();
    assert_eq!(sum, 3);
    let items: Vec<Value> =
        snakepit.execute_stream("count", json!({"n": 1000})).await.unwrap().try_collect().await.unwrap();
    assert_eq!(items.len(), 1000);

    let mismatch = snakepit.execute::<String>("add", json!({"a": 1, "b": 2})).await.unwrap_err();
    assert!(matches!(mismatch, Error::WrongResult { .. }), "{mismatch}");
    let expired = snakepit.call("sleep_for").args(json!({"seconds": 9})).timeout(Duration::from_millis(200));
    let expired = expired.unary::<Value>().await.unwrap_err();
    assert!(matches!(expired, Error::Tool(ToolError::DeadlineExceeded { .. })), "{expired}");

    let pids: Vec<u32> = snakepit.status().workers.iter().filter_map(|worker| worker.pid).collect();
    snakepit.shutdown().await.unwrap();
    assert!(pids.iter().all(|pid| !is_alive(*pid)));
    let after = snakepit.execute::<i64>("add", json!({"a": 1, "b": 2})).await.unwrap_err();
    assert!(matches!(after, Error::Tool(ToolError::ShuttingDown { may_have_run: false, .. })), "{after}");
    snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn python_calls_host_tools() {
    let dir = tempfile::tempdir().unwrap();
    let snakepit = start(&dir).await;
    let session = snakepit.session("s").await.unwrap();
    let call = |tool: &str, arguments: Value| {
        session.execute::<Value>("call_host", json!({"tool_name": tool, "arguments": arguments}))
    };
    assert_eq!(call("multiply", json!({"a": 6, "b": 7})).await.unwrap(), 42);
    // A failure of a host tool raises a typed exception in Python. The Python tool does not catch it, so it fails too.
    for (tool, arguments, needle) in [
        ("refuse", json!({}), "snakepit_bridge.errors.HostToolError: not today"),
        ("panic", json!({}), "panicked"),
        ("multiply", json!({"a": 6}), "b"),
        ("no_such", json!({}), "snakepit_bridge.errors.NotFoundError: host tool `no_such` not found"),
    ] {
        let error = call(tool, arguments).await.unwrap_err();
        assert!(matches!(error, Error::Tool(ToolError::Failed(_))), "{tool}: {error}");
        assert!(error.to_string().contains(needle), "{tool}: {error}");
    }
    // Rust can call host tools too.
    assert_eq!(snakepit.execute::<i64>("multiply", json!({"a": 2, "b": 3})).await.unwrap(), 6);
    snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn programs_are_stored_and_raw_bytes_inside_a_map_are_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let snakepit = start(&dir).await;
    let session = snakepit.session("s").await.unwrap();
    session.put_program("m", Program::new("weights", "text/plain")).await.unwrap();
    assert_eq!(session.program("m").await.unwrap().data, "weights");
    assert_eq!(session.info().await.unwrap().program_count, 1);
    session.clone().delete().await.unwrap();
    assert!(matches!(session.program("m").await, Err(Error::Session(_))));

    let bytes = Payload::bytes(Bytes::from_static(b"\x00\xff"));
    let reply = snakepit.call("echo").payload("data", bytes).payload_reply().await.unwrap();
    // `echo` returns a map, which contains the raw bytes.
    let echoed: std::collections::BTreeMap<String, Bytes> = reply.value.to_serde().unwrap();
    assert_eq!(&echoed["data"][..], b"\x00\xff");
    snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn workers_cannot_replace_host_tools() {
    let dir = tempfile::tempdir().unwrap();
    let snakepit = builder(&dir).listen(([127, 0, 0, 1], 0).into()).start().await.unwrap();
    let mut client = client(&snakepit).await;
    let exposed = client.get_exposed_elixir_tools(pb::GetExposedElixirToolsRequest::default()).await.unwrap();
    let names: Vec<_> = exposed.into_inner().tools.into_iter().map(|tool| tool.name).collect();
    assert_eq!(names, ["multiply", "panic", "refuse"]);

    assert_eq!(snakepit.execute::<i64>("multiply", json!({"a": 2, "b": 3})).await.unwrap(), 6);
    let (_, provider) = snakepit.tools().into_iter().find(|(tool, _)| &*tool.name == "multiply").unwrap();
    assert_eq!(provider, "host");
    snakepit.shutdown().await.unwrap();
    // A worker with a tool of the same name cannot start.
    let add = FnTool::typed("add", |_: Value| async { Ok::<_, String>(()) });
    let error = builder(&dir).fn_tool(add).start().await.unwrap_err();
    assert!(format!("{error:?}").contains("tool name `add` is taken by host"), "{error:?}");
    assert_eq!(error.kind(), StartErrorKind::Tools);
}

#[tokio::test]
async fn a_failed_start_releases_its_port_and_directory() {
    let dir = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let broken = || Snakepit::builder().adapter("no.such.module:Adapter").python(python()).workers(1);
    for (builder, needle) in [
        (broken().workers(0), "`workers` is 0"),
        (broken(), "worker `default-0-1` did not start: worker cannot start: "),
    ] {
        let builder = builder.listen(port).run_dir(dir.path());
        let error = error_chain(&builder.start().await.unwrap_err()).to_string();
        assert!(error.contains(needle), "no {needle:?} in {error}");
        drop(std::net::TcpListener::bind(port).expect("the port is still bound"));
        let files: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(files.iter().all(|name| name == "lock"), "{files:?}");
    }
}

/// A host whose worker starts a process while it imports its adapter. The import never finishes.
struct StuckStart {
    dir: tempfile::TempDir,
    pid_files: tempfile::TempDir,
}

impl StuckStart {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), pid_files: tempfile::tempdir().unwrap() }
    }

    fn builder(&self) -> Builder {
        Snakepit::builder()
            .adapter("slow_import:Adapter")
            .python(python())
            .env("PYTHONPATH", root().join("tests/adapters").display().to_string())
            .env("SNAKEPIT_TEST_PIDS", self.pid_files.path().display().to_string())
            .run_dir(self.dir.path())
            .workers(1)
    }

    /// Returns the process that the worker started, if it exists already.
    fn grandchild(&self) -> Option<u32> {
        let files = std::fs::read_dir(self.pid_files.path()).unwrap().map(|file| file.unwrap().path());
        // A file that is being written has an extension.
        let mut complete = files.filter(|file| file.extension().is_none());
        complete.next().map(|file| std::fs::read_to_string(file).unwrap().parse().unwrap())
    }

    async fn wait_for_import(&self) {
        let has_begun = async || self.grandchild().is_some();
        eventually("the worker imports its adapter", Duration::from_secs(10), has_begun).await;
    }
}

#[tokio::test]
async fn an_interrupted_start_kills_processes_that_the_worker_started() {
    let stuck = StuckStart::new();
    let error = stuck.builder().start_unless(stuck.wait_for_import()).await.unwrap_err();
    assert!(matches!(error, StartError::Cancelled), "{error}");
    assert!(!is_alive(stuck.grandchild().unwrap()), "a process of the worker is still running");
}

#[tokio::test]
async fn a_call_before_the_first_worker_is_ready_fails_as_retryable() {
    let stuck = StuckStart::new();
    let call = async {
        stuck.wait_for_import().await;
        let host =
            std::fs::read_dir(stuck.dir.path()).unwrap().map(|entry| entry.unwrap().path().join("host.sock"));
        let socket = host.into_iter().find(|socket| socket.exists()).unwrap();
        let client = Remote::connect(&format!("unix:{}", socket.display())).await.unwrap();
        client.execute::<Value>("anything", json!({})).await.unwrap_err()
    };
    tokio::select! {
        outcome = stuck.builder().start() => panic!("{outcome:?}"),
        error = call => {
            assert!(matches!(error, Error::Tool(ToolError::Unavailable { retry_after: Some(_), .. })), "{error:?}");
        }
    }
    let grandchild = stuck.grandchild().unwrap();
    eventually("the start ended", Duration::from_secs(5), async || !is_alive(grandchild)).await;
}

#[tokio::test]
async fn a_dropped_start_is_cleaned_up_in_the_background() {
    let stuck = StuckStart::new();
    tokio::select! {
        outcome = stuck.builder().start() => panic!("{outcome:?}"),
        () = stuck.wait_for_import() => {}
    }
    let grandchild = stuck.grandchild().unwrap();
    let is_clean =
        async || !is_alive(grandchild) && std::fs::read_dir(stuck.dir.path()).unwrap().count() == 1;
    eventually("only the lock remains", Duration::from_secs(5), is_clean).await;
}

#[tokio::test]
async fn very_long_timeouts_are_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let endless = Duration::from_secs(4_000_000_000_000);
    let builder = builder(&dir).default_timeout(Some(Duration::MAX)).start_timeout(Duration::MAX);
    let snakepit = builder.start().await.unwrap();
    let call = snakepit.call("add").args(json!({"a": 1, "b": 2}));
    assert_eq!(call.timeout(endless).unary::<i64>().await.unwrap().value, 3);
    assert_eq!(snakepit.execute::<i64>("add", json!({"a": 1, "b": 2})).await.unwrap(), 3);
    snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn shutdown_cancels_a_host_tool_and_ends_its_call() {
    struct SetOnDrop(Arc<AtomicBool>);
    impl Drop for SetOnDrop {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    let dir = tempfile::tempdir().unwrap();
    let (began, ended) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(false)));
    let (beginning, ending) = (Arc::clone(&began), Arc::clone(&ended));
    let endless = move |_: Value| {
        let (beginning, ending) = (Arc::clone(&beginning), SetOnDrop(Arc::clone(&ending)));
        async move {
            let _ending = ending;
            beginning.notify_one();
            std::future::pending::<Result<(), Infallible>>().await
        }
    };
    let builder = builder(&dir).host_tool("endless", endless).listen(([127, 0, 0, 1], 0).into());
    let snakepit = builder.start().await.unwrap();
    let mut client = client(&snakepit).await;
    let call = tokio::spawn(async move { client.execute_tool(tool_request("endless", &json!({}))).await });
    began.notified().await;
    snakepit.shutdown_within(Duration::ZERO).await.unwrap();
    let status = call.await.unwrap().unwrap_err();
    assert!(status.message().starts_with("the host is shutting down"), "the call is cancelled: {status:?}");
    eventually("the handler is dropped", Duration::from_secs(1), async || ended.load(Ordering::SeqCst)).await;
}

#[tokio::test]
async fn dropping_the_host_kills_the_workers_although_sessions_and_calls_still_exist() {
    let dir = tempfile::tempdir().unwrap();
    let snakepit = start(&dir).await;
    let session = snakepit.session("s").await.unwrap();
    let call = snakepit.call("add").args(json!({"a": 1, "b": 2}));
    let pids: Vec<u32> = snakepit.status().workers.iter().filter_map(|worker| worker.pid).collect();
    drop(snakepit);
    let have_ended = async || pids.iter().all(|pid| !is_alive(*pid));
    eventually("the workers have ended", Duration::from_secs(5), have_ended).await;
    for outcome in [call.unary::<i64>().await.map(drop), session.execute("whoami", json!({})).await] {
        let error = outcome.unwrap_err();
        assert!(matches!(error, Error::Tool(ToolError::ShuttingDown { may_have_run: false, .. })), "{error}");
    }
}

#[tokio::test]
async fn sessions_work_the_same_in_an_embedded_and_in_a_remote_host() {
    let dir = tempfile::tempdir().unwrap();
    let snakepit = builder(&dir).listen(([127, 0, 0, 1], 0).into()).start().await.unwrap();
    let remote = Remote::connect(&snakepit.address().unwrap().to_string()).await.unwrap();
    check_session(snakepit.session("s").await.unwrap()).await;
    check_session(remote.session("t").await.unwrap()).await;
    assert_eq!(snakepit.sessions().stats().await.unwrap().live, 0);

    let ttl = Some(Duration::from_millis(1500));
    let new = NewSession { metadata: [("user".to_owned(), "u".to_owned())].into(), ttl };
    let session = remote.session_with("u", new).await.unwrap();
    let info = session.info().await.unwrap();
    assert_eq!((&info.metadata["user"], info.ttl), ("u", Duration::from_secs(2)));
    session.register("n", VariableType::new(ValueType::Integer).unwrap(), 0).await.unwrap();
    let mut watch = session.watch(["n"]).await.unwrap();
    snakepit.shutdown().await.unwrap();
    let end = watch.next().await.unwrap().unwrap_err();
    assert!(matches!(end, Error::Tool(ToolError::ShuttingDown { .. })), "{end:?}");
    assert!(watch.next().await.is_none());
    let lost = session.get::<i64>("n").await.unwrap_err();
    assert!(matches!(lost, Error::Unreachable { .. }), "{lost:?}");
}

async fn check_session(session: SessionHandle<impl HostHandle>) {
    check_variables(&session).await;
    check_programs(&session).await;
    let info = session.info().await.unwrap();
    assert_eq!((info.id.clone(), info.variable_count, info.program_count), (session.id().clone(), 0, 1));
    assert!(
        info.bytes > 0 && info.expires_in <= info.ttl && info.ttl == Duration::from_secs(3600),
        "{info:?}"
    );
    let mut watch = session.watch_all().with_initial().await.unwrap();
    session.clone().delete().await.unwrap();
    let end = watch.next().await.unwrap().unwrap_err();
    assert!(matches!(end, Error::Session(SessionError::NotFound { .. })), "{end}");
    assert!(watch.next().await.is_none());
    assert!(matches!(session.info().await, Err(Error::Session(SessionError::NotFound { .. }))));
}

async fn check_programs(session: &SessionHandle<impl HostHandle>) {
    let put = |data: &'static str| session.put_program("m", Program::new(data, "text/plain"));
    assert_eq!((put("a").await.unwrap(), put("b").await.unwrap()), (Created::New, Created::Existing));
    assert_eq!(session.program("m").await.unwrap().data, "b");
    let listed = session.programs().await.unwrap();
    assert_eq!((listed.len(), listed[0].name.as_str(), listed[0].size), (1, "m", 1));
    put("c").await.unwrap();
    session.delete_program("m").await.unwrap();
    let missing = session.program("m").await.unwrap_err();
    assert!(matches!(missing, Error::Session(SessionError::ProgramNotFound { .. })), "{missing}");
    put("d").await.unwrap();
}

async fn check_variables(session: &SessionHandle<impl HostHandle>) {
    let ty = VariableType::with_constraints(ValueType::Integer, r#"{"min": 0}"#).unwrap();
    let id = session.register("n", ty, 1).await.unwrap();
    assert_eq!(session.set("n", 2).await.unwrap(), 1);
    assert_eq!(session.get::<i64>(id.as_str()).await.unwrap(), 2);
    let mut watch = session.watch(["n"]).await.unwrap();

    let updates = (0..20).map(|_| session.update("n", |n: i64| n + 1));
    let results = futures_util::future::join_all(updates).await;
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    assert_eq!(session.get::<i64>("n").await.unwrap(), 22, "no update is lost");
    for version in 2..22 {
        let WatchEvent::Update(update) = watch.next().await.unwrap().unwrap() else {
            panic!("an update was lost")
        };
        assert_eq!(update.variable.version, version);
    }

    let payload = |n: i64| Payload::try_from_serde(&n).unwrap();
    let stale = SetVariable::new("n", payload(0)).if_version(3);
    let rejected = session.write(stale.clone()).await.unwrap_err();
    assert!(
        matches!(rejected, Error::Session(SessionError::VersionConflict { actual: 21, .. })),
        "{rejected}"
    );
    let rejected = session.write_all(vec![stale]).await.unwrap_err();
    let Error::Session(SessionError::BatchRejected { errors }) = rejected else { panic!("{rejected}") };
    assert!(matches!(errors["n"], SessionError::VersionConflict { actual: 21, .. }), "{errors:?}");
    let outside = session.update("n", |n: i64| n - 100).await.unwrap_err().to_string();
    assert_eq!(outside, "variable `n`: value -78 is below minimum 0");
    assert_eq!(session.history("n", 2).await.unwrap()[1].version, 20);
    assert_eq!(session.rollback("n", 20).await.unwrap().version, 22);
    assert_eq!(session.variables("*").await.unwrap().len(), 1);
    let note = || Note { changed_by: Some("auditor".into()), ..Note::default() };
    let write = |n: i64| SetVariable { note: note(), ..SetVariable::new("n", payload(n)).if_version(22) };
    assert_eq!(session.write_all(vec![write(1)]).await.unwrap(), [23]);
    assert_eq!(session.history("n", 1).await.unwrap()[0].note, note());
    let outside = session.set("n", -1).await.unwrap_err().to_string();
    assert_eq!(outside, "variable `n`: value -1 is below minimum 0");
    let twice = session.write_all(vec![write(1), write(2)]).await.unwrap_err();
    let Error::Session(SessionError::BatchRejected { errors }) = twice else { panic!("{twice}") };
    assert!(matches!(errors["n"], SessionError::WrittenTwice { .. }), "{errors:?}");
    let nameless = session.get::<i64>("").await.unwrap_err();
    assert!(matches!(nameless, Error::Session(SessionError::VariableNotFound { .. })), "{nameless}");
    let evicted = session.rollback("n", 1).await.unwrap_err();
    assert!(
        matches!(evicted, Error::Session(SessionError::VersionNotKept { oldest: 3, newest: 23, .. })),
        "{evicted:?}"
    );
    session.delete_variable("n").await.unwrap();
    let missing = session.get::<i64>("n").await.unwrap_err();
    assert!(matches!(missing, Error::Session(SessionError::VariableNotFound { .. })), "{missing}");
}

#[tokio::test]
async fn arrays_are_vectors_in_rust_and_numpy_arrays_in_python() {
    let dir = tempfile::tempdir().unwrap();
    let adapters = root().join("tests/adapters").display().to_string();
    let builder = builder(&dir).adapter("state_tools:StateTools").env("PYTHONPATH", adapters);
    let snakepit = builder.workers(1).listen(([127, 0, 0, 1], 0).into()).start().await.unwrap();
    let remote = Remote::connect(&snakepit.address().unwrap().to_string()).await.unwrap();
    check_arrays(&snakepit.session("s").await.unwrap()).await;
    check_arrays(&remote.session("t").await.unwrap()).await;
    snakepit.shutdown().await.unwrap();
}

async fn check_arrays(session: &SessionHandle<impl HostHandle>) {
    let mut watch = session.watch_all().await.unwrap();
    for (name, kind, value) in [
        ("vector", ValueType::Embedding, Payload::embedding(&[0.5_f32, 3.0])),
        ("grid", ValueType::Tensor, Payload::tensor(&[2, 1], &[2_i64, 5]).unwrap()),
    ] {
        let ty = VariableType::new(kind).unwrap();
        session.register_with(name, NewVariable { ty, value, note: Note::default() }).await.unwrap();
        session.call("halve").args(json!({"name": name})).unary::<()>().await.unwrap();
    }
    assert_eq!(session.get::<Vec<f32>>("vector").await.unwrap(), [0.25, 1.5]);
    assert_eq!(session.get::<Vec<[f64; 1]>>("grid").await.unwrap(), [[1.0], [2.5]]);

    // The source is Python for every reader, because a Python tool wrote the value.
    let written = session.history("vector", 1).await.unwrap().remove(0).note;
    assert_eq!((written.source, written.changed_by.is_some()), (Source::Python, true));
    for source in [Source::Host, Source::Python, Source::Host, Source::Python] {
        let Some(Ok(WatchEvent::Update(update))) = watch.next().await else { panic!("an update was lost") };
        assert_eq!((update.note.source, update.variable.source), (source, source));
        assert!(update.variable.value.binary().is_some());
    }

    // Python sends lists of this length as buffers.
    let long: Vec<_> = (0..3000).map(|n| f64::from(n) + 0.5).collect();
    let arguments = json!({"name": "vector", "value": long});
    session.call("set_value").args(arguments).unary::<()>().await.unwrap();
    assert!(session.variable("vector").await.unwrap().value.binary().is_some());
    assert_eq!(session.get::<Vec<f64>>("vector").await.unwrap(), long);
    let first_two =
        |variable: &Variable| Ok(Payload::embedding(&variable.value.to_serde::<Vec<f64>>()?[..2]));
    session.update_payload("vector", first_two).await.unwrap();
    session.call("halve").args(json!({"name": "vector"})).unary::<()>().await.unwrap();
    session.update("vector", |vector: Vec<f64>| vector).await.unwrap();
    assert_eq!(session.variable("vector").await.unwrap().value.json(), &b"[0.25,0.75]"[..]);
}

#[tokio::test]
async fn watches_above_the_limit_of_a_connection_are_rejected() {
    const LIMIT: usize = 1000;
    let dir = tempfile::tempdir().unwrap();
    let snakepit = builder(&dir).workers(1).listen(([127, 0, 0, 1], 0).into()).start().await.unwrap();
    let client = Remote::connect(&snakepit.address().unwrap().to_string()).await.unwrap();
    let sessions = [client.session("s").await.unwrap(), client.session("t").await.unwrap()];
    let mut watches = Vec::new();
    for n in 0..LIMIT {
        watches.push(sessions[n % 2].watch_all().await.unwrap());
    }
    let rejected = sessions[0].watch_all().await.unwrap_err();
    assert!(matches!(rejected, Error::Session(SessionError::TooManyWatches { limit: LIMIT })), "{rejected}");
    sessions[0].register("n", VariableType::new(ValueType::Integer).unwrap(), 0).await.unwrap();
    assert_eq!(sessions[0].get::<i64>("n").await.unwrap(), 0);
    watches.pop();
    sessions[0].watch(["n"]).await.unwrap();
    snakepit.shutdown().await.unwrap();
}
