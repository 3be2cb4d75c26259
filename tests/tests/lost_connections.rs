//! Connections that stall, freeze or break, as the host and its clients see them: others are unaffected, and what such a client
//! held is free again in bounded time.

use std::{path::Path, process::Stdio, time::Duration};

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

/// The host pings a silent client after 10 s and gives it 8 s to answer.
const NOTICED_WITHIN: Duration = Duration::from_secs(40);

/// What a [`Proxy`] does with its connections.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Mode {
    Forward,
    /// Keeps them open, and forwards nothing in either direction.
    Stall,
    Cut,
}

/// A TCP proxy in front of a host. Ends when it is dropped.
struct Proxy {
    address: String,
    mode: watch::Sender<Mode>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    async fn before(host: &str) -> Self {
        let host = host.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (mode, modes) = watch::channel(Mode::Forward);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut pipes = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                let far = TcpStream::connect(&host).await.unwrap();
                let ((near_in, near_out), (far_in, far_out)) = (split(near), split(far));
                pipes.spawn(pipe(near_in, far_out, modes.clone()));
                pipes.spawn(pipe(far_in, near_out, modes.clone()));
            }
        });
        Self { address, mode, _tasks: tasks }
    }

    fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

async fn pipe(mut from: ReadHalf<TcpStream>, mut to: WriteHalf<TcpStream>, mut modes: watch::Receiver<Mode>) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let disturbed =
            async { modes.wait_for(|mode| *mode != Mode::Forward).await.map_or(Mode::Cut, |mode| *mode) };
        let read = tokio::select! {
            biased;
            mode = disturbed => {
                if mode == Mode::Cut || modes.wait_for(|mode| *mode != Mode::Stall).await.is_err() {
                    return;
                }
                continue;
            }
            read = from.read(&mut buffer) => read,
        };
        match read {
            Ok(read @ 1..) if to.write_all(&buffer[..read]).await.is_ok() => {}
            _ => return,
        }
    }
}

/// How many sockets a process holds.
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
async fn a_client_behind_a_proxy_that_stalls_loses_its_call_and_holds_up_nobody() {
    let sandbox = Sandbox::adapter(SHOWCASE, 2).start().await;
    let direct = Client::connect(sandbox.url()).await.unwrap();
    let add = || direct.execute::<i64>("add", json!({"a": 1, "b": 2}));
    assert_eq!(add().await.unwrap(), 3);
    let before = sockets(sandbox.pid());

    let proxy = Proxy::before(sandbox.url()).await;
    let stalled = Client::connect(&proxy.address).await.unwrap();
    let session = stalled.session("stalled").await.unwrap();
    register(&session).await;
    let mut watch = session.watch(&["x"], true).await.unwrap();
    watch.next().await.unwrap().unwrap();
    // It reads only the first of far more than the host sends ahead.
    let mut chunks = stalled.execute_stream::<u64>("count", json!({"n": 100_000_000})).await.unwrap();
    assert_eq!(chunks.next().await.unwrap().unwrap(), 1);
    proxy.set(Mode::Stall);
    assert!(sockets(sandbox.pid()) > before);

    eventually("the host lets go of it", NOTICED_WITHIN, async || {
        assert_eq!(add().await.unwrap(), 3, "others are unaffected");
        sockets(sandbox.pid()) == before && states(&sandbox).await == ["idle", "idle"]
    })
    .await;
    // What it had set is still there, and it may come back.
    proxy.set(Mode::Cut);
    drop(chunks);
    assert_eq!(direct.session("stalled").await.unwrap().variables("*").await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_client_that_is_stopped_with_an_open_watch_holds_up_nobody() {
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

    // Far more than sockets and queues take in.
    let text = "x".repeat(1 << 20);
    eventually("the host lets go of it", NOTICED_WITHIN, async || {
        session.set("x", &text).await.unwrap();
        assert_eq!(add().await.unwrap(), 3);
        sockets(sandbox.pid()) == before
    })
    .await;
}

#[tokio::test]
async fn a_call_whose_connection_is_cut_may_have_run_and_the_next_one_connects_again() {
    let sandbox = Sandbox::adapter(SHOWCASE, 2).start().await;
    let proxy = Proxy::before(sandbox.url()).await;
    let client = Client::connect(&proxy.address).await.unwrap();
    let cut = client.execute::<f64>("sleep_for", json!({"seconds": 600}));
    let cutting = async {
        eventually("the call runs", Duration::from_secs(10), async || {
            states(&sandbox).await.iter().any(|state| state == "busy")
        })
        .await;
        proxy.set(Mode::Cut);
    };
    let (cut, ()) = futures_util::future::join(cut, cutting).await;
    let Error::Tool(error) = cut.unwrap_err() else { panic!("not the call's own error") };
    assert!(matches!(error, ToolError::ConnectionLost { .. }) && error.is_delivered(), "{error}");
    proxy.set(Mode::Forward);
    assert_eq!(client.execute::<i64>("add", json!({"a": 1, "b": 2})).await.unwrap(), 3);
    eventually("the call ends on its worker", Duration::from_secs(20), async || {
        states(&sandbox).await == ["idle", "idle"]
    })
    .await;
}

#[tokio::test]
async fn a_call_that_crosses_with_the_end_of_an_idle_connection_is_sent_again() {
    let sandbox = Sandbox::adapter(SHOWCASE, 1).args(&["--max-connections", "2"]).start().await;
    // The second takes the place of the connection behind the proxy. The first is idle when that comes back for a place.
    let evict = async |proxy: &Proxy| {
        let mut others = Vec::new();
        for _ in 0..2 {
            let other = Client::connect(sandbox.url()).await.unwrap();
            assert_eq!(other.execute::<i64>("add", json!({"a": 2, "b": 2})).await.unwrap(), 4);
            others.push(other);
        }
        proxy.set(Mode::Forward);
        others
    };

    let proxy = Proxy::before(sandbox.url()).await;
    let client = Client::connect(&proxy.address).await.unwrap();
    let add = || client.execute::<i64>("add", json!({"a": 1, "b": 2}));
    assert_eq!(add().await.unwrap(), 3);
    proxy.set(Mode::Stall);
    let (crossed, others) = futures_util::future::join(add(), evict(&proxy)).await;
    assert_eq!(crossed.unwrap(), 3);
    drop((client, others));

    let mut command = Command::new(python());
    command.arg(root().join("tests/clients/restarts.py")).arg(proxy.address.trim_start_matches("http://"));
    let command = command.kill_on_drop(true).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut package = command.spawn().unwrap();
    let mut lines = BufReader::new(package.stdout.take().unwrap()).lines();
    let mut ask = package.stdin.take().unwrap();
    ask.write_all(b"\n").await.unwrap();
    assert_eq!(lines.next_line().await.unwrap().unwrap(), "3");
    proxy.set(Mode::Stall);
    ask.write_all(b"\n").await.unwrap();
    let _others = evict(&proxy).await;
    assert_eq!(lines.next_line().await.unwrap().unwrap(), "3");
}
