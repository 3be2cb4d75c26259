//! Start-up time and memory, with plain Python processes with the same imports as the baseline.

use std::{
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use snakepit_server::Snakepit;
use snakepit_tests::python;

use crate::{
    cpu::resident,
    daemon::Daemon,
    product::{native, processes, stream},
    sample::{Sample, median},
};

/// The imports of the adapter without `snakepit_bridge`, whose import is a cost of the product.
const IMPORTS: &str = "from collections.abc import Iterator";

const MIB: f64 = 1024.0 * 1024.0;

/// Measures the start of a host until all workers accept calls.
pub(crate) async fn start(workers: usize) -> Sample {
    let began = Instant::now();
    let host = native(workers).await;
    let took = began.elapsed();
    host.shutdown().await.unwrap();
    milliseconds(took)
}

/// Measures plain interpreters that start in parallel, until all have ended.
pub(crate) fn bare_start(count: usize) -> Sample {
    let began = Instant::now();
    let pythons: Vec<Child> = (0..count).map(|_| bare_python(IMPORTS)).collect();
    for mut python in pythons {
        assert!(python.wait().expect("Python can be awaited").success(), "Python succeeds");
    }
    milliseconds(began.elapsed())
}

fn milliseconds(time: Duration) -> Sample {
    Sample::default().with("ms", time.as_secs_f64() * 1000.0)
}

fn bare_python(program: &str) -> Child {
    let mut command = Command::new(python());
    command.args(["-c", program]).stdin(Stdio::piped()).stdout(Stdio::piped());
    command.spawn().expect("Python starts")
}

/// Measures the memory of an unused daemon and of its workers.
pub(crate) async fn memory_at_rest(daemon: &Daemon) -> Sample {
    // Memory is stable after this time.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let processes = daemon.processes();
    let workers = processes.workers.iter().map(|pid| mib(resident(*pid)));
    Sample::default().with("host_mib", mib(resident(processes.host[0]))).with("worker_mib", median(workers))
}

/// Measures the memory of a plain interpreter with the same imports.
pub(crate) fn bare_memory() -> Sample {
    use std::io::Read;
    let mut python = bare_python(&format!("{IMPORTS}\nimport sys\nprint('.', flush=True)\nsys.stdin.read()"));
    let mut stdout = python.stdout.take().expect("its stdout is a pipe");
    stdout.read_exact(&mut [0]).expect("Python prints a character");
    let bytes = resident(python.id());
    drop(python.stdin.take());
    assert!(python.wait().expect("Python can be awaited").success(), "Python succeeds");
    Sample::default().with("worker_mib", mib(bytes))
}

/// Measures the growth of memory during a long stream, compared with the memory after a short one.
pub(crate) async fn growth_embedded(host: &Snakepit, chunks: u64) -> Sample {
    let mut pids = processes(host).workers;
    pids.push(std::process::id());
    growth(&pids, async |count| stream(host, count).await.1, chunks).await
}

/// Does the same as [`growth_embedded`] with a daemon.
pub(crate) async fn growth_daemon(daemon: &Daemon, chunks: u64) -> Sample {
    let processes = daemon.processes();
    let pids: Vec<u32> = processes.host.iter().chain(&processes.workers).copied().collect();
    growth(&pids, async |count| daemon.stream(count, false).await.2, chunks).await
}

async fn growth(pids: &[u32], run: impl AsyncFn(u64) -> bool, chunks: u64) -> Sample {
    let all = || pids.iter().map(|pid| resident(*pid)).sum::<u64>();
    let short = run(chunks / 10).await;
    let before = all();
    let mut peak = before;
    let long = run(chunks);
    tokio::pin!(long);
    let mut ticks = tokio::time::interval(Duration::from_millis(50));
    let is_correct = loop {
        tokio::select! {
            is_correct = &mut long => break is_correct,
            _ = ticks.tick() => peak = peak.max(all()),
        }
    };
    Sample::default()
        .with("grown_mib", mib(peak.max(all()) - before))
        .with("errors", f64::from(u8::from(!short)) + f64::from(u8::from(!is_correct)))
}

#[allow(clippy::cast_precision_loss, reason = "memory of a few processes")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / MIB
}
