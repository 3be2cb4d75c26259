//! Every kind of tool through every ending, over every way to call it: the cells of the table in docs/endings.md.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, TryStreamExt, future::BoxFuture};
use serde::Deserialize;
use serde_json::{Value, json};
use snakepit_proto::{pb, status::details_of};
use snakepit_server::{
    CallBuilder, Client as Remote, Error, FnTool, SessionHandle, SessionWatch, Snakepit, ToolError,
    status::from_tool_error,
};
use snakepit_tests::{Client, Signal, eventually, python, root, signal, tool_request};
use tokio::task::JoinSet;
use tonic::{Request, Status, transport::Endpoint};

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

#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Embedded,
    Grpc,
    Multiplexed,
}

const WAYS: [Way; 3] = [Way::Embedded, Way::Grpc, Way::Multiplexed];

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
    remote: Remote,
    grpc: Client,
    dir: tempfile::TempDir,
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
        let remote = Remote::connect(&address).await.unwrap();
        let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        Self { snakepit, remote, grpc: Client::new(channel), dir, ended }
    }

    /// Makes a call, and waits until the tool runs, unless it ends by itself.
    async fn begin(
        &self,
        way: Way,
        tool: &str,
        streams: bool,
        how: &str,
        timeout: Option<Duration>,
    ) -> Calling {
        static CALLS: AtomicUsize = AtomicUsize::new(0);
        let marker = self.dir.path().join(format!("marker-{}", CALLS.fetch_add(1, Ordering::SeqCst)));
        let args = json!({"how": how, "marker": marker});
        let outcome: BoxFuture<'static, String> = match way {
            Way::Embedded => Box::pin(built(self.snakepit.call(tool), args, streams, timeout)),
            Way::Multiplexed => Box::pin(built(self.remote.call(tool), args, streams, timeout)),
            Way::Grpc => {
                let mut request = Request::new(tool_request(tool, &args));
                if let Some(timeout) = timeout {
                    request.set_timeout(timeout);
                }
                Box::pin(plain(self.grpc.clone(), request, streams))
            }
        };
        let mut task = JoinSet::new();
        task.spawn(outcome);
        eventually(&format!("{tool} runs"), SOON, async || marker.exists() || is_done(&marker, how)).await;
        Calling(task)
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

/// Calls that end by themselves may have done so before anybody looks.
fn is_done(_: &Path, how: &str) -> bool {
    how != "hang"
}

/// A call on its way.
struct Calling(JoinSet<String>);

impl Calling {
    async fn outcome(mut self) -> String {
        tokio::time::timeout(SOON, self.0.join_next()).await.expect("the call ends").unwrap().unwrap()
    }
}

async fn built(call: CallBuilder, args: Value, streams: bool, timeout: Option<Duration>) -> String {
    let call = call.args(args);
    let call = match timeout {
        Some(timeout) => call.timeout(timeout),
        None => call,
    };
    let answer = async {
        if streams {
            call.stream::<Value>().await?.try_collect::<Vec<_>>().await.map(drop)
        } else {
            call.unary::<Value>().await.map(drop)
        }
    };
    answer.await.map_or_else(reason, |()| "OK".to_owned())
}

async fn plain(mut client: Client, request: Request<pb::ExecuteToolRequest>, streams: bool) -> String {
    let answer = async {
        if streams {
            let chunks = client.execute_streaming_tool(request).await?.into_inner();
            chunks.try_collect::<Vec<_>>().await.map(|_| true)
        } else {
            client.execute_tool(request).await.map(|response| response.into_inner().success)
        }
    };
    match answer.await {
        Ok(true) => "OK".to_owned(),
        Ok(false) => "TOOL_FAILED".to_owned(),
        Err(status) => reason_of(&status),
    }
}

fn reason(error: Error) -> String {
    match error {
        Error::Tool(error) => reason_of(&from_tool_error(error)),
        other => panic!("{other:?}"),
    }
}

fn reason_of(status: &Status) -> String {
    details_of(status).reason.unwrap_or_else(|| format!("{status:?}"))
}

async fn check(host: &Host, way: Way, ending: &str) {
    for (kind, tool, streams, in_host) in KINDS {
        let Some(expected) = expected(kind, ending) else { continue };
        let before = host.snakepit.status().calls;
        let ended = host.ended.load(Ordering::SeqCst);
        let outcome = match ending {
            "result" => host.begin(way, tool, streams, "result", None).await.outcome().await,
            "exception" => host.begin(way, tool, streams, "exception", None).await.outcome().await,
            "deadline" => {
                let timeout = Some(Duration::from_millis(500));
                host.begin(way, tool, streams, "hang", timeout).await.outcome().await
            }
            "cancelled" => {
                drop(host.begin(way, tool, streams, "hang", None).await);
                let recorded = async || match in_host {
                    true => host.ended.load(Ordering::SeqCst) > ended,
                    false => host.snakepit.status().calls.cancelled > before.cancelled,
                };
                eventually("the call is recorded as cancelled", SOON, recorded).await;
                "CANCELLED".to_owned()
            }
            "worker lost" => {
                let call = host.begin(way, tool, streams, "hang", None).await;
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
            assert_eq!(host.begin(way, "function", false, "result", None).await.outcome().await, "OK");
        }
    }
}

#[tokio::test]
async fn each_ending_of_a_call_has_one_answer() {
    let host = Host::start(2, true).await;
    for ending in ["result", "exception", "cancelled", "deadline", "worker lost"] {
        for way in WAYS {
            check(&host, way, ending).await;
        }
    }
    host.snakepit.shutdown().await;
}

#[tokio::test]
async fn each_ending_has_the_same_answer_with_workers_that_are_called_by_plain_rpcs() {
    let host = Host::start(2, false).await;
    for ending in ["result", "exception", "cancelled", "deadline", "worker lost"] {
        check(&host, Way::Embedded, ending).await;
    }
    host.snakepit.shutdown().await;
}

/// Has calls of all kinds and watches cut off, and checks that each says so.
async fn cut_off(multiplex: bool, ways: &[Way], ending: &str) {
    let python_kinds = KINDS.iter().filter(|(.., in_host)| !in_host).count();
    let host = Host::start(python_kinds * ways.len(), multiplex).await;
    let mut calls = Vec::new();
    for &way in ways {
        for (kind, tool, streams, _) in KINDS {
            calls.push((kind, way, host.begin(way, tool, streams, "hang", None).await));
        }
    }
    let session = host.snakepit.session("s").await.unwrap();
    let elsewhere = host.remote.session("s").await.unwrap();
    let mut watches = vec![watch(&session).await, watch(&elsewhere).await];
    let request = pb::WatchVariablesRequest { session_id: "s".into(), ..Default::default() };
    let mut updates = host.grpc.clone().watch_variables(request).await.unwrap().into_inner();

    match ending {
        "drain over" => host.snakepit.shutdown_within(Duration::from_millis(300)).await,
        "second signal" => {
            let drain = host.snakepit.shutdown_within(Duration::from_secs(600));
            tokio::select! {
                () = drain => panic!("calls were running"),
                () = tokio::time::sleep(Duration::from_millis(100)) => {}
            }
            host.snakepit.shutdown_within(Duration::ZERO).await;
        }
        other => panic!("{other}"),
    }
    for (kind, way, call) in calls {
        assert_eq!(Some(call.outcome().await), expected(kind, ending), "{kind}, {ending}, {way:?}");
    }
    let of_a_watch = expected("watch of variables", ending);
    for watch in &mut watches {
        let end = tokio::time::timeout(SOON, watch.next()).await.unwrap().unwrap().map(drop).unwrap_err();
        assert_eq!(Some(reason(end)), of_a_watch);
        assert!(watch.next().await.is_none());
    }
    assert_eq!(Some(reason_of(&updates.message().await.unwrap_err())), of_a_watch);
    let refused =
        host.snakepit.execute::<Value>("host_tool", json!({"how": "result", "marker": "/dev/null"})).await;
    let Err(Error::Tool(ToolError::ShuttingDown { delivered: false })) = refused else {
        panic!("{refused:?}")
    };
}

async fn watch(session: &SessionHandle) -> SessionWatch {
    session.watch(&[], false).await.unwrap()
}

#[tokio::test]
async fn calls_and_watches_that_the_end_of_a_drain_cuts_off_say_so() {
    cut_off(true, &WAYS, "drain over").await;
}

#[tokio::test]
async fn calls_and_watches_that_a_second_signal_cuts_off_say_so() {
    cut_off(true, &WAYS, "second signal").await;
}

#[tokio::test]
async fn calls_of_plain_workers_that_are_cut_off_say_so() {
    for ending in ["drain over", "second signal"] {
        cut_off(false, &[Way::Embedded], ending).await;
    }
}
