//! Deaths of workers and hosts, and shutdown: no process remains, and the pool recovers.

use std::time::{Duration, Instant};

use serde_json::json;
use snakepit_tests::{
    Client, EVENT_TIMEOUT, SHOWCASE, Sandbox, Signal, eventually, execute, execute_within, is_alive,
    processes_with, signal, tool_request,
};
use tonic::Code;

const MISBEHAVING: &str = "misbehaving:MisbehavingAdapter";

#[tokio::test]
async fn a_killed_worker_is_replaced() {
    let sandbox = Sandbox::adapter(SHOWCASE, 2).start().await;
    let before = sandbox.worker_pids().await;
    signal(before[0], Signal::SIGKILL);
    eventually("the killed worker is replaced", EVENT_TIMEOUT, async || {
        let workers = sandbox.workers().await;
        workers.iter().filter(|w| w.state == "idle").count() == 2
            && workers.iter().all(|w| w.pid != before[0])
    })
    .await;
    let mut client = sandbox.client().await;
    assert_eq!(execute(&mut client, "add", &json!({"a": 1, "b": 2})).await.unwrap(), 3);
    let restarts: u64 = sandbox.workers().await.iter().map(|worker| worker.restarts).sum();
    assert_eq!(restarts, 1);
}

#[tokio::test]
async fn an_idle_worker_that_closes_its_connection_is_replaced() {
    if snakepit_tests::plain_calls() {
        // Without the multiplexed stream, the host notices only at the next call.
        return;
    }
    let sandbox = Sandbox::adapter(MISBEHAVING, 1).start().await;
    let mut client = sandbox.client().await;
    let pid = execute(&mut client, "hang_up", &json!({})).await.unwrap();
    let pid = u32::try_from(pid.as_u64().unwrap()).unwrap();
    eventually("the worker is killed", EVENT_TIMEOUT, async || !is_alive(pid)).await;
    eventually("the worker is replaced", EVENT_TIMEOUT, async || sandbox.workers().await[0].state == "idle")
        .await;
    assert_eq!(execute(&mut client, "ping", &json!({})).await.unwrap(), "pong");
    assert!(sandbox.log().contains("the stream of its calls ended"), "{}", sandbox.log());
}

#[tokio::test]
async fn a_call_that_kills_its_worker_fails_with_the_cause_and_the_last_output() {
    let sandbox = Sandbox::adapter(MISBEHAVING, 1).start().await;
    let mut client = sandbox.client().await;
    for (tool, needles) in [("crash", vec!["code 7", "about to crash"]), ("segfault", vec!["SIGSEGV"])] {
        let status = execute(&mut client, tool, &json!({})).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        for needle in needles {
            assert!(status.message().contains(needle), "{tool}: no {needle:?} in {}", status.message());
        }
        eventually("the worker is replaced", EVENT_TIMEOUT, async || {
            sandbox.workers().await[0].state == "idle"
        })
        .await;
    }
    assert_eq!(execute(&mut client, "ping", &json!({})).await.unwrap(), "pong");
}

#[tokio::test]
async fn forks_of_a_worker_do_not_affect_it() {
    let sandbox = Sandbox::adapter(MISBEHAVING, 1).start().await;
    let pids = sandbox.worker_pids().await;
    let mut client = sandbox.client().await;
    for _ in 0..20 {
        assert_eq!(execute(&mut client, "fork", &json!({})).await.unwrap(), 0);
        assert_eq!(execute(&mut client, "ping", &json!({})).await.unwrap(), "pong");
    }
    assert_eq!(sandbox.worker_pids().await, pids);
}

#[tokio::test]
async fn a_fork_that_returns_to_the_runtime_exits_with_the_status_of_a_program() {
    let sandbox = Sandbox::adapter(MISBEHAVING, 1).start().await;
    let mut client = sandbox.client().await;
    for (end, status) in [("value", 0), ("0", 0), ("3", 3), ("message", 1), ("exception", 1)] {
        let found = execute(&mut client, "fork_and_end", &json!({"end": end})).await.unwrap();
        assert_eq!(found, status, "{end}");
    }
    let logged = async || sandbox.log().contains("ValueError: raised in a fork");
    eventually("the log has the traceback of the fork", EVENT_TIMEOUT, logged).await;
}

#[tokio::test]
async fn a_tool_that_ignores_its_deadline_loses_its_worker_but_delays_no_other_call() {
    let sandbox = Sandbox::adapter(MISBEHAVING, 2).start().await;
    let mut client = sandbox.client().await;
    for tool in ["hang", "hold_gil"] {
        let status =
            execute_within(sandbox.url(), Duration::from_millis(300), tool, &json!({})).await.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded, "{tool}: {status:?}");
        // The other worker answers while the host replaces the hung one.
        assert_eq!(execute(&mut client, "ping", &json!({})).await.unwrap(), "pong");
    }
    eventually("both hung workers are replaced", EVENT_TIMEOUT, async || {
        let workers = sandbox.workers().await;
        workers.iter().map(|w| w.restarts).sum::<u64>() == 2 && workers.iter().all(|w| w.state == "idle")
    })
    .await;
}

#[tokio::test]
async fn a_cancelled_call_frees_its_worker_without_replacing_it() {
    let sandbox = Sandbox::adapter(MISBEHAVING, 1).start().await;
    let pids = sandbox.worker_pids().await;
    for tool in ["busy", "sleep", "sleep_async"] {
        let mut client = sandbox.client().await;
        let call = tokio::spawn(async move { client.execute_tool(tool_request(tool, &json!({}))).await });
        eventually("the call runs", EVENT_TIMEOUT, async || sandbox.workers().await[0].state == "busy").await;
        call.abort();
        let mut client = sandbox.client().await;
        assert_eq!(execute(&mut client, "ping", &json!({})).await.unwrap(), "pong", "after {tool}");
        assert_eq!(sandbox.worker_pids().await, pids, "{tool} lost its worker");
    }
}

#[tokio::test]
async fn no_worker_outlives_a_killed_host() {
    let mut sandbox = Sandbox::adapter(MISBEHAVING, 4).start().await;
    let pids = sandbox.worker_pids().await;
    assert_eq!(pids.len(), 4);
    let mut client = sandbox.client().await;
    let grandchild = execute(&mut client, "spawn_grandchild", &json!({})).await.unwrap();
    let grandchild = u32::try_from(grandchild.as_u64().unwrap()).unwrap();
    // Every worker runs a call, and one of these calls holds the GIL.
    let mut load = tokio::task::JoinSet::new();
    for tool in ["hang", "hold_gil", "hang", "busy"] {
        let mut client = sandbox.client().await;
        load.spawn(async move { client.execute_tool(tool_request(tool, &json!({}))).await.map(drop) });
    }
    eventually("all workers are busy", EVENT_TIMEOUT, async || {
        sandbox.workers().await.iter().all(|worker| worker.state == "busy")
    })
    .await;

    signal(sandbox.pid(), Signal::SIGKILL);
    sandbox.wait(EVENT_TIMEOUT).await;
    eventually("every worker has ended", Duration::from_secs(2), async || {
        pids.iter().all(|pid| !is_alive(*pid)) && !is_alive(grandchild)
    })
    .await;
    load.shutdown().await;
}

#[tokio::test]
async fn no_worker_outlives_a_host_that_is_killed_during_launches() {
    for _ in 0..10 {
        let starting = Sandbox::adapter(SHOWCASE, 4).spawn();
        let host = starting.pid();
        // The path of the host's socket is in the command line of each worker.
        let run_dir = starting.run_dir().display().to_string();
        let workers = || processes_with(&run_dir).into_iter().filter(|pid| *pid != host).count();
        eventually("a worker starts", EVENT_TIMEOUT, async || workers() > 0).await;
        signal(host, Signal::SIGKILL);
        eventually("every worker has ended", Duration::from_secs(2), async || workers() == 0).await;
    }
}

#[tokio::test]
async fn a_new_host_kills_processes_left_by_a_killed_host() {
    let mut first = Sandbox::adapter(MISBEHAVING, 1).start().await;
    let worker = first.worker_pids().await[0];
    let grandchild = execute(&mut first.client().await, "spawn_grandchild", &json!({})).await.unwrap();
    let grandchild = u32::try_from(grandchild.as_u64().unwrap()).unwrap();
    let old_run = first.socket().parent().unwrap().to_owned();
    // The killed worker cannot end its child, and the stopped host cannot either.
    signal(first.pid(), Signal::SIGSTOP);
    signal(worker, Signal::SIGKILL);
    eventually("the worker is dead", EVENT_TIMEOUT, async || !is_alive(worker)).await;
    signal(first.pid(), Signal::SIGKILL);
    first.wait(EVENT_TIMEOUT).await;
    assert!(is_alive(grandchild), "the second host has no process to kill");
    assert!(old_run.exists());

    let second = Sandbox::adapter(SHOWCASE, 1).after(first).start().await;
    eventually("the process of the first host has ended", EVENT_TIMEOUT, async || !is_alive(grandchild))
        .await;
    assert!(second.log().contains("cleaned up after a dead host"), "{}", second.log());
    assert!(!old_run.exists(), "the directory of the dead host still exists");
    let mut client = second.client().await;
    assert_eq!(execute(&mut client, "add", &json!({"a": 1, "b": 2})).await.unwrap(), 3);
}

#[tokio::test]
async fn sigterm_during_launches_leaves_no_process() {
    let pids = tempfile::tempdir().unwrap();
    let started = || {
        let names = std::fs::read_dir(pids.path()).unwrap().map(|entry| entry.unwrap().path());
        let complete = names.filter(|path| path.extension().is_none());
        let pids = complete.flat_map(|path| {
            let grandchild = std::fs::read_to_string(&path).unwrap();
            [path.file_name().unwrap().to_str().unwrap().to_owned(), grandchild]
        });
        pids.map(|pid| pid.parse().unwrap()).collect::<Vec<u32>>()
    };
    let starting = Sandbox::adapter("slow_import:Adapter", 2)
        .env("SNAKEPIT_TEST_PIDS", pids.path().display().to_string())
        .spawn();
    eventually("both workers import their adapter", EVENT_TIMEOUT, async || started().len() == 4).await;
    signal(starting.pid(), Signal::SIGTERM);
    let failure = starting.outcome().await.unwrap_err();
    let running: Vec<_> = started().into_iter().filter(|pid| is_alive(*pid)).collect();
    assert_eq!(running, Vec::<u32>::new(), "still running: {}", failure.stderr);
    assert_eq!(failure.code, Some(0), "{}", failure.stderr);
    let message = "stopped before the workers were ready; no process is left signal=SIGTERM";
    assert!(failure.stderr.contains(message), "{}", failure.stderr);
}

#[tokio::test]
async fn a_failed_or_interrupted_start_leaves_no_directory() {
    // `outcome` checks which files remain.
    let failure = Sandbox::adapter(SHOWCASE, 16).python("/nonexistent/python").try_start().await.unwrap_err();
    assert_eq!(failure.code, Some(5), "{}", failure.stderr);
    for wait in [0, 2, 5, 10, 20, 40] {
        let starting = Sandbox::adapter(SHOWCASE, 16).spawn();
        let directory = || std::fs::read_dir(starting.run_dir()).unwrap().count() > 1;
        eventually("the daemon has its directory", EVENT_TIMEOUT, async || directory()).await;
        // Vary the moment of the signal during the launches. No observable condition marks these moments.
        tokio::time::sleep(Duration::from_millis(wait)).await;
        signal(starting.pid(), Signal::SIGTERM);
        match starting.outcome().await {
            Err(failure) => assert_eq!(failure.code, Some(0), "{}", failure.stderr),
            // The daemon was ready before the signal.
            Ok(mut sandbox) => assert_eq!(sandbox.wait(EVENT_TIMEOUT).await, Some(0)),
        }
    }
}

#[tokio::test]
async fn open_streams_of_clients_do_not_delay_shutdown() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

    let mut sandbox = Sandbox::adapter(SHOWCASE, 1).start().await;
    let mut client = sandbox.client().await;
    // The requests stay open, like those of real subscribers.
    let mut telemetry = client.stream_telemetry(tokio_stream::pending()).await.unwrap().into_inner();
    let mut calls = client.multiplex(tokio_stream::pending()).await.unwrap().into_inner();
    let endpoint = tonic::transport::Endpoint::from_shared(sandbox.url().to_owned()).unwrap();
    let mut health = HealthClient::new(endpoint.connect().await.unwrap());
    let mut states = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();

    signal(sandbox.pid(), Signal::SIGTERM);
    assert_eq!(telemetry.message().await.unwrap_err().message(), "the host is shutting down");
    // This is the status of the calls that would still be open on the stream.
    let cut_off = "the host is shutting down; the call was cut off and may have run";
    assert_eq!(calls.message().await.unwrap_err().message(), cut_off);
    while states.message().await.unwrap().is_some() {}
    assert_eq!(sandbox.wait(EVENT_TIMEOUT).await, Some(0));
    assert!(!sandbox.log().contains("cutting connections"), "{}", sandbox.log());
}

#[tokio::test]
async fn idle_workers_stop_quickly_and_run_their_exit_handlers() {
    let notes = tempfile::tempdir().unwrap();
    let mut sandbox = Sandbox::adapter("last_words:Adapter", 2)
        .env("SNAKEPIT_TEST_NOTES", notes.path().display().to_string())
        .start()
        .await;
    assert_eq!(execute(&mut sandbox.client().await, "ping", &json!({})).await.unwrap(), "pong");
    let pids = sandbox.worker_pids().await;
    let signalled = Instant::now();
    signal(sandbox.pid(), Signal::SIGTERM);
    assert_eq!(sandbox.wait(EVENT_TIMEOUT).await, Some(0));
    // If a worker waited for the host to close the connection, the host would kill it after two seconds.
    let took = signalled.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    for pid in pids {
        let note = std::fs::read_to_string(notes.path().join(pid.to_string()));
        assert_eq!(note.expect("no `atexit` function ran"), "ended in order");
    }
    eventually("the log is complete", EVENT_TIMEOUT, async || {
        sandbox.log().matches("process reaped").count() == 2
    })
    .await;
    let log = sandbox.log();
    let ends: Vec<_> = log.lines().filter(|line| line.contains("process reaped")).collect();
    assert!(ends.iter().all(|line| line.contains("it was asked to stop")), "{ends:?}");
}

#[tokio::test]
async fn sigterm_lets_running_calls_finish_and_leaves_no_process() {
    let sandbox = Sandbox::adapter(SHOWCASE, 2).start().await;
    let pids = sandbox.worker_pids().await;
    let mut client = sandbox.client().await;
    let call = tokio::spawn(async move { execute(&mut client, "sleep_for", &json!({"seconds": 1.0})).await });
    eventually("the call runs", EVENT_TIMEOUT, async || {
        sandbox.workers().await.iter().any(|worker| worker.state == "busy")
    })
    .await;
    assert_eq!(sandbox.stop().await, Some(0));
    call.await.unwrap().expect("a running call finishes during the drain");
    assert!(pids.iter().all(|pid| !is_alive(*pid)), "a worker still runs");
}

#[tokio::test]
async fn sigterm_to_workers_lets_their_calls_finish_while_the_host_runs_or_drains() {
    for with_host in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("running");
        let sandbox = Sandbox::adapter(MISBEHAVING, 1).args(&["--stop-grace", "1s"]).start().await;
        let worker = sandbox.worker_pids().await[0];
        let mut client = sandbox.client().await;
        let arguments = json!({"seconds": 3.0, "path": file});
        let call = tokio::spawn(async move { execute(&mut client, "sleep_for", &arguments).await });
        // A worker is busy before its tool runs. Over plain RPCs, it would reject a call that arrives after the signal.
        eventually("the tool runs", EVENT_TIMEOUT, async || file.exists()).await;
        // A service manager signals the whole control group.
        let host = with_host.then_some(sandbox.pid());
        host.into_iter().chain([worker]).for_each(|pid| signal(pid, Signal::SIGTERM));
        let slept = call.await.unwrap().expect("the call finishes");
        assert!(slept.as_f64().unwrap() >= 3.0, "{slept}");
        eventually("the worker ends", EVENT_TIMEOUT, async || !is_alive(worker)).await;
        if !with_host {
            eventually("the worker is replaced", EVENT_TIMEOUT, async || {
                sandbox.workers().await[0].state == "idle"
            })
            .await;
        }
        assert_eq!(sandbox.stop().await, Some(0));
    }
}

#[tokio::test]
async fn a_call_cancelled_by_a_second_signal_may_clean_up() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("cleaned-up");
    let mut sandbox = Sandbox::adapter(MISBEHAVING, 1).start().await;
    let mut client = sandbox.client().await;
    let arguments = json!({"path": file});
    let call = tokio::spawn(async move { execute(&mut client, "sleep_and_clean_up", &arguments).await });
    eventually("the tool runs", EVENT_TIMEOUT, async || file.exists()).await;
    for _ in 0..2 {
        signal(sandbox.pid(), Signal::SIGTERM);
        eventually("the signal is logged", EVENT_TIMEOUT, async || {
            let log = sandbox.log();
            log.contains("cutting off") || log.contains("draining")
        })
        .await;
    }
    assert_eq!(sandbox.wait(EVENT_TIMEOUT).await, Some(0));
    call.await.unwrap().unwrap_err();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "clean");
}

#[tokio::test]
async fn health_reports_the_state_of_the_workers() {
    use tonic_health::pb::{
        HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
    };

    let sandbox = Sandbox::adapter(SHOWCASE, 1).start().await;
    let channel =
        tonic::transport::Endpoint::from_shared(sandbox.url().to_owned()).unwrap().connect().await.unwrap();
    let mut health = HealthClient::new(channel);
    let mut states = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    let mut next = async || states.message().await.unwrap().unwrap().status();
    assert_eq!(next().await, ServingStatus::Serving);

    signal(sandbox.worker_pids().await[0], Signal::SIGKILL);
    assert_eq!(next().await, ServingStatus::NotServing, "the only worker has died");
    assert_eq!(next().await, ServingStatus::Serving, "it is replaced");

    let mut client = sandbox.client().await;
    let call = tokio::spawn(async move { execute(&mut client, "sleep_for", &json!({"seconds": 1.0})).await });
    eventually("the call runs", EVENT_TIMEOUT, async || sandbox.workers().await[0].state == "busy").await;
    signal(sandbox.pid(), Signal::SIGTERM);
    assert_eq!(next().await, ServingStatus::NotServing, "the first SIGTERM ends serving");
    assert!(!call.is_finished(), "the running call continues");
    call.await.unwrap().unwrap();
}

#[tokio::test]
async fn floods_of_output_do_not_block_calls() {
    let sandbox = Sandbox::adapter(MISBEHAVING, 1).start().await;
    let mut client = sandbox.client().await;
    let lines = 200_000;
    assert_eq!(execute(&mut client, "flood_stdout", &json!({"n": lines})).await.unwrap(), lines);
    assert_eq!(execute(&mut client, "ping", &json!({})).await.unwrap(), "pong");
}

#[tokio::test]
async fn daemonized_processes_end_with_their_worker() {
    let sandbox = Sandbox::adapter(MISBEHAVING, 1).start().await;
    let mut client = sandbox.client().await;
    for end in ["crash", "kill", "stop"] {
        let daemons = daemons(&mut client).await;
        let worker = sandbox.worker_pids().await[0];
        execute(&mut client, "ping", &json!({})).await.unwrap();
        assert!(daemons.iter().all(|pid| is_alive(*pid)), "the daemons run while their worker runs");
        match end {
            "crash" => drop(execute(&mut client, "crash", &json!({})).await.unwrap_err()),
            "kill" => signal(worker, Signal::SIGKILL),
            _ => signal(worker, Signal::SIGTERM),
        }
        eventually("the daemons end", EVENT_TIMEOUT, async || daemons.iter().all(|pid| !is_alive(*pid)))
            .await;
        assert!(!is_alive(worker), "{end}");
        eventually("the worker is replaced", EVENT_TIMEOUT, async || {
            sandbox.workers().await[0].state == "idle"
        })
        .await;
    }
    assert_eq!(sandbox.stop().await, Some(0));
}

#[tokio::test]
async fn daemonized_processes_end_with_a_killed_host() {
    let mut sandbox = Sandbox::adapter(MISBEHAVING, 1).start().await;
    let daemons = daemons(&mut sandbox.client().await).await;
    signal(sandbox.pid(), Signal::SIGKILL);
    sandbox.wait(EVENT_TIMEOUT).await;
    eventually("the daemons end", EVENT_TIMEOUT, async || daemons.iter().all(|pid| !is_alive(*pid))).await;
}

#[tokio::test]
async fn a_new_host_kills_processes_daemonized_under_a_killed_host() {
    let mut first = Sandbox::adapter(MISBEHAVING, 1).start().await;
    let daemons = daemons(&mut first.client().await).await;
    let worker = first.worker_pids().await[0];
    // Neither the stopped host nor the dead worker can kill the daemons.
    signal(first.pid(), Signal::SIGSTOP);
    signal(worker, Signal::SIGKILL);
    eventually("the worker is dead", EVENT_TIMEOUT, async || !is_alive(worker)).await;
    signal(first.pid(), Signal::SIGKILL);
    first.wait(EVENT_TIMEOUT).await;
    assert!(daemons.iter().all(|pid| is_alive(*pid)), "the second host has no process to kill");
    let _second = Sandbox::adapter(SHOWCASE, 1).after(first).start().await;
    assert!(daemons.iter().all(|pid| !is_alive(*pid)));
}

#[tokio::test]
async fn a_process_that_removes_its_mark_outlives_its_worker_and_does_not_delay_shutdown() {
    let mut sandbox = Sandbox::adapter(MISBEHAVING, 1).start().await;
    let mut client = sandbox.client().await;
    let daemon = execute(&mut client, "daemonize_for_good", &json!({})).await.unwrap();
    let daemon = u32::try_from(daemon.as_u64().unwrap()).unwrap();
    execute(&mut client, "crash", &json!({})).await.unwrap_err();
    signal(sandbox.pid(), Signal::SIGTERM);
    let code = sandbox.wait(EVENT_TIMEOUT).await;
    let is_running = is_alive(daemon);
    signal(daemon, Signal::SIGKILL);
    assert_eq!((code, is_running), (Some(0), true));
}

/// Daemonizes two processes: a fork that keeps all descriptors, and a program that inherits nothing.
async fn daemons(client: &mut Client) -> [u32; 2] {
    let mut pids = [0; 2];
    for (pid, (tool, args)) in
        pids.iter_mut().zip([("leave_behind", json!({"seconds": 600})), ("daemonize_clean", json!({}))])
    {
        let pid_json = execute(client, tool, &args).await.unwrap();
        *pid = u32::try_from(pid_json.as_u64().unwrap()).unwrap();
    }
    pids
}
