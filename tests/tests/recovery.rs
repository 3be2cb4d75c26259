//! What people and cleaners take away under a running host comes back, workers that crash are reported as what they are, and
//! signals get an orderly end.

use std::time::Duration;

use serde_json::json;
use snakepit_proto::status::details_of;
use snakepit_tests::{Sandbox, Signal, eventually, execute, is_alive, processes_with, signal, tool_request};

const MISBEHAVING: &str = "misbehaving:MisbehavingAdapter";
const SOON: Duration = Duration::from_secs(20);

/// Kills all workers, and waits until each is replaced and answers.
async fn replace_workers(sandbox: &Sandbox) {
    let before = sandbox.worker_pids().await;
    before.iter().for_each(|pid| signal(*pid, Signal::SIGKILL));
    eventually("the workers are replaced", SOON, async || {
        sandbox.workers().await.iter().all(|worker| worker.state == "idle" && !before.contains(&worker.pid))
    })
    .await;
    assert_eq!(execute(&mut sandbox.client().await, "ping", &json!({})).await.unwrap(), "pong");
}

#[tokio::test]
async fn a_run_directory_that_is_removed_is_made_anew() {
    let sandbox = Sandbox::adapter(MISBEHAVING, 1).start().await;
    let run = sandbox.socket().parent().unwrap().to_owned();
    std::fs::remove_dir_all(&run).unwrap();
    replace_workers(&sandbox).await;
    assert!(sandbox.socket().exists() && run.join("ledger").exists());
    std::fs::remove_file(sandbox.socket()).unwrap();
    replace_workers(&sandbox).await;
    assert!(sandbox.log().contains("made it anew"), "{}", sandbox.log());
    assert_eq!(sandbox.stop().await, Some(0));
    assert!(!run.exists(), "it is removed at the end like the first one");
}

#[tokio::test]
async fn a_working_directory_that_is_removed_is_no_reason_not_to_start() {
    let releases = tempfile::tempdir().unwrap();
    let release = releases.path().join("1.0");
    std::fs::create_dir(&release).unwrap();
    let sandbox = Sandbox::adapter(MISBEHAVING, 1).working_dir(&release).start().await;
    std::fs::remove_dir_all(&release).unwrap();
    replace_workers(&sandbox).await;
    assert!(sandbox.log().contains("the working directory was removed"), "{}", sandbox.log());
}

#[tokio::test]
async fn the_error_of_a_crash_has_the_output_of_its_own_call_alone() {
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
    eventually("the log has it all", SOON, async || {
        let log = sandbox.log();
        log.contains("the card of alice") && log.matches("in say_and_die").count() >= 2
    })
    .await;
}

#[tokio::test]
async fn a_crash_while_a_call_is_cancelled_is_reported_as_what_it_is() {
    let sandbox = Sandbox::adapter(MISBEHAVING, 1).start().await;
    for round in 1..=3 {
        let mut client = sandbox.client().await;
        let pid = sandbox.worker_pids().await[0];
        let call = async move { client.execute_tool(tool_request("die_when_cancelled", &json!({}))).await };
        let call = tokio::spawn(call);
        eventually("the call sleeps", SOON, async || {
            let asleep = sandbox.log().matches("going to sleep").count();
            asleep == round
        })
        .await;
        call.abort();
        eventually("the worker is replaced", SOON, async || {
            let worker = &sandbox.workers().await[0];
            worker.pid != pid && worker.state == "idle"
        })
        .await;
        let log = sandbox.log();
        let ends: Vec<_> = log.lines().filter(|line| line.contains("worker ended")).collect();
        assert_eq!(ends.len(), round, "{log}");
        assert!(ends.iter().all(|end| end.contains("it was killed by SIGSEGV")), "{log}");
        assert!(log.contains("in die_when_cancelled") && log.contains("cannot go on"), "{log}");
        assert!(!log.contains("cannot tell whether") && !log.contains("killing worker"), "{log}");
    }
}

#[tokio::test]
async fn every_signal_that_asks_for_an_end_gets_an_orderly_one() {
    for asked in [Signal::SIGQUIT, Signal::SIGHUP] {
        let mut sandbox = Sandbox::adapter(MISBEHAVING, 1).start().await;
        let workers = sandbox.worker_pids().await;
        signal(sandbox.pid(), asked);
        assert_eq!(sandbox.wait(SOON).await, Some(0), "{asked}");
        assert!(workers.iter().all(|pid| !is_alive(*pid)), "{asked}");
        let told = format!("signal=\"{asked}\"");
        eventually("it says why", SOON, async || sandbox.log().contains(&told)).await;
    }
    // As `nohup` does.
    let sandbox = Sandbox::adapter(MISBEHAVING, 1).shell("trap '' HUP; exec \"$@\"").start().await;
    signal(sandbox.pid(), Signal::SIGHUP);
    assert_eq!(execute(&mut sandbox.client().await, "ping", &json!({})).await.unwrap(), "pong");
    assert_eq!(sandbox.stop().await, Some(0));
}

#[tokio::test]
async fn workers_have_the_time_to_exit_that_is_configured() {
    for (grace, ends_in_order) in [(None, true), (Some("300ms"), false)] {
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
        assert_eq!(sandbox.wait(SOON).await, Some(0));
        assert_eq!(notes.path().join(pid.to_string()).exists(), ends_in_order, "{grace:?}");
    }
}

/// The first process of a PID namespace, and its zombies, as seen from here.
fn zombies_of(host: u32) -> usize {
    let children = std::fs::read_to_string(format!("/proc/{host}/task/{host}/children")).unwrap_or_default();
    let is_zombie = |pid: &&str| {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
    };
    children.split_whitespace().filter(is_zombie).count()
}

#[tokio::test]
async fn the_first_process_of_a_container_leaves_no_zombies() {
    let unshare = ["--pid", "--fork", "--mount-proc", "--kill-child"];
    let possible = tokio::process::Command::new("unshare").args(unshare).arg("true").status().await;
    if !possible.is_ok_and(|status| status.success()) {
        eprintln!("skipped: PID namespaces cannot be made here");
        return;
    }
    let line = format!("exec unshare {} \"$@\"", unshare.join(" "));
    let starting = Sandbox::adapter(MISBEHAVING, 2).shell(line).spawn();
    let outside = starting.pid();
    let run_dir = starting.run_dir().display().to_string();
    let sandbox = starting.outcome().await.unwrap();
    assert_eq!(sandbox.pid(), 1, "it is the first process there");
    let host = processes_with(&run_dir).into_iter().filter(|pid| *pid != outside).min().unwrap();
    let mut client = sandbox.client().await;
    execute(&mut client, "daemonize", &json!({"count": 6})).await.unwrap();
    eventually("what was daemonized is reaped", SOON, async || {
        sandbox.log().matches("reaped a process that a tool left behind").count() >= 6
            && zombies_of(host) == 0
    })
    .await;
    // Workers are reaped by those who wait for them.
    let lost = execute(&mut client, "crash", &json!({})).await.unwrap_err();
    assert!(lost.message().contains("code 7"), "{lost:?}");
    assert_eq!(execute(&mut client, "ping", &json!({})).await.unwrap(), "pong");
    // It has another number here.
    signal(host, Signal::SIGTERM);
    eventually("it ends", SOON, async || !is_alive(host)).await;
}
