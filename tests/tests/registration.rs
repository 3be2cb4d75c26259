//! Only workers that the host launched may register tools, however they are started.

use std::{
    io::Read,
    net::TcpStream,
    path::Path,
    sync::{Arc, OnceLock},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use serde_json::json;
use snakepit_proto::{
    launch::{ENV_HOST_VERSION, PROTOCOL},
    pb,
};
use snakepit_server::{FnTool, Snakepit, WorkerState, error_chain};
use snakepit_tests::{
    Client, EVENT_TIMEOUT, SHOWCASE, Sandbox, Signal, eventually, execute, processes_with, python, root,
    signal, tool_request,
};
use tokio::net::UnixStream;
use tonic::{Code, Status, transport::Endpoint};
use tower::service_fn;

async fn over_socket(path: &Path) -> Client {
    let path = path.to_owned();
    let connector = service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    Client::new(Endpoint::from_static("http://localhost").connect_with_connector(connector).await.unwrap())
}

/// A request that would add the required argument `password` to the tool `add`.
fn takeover_request(identity: Option<pb::WorkerIdentity>) -> pb::RegisterToolsRequest {
    let password = pb::ParameterSpec { name: "password".into(), required: true, ..Default::default() };
    let tool = pb::ToolRegistration { name: "add".into(), parameters: vec![password], ..Default::default() };
    pb::RegisterToolsRequest {
        tools: vec![tool],
        worker_id: "default-0-1".into(),
        identity,
        ..Default::default()
    }
}

fn is_reserved(status: &Status) -> bool {
    status.code() == Code::PermissionDenied && status.message().contains("reserved for the workers")
}

#[tokio::test]
async fn clients_cannot_register_tools() {
    let sandbox = Sandbox::adapter(SHOWCASE, 1).start().await;
    let mut clients = [sandbox.client().await, over_socket(sandbox.socket()).await];
    let before = clients[0].list_tools(pb::ListToolsRequest {}).await.unwrap().into_inner();
    let guess = pb::WorkerIdentity {
        token: "0".repeat(32),
        version: snakepit_proto::launch::VERSION.into(),
        protocol: PROTOCOL,
        ..Default::default()
    };
    for client in &mut clients {
        for identity in [None, Some(pb::WorkerIdentity::default()), Some(guess.clone())] {
            let rejected = client.register_tools(takeover_request(identity)).await.unwrap_err();
            assert!(is_reserved(&rejected), "{rejected:?}");
        }
        assert_eq!(execute(client, "add", &json!({"a": 1, "b": 2})).await.unwrap(), 3);
    }
    assert_eq!(clients[0].list_tools(pb::ListToolsRequest {}).await.unwrap().into_inner(), before);
}

fn grpcio_command(before: &str) -> String {
    format!("{before}{} {}/tests/workers/grpcio_worker.py", python().display(), root().display())
}

/// Returns the host address in a worker's command line.
fn host_address_of(pid: u32) -> Option<String> {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut arguments = line.split(|byte| *byte == 0).skip_while(|argument| *argument != b"--elixir-address");
    String::from_utf8(arguments.nth(1)?.to_vec()).ok()
}

#[tokio::test]
async fn foreign_workers_are_identified_by_their_process_and_other_processes_are_rejected() {
    for wrapper in ["", "sh -c '\"$@\"; :' sh ", "setsid --wait ", "sh -c 'setsid \"$@\"; :' sh "] {
        let sandbox = Sandbox::worker_command(&grpcio_command(wrapper), 1).start().await;
        let mut client = sandbox.client().await;
        // The worker registers its tools with each call, which fails if the host rejects the registration.
        for _ in 0..3 {
            assert_eq!(
                execute(&mut client, "add", &json!({"a": 1, "b": 2})).await.unwrap(),
                3,
                "{wrapper:?}"
            );
        }
        let tools = client.list_tools(pb::ListToolsRequest {}).await.unwrap().into_inner().tools;
        assert!(tools.iter().any(|tool| tool.spec.as_ref().unwrap().name == "add"), "{wrapper:?}: {tools:?}");
        assert!(is_reserved(&client.register_tools(takeover_request(None)).await.unwrap_err()));

        let worker = sandbox.worker_pids().await[0];
        let address = host_address_of(worker).unwrap();
        assert!(!sandbox.url().contains(&address), "each worker has a separate host address");
        let mut stranger = TcpStream::connect(&address).unwrap();
        stranger.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let read = stranger.read(&mut [0; 64]);
        let is_closed = match &read {
            Ok(count) => *count == 0,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        };
        assert!(is_closed, "{wrapper:?}: {read:?}");
        eventually("the host logs the rejection", Duration::from_secs(10), async || {
            sandbox.log().contains("does not belong to this worker")
        })
        .await;

        signal(worker, Signal::SIGKILL);
        eventually("the address of an ended worker is closed", Duration::from_secs(10), async || {
            TcpStream::connect(&address).is_err()
        })
        .await;
        for pid in processes_with(&address) {
            // `setsid` moved the process to another process group, which the host does not kill.
            signal(pid, Signal::SIGKILL);
        }
    }
}

/// The tool also makes requests that only clients may make.
#[tokio::test]
async fn workers_may_make_only_the_requests_that_they_need() {
    let sandbox = Sandbox::worker_command(&grpcio_command(""), 1).start().await;
    let mut client = sandbox.client().await;
    let response = client.execute_tool(tool_request("ask_host", &json!({}))).await.unwrap().into_inner();
    assert!(response.success, "{}", response.error_message);
    let codes = snakepit_tests::result_of(response);
    for allowed in ["Ping", "Heartbeat", "GetExposedElixirTools"] {
        assert_eq!(codes[allowed], "OK", "{codes}");
    }
    for forbidden in [
        "ExecuteTool",
        "ListTools",
        "ListWorkers",
        "RestartWorkers",
        "GetPoolStatus",
        "ListSessions",
        "GetSessionStats",
    ] {
        assert_eq!(codes[forbidden], "PERMISSION_DENIED", "{codes}");
    }
}

/// The host identifies nested calls by the process of the worker. A client can send the same header, but its call stays a
/// separate call.
#[tokio::test]
async fn a_client_cannot_impersonate_a_nested_call_of_a_worker() {
    let dir = tempfile::tempdir().unwrap();
    let this: Arc<OnceLock<Snakepit>> = Arc::default();
    let host = Arc::clone(&this);
    let again = move |()| {
        let host = host.get().unwrap().clone();
        async move { host.execute::<f64>("add", json!({"a": 1, "b": 2})).await.map_err(|error| error.to_string()) }
    };
    let host = Snakepit::builder().adapter(SHOWCASE).python(python()).workers(1).run_dir(dir.path());
    let host = host.listen("127.0.0.1:0".parse().unwrap()).fn_tool(FnTool::typed("again", again));
    let host = host.start().await.unwrap();
    this.set(host.clone()).unwrap();

    let call = host.execute::<serde_json::Value>("call_host", json!({"tool_name": "again"}));
    let rejected = call.await.unwrap_err().to_string();
    assert!(rejected.contains("would wait for itself"), "{rejected}");

    let worker = host.status().workers[0].id.to_string();
    let url = format!("http://{}", host.address().unwrap());
    let mut client = Client::new(Endpoint::new(url).unwrap().connect().await.unwrap());
    let victim = host.execute::<f64>("sleep_for", json!({"seconds": 1}));
    let forged = async {
        eventually("the victim runs", Duration::from_secs(10), async || {
            host.status().workers[0].state == WorkerState::Busy
        })
        .await;
        let request = pb::ExecuteElixirToolRequest { tool_name: "again".into(), ..Default::default() };
        let mut request = tonic::Request::new(request);
        request.metadata_mut().insert("snakepit-worker-id", worker.parse().unwrap());
        client.execute_elixir_tool(request).await.unwrap().into_inner()
    };
    let (victim, forged) = futures_util::future::join(victim, forged).await;
    victim.unwrap();
    assert!(forged.success, "the forged call waits for the victim like any other: {}", forged.error_message);
    host.shutdown().await.unwrap();
}

/// Creates an interpreter that runs a substitute for the runtime.
fn substitute_bridge(dir: &Path) -> std::path::PathBuf {
    let script = root().join("tests/workers/substitute_bridge.py");
    interpreter(dir, &format!("exec '{}' '{}' \"$@\"", python().display(), script.display()))
}

/// Creates an interpreter from a line of shell.
fn interpreter(dir: &Path, line: &str) -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = dir.join("python");
    std::fs::write(&path, format!("#!/bin/sh\n{line}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Starts a host with a substitute of this kind, and returns the error.
async fn start_with(kind: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let stubs = root().join(".venv/stubs").display().to_string();
    let host = Snakepit::builder()
        .adapter("any:Any")
        .python(substitute_bridge(dir.path()))
        .env("SNAKEPIT_TEST_STUBS", stubs)
        .env("OTHER_BRIDGE", kind)
        .workers(1)
        .run_dir(dir.path().join("run"));
    error_chain(&host.start().await.unwrap_err()).to_string()
}

#[tokio::test]
async fn the_error_of_an_incompatible_runtime_names_both_versions() {
    let ours = snakepit_proto::launch::VERSION;
    let error = start_with("old").await;
    assert!(error.contains("FAILED_PRECONDITION") && error.contains("older than its host"), "{error}");
    assert!(error.contains(ours), "{error}");
    let fix_of_versions = "install the same version of both";
    let fix_of_commits = "build both from the same commit";
    // A runtime of another commit can have the same version.
    for (kind, fix) in [
        (format!("9.9.9 {PROTOCOL}"), fix_of_versions),
        (format!("{ours} 99"), fix_of_commits),
        (format!("{ours} 1"), fix_of_commits),
    ] {
        let error = start_with(&kind).await;
        let (theirs, protocol) = kind.split_once(' ').unwrap();
        assert!(error.contains("FAILED_PRECONDITION"), "{error}");
        let host = format!("snakepit {ours} (protocol {PROTOCOL})");
        for needle in [theirs, &format!("protocol {protocol}"), &host, fix] {
            assert!(error.contains(needle), "no {needle} in {error}");
        }
    }
    // Versions that differ only in the patch number are compatible.
    let (release, _) = ours.rsplit_once('.').unwrap();
    let error = start_with(&format!("{release}.999 {PROTOCOL}")).await;
    assert!(error.contains("registered: True"), "{error}");
}

/// Python files of another commit find the native runtime of an earlier build next to them.
#[tokio::test]
async fn python_files_reject_a_native_runtime_of_another_protocol() {
    let dir = tempfile::tempdir().unwrap();
    let package = dir.path().join("snakepit_bridge");
    let line = format!("cp -r '{}' '{}'", bridge().display(), package.display());
    assert!(std::process::Command::new("sh").args(["-c", &line]).status().unwrap().success());
    let init = package.join("__init__.py");
    let text = std::fs::read_to_string(&init).unwrap();
    let newer = text.replace(&format!("\n_PROTOCOL = {PROTOCOL}\n"), "\n_PROTOCOL = 99\n");
    assert_ne!(newer, text, "the Python files have the protocol of the host");
    std::fs::write(&init, newer).unwrap();

    let line = format!("PYTHONPATH='{}' exec '{}' \"$@\"", dir.path().display(), python().display());
    let failure = Sandbox::adapter(SHOWCASE, 1).python(interpreter(dir.path(), &line)).try_start().await;
    let failure = failure.unwrap_err();
    let message = format!(
        "the native runtime {} has protocol {PROTOCOL}, its Python files have protocol 99; reinstall snakepit-bridge (in a \
         checkout: `cargo xtask setup`)",
        snakepit_proto::launch::VERSION
    );
    assert!(failure.stderr.contains(&message), "{}", failure.stderr);
}

/// The directory of the Python package.
fn bridge() -> std::path::PathBuf {
    root().join("snakepit-python/python/snakepit_bridge")
}

/// Old hosts do not pass their version to the worker.
#[tokio::test]
async fn a_runtime_rejects_a_host_without_a_version() {
    let dir = tempfile::tempdir().unwrap();
    let line = format!("unset {ENV_HOST_VERSION}; exec '{}' \"$@\"", python().display());
    let failure = Sandbox::adapter(SHOWCASE, 1).python(interpreter(dir.path(), &line)).try_start().await;
    let failure = failure.unwrap_err();
    assert_eq!(failure.code, Some(5), "{}", failure.stderr);
    let message = format!(
        "the host that started this worker is older than snakepit_bridge {}, and sends no version; install the same version \
         of both",
        snakepit_proto::launch::VERSION
    );
    assert!(failure.line().contains(&message), "{}", failure.line());
}

#[tokio::test]
async fn a_token_is_valid_only_for_the_process_that_the_host_launched() {
    let error = start_with(&format!("stolen {} {PROTOCOL}", snakepit_proto::launch::VERSION)).await;
    let (stranger, worker) = error.split_once(" / then itself: ").unwrap_or_else(|| panic!("{error}"));
    assert!(stranger.contains("PERMISSION_DENIED"), "{error}");
    assert!(worker.contains("PERMISSION_DENIED"), "the attempt invalidated the token: {error}");
}

#[tokio::test]
async fn an_edited_adapter_takes_effect_when_the_last_worker_with_the_old_code_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    // A worker that starts while the file `wait` exists does not become ready until the file is removed.
    let wait = dir.path().join("wait");
    let write = |parameters: &str, result: &str| {
        let code = format!(
            "import pathlib, time\nfrom snakepit_bridge import BaseAdapter, tool\nfor _ in range(3000):\n    \
             if not pathlib.Path('wait').exists(): break\n    time.sleep(0.01)\nclass Edited(BaseAdapter):\n    \
             @tool\n    def add(self, {parameters}) -> int:\n        return {result}\n"
        );
        std::fs::write(dir.path().join("edited.py"), code).unwrap();
    };
    write("a: int", "a");
    let sandbox = Sandbox::adapter("edited:Edited", 2).working_dir(dir.path()).start().await;
    let old = sandbox.worker_pids().await;
    let client = sandbox.client().await;
    let call = || {
        let mut client = client.clone();
        async move {
            let response = client.execute_tool(tool_request("add", &json!({"a": 1, "b": 2}))).await;
            response.map(|response| snakepit_tests::result_of(response.into_inner()))
        }
    };
    write("a: int, b: int = 0", "a + b");
    signal(old[0], Signal::SIGKILL);
    eventually("the worker is replaced", EVENT_TIMEOUT, async || {
        let pids = sandbox.worker_pids().await;
        pids.len() == 2 && !pids.contains(&old[0])
    })
    .await;
    let problem = "tool `add` is served by worker `default-";
    let log = sandbox.log();
    assert!(log.contains(problem) && log.contains("another description: the parameter `b` is new"), "{log}");
    let rejected = call().await.unwrap_err();
    assert!(rejected.message().contains("argument `b`"), "the old description applies: {rejected:?}");
    std::fs::write(&wait, "").unwrap();
    signal(old[1], Signal::SIGKILL);
    eventually("the new description applies", EVENT_TIMEOUT, async || {
        call().await.is_ok_and(|result| result == json!(3))
    })
    .await;
    // Only the first replacement can have announced it.
    let ready = sandbox.workers().await.iter().filter(|worker| worker.state == "idle").count();
    assert_eq!(ready, 1, "the second replacement has not announced its tools");
    std::fs::remove_file(wait).unwrap();
}
