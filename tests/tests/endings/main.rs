//! Every kind of tool through every ending, over every way to call it: the cells of the table in docs/endings.md.

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
use serde::Deserialize;
use serde_json::{Value, json};
use snakepit_proto::pb;
use snakepit_server::{Error, FnTool, SessionWatch, Snakepit, ToolError};
use snakepit_tests::{Sandbox, Signal, eventually, python, root, signal};

use crate::calls::{Clients, Way, reason, reason_of};

const SOON: Duration = Duration::from_secs(20);

/// What a tool of each kind is called, whether it streams, and whether the host runs it.
const KINDS: [(&str, &str, bool, bool); 7] = [
    ("function", "function", false, false),
    ("coroutine", "coroutine", false, false),
    ("generator", "generator", true, false),
    ("async generator", "async_generator", true, false),
    ("C code that does not return", "native", false, false),
    ("host tool", "host_tool", false, true),
    ("stream of a host tool", "host_stream", true, true),
];

/// The ways from Rust, and those from Python.
const RUST: [Way; 3] = [Way::Embedded, Way::Grpc, Way::Multiplexed];
const PYTHON: [Way; 2] = [Way::Grpcio, Way::Package];

/// The expected reason of a kind and an ending; `None` where there is nothing to check.
fn expected(kind: &str, ending: &str) -> Option<String> {
    let text = std::fs::read_to_string(root().join("docs/endings.md")).unwrap();
    let cells = |line: &str| -> Vec<String> {
        line.split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect()
    };
    let mut rows = text.lines().filter(|line| line.starts_with('|')).map(cells);
    let column = rows.next().unwrap().iter().position(|name| name == ending).expect(ending);
    let row = rows.find(|row| row[1] == kind).expect(kind);
    Some(row[column].clone()).filter(|cell| cell != "-")
}

#[derive(Deserialize)]
struct Args {
    how: String,
    marker: PathBuf,
}

/// Counts host tools that run, and those that ended in any way.
#[derive(Debug, Clone, Default)]
struct Ended(Arc<AtomicUsize>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

struct Host {
    snakepit: Snakepit,
    clients: Clients,
    _dir: tempfile::TempDir,
    ended: Arc<AtomicUsize>,
}

impl Host {
    async fn start(workers: usize, multiplex: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ended = Arc::<AtomicUsize>::default();
        let end =
            |how: &str| if how == "exception" { Err("on purpose".to_owned()) } else { Ok(how.to_owned()) };
        let counted = Arc::clone(&ended);
        let host_tool = move |args: Args| {
            let guard = Ended(Arc::clone(&counted));
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
        let host_stream = FnTool::stream("host_stream", move |args: Args, _| {
            let guard = Ended(Arc::clone(&counted));
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

    /// The process of the one worker that runs a call.
    fn busy(&self) -> u32 {
        let workers = self.snakepit.status().workers;
        let busy: Vec<_> =
            workers.iter().filter(|worker| worker.state == snakepit_server::WorkerState::Busy).collect();
        assert_eq!(busy.len(), 1, "{workers:?}");
        busy[0].pid.unwrap()
    }

    async fn all_idle(&self) {
        eventually("all workers are idle", SOON, async || {
            let workers = self.snakepit.status().workers;
            workers.iter().all(|worker| worker.state == snakepit_server::WorkerState::Idle)
        })
        .await;
    }
}

async fn check(host: &Host, way: Way, ending: &str) {
    for (kind, tool, streams, in_host) in KINDS {
        let Some(expected) = expected(kind, ending) else { continue };
        let before = host.snakepit.status().calls;
        let ended = host.ended.load(Ordering::SeqCst);
        let outcome = match ending {
            "result" => host.clients.begin(way, tool, streams, "result", None).await.outcome().await,
            "exception" => host.clients.begin(way, tool, streams, "exception", None).await.outcome().await,
            "deadline" => {
                let timeout = Some(Duration::from_millis(500));
                host.clients.begin(way, tool, streams, "hang", timeout).await.outcome().await
            }
            "cancelled" => {
                drop(host.clients.begin(way, tool, streams, "hang", None).await);
                let recorded = async || match in_host {
                    true => host.ended.load(Ordering::SeqCst) > ended,
                    false => host.snakepit.status().calls.cancelled > before.cancelled,
                };
                eventually("the call is recorded as cancelled", SOON, recorded).await;
                "CANCELLED".to_owned()
            }
            "worker lost" => {
                let call = host.clients.begin(way, tool, streams, "hang", None).await;
                signal(host.busy(), Signal::SIGKILL);
                call.outcome().await
            }
            other => panic!("{other}"),
        };
        assert_eq!(outcome, expected, "{kind}, {ending}, {way:?}");
        if ending == "deadline" && !in_host {
            let after = host.snakepit.status().calls;
            assert_eq!(after.timed_out, before.timed_out + 1, "{kind}, {way:?}: {after:?}");
            assert_eq!(after.cancelled, before.cancelled, "{kind}, {way:?}: {after:?}");
        }
        // Workers that answer nothing before they are lost are replaced ever more slowly.
        for _ in 0..2 {
            host.all_idle().await;
            assert_eq!(
                host.clients.begin(way, "function", false, "result", None).await.outcome().await,
                "OK"
            );
        }
    }
}

/// Checks the endings of single calls.
async fn each_ending(multiplex: bool, ways: &[Way]) {
    let host = Host::start(2, multiplex).await;
    for ending in ["result", "exception", "cancelled", "deadline", "worker lost"] {
        for way in ways {
            check(&host, *way, ending).await;
        }
    }
    host.snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn each_ending_of_a_call_has_one_answer() {
    each_ending(true, &RUST).await;
}

#[tokio::test]
async fn each_ending_has_the_same_answer_for_clients_in_python() {
    each_ending(true, &PYTHON).await;
}

#[tokio::test]
async fn each_ending_has_the_same_answer_with_workers_that_are_called_by_plain_rpcs() {
    each_ending(false, &[Way::Embedded]).await;
}

/// Begins a call of each of these kinds and a watch in each of these ways. Returns each with its kind and a future that says
/// how it ends.
async fn begin_all(
    clients: &Clients,
    ways: &[Way],
    kinds: impl Iterator<Item = (&'static str, &'static str, bool, bool)> + Clone,
) -> Vec<(&'static str, Way, BoxFuture<'static, String>)> {
    let mut all = Vec::new();
    for &way in ways {
        for (kind, tool, streams, _) in kinds.clone() {
            let call = clients.begin(way, tool, streams, "hang", None).await;
            all.push((kind, way, call.outcome().boxed()));
        }
        all.push(("watch of variables", way, begin_watch(clients, way).await));
    }
    all
}

async fn begin_watch(clients: &Clients, way: Way) -> BoxFuture<'static, String> {
    let built = |mut watch: SessionWatch| async move {
        let end = reason(watch.next().await.unwrap().map(drop).unwrap_err());
        assert!(watch.next().await.is_none());
        end
    };
    match way {
        Way::Embedded => {
            let host = clients.embedded.as_ref().expect("the host is embedded");
            let session = host.session("s").await.unwrap();
            built(session.watch(&[], false).await.unwrap()).boxed()
        }
        Way::Multiplexed => {
            let session = clients.remote.session("s").await.unwrap();
            built(session.watch(&[], false).await.unwrap()).boxed()
        }
        Way::Grpc => {
            clients.remote.session("s").await.unwrap();
            let request = pb::WatchVariablesRequest { session_id: "s".into(), ..Default::default() };
            let mut updates = clients.grpc.clone().watch_variables(request).await.unwrap().into_inner();
            async move { reason_of(&updates.message().await.unwrap_err()) }.boxed()
        }
        Way::Grpcio | Way::Package => {
            let client = if way == Way::Grpcio { &clients.grpcio } else { &clients.package };
            let mut watch = client.ask(json!({"watch": "s"}));
            assert_eq!(watch.next().await, "BEGUN");
            async move { watch.next().await }.boxed()
        }
    }
}

/// Checks how each of these ended.
async fn check_all(all: Vec<(&'static str, Way, BoxFuture<'static, String>)>, ending: &str) {
    for (kind, way, outcome) in all {
        let outcome = tokio::time::timeout(SOON, outcome).await.expect("it ends");
        assert_eq!(Some(outcome), expected(kind, ending), "{kind}, {ending}, {way:?}");
    }
}

/// Has calls of all kinds and watches cut off, and checks that each says so.
async fn cut_off(multiplex: bool, ways: &[Way], ending: &str) {
    let python_kinds = KINDS.iter().filter(|(.., in_host)| !in_host).count();
    let host = Host::start(python_kinds * ways.len(), multiplex).await;
    let all = begin_all(&host.clients, ways, KINDS.into_iter()).await;
    match ending {
        "drain over" => host.snakepit.shutdown_within(Duration::from_millis(300)).await.unwrap(),
        "second signal" => {
            let drain = host.snakepit.shutdown_within(Duration::from_secs(600));
            tokio::select! {
                _ = drain => panic!("calls were running"),
                () = tokio::time::sleep(Duration::from_millis(100)) => {}
            }
            host.snakepit.shutdown_within(Duration::ZERO).await.unwrap();
        }
        other => panic!("{other}"),
    }
    check_all(all, ending).await;
    let refused =
        host.snakepit.execute::<Value>("host_tool", json!({"how": "result", "marker": "/dev/null"})).await;
    let Err(Error::Tool(ToolError::ShuttingDown { delivered: false })) = refused else {
        panic!("{refused:?}")
    };
}

#[tokio::test]
async fn calls_and_watches_that_the_end_of_a_drain_cuts_off_say_so() {
    cut_off(true, &RUST, "drain over").await;
}

#[tokio::test]
async fn calls_and_watches_of_clients_in_python_that_the_end_of_a_drain_cuts_off_say_so() {
    cut_off(true, &PYTHON, "drain over").await;
}

/// The program that embeds the host ends its drain as the daemon does: by a second call.
#[tokio::test]
async fn calls_and_watches_that_a_second_call_of_shutdown_cuts_off_say_so() {
    cut_off(true, &RUST, "second signal").await;
    cut_off(true, &PYTHON, "second signal").await;
}

#[tokio::test]
async fn calls_of_plain_workers_that_are_cut_off_say_so() {
    for ending in ["drain over", "second signal"] {
        cut_off(false, &[Way::Embedded], ending).await;
    }
}

/// The daemon has no tools of its own, so there are those of its workers and the watches.
async fn cut_off_by_signals(ways: &[Way]) {
    let kinds = KINDS.into_iter().filter(|(.., in_host)| !in_host);
    let workers = kinds.clone().count() * ways.len();
    let mut daemon =
        Sandbox::adapter("endings:EndingsAdapter", workers).args(&["--drain", "600s"]).start().await;
    let clients = Clients::connect(daemon.url().trim_start_matches("http://"), None).await;
    let all = begin_all(&clients, ways, kinds).await;
    for logged in ["draining; a second signal cuts off", "cutting off calls in flight"] {
        signal(daemon.pid(), Signal::SIGTERM);
        eventually(logged, SOON, async || daemon.log().contains(logged)).await;
    }
    check_all(all, "second signal").await;
    assert_eq!(daemon.wait(SOON).await, Some(0));
}

#[tokio::test]
async fn calls_and_watches_that_a_second_signal_cuts_off_say_so() {
    cut_off_by_signals(&[Way::Grpc, Way::Multiplexed]).await;
}

#[tokio::test]
async fn calls_and_watches_of_clients_in_python_that_a_second_signal_cuts_off_say_so() {
    cut_off_by_signals(&PYTHON).await;
}
