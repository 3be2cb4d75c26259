//! Workers that run several calls together: overlap, isolation, cancellation, streams, and the end of a worker with many calls.

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{
    StreamExt, TryStreamExt,
    future::{join_all, try_join_all},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use snakepit_server::{Builder, Error, NewSession, Operation, Principal, Snakepit, ToolError};
use snakepit_tests::{EVENT_TIMEOUT, Sandbox, eventually, execute, python, root};
use tempfile::TempDir;

/// The time after which a call that does not overlap fails.
const LIMIT: Duration = Duration::from_secs(30);

struct Fixture {
    snakepit: Snakepit,
    dir: TempDir,
}

impl Fixture {
    async fn start(class: &str, workers: usize, configure: impl FnOnce(Builder) -> Builder) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let builder = Snakepit::builder()
            .adapter(format!("overlapping:{class}"))
            .env("PYTHONPATH", root().join("tests/adapters").display().to_string())
            .env("SNAKEPIT_TEST_EXIT", dir.path().join("exit").display().to_string())
            .python(python())
            .run_dir(dir.path())
            .multiplex(!snakepit_tests::plain_calls())
            .workers(workers);
        Self { snakepit: configure(builder).start().await.unwrap(), dir }
    }

    async fn overlapping() -> Self {
        Self::start("Overlapping", 1, |builder| builder).await
    }

    async fn call<T: DeserializeOwned>(&self, tool: &str, args: Value) -> Result<T, Error> {
        Ok(self.snakepit.call(tool).args(args).timeout(LIMIT).unary::<T>().await?.value)
    }

    /// Waits until the worker has recorded an event.
    async fn event(&self, event: &str) {
        eventually(event, EVENT_TIMEOUT, async || self.events().await.iter().any(|other| other == event))
            .await;
    }

    /// Makes a call in a new session, whose name ends with the number.
    async fn call_in_session(&self, tool: &str, number: usize, args: Value) -> Value {
        let session = format!("s{number}");
        self.snakepit.open_session(&session, NewSession::default()).await.unwrap();
        let call = self.snakepit.call(tool).args(args).session(session.as_str()).timeout(LIMIT);
        call.unary::<Value>().await.unwrap().value
    }

    async fn events(&self) -> Vec<String> {
        self.call("events", json!({})).await.unwrap()
    }

    async fn count(&self, name: &str) -> i64 {
        self.call::<Value>("counts", json!({})).await.unwrap()[name].as_i64().unwrap()
    }

    /// The pid of the only worker, once it has one.
    fn pid(&self) -> Option<i32> {
        let pid = self.snakepit.status().workers.first()?.pid?;
        i32::try_from(pid).ok()
    }

    fn exit_file(&self) -> impl AsRef<Path> {
        self.dir.path().join("exit")
    }
}

fn lost_after_begin(error: &Error) -> bool {
    matches!(error, Error::Tool(ToolError::WorkerLost { may_have_run: true, .. }))
}

#[tokio::test]
async fn coroutines_of_one_worker_run_together() {
    let fixture = Fixture::overlapping().await;
    // Each call waits until all of them run.
    let pids: Vec<i32> =
        try_join_all((0..20).map(|_| fixture.call("meet", json!({"count": 20})))).await.unwrap();
    assert!(pids.iter().all(|pid| Some(*pid) == fixture.pid()), "{pids:?}");
    try_join_all((0..60).map(|_| fixture.call::<f64>("pause", json!({"seconds": 0.05})))).await.unwrap();
    assert_eq!(fixture.count("most").await, 20, "the worker declares 20 places");
    fixture.snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn two_hundred_calls_run_together_on_two_workers() {
    let fixture = Fixture::start("Overlapping", 2, |builder| builder.concurrency(100)).await;
    let calls = (0..200).map(|_| fixture.call::<i32>("meet", json!({"count": 100})));
    let mut pids = try_join_all(calls).await.unwrap();
    pids.sort_unstable();
    assert_eq!([pids[0], pids[99]], [pids[0]; 2]);
    assert_eq!([pids[100], pids[199]], [pids[199]; 2]);
    assert_ne!(pids[0], pids[199]);
    fixture.snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn the_setting_of_the_pool_replaces_that_of_the_adapter() {
    let fixture = Fixture::start("Overlapping", 1, |builder| builder.concurrency(1)).await;
    let pauses = (0..4).map(|_| fixture.call::<f64>("pause", json!({"seconds": 0.01})));
    try_join_all(pauses).await.unwrap();
    assert_eq!(fixture.count("most").await, 1);
}

#[tokio::test]
async fn a_tool_has_its_own_limit() {
    let fixture = Fixture::overlapping().await;
    let most = try_join_all((0..10).map(|_| fixture.call::<i64>("narrow", json!({})))).await.unwrap();
    assert_eq!(most.iter().max(), Some(&2), "{most:?}");
    // Only one tool of this adapter overlaps.
    let fixture = Fixture::start("Wide", 1, |builder| builder).await;
    try_join_all((0..8).map(|_| fixture.call::<i32>("meet", json!({"count": 8})))).await.unwrap();
    try_join_all((0..4).map(|_| fixture.call::<f64>("pause", json!({"seconds": 0.01})))).await.unwrap();
    assert_eq!(fixture.count("most").await, 1);
}

#[tokio::test]
async fn each_call_has_its_own_variables_session_failure_and_exit() {
    let fixture = Fixture::overlapping().await;
    let calls = (0..10).map(|i| fixture.call_in_session("isolated", i, json!({"value": i, "count": 10})));
    let results = join_all(calls).await;
    for (value, result) in (0..10).zip(results) {
        assert_eq!(result, json!([value, format!("s{value}")]));
    }
    let failing = (0..6).map(|i| fixture.call::<()>("fail", json!({"text": format!("no {i}"), "count": 6})));
    for (i, result) in join_all(failing).await.into_iter().enumerate() {
        let Err(Error::Tool(ToolError::Failed(failure))) = result else { panic!("{result:?}") };
        assert_eq!((&*failure.error_type, failure.message), ("LookupError", format!("no {i}")));
        assert!(failure.traceback.contains("overlapping.py"), "{}", failure.traceback);
        assert!(!failure.traceback.contains("_concurrent.py"), "{}", failure.traceback);
    }
    let exits = join_all((0..3).map(|_| fixture.call::<()>("exit", json!({"count": 3})))).await;
    assert!(exits.iter().all(|exit| matches!(exit, Err(Error::Tool(ToolError::Failed(_))))), "{exits:?}");
    assert_eq!(fixture.snakepit.status().workers[0].restarts, 0);
}

#[tokio::test]
async fn a_cancelled_call_and_a_deadline_end_only_their_call() {
    let fixture = Fixture::overlapping().await;
    let pid = fixture.pid();
    let hang = |name: &str| fixture.snakepit.call("hang").args(json!({"name": name})).timeout(LIMIT);
    let mut others = Box::pin(join_all((0..3).map(|_| fixture.call::<i32>("meet", json!({"count": 4})))));
    let mut dropped = Box::pin(hang("dropped").unary::<()>());
    let late = hang("late").timeout(Duration::from_millis(300)).unary::<()>();
    let late = tokio::select! {
        _ = &mut others => panic!("a fourth call is missing"),
        _ = &mut dropped => panic!("it hangs"),
        late = late => late.unwrap_err(),
    };
    assert!(matches!(late, Error::Tool(ToolError::DeadlineExceeded { .. })), "{late:?}");
    fixture.event("ended late").await;
    assert!(!fixture.events().await.contains(&"ended dropped".to_owned()));
    drop(dropped);
    fixture.event("ended dropped").await;
    let (fourth, others) = tokio::join!(fixture.call::<i32>("meet", json!({"count": 4})), others);
    assert_eq!(fourth.ok(), pid);
    assert!(others.into_iter().all(|other| other.ok() == pid));
}

#[tokio::test]
async fn a_cancelled_call_that_blocks_the_loop_is_interrupted() {
    let fixture = Fixture::overlapping().await;
    let pid = fixture.pid();
    let mut other = Box::pin(fixture.call::<i32>("meet", json!({"count": 2})));
    for (tool, event) in [("block_loop", "interrupted"), ("block", "began block")] {
        let call = fixture.snakepit.call(tool).timeout(Duration::from_millis(200));
        let call = if tool == "block" { call.args(json!({"seconds": 600})) } else { call };
        tokio::select! {
            _ = &mut other => panic!("a second call is missing"),
            error = call.unary::<Value>() => {
                let error = error.unwrap_err();
                assert!(matches!(error, Error::Tool(ToolError::DeadlineExceeded { .. })), "{error:?}");
            }
        }
        fixture.event(event).await;
    }
    assert_eq!(fixture.call::<i32>("meet", json!({"count": 2})).await.ok(), pid);
    assert_eq!(other.await.ok(), pid, "the worker was kept");
}

#[tokio::test]
async fn a_slow_reader_pauses_only_its_stream() {
    let fixture = Fixture::overlapping().await;
    let unread = async || {
        let call = fixture.snakepit.call("blocks").args(json!({"count": 1000})).timeout(LIMIT);
        call.stream::<String>().await.unwrap()
    };
    // More than the number of threads in asyncio's default executor.
    let mut unread = join_all((0..12).map(|_| unread())).await;
    eventually("the streams pause", EVENT_TIMEOUT, async || {
        let before = fixture.count("produced").await;
        fixture.call::<f64>("pause", json!({"seconds": 0.2})).await.unwrap();
        before > 0 && fixture.count("produced").await == before
    })
    .await;
    assert!(fixture.count("produced").await < 12 * 1000);
    let calls = (0..3).map(async |i| {
        let tool = if i == 0 { "plain_numbers" } else { "numbers" };
        let call = fixture.snakepit.call(tool).args(json!({"count": 2000})).timeout(LIMIT);
        call.stream::<i64>().await.unwrap().try_collect::<Vec<_>>().await.unwrap()
    });
    let expected: Vec<i64> = (0..2000).collect();
    assert!(join_all(calls).await.iter().all(|numbers| *numbers == expected));
    // A reader that leaves closes its generator.
    let first = unread.pop().unwrap();
    drop(first);
    fixture.event("closed").await;
    let rest = unread.pop().unwrap().map(|block| block.unwrap().len()).collect::<Vec<_>>();
    assert_eq!(rest.await, vec![65_536; 1000]);
}

#[tokio::test]
async fn background_tasks_run_between_calls_and_leftovers_end_with_their_call() {
    let fixture = Fixture::overlapping().await;
    let before = fixture.count("ticks").await;
    eventually("the worker's task runs", EVENT_TIMEOUT, async || fixture.count("ticks").await > before + 5)
        .await;
    let mut running = Box::pin(fixture.call::<i32>("meet", json!({"count": 2})));
    tokio::select! {
        left = fixture.call::<()>("leave", json!({})) => left.unwrap(),
        _ = &mut running => panic!("a second call is missing"),
    }
    fixture.event("ended leftover").await;
    fixture.call::<f64>("pause", json!({"seconds": 0.05})).await.unwrap();
    assert!(!fixture.events().await.contains(&"the timer ran".to_owned()));
    fixture.call::<i32>("meet", json!({"count": 2})).await.unwrap();
    running.await.unwrap();
}

#[tokio::test]
async fn a_killed_worker_ends_all_of_its_calls() {
    let fixture = Fixture::overlapping().await;
    let hang = |i: usize| fixture.call::<()>("hang", json!({"name": format!("{i}")}));
    let kill = async {
        for i in 0..10 {
            fixture.event(&format!("began {i}")).await;
        }
        kill(Pid::from_raw(fixture.pid().unwrap()), Signal::SIGKILL).unwrap();
    };
    let (results, ()) = tokio::join!(join_all((0..10).map(hang)), kill);
    for result in results {
        assert!(lost_after_begin(result.as_ref().unwrap_err()), "{result:?}");
    }
    // The output of a call appears only in its own error.
    let chat = |text: &str, count: usize| fixture.call::<()>("chat", json!({"text": text, "count": count}));
    let die = async {
        fixture.call::<i32>("meet", json!({"count": 3})).await.unwrap();
        fixture.call::<()>("die", json!({"text": "my last words"})).await
    };
    let (first, second, last) = tokio::join!(chat("secret one", 3), chat("secret two", 3), die);
    let lines = |result: Result<(), Error>| match result {
        Err(Error::Tool(ToolError::WorkerLost { output_lines, .. })) => output_lines.join("\n"),
        other => panic!("{other:?}"),
    };
    let (first, second, last) = (lines(first), lines(second), lines(last));
    assert!(last.contains("my last words") && !last.contains("secret"), "{last}");
    assert!(!first.contains("two") && !second.contains("one"), "{first} {second}");
}

#[tokio::test]
async fn a_call_that_cannot_be_interrupted_costs_the_worker() {
    let fixture =
        Fixture::start("Overlapping", 1, |builder| builder.cancel_grace(Duration::from_millis(300))).await;
    let mut other = Box::pin(fixture.call::<()>("hang", json!({"name": "other"})));
    // A call that has not begun would run again on the next worker.
    tokio::select! {
        _ = &mut other => panic!("it hangs"),
        () = fixture.event("began other") => {}
    }
    let stuck = fixture.snakepit.call("stick").timeout(Duration::from_millis(200)).unary::<()>();
    let stuck = tokio::select! {
        _ = &mut other => panic!("it hangs"),
        stuck = stuck => stuck.unwrap_err(),
    };
    assert!(matches!(stuck, Error::Tool(ToolError::DeadlineExceeded { .. })), "{stuck:?}");
    let other = other.await.unwrap_err();
    assert!(lost_after_begin(&other) && other.to_string().contains("did not end within"), "{other:?}");
}

#[tokio::test]
async fn a_worker_that_retires_finishes_its_other_calls() {
    let fixture = Fixture::overlapping().await;
    let pid = fixture.pid();
    let mut others =
        Box::pin(join_all((0..5).map(|_| fixture.call::<f64>("pause", json!({"seconds": 1.5})))));
    tokio::select! {
        _ = &mut others => panic!("they pause"),
        () = eventually("they run", EVENT_TIMEOUT, async || fixture.count("most").await == 5) => {}
    }
    let blocked =
        fixture.snakepit.call("block_and_replace").timeout(Duration::from_millis(200)).unary::<()>();
    tokio::select! {
        _ = &mut others => panic!("they pause"),
        blocked = blocked => drop(blocked.unwrap_err()),
    }
    // Runs on the replacement, because the worker does not accept further calls.
    let (later, others) = tokio::join!(fixture.count("pid"), others);
    assert!(others.iter().all(Result::is_ok), "{others:?}");
    assert_ne!(Some(later), pid.map(i64::from));
    let has_exited = async || std::fs::read_to_string(fixture.exit_file()).is_ok_and(|log| log == "0 of 5");
    eventually("process_exit runs after all calls", EVENT_TIMEOUT, has_exited).await;
}

#[tokio::test]
async fn a_drain_waits_for_all_calls_and_then_ends_the_adapter() {
    let fixture = Fixture::overlapping().await;
    let pauses = (0..15).map(|_| fixture.call::<f64>("pause", json!({"seconds": 0.5})));
    let drain = async {
        eventually("the calls run", EVENT_TIMEOUT, async || fixture.count("most").await == 15).await;
        fixture.snakepit.shutdown().await.unwrap();
    };
    let (results, ()) = tokio::join!(join_all(pauses), drain);
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    assert_eq!(std::fs::read_to_string(fixture.exit_file()).unwrap(), "0 of 15");
}

#[tokio::test]
async fn a_nested_call_uses_a_free_place_of_its_own_worker() {
    let fixture = Fixture::overlapping().await;
    let nested = json!({"name": "pause", "arguments": {"seconds": 0}});
    assert_eq!(fixture.call::<f64>("call", nested).await.unwrap(), 0.0);
    assert_eq!(fixture.call::<i64>("descend", json!({"depth": 1})).await.unwrap(), 20, "all places are used");
    let refused: String = fixture.call("call_plain", json!({"name": "events"})).await.unwrap();
    assert!(refused.contains("call_tool_async") && refused.contains("`threads`"), "{refused}");
}

#[tokio::test]
async fn a_tool_acts_for_the_principal_of_its_call_beside_other_calls() {
    let nested = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&nested);
    let fixture = Fixture::start("Overlapping", 1, |builder| {
        builder.authorize(move |principal, operation| {
            if let Operation::Call { tool: "meet", .. } = operation {
                let names = (principal.name().to_string(), principal.worker_id().is_some());
                seen.lock().unwrap().push(names);
            }
            Ok(())
        })
    })
    .await;
    // The nested calls of both principals run together with the calls that wait for them.
    let call = async |name: &str| {
        let call = fixture.snakepit.call("call").principal(Principal::new(name, "test")).timeout(LIMIT);
        let call = call.args(json!({"name": "meet", "arguments": {"count": 2}}));
        call.unary::<i32>().await.unwrap().value
    };
    let pids = tokio::join!(call("alice"), call("bob"));
    assert_eq!((Some(pids.0), Some(pids.1)), (fixture.pid(), fixture.pid()));
    let mut nested = nested.lock().unwrap().clone();
    nested.sort();
    assert_eq!(nested, [("alice".to_owned(), true), ("bob".to_owned(), true)]);
}

#[tokio::test]
async fn the_configuration_file_sets_both_numbers() {
    let sandbox =
        Sandbox::adapter("overlapping:Threaded", 1).config("concurrency = 9\nthreads = 6\n").start().await;
    let mut client = sandbox.client().await;
    let calls = (0..6).map(|_| {
        let mut client = client.clone();
        async move { execute(&mut client, "meet", &json!({"count": 6})).await.unwrap() }
    });
    join_all(calls).await;
    let pauses = (0..12).map(|_| {
        let mut client = client.clone();
        async move { execute(&mut client, "pause", &json!({"seconds": 0.05})).await.unwrap() }
    });
    join_all(pauses).await;
    let counts = execute(&mut client, "counts", &json!({})).await.unwrap();
    assert_eq!(counts["most"], 9);
}

#[tokio::test]
async fn plain_functions_run_together_in_threads() {
    let fixture = Fixture::start("Threaded", 1, |builder| builder).await;
    let mut names =
        try_join_all((0..4).map(|_| fixture.call::<String>("meet", json!({"count": 4})))).await.unwrap();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 4, "{names:?}");
    let calls = (0..4).map(|i| fixture.call_in_session("isolated", i, json!({"value": i})));
    for (value, result) in join_all(calls).await.into_iter().enumerate() {
        assert_eq!(result, json!([value, format!("s{value}")]));
    }
    let Err(Error::Tool(ToolError::Failed(failure))) =
        fixture.call::<()>("fail", json!({"text": "no"})).await
    else {
        panic!("it fails")
    };
    assert!(failure.traceback.contains("in fail"), "{}", failure.traceback);
    assert!(!failure.traceback.contains("_concurrent.py"), "{}", failure.traceback);
    let numbers = fixture.snakepit.execute_stream::<i64>("numbers", json!({"count": 5000})).await.unwrap();
    assert_eq!(numbers.try_collect::<Vec<_>>().await.unwrap(), (0..5000).collect::<Vec<_>>());
    let events: Value = fixture.call("call_plain", json!({"name": "events"})).await.unwrap();
    assert_eq!(events, json!([]));
    fixture.snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_cancelled_thread_is_interrupted_and_its_cleanup_is_not() {
    let fixture = Fixture::start("Threaded", 1, |builder| builder).await;
    let pid = fixture.pid();
    let spin = |name: &str, timeout| {
        let call = fixture.snakepit.call("spin").args(json!({"name": name}));
        call.timeout(timeout).unary::<()>()
    };
    let mut kept = Box::pin(spin("kept", LIMIT));
    let late = tokio::select! {
        _ = &mut kept => panic!("it spins"),
        late = spin("late", Duration::from_millis(200)) => late.unwrap_err(),
    };
    assert!(matches!(late, Error::Tool(ToolError::DeadlineExceeded { .. })), "{late:?}");
    fixture.event("ended late").await;
    assert!(!fixture.events().await.contains(&"ended kept".to_owned()));
    assert_eq!(fixture.pid(), pid, "the worker was kept");
    drop(kept);
    fixture.event("ended kept").await;
    assert_eq!(fixture.pid(), pid);
}
