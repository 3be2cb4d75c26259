//! Runs the Python client under load, and freezes and kills it.

use std::{
    process::Stdio,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::Deserialize;
use snakepit_tests::{Signal, python, root, signal};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, ChildStdout, Command},
    task::JoinHandle,
    time::{Instant, timeout},
};

use crate::{daemon::Daemon, tally::Tally, windows::Caller};

const KIND: &str = "python client";
/// The time limit for the start of the client.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// The time limit for the end of the client after its stdin has closed, which exceeds the deadline and grace of a call.
const END_TIMEOUT: Duration = Duration::from_secs(15);

/// A running `soak_client.py`.
pub(crate) struct PythonClient {
    child: Child,
    /// Adds the reports to the tally. Returns the bytes after the last complete report.
    reports: JoinHandle<Vec<u8>>,
    url: String,
    /// The number of earlier clients, which makes the nonces of each client different.
    generation: u32,
    tally: Arc<Tally>,
}

/// One line of output: the calls that ended since the previous report.
#[derive(Deserialize)]
struct Report {
    succeeded: u64,
    failures: Vec<Failure>,
    violations: Vec<String>,
}

#[derive(Deserialize)]
struct Failure {
    /// The class of the exception.
    class: String,
    message: String,
    /// The start of the call, in seconds since the Unix epoch.
    began: f64,
}

impl PythonClient {
    pub(crate) async fn start(daemon: &Daemon, tally: &Arc<Tally>) -> Self {
        let (child, reports) = spawn(&daemon.url, 0, tally).await;
        Self { child, reports, url: daemon.url.clone(), generation: 0, tally: Arc::clone(tally) }
    }

    /// Stops the process for a while.
    pub(crate) async fn freeze(&self, time: Duration) {
        let pid = self.child.id().expect("the client runs");
        signal(pid, Signal::SIGSTOP);
        tokio::time::sleep(time).await;
        signal(pid, Signal::SIGCONT);
    }

    /// Kills the process during its calls, and starts another one.
    pub(crate) async fn replace(&mut self) {
        self.child.kill().await.expect("the client runs");
        // The kill may have interrupted a report. Otherwise, an incomplete report is a violation.
        if !(&mut self.reports).await.expect("reading the reports does not panic").is_empty() {
            self.tally.count(KIND, "report interrupted by the kill", 1);
        }
        self.generation += 1;
        (self.child, self.reports) = spawn(&self.url, self.generation, &self.tally).await;
    }

    /// Ends the client, and waits for its last report.
    pub(crate) async fn finish(mut self) {
        drop(self.child.stdin.take());
        match timeout(END_TIMEOUT, self.child.wait()).await {
            Ok(status) => {
                let status = status.expect("the client can be awaited");
                if !status.success() {
                    self.tally.violation(format!("{KIND}: {status}"));
                }
                let incomplete = self.reports.await.expect("reading the reports does not panic");
                if !incomplete.is_empty() {
                    let incomplete = String::from_utf8_lossy(&incomplete).into_owned();
                    self.tally.violation(format!("{KIND}: the last report is incomplete: {incomplete}"));
                }
            }
            Err(_) => self.tally.violation(format!("{KIND}: did not end within {END_TIMEOUT:?}")),
        }
    }
}

async fn spawn(url: &str, generation: u32, tally: &Arc<Tally>) -> (Child, JoinHandle<Vec<u8>>) {
    let mut child = Command::new(python())
        .arg(root().join("tests/clients/soak_client.py"))
        .arg(url)
        .arg(generation.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("Python starts");
    let mut stdout = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
    let incomplete =
        timeout(START_TIMEOUT, read_report(&mut stdout, tally)).await.expect("the client starts");
    assert!(incomplete.is_none(), "the client ended before its first report");
    let tally = Arc::clone(tally);
    let reports = tokio::spawn(async move {
        loop {
            if let Some(incomplete) = read_report(&mut stdout, &tally).await {
                return incomplete;
            }
        }
    });
    (child, reports)
}

/// Reads a line and counts its calls. At the end of the output, returns the bytes of the last line, if it is incomplete.
async fn read_report(stdout: &mut BufReader<ChildStdout>, tally: &Tally) -> Option<Vec<u8>> {
    let mut line = Vec::new();
    stdout.read_until(b'\n', &mut line).await.expect("the output of the client can be read");
    if line.last() != Some(&b'\n') {
        return Some(line);
    }
    match serde_json::from_slice::<Report>(&line) {
        Ok(report) => count(report, tally),
        Err(error) => {
            let line = String::from_utf8_lossy(&line).into_owned();
            tally.violation(format!("{KIND}: malformed report ({error}): {line}"));
        }
    }
    None
}

fn count(report: Report, tally: &Tally) {
    tally.count(KIND, "ok", report.succeeded);
    for Failure { class, message, began } in report.failures {
        tally.check_explained(KIND, Caller::Python, instant(began), wire_reason(&class), &message);
        tally.count(KIND, class, 1);
    }
    report.violations.into_iter().for_each(|problem| tally.violation(format!("{KIND}: {problem}")));
}

/// Converts seconds since the Unix epoch.
fn instant(epoch_seconds: f64) -> Instant {
    let then = UNIX_EPOCH + Duration::from_secs_f64(epoch_seconds);
    let age = SystemTime::now().duration_since(then).unwrap_or_default();
    Instant::now().checked_sub(age).unwrap_or_else(Instant::now)
}

/// The wire reason for which the client raises this class of exception.
fn wire_reason(class: &str) -> &str {
    match class {
        "DeadlineExceededError" => "DEADLINE_EXCEEDED",
        "WorkerLostError" => "WORKER_LOST",
        other => other,
    }
}
