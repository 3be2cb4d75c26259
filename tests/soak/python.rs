//! A client in Python, which can be frozen and killed.

use std::{collections::BTreeMap, process::Stdio, sync::Arc, time::Duration};

use serde::Deserialize;
use snakepit_tests::{Signal, python, root, signal};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

use crate::{daemon::Daemon, tally::Tally};

const KIND: &str = "python client";
/// Failures of the client's own classes that lost and hung workers, and a frozen client, explain.
const EXPLAINED: [&str; 7] = [
    "DeadlineExceededError",
    "HostUnavailableError",
    "OverloadedError",
    "ToolFailed",
    "WorkerLostError",
    "ShuttingDownError",
    "CallCancelledError",
];
/// How long it may take to end its calls after its input has closed: a call's deadline and grace.
const ENDS_WITHIN: Duration = Duration::from_secs(15);

/// The running program.
pub(crate) struct PythonClient {
    child: Child,
    stdout: Lines<BufReader<ChildStdout>>,
    url: String,
    /// How many clients ran before this one: their nonces differ.
    generation: u32,
    tally: Arc<Tally>,
}

/// What it prints at its end.
#[derive(Deserialize)]
struct Summary {
    outcomes: BTreeMap<String, u64>,
    violations: Vec<String>,
}

impl PythonClient {
    pub(crate) async fn start(daemon: &Daemon, tally: &Arc<Tally>) -> Self {
        let (child, stdout) = spawn(&daemon.url, 0).await;
        Self { child, stdout, url: daemon.url.clone(), generation: 0, tally: Arc::clone(tally) }
    }

    /// Stops the whole process for a while, with everything it has under way.
    pub(crate) async fn freeze(&self, time: Duration) {
        let pid = self.child.id().expect("it runs");
        signal(pid, Signal::SIGSTOP);
        tokio::time::sleep(time).await;
        signal(pid, Signal::SIGCONT);
    }

    /// Kills it in the middle of its calls, and starts another.
    pub(crate) async fn replace(&mut self) {
        self.child.kill().await.expect("it runs");
        self.generation += 1;
        (self.child, self.stdout) = spawn(&self.url, self.generation).await;
    }

    /// Ends it, and counts its calls.
    pub(crate) async fn finish(mut self) {
        drop(self.child.stdin.take());
        let line = match timeout(ENDS_WITHIN, self.stdout.next_line()).await {
            Ok(line) => line.expect("its output can be read"),
            Err(_) => return self.tally.violation(format!("{KIND}: did not end within {ENDS_WITHIN:?}")),
        };
        let Some(line) = line else {
            return self.tally.violation(format!("{KIND}: ended without a summary"));
        };
        let summary: Summary = serde_json::from_str(&line).expect("a summary");
        for (outcome, calls) in summary.outcomes {
            if outcome != "ok" && !EXPLAINED.contains(&&*outcome) {
                self.tally.violation(format!("{KIND}: {calls} calls ended as {outcome}"));
            }
            self.tally.count(KIND, outcome, calls);
        }
        summary.violations.into_iter().for_each(|what| self.tally.violation(format!("{KIND}: {what}")));
        if timeout(ENDS_WITHIN, self.child.wait()).await.is_err() {
            self.tally.violation(format!("{KIND}: did not exit"));
        }
    }
}

async fn spawn(url: &str, generation: u32) -> (Child, Lines<BufReader<ChildStdout>>) {
    let mut child = Command::new(python())
        .arg(root().join("tests/clients/soak_client.py"))
        .arg(url)
        .arg(generation.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("Python can be run");
    let mut stdout = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let running = timeout(Duration::from_secs(30), stdout.next_line()).await.expect("the client starts");
    assert_eq!(running.expect("its output can be read").as_deref(), Some("running"));
    (child, stdout)
}
