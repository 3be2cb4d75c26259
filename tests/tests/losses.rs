//! The death of a worker loses only its running call.

use std::{
    cell::{Cell, RefCell},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use futures_util::future::{join, join_all};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use snakepit_proto::pb::bridge_service_client::BridgeServiceClient;
use snakepit_server::{Error, Principal, Snakepit, ToolError};
use snakepit_tests::{EVENT_TIMEOUT, eventually, python, root, tool_request};

async fn start(dir: &tempfile::TempDir, workers: usize) -> Snakepit {
    Snakepit::builder()
        .adapter("deadly:Deadly")
        .env("PYTHONPATH", root().join("tests/adapters").display().to_string())
        .python(python())
        .run_dir(dir.path())
        .workers(workers)
        .start()
        .await
        .unwrap()
}

/// Makes a call, and returns whether it was lost with its worker. Panics if it ends with a wrong result or another error.
async fn call_is_lost(snakepit: &Snakepit, i: u64, args: Value) -> bool {
    let padding = args["padding"].as_u64().map_or(0, |padding| padding as usize);
    match snakepit.execute::<String>("count", args).await {
        Ok(result) => {
            assert_eq!((result.trim_end(), result.len() - padding), (&*i.to_string(), i.to_string().len()));
            false
        }
        Err(Error::Tool(ToolError::WorkerLost { .. })) => true,
        Err(other) => panic!("call {i}: {other}"),
    }
}

fn pids(snakepit: &Snakepit) -> Vec<u32> {
    snakepit.status().workers.iter().filter_map(|worker| worker.pid).collect()
}

/// A call kills its worker shortly after other calls have ended. Their results of various sizes must still arrive.
#[tokio::test]
async fn results_of_finished_calls_arrive_although_a_later_call_kills_the_worker() {
    let dir = tempfile::tempdir().unwrap();
    let snakepit = start(&dir, 1).await;
    for (round, padding) in
        [0, 100, 3000, 20_000, 300_000, 0, 20_000, 300_000, 300_000, 300_000].into_iter().enumerate()
    {
        eventually("the worker runs", EVENT_TIMEOUT, async || pids(&snakepit).len() == 1).await;
        // The pool measures that the tool is brief, and then dispatches calls ahead.
        for i in 0..30 {
            assert!(!call_is_lost(&snakepit, i, json!({"i": i, "padding": padding})).await);
        }
        let victim = 20 + 2 * round as u64;
        let calls = (0..60)
            .map(|i| call_is_lost(&snakepit, i, json!({"i": i, "padding": padding, "victim": victim})));
        let lost: Vec<_> = join_all(calls).await;
        let lost: Vec<_> = (0..60).zip(lost).filter_map(|(i, lost)| lost.then_some(i)).collect();
        assert_eq!(lost, [victim], "with {padding} bytes of padding");
    }
    snakepit.shutdown().await.unwrap();
}

/// Kills workers under load while the host's only thread is blocked, so the host reads results and the end of the connection
/// together. In every second round calls take 20 ms, so the killed worker is usually running one.
#[tokio::test]
async fn a_kill_under_load_loses_at_most_one_call_even_if_the_host_is_blocked() {
    const CALLERS: usize = 64;
    const KILLS: usize = 20;
    let dir = tempfile::tempdir().unwrap();
    let snakepit = start(&dir, 2).await;
    let (next, lost, stop) = (AtomicU64::new(0), Cell::new(0), Cell::new(false));
    let millis = Cell::new(0);
    let caller = async || {
        while !stop.get() {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if call_is_lost(&snakepit, i, json!({"i": i, "millis": millis.get()})).await {
                lost.set(lost.get() + 1);
            }
            // The callers share one thread with the host's tasks.
            tokio::task::yield_now().await;
        }
    };
    let killer = async {
        for round in 0..KILLS {
            eventually("both workers run", EVENT_TIMEOUT, async || pids(&snakepit).len() == 2).await;
            let is_slow = round % 2 == 1;
            millis.set(if is_slow { 20 } else { 0 });
            let calls = if is_slow { 20 } else { 500 };
            let (first_call, lost_before) = (next.load(Ordering::Relaxed), lost.get());
            eventually("calls run", EVENT_TIMEOUT, async || {
                next.load(Ordering::Relaxed) > first_call + calls
            })
            .await;
            let victim = pids(&snakepit)[round / 2 % 2];
            let killer_thread = thread::spawn(move || {
                thread::sleep(Duration::from_millis(5));
                kill(Pid::from_raw(i32::try_from(victim).unwrap()), Signal::SIGKILL).unwrap();
            });
            thread::sleep(Duration::from_millis(20));
            killer_thread.join().unwrap();
            eventually("the worker has ended", EVENT_TIMEOUT, async || !pids(&snakepit).contains(&victim))
                .await;
            eventually("the worker is replaced", EVENT_TIMEOUT, async || pids(&snakepit).len() == 2).await;
            assert!(lost.get() - lost_before <= 1, "kill {round} lost {} calls", lost.get() - lost_before);
        }
        stop.set(true);
        assert!(lost.get() > 0, "no kill hit a running call, so the test proves nothing");
    };
    join(join_all((0..CALLERS).map(|_| caller())), killer).await;
    snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn clients_elsewhere_do_not_receive_the_output_of_a_worker_that_cannot_start() {
    let dir = tempfile::tempdir().unwrap();
    let code = "import os, pathlib\nfrom snakepit_bridge import BaseAdapter, tool\n\
                if pathlib.Path(os.environ['BROKEN']).exists():\n    print('a secret', flush=True)\n    os._exit(3)\n\
                class Breakable(BaseAdapter):\n    @tool\n    def add(self, a: int) -> int:\n        return a\n";
    std::fs::write(dir.path().join("breakable.py"), code).unwrap();
    let broken = dir.path().join("broken");
    let snakepit = Snakepit::builder()
        .adapter("breakable:Breakable")
        .env("PYTHONPATH", dir.path().display().to_string())
        .env("BROKEN", broken.display().to_string())
        .python(python())
        .run_dir(dir.path().join("run"))
        .workers(1)
        .start()
        .await
        .unwrap();
    std::fs::write(broken, "").unwrap();
    let pid = i32::try_from(snakepit.status().workers[0].pid.unwrap()).unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();

    // Until the pool gives up, calls wait.
    let error = RefCell::new(None);
    eventually("no worker is available", EVENT_TIMEOUT, async || {
        let call = snakepit.call("add").arg("a", 1).timeout(Duration::from_millis(100));
        let failed = call.unary::<i64>().await.err();
        let is_unavailable = matches!(failed, Some(Error::Tool(ToolError::Unavailable { .. })));
        *error.borrow_mut() = failed;
        is_unavailable
    })
    .await;
    let Some(Error::Tool(ToolError::Unavailable { reason, last_error, .. })) = error.take() else { panic!() };
    assert_eq!(reason, "every worker failed to start several times in a row");
    assert!(last_error.contains("a secret"), "{last_error}");

    // A mounted client may be on another machine, unless the program sets its principal.
    let mut client = BridgeServiceClient::new(snakepit.routes());
    for (principal, sees_output) in [(None, false), (Some(Principal::user(7)), true)] {
        let mut request = tonic::Request::new(tool_request("add", &json!({"a": 1})));
        if let Some(principal) = principal {
            request.extensions_mut().insert(principal);
        }
        let status = client.execute_tool(request).await.unwrap_err();
        let reason = "no worker is available: every worker failed to start several times in a row";
        assert!(status.message().starts_with(reason), "{status}");
        let shown = format!("{status:?} {:?}", String::from_utf8_lossy(status.details()));
        assert_eq!(shown.contains("a secret"), sees_output, "{shown}");
    }
    snakepit.shutdown().await.unwrap();
}
