//! A client in Python, which can be frozen and killed.

use std::{collections::BTreeMap, process::Stdio, sync::Arc, time::Duration};

use serde::Deserialize;
use snakepit_tests::{Signal, python, root, signal};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    task::JoinHandle,
    time::timeout,
};

use crate::{daemon::Daemon, tally::Tally};

const KIND: &str = "python client";
/// Failures that lost and hung workers and a frozen client explain, by the client's classes.
const EXPLAINED: [&str; 4] =
    ["DeadlineExceededError", "HostUnavailableError", "OverloadedError", "WorkerLostError"];
/// How long it may take to start.
const STARTS_WITHIN: Duration = Duration::from_secs(30);
/// How long it may take to end its calls after its input has closed: a call's deadline and grace.
const ENDS_WITHIN: Duration = Duration::from_secs(15);

/// The running program.
pub(crate) struct PythonClient {
    child: Child,
    /// Adds its reports to the tally, up to the last one.
    reports: JoinHandle<()>,
    url: String,
    /// How many clients ran before this one: their nonces differ.
    generation: u32,
    tally: Arc<Tally>,
}

/// One line of its output: the calls that ended since the line before.
#[derive(Deserialize)]
struct Report {
    outcomes: BTreeMap<String, u64>,
    violations: Vec<String>,
}

impl PythonClient {
    pub(crate) async fn start(daemon: &Daemon, tally: &Arc<Tally>) -> Self {
        let (child, reports) = spawn(&daemon.url, 0, tally).await;
        Self { child, reports, url: daemon.url.clone(), generation: 0, tally: Arc::clone(tally) }
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
        (&mut self.reports).await.expect("its reports are understood");
        self.generation += 1;
        (self.child, self.reports) = spawn(&self.url, self.generation, &self.tally).await;
    }

    /// Ends it, and waits for its last report.
    pub(crate) async fn finish(mut self) {
        drop(self.child.stdin.take());
        match timeout(ENDS_WITHIN, self.child.wait()).await {
            Ok(status) => {
                let status = status.expect("it can be awaited");
                if !status.success() {
                    self.tally.violation(format!("{KIND}: {status}"));
                }
                self.reports.await.expect("its reports are understood");
            }
            Err(_) => self.tally.violation(format!("{KIND}: did not end within {ENDS_WITHIN:?}")),
        }
    }
}

async fn spawn(url: &str, generation: u32, tally: &Arc<Tally>) -> (Child, JoinHandle<()>) {
    let mut child = Command::new(python())
        .arg(root().join("tests/clients/soak_client.py"))
        .arg(url)
        .arg(generation.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("Python can be run");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let first = timeout(STARTS_WITHIN, lines.next_line()).await.expect("the client starts");
    count(&first.expect("its output can be read").expect("its first report"), tally);
    (child, tokio::spawn(follow(lines, Arc::clone(tally))))
}

async fn follow(mut lines: Lines<BufReader<ChildStdout>>, tally: Arc<Tally>) {
    while let Ok(Some(line)) = lines.next_line().await {
        count(&line, &tally);
    }
}

fn count(line: &str, tally: &Tally) {
    // A client that is killed may leave half a line.
    let Ok(report) = serde_json::from_str::<Report>(line) else {
        return tally.count(KIND, "unfinished report", 1);
    };
    for (outcome, calls) in report.outcomes {
        if outcome != "ok" && !EXPLAINED.contains(&&*outcome) {
            tally.violation(format!("{KIND}: {calls} calls ended as {outcome}"));
        }
        tally.count(KIND, outcome, calls);
    }
    report.violations.into_iter().for_each(|what| tally.violation(format!("{KIND}: {what}")));
}
