//! Compares the outcome of every kind of call, event and client with the table in docs/endings.md.

mod calls;
mod python;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, future::BoxFuture};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use snakepit_proto::pb;
use snakepit_server::{Error, FnTool, SessionWatch, Snakepit, ToolError};
use snakepit_tests::{EVENT_TIMEOUT, Sandbox, Signal, eventually, python, root, signal};

use crate::calls::{ClientKind, Clients, reason, reason_of};

/// The kinds of tools: the row of the table, the tool's name, whether it streams, and whether the host runs it.
const KINDS: [(&str, &str, bool, bool); 7] = [
    ("function", "function", false, false),
    ("coroutine", "coroutine", false, false),
    ("generator", "generator", true, false),
    ("async generator", "async_generator", true, false),
    ("C code that does not return", "native", false, false),
    ("host tool", "host_tool", false, true),
    ("stream of a host tool", "host_stream", true, true),
];

const RUST_CLIENTS: [ClientKind; 3] = [ClientKind::Embedded, ClientKind::Grpc, ClientKind::Multiplexed];
const PYTHON_CLIENTS: [ClientKind; 2] = [ClientKind::Grpcio, ClientKind::Package];

/// The expected outcome for a kind of tool and an event. `None` if the table has no entry.
fn expected_outcome(kind: &str, event: &str) -> Option<String> {
    let text = std::fs::read_to_string(root().join("docs/endings.md")).unwrap();
    let cells = |line: &str| -> Vec<String> {
        line.split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect()
    };
    let mut rows = text.lines().filter(|line| line.starts_with('|')).map(cells);
    let column = rows.next().unwrap().iter().position(|name| name == event).expect(event);
    let row = rows.find(|row| row[1] == kind).expect(kind);
    Some(row[column].clone()).filter(|cell| cell != "-")
}

#[derive(Deserialize, JsonSchema)]
struct Args {
    how: String,
    marker: PathBuf,
}

/// Counts the calls to host tools that have ended.
#[derive(Debug, Clone, Default)]
struct CountOnDrop(Arc<AtomicUsize>);

impl Drop for CountOnDrop {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

struct HostWithClients {
    snakepit: Snakepit,
    clients: Clients,
    _dir: tempfile::TempDir,
    /// The number of calls to host tools that have ended.
    ended: Arc<AtomicUsize>,
}

impl HostWithClients {
    async fn start(workers: usize, multiplex: bool, concurrency: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ended = Arc::<AtomicUsize>::default();
        let end =
            |how: &str| if how == "exception" { Err("on purpose".to_owned()) } else { Ok(how.to_owned()) };
        let counted = Arc::clone(&ended);
        let host_tool = move |args: Args| {
            let guard = CountOnDrop(Arc::clone(&counted));
            async move {
                let _guard = guard;
                std::fs::write(&args.marker, "begun").unwrap();
                if args.how == "hang" {
                    std::future::pending::<()>().await;
                }
                end(&args.how)
            }
        };
        let counted = Arc::clone(&ended);
        let host_stream = FnTool::new("host_stream", move |args: Args| {
            let guard = CountOnDrop(Arc::clone(&counted));
            let rest = async move {
                let _guard = guard;
                std::fs::write(&args.marker, "begun").unwrap();
                if args.how == "hang" {
                    std::future::pending::<()>().await;
                }
                end(&args.how)
            };
            futures_util::stream::iter([Ok("first".to_owned())]).chain(futures_util::stream::once(rest))
        });
        let snakepit = Snakepit::builder()
            .adapter("endings:EndingsAdapter")
            .python(python())
            .env("PYTHONPATH", root().join("tests/adapters").display().to_string())
            .run_dir(dir.path())
            .workers(workers)
            .multiplex(multiplex)
            .concurrency(concurrency)
            .listen("127.0.0.1:0".parse().unwrap())
            .host_tool("host_tool", host_tool)
            .fn_tool(host_stream)
            .start()
            .await
            .unwrap();
        let address = snakepit.address().unwrap().to_string();
        let clients = Clients::connect(&address, Some(snakepit.clone())).await;
        Self { snakepit, clients, _dir: dir, ended }
    }

    /// Returns the pid of the only busy worker.
    fn busy_pid(&self) -> u32 {
        let workers = self.snakepit.status().workers;
        let busy: Vec<_> =
            workers.iter().filter(|worker| worker.state == snakepit_server::WorkerState::Busy).collect();
        assert_eq!(busy.len(), 1, "{workers:?}");
        busy[0].pid.unwrap()
    }

    async fn wait_until_idle(&self) {
        eventually("all workers are idle", EVENT_TIMEOUT, async || {
            let workers = self.snakepit.status().workers;
            workers.iter().all(|worker| worker.state == snakepit_server::WorkerState::Idle)
        })
        .await;
    }
}

/// Checks the outcome of one event for all kinds of tools.
async fn check(host: &HostWithClients, client: ClientKind, event: &str) {
    for (kind, tool, is_stream, runs_in_host) in KINDS {
        let Some(expected) = expected_outcome(kind, event) else { continue };
        let before = host.snakepit.status().calls;
        let ended = host.ended.load(Ordering::SeqCst);
        let outcome = match event {
            "result" => host.clients.begin(client, tool, is_stream, "result", None).await.outcome().await,
            "exception" => {
                host.clients.begin(client, tool, is_stream, "exception", None).await.outcome().await
            }
            "deadline" => {
                let timeout = Some(Duration::from_millis(500));
                host.clients.begin(client, tool, is_stream, "hang", timeout).await.outcome().await
            }
            "cancelled" => {
                drop(host.clients.begin(client, tool, is_stream, "hang", None).await);
                let recorded = async || match runs_in_host {
                    true => host.ended.load(Ordering::SeqCst) > ended,
                    false => host.snakepit.status().calls.cancelled > before.cancelled,
                };
                eventually("the call is recorded as cancelled", EVENT_TIMEOUT, recorded).await;
                "CANCELLED".to_owned()
            }
            "worker lost" => {
                let call = host.clients.begin(client, tool, is_stream, "hang", None).await;
                signal(host.busy_pid(), Signal::SIGKILL);
                call.outcome().await
            }
            other => panic!("{other}"),
        };
        assert_eq!(outcome, expected, "{kind}, {event}, {client:?}");
        if event == "deadline" && !runs_in_host {
            let after = host.snakepit.status().calls;
            assert_eq!(after.timed_out, before.timed_out + 1, "{kind}, {client:?}: {after:?}");
            assert_eq!(after.cancelled, before.cancelled, "{kind}, {client:?}: {after:?}");
        }
        // Let the replacement serve a call first. Otherwise the pool sees workers that die repeatedly before they serve a call,
        // and delays their replacement. Two calls are enough for two workers: the pool picks the most recently used worker, which
        // is the replacement, or the least recently used one, which alternates.
        for _ in 0..2 {
            host.wait_until_idle().await;
            assert_eq!(
                host.clients.begin(client, "function", false, "result", None).await.outcome().await,
                "OK"
            );
        }
    }
}

/// Checks the events that concern one call. `shut_down` and `signal_twice` check those that concern all running calls.
async fn check_each_event(multiplex: bool, concurrency: usize, clients: &[ClientKind]) {
    let host = HostWithClients::start(2, multiplex, concurrency).await;
    for event in ["result", "exception", "cancelled", "deadline", "worker lost"] {
        for client in clients {
            check(&host, *client, event).await;
        }
    }
    host.snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn rust_clients_get_the_documented_outcomes() {
    check_each_event(true, 1, &RUST_CLIENTS).await;
}

#[tokio::test]
async fn python_clients_get_the_documented_outcomes() {
    check_each_event(true, 1, &PYTHON_CLIENTS).await;
}

#[tokio::test]
async fn calls_to_workers_without_multiplexing_get_the_documented_outcomes() {
    check_each_event(false, 1, &[ClientKind::Embedded]).await;
}

#[tokio::test]
async fn calls_to_workers_that_run_several_get_the_documented_outcomes() {
    check_each_event(true, 4, &[ClientKind::Embedded, ClientKind::Multiplexed]).await;
    check_each_event(false, 4, &[ClientKind::Embedded]).await;
}

/// Starts a call to each kind of tool and a watch with each client. Returns their outcomes as futures.
async fn begin_all(
    clients: &Clients,
    client_kinds: &[ClientKind],
    kinds: impl Iterator<Item = (&'static str, &'static str, bool, bool)> + Clone,
) -> Vec<(&'static str, ClientKind, BoxFuture<'static, String>)> {
    let mut all = Vec::new();
    for &client in client_kinds {
        for (kind, tool, is_stream, _) in kinds.clone() {
            let call = clients.begin(client, tool, is_stream, "hang", None).await;
            all.push((kind, client, call.outcome().boxed()));
        }
        all.push(("watch of variables", client, begin_watch(clients, client).await));
    }
    all
}

async fn begin_watch(clients: &Clients, client: ClientKind) -> BoxFuture<'static, String> {
    let end_of = |mut watch: SessionWatch| async move {
        let end = reason(watch.next().await.unwrap().map(drop).unwrap_err());
        assert!(watch.next().await.is_none());
        end
    };
    match client {
        ClientKind::Embedded => {
            let host = clients.embedded.as_ref().expect("the host is embedded");
            let session = host.session("s").await.unwrap();
            end_of(session.watch_all().await.unwrap()).boxed()
        }
        ClientKind::Multiplexed => {
            let session = clients.remote.session("s").await.unwrap();
            end_of(session.watch_all().await.unwrap()).boxed()
        }
        ClientKind::Grpc => {
            clients.remote.session("s").await.unwrap();
            let request = pb::WatchVariablesRequest { session_id: "s".into(), ..Default::default() };
            let mut updates = clients.grpc.clone().watch_variables(request).await.unwrap().into_inner();
            async move { reason_of(&updates.message().await.unwrap_err()) }.boxed()
        }
        ClientKind::Grpcio | ClientKind::Package => {
            let python = if client == ClientKind::Grpcio { &clients.grpcio } else { &clients.package };
            let mut watch = python.request(json!({"watch": "s"}));
            assert_eq!(watch.next_event().await, "BEGUN");
            async move { watch.next_event().await }.boxed()
        }
    }
}

/// Waits for all outcomes and compares them with the table.
async fn check_all(all: Vec<(&'static str, ClientKind, BoxFuture<'static, String>)>, event: &str) {
    for (kind, client, outcome) in all {
        let outcome = tokio::time::timeout(EVENT_TIMEOUT, outcome).await.expect("the call or watch ends");
        assert_eq!(Some(outcome), expected_outcome(kind, event), "{kind}, {event}, {client:?}");
    }
}

/// Shuts down an embedded host during calls and watches, and checks their outcomes.
async fn shut_down(multiplex: bool, clients: &[ClientKind], event: &str) {
    let python_kinds = KINDS.iter().filter(|(.., runs_in_host)| !runs_in_host).count();
    let host = HostWithClients::start(python_kinds * clients.len(), multiplex, 1).await;
    let all = begin_all(&host.clients, clients, KINDS.into_iter()).await;
    match event {
        "drain over" => host.snakepit.shutdown_within(Duration::from_millis(300)).await.unwrap(),
        "second signal" => {
            let drain = host.snakepit.shutdown_within(Duration::from_secs(600));
            tokio::select! {
                _ = drain => panic!("the drain ended although calls are running"),
                () = tokio::time::sleep(Duration::from_millis(100)) => {}
            }
            host.snakepit.shutdown_within(Duration::ZERO).await.unwrap();
        }
        other => panic!("{other}"),
    }
    check_all(all, event).await;
    let rejected =
        host.snakepit.execute::<Value>("host_tool", json!({"how": "result", "marker": "/dev/null"})).await;
    let Err(Error::Tool(ToolError::ShuttingDown { may_have_run: false, .. })) = rejected else {
        panic!("{rejected:?}")
    };
}

#[tokio::test]
async fn the_end_of_the_drain_cancels_calls_and_watches_with_the_documented_outcomes() {
    shut_down(true, &RUST_CLIENTS, "drain over").await;
}

#[tokio::test]
async fn the_end_of_the_drain_cancels_calls_of_python_clients_with_the_documented_outcomes() {
    shut_down(true, &PYTHON_CLIENTS, "drain over").await;
}

/// A program that embeds the host ends the drain with a second call of shutdown.
#[tokio::test]
async fn a_second_shutdown_cancels_calls_and_watches_with_the_documented_outcomes() {
    shut_down(true, &RUST_CLIENTS, "second signal").await;
    shut_down(true, &PYTHON_CLIENTS, "second signal").await;
}

#[tokio::test]
async fn shutdown_cancels_calls_to_workers_without_multiplexing_with_the_documented_outcomes() {
    for event in ["drain over", "second signal"] {
        shut_down(false, &[ClientKind::Embedded], event).await;
    }
}

/// Sends two signals to a daemon during calls and watches, and checks their outcomes. The daemon has no host tools.
async fn signal_twice(clients_to_check: &[ClientKind]) {
    let kinds = KINDS.into_iter().filter(|(.., runs_in_host)| !runs_in_host);
    let workers = kinds.clone().count() * clients_to_check.len();
    let mut daemon =
        Sandbox::adapter("endings:EndingsAdapter", workers).args(&["--drain", "600s"]).start().await;
    let clients = Clients::connect(daemon.url().trim_start_matches("http://"), None).await;
    let all = begin_all(&clients, clients_to_check, kinds).await;
    let steps = [
        (Signal::SIGTERM, "draining; a second signal cuts off"),
        (Signal::SIGINT, "cutting off calls in flight"),
    ];
    for (name, logged) in steps {
        signal(daemon.pid(), name);
        eventually(logged, EVENT_TIMEOUT, async || daemon.log().contains(logged)).await;
    }
    check_all(all, "second signal").await;
    assert_eq!(daemon.wait(EVENT_TIMEOUT).await, Some(0));
}

#[tokio::test]
async fn a_second_signal_cancels_calls_and_watches_with_the_documented_outcomes() {
    signal_twice(&[ClientKind::Grpc, ClientKind::Multiplexed]).await;
}

#[tokio::test]
async fn a_second_signal_cancels_calls_of_python_clients_with_the_documented_outcomes() {
    signal_twice(&PYTHON_CLIENTS).await;
}
