//! Connections that stall or break: other clients are unaffected, and the host frees the resources in bounded time.

use std::{
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::StreamExt;
use serde_json::json;
use snakepit_server::{Client, Error, RemoteHost, SessionHandle, ToolError, ValueType, VariableType};
use snakepit_tests::{SHOWCASE, Sandbox, Signal, eventually, python, root, signal};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, ReadHalf, WriteHalf, split},
    net::{TcpListener, TcpStream},
    process::Command,
    sync::watch,
    task::JoinSet,
};

/// The time limit for the host to close a connection. It pings a silent client after 10 s, and waits 8 s for the reply.
const CLOSED_WITHIN: Duration = Duration::from_secs(40);

/// The mode of a [`FaultyProxy`].
#[derive(Debug, Clone, Copy, PartialEq)]
enum Mode {
    Forward,
    /// Keeps connections open without reading from them.
    Stall,
    /// Reads and buffers all bytes, and forwards them in the next mode `Forward`.
    Buffer,
    /// Closes connections.
    Cut,
}

/// The bytes that a connection in mode `Buffer` has received from one side.
type BufferedBytes = Arc<Mutex<Vec<u8>>>;

/// A TCP proxy in front of a host that can stall, delay and close connections. It ends when it is dropped.
struct FaultyProxy {
    address: String,
    mode: watch::Sender<Mode>,
    /// For each connection so far, the buffered bytes from the client and from the host.
    buffered: Arc<Mutex<Vec<[BufferedBytes; 2]>>>,
    _tasks: JoinSet<()>,
}

impl FaultyProxy {
    async fn start(host: &str) -> Self {
        let host = host.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (mode, modes) = watch::channel(Mode::Forward);
        let buffered = Arc::<Mutex<Vec<[BufferedBytes; 2]>>>::default();
        let connections = Arc::clone(&buffered);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut pipes = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                let far = TcpStream::connect(&host).await.unwrap();
                let ((near_in, near_out), (far_in, far_out)) = (split(near), split(far));
                let [from_client, from_host] = <[BufferedBytes; 2]>::default();
                connections.lock().unwrap().push([Arc::clone(&from_client), Arc::clone(&from_host)]);
                pipes.spawn(pipe(near_in, far_out, modes.clone(), from_client));
                pipes.spawn(pipe(far_in, near_out, modes.clone(), from_host));
            }
        });
        Self { address, mode, buffered, _tasks: tasks }
    }

    fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    fn connections(&self) -> usize {
        self.buffered.lock().unwrap().len()
    }

    /// Waits until the newest connection has buffered bytes from the client that contain a string.
    async fn wait_for_client_bytes(&self, text: &str) {
        eventually("the client has sent the call", Duration::from_secs(10), async || {
            let [from_client, _] = self.newest();
            let buffered = from_client.lock().unwrap();
            buffered.windows(text.len()).any(|window| window == text.as_bytes())
        })
        .await;
    }

    /// Waits until the newest connection has buffered bytes from the host.
    async fn wait_for_host_bytes(&self) {
        eventually("the host has announced the end of the connection", Duration::from_secs(10), async || {
            let [_, from_host] = self.newest();
            !from_host.lock().unwrap().is_empty()
        })
        .await;
    }

    fn newest(&self) -> [BufferedBytes; 2] {
        self.buffered.lock().unwrap().last().unwrap().clone()
    }
}

/// Forwards one direction of a connection.
async fn pipe(
    mut from: ReadHalf<TcpStream>,
    mut to: WriteHalf<TcpStream>,
    mut modes: watch::Receiver<Mode>,
    buffered: BufferedBytes,
) {
    let mut buffer = vec![0; 64 * 1024];
    let mut has_ended = false;
    loop {
        let mode = *modes.borrow_and_update();
        match mode {
            Mode::Cut => return,
            Mode::Forward => {
                let bytes = std::mem::take(&mut *buffered.lock().unwrap());
                if to.write_all(&bytes).await.is_err() {
                    return;
                }
                if has_ended {
                    let _ = to.shutdown().await;
                    return;
                }
            }
            Mode::Stall | Mode::Buffer => {}
        }
        let read = async {
            if mode == Mode::Stall || has_ended {
                std::future::pending().await
            } else {
                from.read(&mut buffer).await
            }
        };
        let read = tokio::select! {
            biased;
            changed = modes.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
            read = read => read.unwrap_or(0),
        };
        match mode {
            Mode::Buffer if read > 0 => buffered.lock().unwrap().extend(&buffer[..read]),
            Mode::Buffer => has_ended = true,
            _ if read > 0 && to.write_all(&buffer[..read]).await.is_ok() => {}
            _ => return,
        }
    }
}

/// Counts the sockets of a process.
fn sockets(pid: u32) -> usize {
    let entries = std::fs::read_dir(Path::new("/proc").join(pid.to_string()).join("fd")).unwrap();
    let links = entries.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    links.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
}

async fn register(session: &SessionHandle<RemoteHost>) {
    session.register("x", VariableType::new(ValueType::String).unwrap(), "").await.unwrap();
}

async fn states(sandbox: &Sandbox) -> Vec<String> {
    sandbox.workers().await.into_iter().map(|worker| worker.state).collect()
}

#[tokio::test]
async fn a_stalled_connection_is_closed_and_delays_no_other_client() {
    let sandbox = Sandbox::adapter(SHOWCASE, 2).start().await;
    let direct = Client::connect(sandbox.url()).await.unwrap();
    let add = || direct.execute::<i64>("add", json!({"a": 1, "b": 2}));
    assert_eq!(add().await.unwrap(), 3);
    let before = sockets(sandbox.pid());

    let proxy = FaultyProxy::start(sandbox.url()).await;
    let stalled = Client::connect(&proxy.address).await.unwrap();
    let session = stalled.session("stalled").await.unwrap();
    register(&session).await;
    let mut watch = session.watch(["x"]).with_initial().await.unwrap();
    watch.next().await.unwrap().unwrap();
    // The stream has many more chunks than the host sends without credit, and the client reads only the first.
    let mut chunks = stalled.execute_stream::<u64>("count", json!({"n": 100_000_000})).await.unwrap();
    assert_eq!(chunks.next().await.unwrap().unwrap(), 1);
    proxy.set(Mode::Stall);
    assert!(sockets(sandbox.pid()) > before);

    eventually("the host closes the connection", CLOSED_WITHIN, async || {
        assert_eq!(add().await.unwrap(), 3, "other clients are unaffected");
        sockets(sandbox.pid()) == before && states(&sandbox).await == ["idle", "idle"]
    })
    .await;
    // The session still exists.
    proxy.set(Mode::Cut);
    drop(chunks);
    assert_eq!(direct.session("stalled").await.unwrap().variables("*").await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_stopped_client_with_an_open_watch_delays_no_other_client() {
    let sandbox = Sandbox::adapter(SHOWCASE, 1).start().await;
    let writer = Client::connect(sandbox.url()).await.unwrap();
    let session = writer.session("watched").await.unwrap();
    register(&session).await;
    let add = || writer.execute::<i64>("add", json!({"a": 1, "b": 2}));
    assert_eq!(add().await.unwrap(), 3);
    let before = sockets(sandbox.pid());

    let mut command = Command::new(python());
    command.arg(root().join("tests/clients/watching.py")).arg(sandbox.url().trim_start_matches("http://"));
    let mut stopped = command.arg("watched").kill_on_drop(true).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(stopped.stdout.take().unwrap()).lines();
    assert_eq!(lines.next_line().await.unwrap().unwrap(), "watching");
    signal(stopped.id().unwrap(), Signal::SIGSTOP);

    // The updates exceed all buffers between the host and the client.
    let text = "x".repeat(1 << 20);
    eventually("the host closes the connection", CLOSED_WITHIN, async || {
        session.set("x", &text).await.unwrap();
        assert_eq!(add().await.unwrap(), 3);
        sockets(sandbox.pid()) == before
    })
    .await;
}

#[tokio::test]
async fn a_call_on_a_cut_connection_counts_as_delivered_and_the_next_call_reconnects() {
    let sandbox = Sandbox::adapter(SHOWCASE, 2).start().await;
    let proxy = FaultyProxy::start(sandbox.url()).await;
    let client = Client::connect(&proxy.address).await.unwrap();
    let call = client.execute::<f64>("sleep_for", json!({"seconds": 600}));
    let cut = async {
        eventually("the call runs", Duration::from_secs(10), async || {
            states(&sandbox).await.iter().any(|state| state == "busy")
        })
        .await;
        proxy.set(Mode::Cut);
    };
    let (outcome, ()) = futures_util::future::join(call, cut).await;
    let Error::Tool(error) = outcome.unwrap_err() else {
        panic!("the call failed with another kind of error")
    };
    assert!(matches!(error, ToolError::ConnectionLost { .. }) && error.may_have_run(), "{error}");
    proxy.set(Mode::Forward);
    assert_eq!(client.execute::<i64>("add", json!({"a": 1, "b": 2})).await.unwrap(), 3);
    eventually("the call ends on its worker", Duration::from_secs(20), async || {
        states(&sandbox).await == ["idle", "idle"]
    })
    .await;
}

#[tokio::test]
async fn a_client_learns_when_to_retry_if_all_connections_are_in_use() {
    let sandbox = Sandbox::adapter(SHOWCASE, 1).args(&["--max-connections", "1"]).start().await;
    let busy = Client::connect(sandbox.url()).await.unwrap();
    let mut stream = busy.execute_stream::<u64>("count", json!({"n": 1_000_000_000})).await.unwrap();
    stream.next().await.unwrap().unwrap();
    let error = match Client::connect(sandbox.url()).await {
        Ok(client) => client.execute::<i64>("add", json!({"a": 1, "b": 2})).await.unwrap_err(),
        Err(error) => error,
    };
    assert!(matches!(&error, Error::Tool(ToolError::TooManyConnections { limit: 1, .. })), "{error:?}");
    assert!(error.is_retryable() && error.retry_after().is_some(), "{error:?}");
    let output = sandbox.cli(&["call", "add", "--args", r#"{"a": 1, "b": 2}"#, "--json"]).await;
    let failure: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(
        (&failure["code"], &failure["may_have_run"]),
        (&json!("OVERLOADED"), &json!(false)),
        "{failure}"
    );
    assert!(failure["retry_after"].as_f64().is_some_and(|delay| delay > 0.0), "{failure}");
    let script =
        "import sys; from snakepit_bridge.client import Client; Client(sys.argv[1]).call('add', a=1, b=2)";
    let mut package = Command::new(python());
    package.args(["-c", script, sandbox.url().trim_start_matches("http://")]);
    let output = package.kill_on_drop(true).output().await.unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("OverloadedError: all 1 connections of the host are in use"), "{stderr}");
    drop((stream, busy));
    eventually("another client is admitted", Duration::from_secs(20), async || {
        sandbox.cli(&["call", "add", "--args", r#"{"a": 1, "b": 2}"#]).await.status.success()
    })
    .await;
}

#[tokio::test]
async fn a_call_that_crosses_with_the_end_of_an_idle_connection_is_repeated() {
    let sandbox = Sandbox::adapter(SHOWCASE, 1).args(&["--max-connections", "2"]).start().await;
    // Makes the host close the connection behind the proxy while a call is on its way to the host. Both sides have sent before
    // either receives anything, so the call and the end of the connection cross.
    let cross = async |proxy: &FaultyProxy| {
        proxy.wait_for_client_bytes("add").await;
        // For the second connection, the host closes the one behind the proxy. For the repeated call, it can close the first.
        let mut others = Vec::new();
        for _ in 0..2 {
            let other = Client::connect(sandbox.url()).await.unwrap();
            assert_eq!(other.execute::<i64>("add", json!({"a": 2, "b": 2})).await.unwrap(), 4);
            others.push(other);
        }
        proxy.wait_for_host_bytes().await;
        proxy.set(Mode::Forward);
        others
    };

    let proxy = FaultyProxy::start(sandbox.url()).await;
    let client = Client::connect(&proxy.address).await.unwrap();
    let add = || client.execute::<i64>("add", json!({"a": 1, "b": 2}));
    assert_eq!(add().await.unwrap(), 3);
    assert_eq!(proxy.connections(), 1);
    proxy.set(Mode::Buffer);
    let (crossed, others) = futures_util::future::join(add(), cross(&proxy)).await;
    assert_eq!(crossed.unwrap(), 3);
    assert_eq!(proxy.connections(), 2, "the call was repeated on a new connection");
    drop((client, others));

    let mut command = Command::new(python());
    command.arg(root().join("tests/clients/restarts.py")).arg(proxy.address.trim_start_matches("http://"));
    let command = command.kill_on_drop(true).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut package = command.spawn().unwrap();
    let mut lines = BufReader::new(package.stdout.take().unwrap()).lines();
    let mut stdin = package.stdin.take().unwrap();
    stdin.write_all(b"\n").await.unwrap();
    assert_eq!(lines.next_line().await.unwrap().unwrap(), "3");
    assert_eq!(proxy.connections(), 3);
    proxy.set(Mode::Buffer);
    stdin.write_all(b"\n").await.unwrap();
    let _others = cross(&proxy).await;
    assert_eq!(lines.next_line().await.unwrap().unwrap(), "3");
    assert_eq!(proxy.connections(), 4, "the call was repeated on a new connection");
}
