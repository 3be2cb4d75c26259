//! Recovery from removed directories and crashed workers, and graceful shutdown on signals.

use serde_json::json;
use snakepit_proto::status::details_of;
use snakepit_tests::{
    EVENT_TIMEOUT, Sandbox, Signal, eventually, execute, is_alive, processes_with, signal, tool_request,
};

const MISBEHAVING: &str = "misbehaving:MisbehavingAdapter";

/// Kills all workers, and waits until new workers are idle and serve calls.
async fn replace_workers(sandbox: &Sandbox) {
    let before = sandbox.worker_pids().await;
    before.iter().for_each(|pid| signal(*pid, Signal::SIGKILL));
    eventually("the workers are replaced", EVENT_TIMEOUT, async || {
        sandbox.workers().await.iter().all(|worker| worker.state == "idle" && !before.contains(&worker.pid))
    })
    .await;
    assert_eq!(execute(&mut sandbox.client().await, "ping", &json!({})).await.unwrap(), "pong");
}

#[tokio::test]
async fn a_removed_run_directory_is_created_again() {
    let sandbox = Sandbox::adapter(MISBEHAVING, 1).start().await;
    let run = sandbox.socket().parent().unwrap().to_owned();
    std::fs::remove_dir_all(&run).unwrap();
    replace_workers(&sandbox).await;
    assert!(sandbox.socket().exists() && run.join("ledger").exists());
    std::fs::remove_file(sandbox.socket()).unwrap();
    replace_workers(&sandbox).await;
    assert!(sandbox.log().contains("created it again"), "{}", sandbox.log());
    assert_eq!(sandbox.stop().await, Some(0));
    assert!(!run.exists(), "the new directory is removed at shutdown");
}

#[tokio::test]
async fn workers_start_although_the_working_directory_was_removed() {
    let releases = tempfile::tempdir().unwrap();
    let release = releases.path().join("1.0");
    std::fs::create_dir(&release).unwrap();
    let sandbox = Sandbox::adapter(MISBEHAVING, 1).working_dir(&release).start().await;
    std::fs::remove_dir_all(&release).unwrap();
    replace_workers(&sandbox).await;
    assert!(sandbox.log().contains("the working directory was removed"), "{}", sandbox.log());
}

#[tokio::test]
async fn the_error_of_a_crash_contains_only_the_output_of_that_call() {
    let sandbox = Sandbox::adapter(MISBEHAVING, 1).start().await;
    let mut client = sandbox.client().await;
    for (signal, has_stack) in [(9, false), (11, true), (6, true)] {
        let secret = json!({"text": "the card of alice"});
        execute(&mut client, "say", &secret).await.unwrap();
        let args = json!({"text": "the words of bob", "signal": signal});
        let lost = client.execute_tool(tool_request("say_and_die", &args)).await.unwrap_err();
        let lines = details_of(&lost).failure.unwrap().output_lines;
        assert_eq!(lines.first().map(String::as_str), Some("the words of bob"), "{lines:?}");
        let text = lines.join("\n");
        assert!(!format!("{text} {lost:?}").contains("alice"), "{lost:?}");
        assert_eq!(text.contains("in say_and_die"), has_stack, "{text}");
    }
    eventually("the log contains the output of all calls", EVENT_TIMEOUT, async || {
        let log = sandbox.log();
        log.contains("the card of alice") && log.matches("in say_and_die").count() >= 2
    })
    .await;
}

/// Such output cannot be attributed to a call.
#[tokio::test]
async fn output_of_threads_subprocesses_and_c_code_is_only_in_the_log() {
    let sandbox = Sandbox::adapter(MISBEHAVING, 1).start().await;
    let mut client = sandbox.client().await;
    let lost = client.execute_tool(tool_request("say_everywhere_and_die", &json!({}))).await.unwrap_err();
    let lines = details_of(&lost).failure.unwrap().output_lines;
    assert_eq!(lines, ["from the call"]);
    let sources = ["from the call", "from a thread", "from a subprocess", "from C code"];
    eventually("the log contains all output", EVENT_TIMEOUT, async || {
        let log = sandbox.log();
        sources.iter().all(|source| log.contains(source))
    })
    .await;
}

#[tokio::test]
async fn a_crash_during_cancellation_is_reported_as_a_crash() {
    let sandbox = Sandbox::adapter(MISBEHAVING, 1).start().await;
    for round in 1..=3 {
        let mut client = sandbox.client().await;
        let pid = sandbox.worker_pids().await[0];
        let call = async move { client.execute_tool(tool_request("die_when_cancelled", &json!({}))).await };
        let call = tokio::spawn(call);
        eventually("the call sleeps", EVENT_TIMEOUT, async || {
            let sleeping = sandbox.log().matches("going to sleep").count();
            sleeping == round
        })
        .await;
        call.abort();
        eventually("the worker is replaced", EVENT_TIMEOUT, async || {
            let worker = &sandbox.workers().await[0];
            worker.pid != pid && worker.state == "idle"
        })
        .await;
        let log = sandbox.log();
        let ends: Vec<_> = log.lines().filter(|line| line.contains("worker ended")).collect();
        assert_eq!(ends.len(), round, "{log}");
        assert!(ends.iter().all(|end| end.contains("it was killed by SIGSEGV")), "{log}");
        assert!(log.contains("in die_when_cancelled") && log.contains("cannot go on"), "{log}");
        assert!(!log.contains("cannot confirm the end") && !log.contains("killing worker"), "{log}");
    }
}

#[tokio::test]
async fn sigquit_and_sighup_shut_down_gracefully() {
    for cause in [Signal::SIGQUIT, Signal::SIGHUP] {
        let mut sandbox = Sandbox::adapter(MISBEHAVING, 1).start().await;
        let workers = sandbox.worker_pids().await;
        signal(sandbox.pid(), cause);
        assert_eq!(sandbox.wait(EVENT_TIMEOUT).await, Some(0), "{cause}");
        assert!(workers.iter().all(|pid| !is_alive(*pid)), "{cause}");
        let logged = format!("signal=\"{cause}\"");
        eventually("the log names the signal", EVENT_TIMEOUT, async || sandbox.log().contains(&logged)).await;
    }
    // `nohup` starts programs with SIGHUP ignored.
    let sandbox = Sandbox::adapter(MISBEHAVING, 1).shell("trap '' HUP; exec \"$@\"").start().await;
    signal(sandbox.pid(), Signal::SIGHUP);
    assert_eq!(execute(&mut sandbox.client().await, "ping", &json!({})).await.unwrap(), "pong");
    assert_eq!(sandbox.stop().await, Some(0));
}

#[tokio::test]
async fn stop_grace_limits_the_time_of_workers_to_exit() {
    for (grace, exits_cleanly) in [(None, true), (Some("300ms"), false)] {
        let notes = tempfile::tempdir().unwrap();
        let args = grace.map_or(vec![], |grace| vec!["--stop-grace", grace]);
        let mut sandbox = Sandbox::adapter("last_words:Adapter", 1)
            .args(&args)
            .env("SNAKEPIT_TEST_NOTES", notes.path().display().to_string())
            .env("SNAKEPIT_TEST_SLOW_END", "2.5")
            .start()
            .await;
        let pid = sandbox.worker_pids().await[0];
        signal(sandbox.pid(), Signal::SIGTERM);
        assert_eq!(sandbox.wait(EVENT_TIMEOUT).await, Some(0));
        assert_eq!(notes.path().join(pid.to_string()).exists(), exits_cleanly, "{grace:?}");
    }
}

/// Counts the zombies among the children of a process.
fn zombies_of(host: u32) -> usize {
    let children = std::fs::read_to_string(format!("/proc/{host}/task/{host}/children")).unwrap_or_default();
    let is_zombie = |pid: &&str| {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
    };
    children.split_whitespace().filter(is_zombie).count()
}

#[tokio::test]
async fn as_the_first_process_of_a_container_the_host_reaps_zombies() {
    let unshare = ["--pid", "--fork", "--mount-proc", "--kill-child"];
    let can_unshare = tokio::process::Command::new("unshare").args(unshare).arg("true").status().await;
    if !can_unshare.is_ok_and(|status| status.success()) {
        eprintln!("skipped: PID namespaces are not available");
        return;
    }
    let line = format!("exec unshare {} \"$@\"", unshare.join(" "));
    let starting = Sandbox::adapter(MISBEHAVING, 2).shell(line).spawn();
    let outside = starting.pid();
    let run_dir = starting.run_dir().display().to_string();
    let sandbox = starting.outcome().await.unwrap();
    assert_eq!(sandbox.pid(), 1, "the daemon is the first process of its namespace");
    let host = processes_with(&run_dir).into_iter().filter(|pid| *pid != outside).min().unwrap();
    let mut client = sandbox.client().await;
    execute(&mut client, "daemonize", &json!({"count": 6})).await.unwrap();
    eventually("the daemonized processes are reaped", EVENT_TIMEOUT, async || {
        sandbox.log().matches("reaped a process that a tool left behind").count() >= 6
            && zombies_of(host) == 0
    })
    .await;
    // The host still receives the exit status of its workers.
    let lost = execute(&mut client, "crash", &json!({})).await.unwrap_err();
    assert!(lost.message().contains("code 7"), "{lost:?}");
    assert_eq!(execute(&mut client, "ping", &json!({})).await.unwrap(), "pong");
    // `host` is the pid outside the namespace.
    signal(host, Signal::SIGTERM);
    eventually("the host ends", EVENT_TIMEOUT, async || !is_alive(host)).await;
}
