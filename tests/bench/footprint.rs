//! What it costs to be there: the time to ready workers, and memory, each beside bare Python with the same imports.

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

/// The adapter's own imports. Importing `snakepit_bridge` is not among them: that is the product's own cost.
const IMPORTS: &str = "from collections.abc import Iterator";

const MIB: f64 = 1024.0 * 1024.0;

/// From nothing to a host whose workers all take calls.
pub(crate) async fn start(workers: usize) -> Sample {
    let began = Instant::now();
    let host = native(workers).await;
    let took = began.elapsed();
    host.shutdown().await.unwrap();
    milliseconds(took)
}

/// The same number of bare interpreters at once, from nothing to their end.
pub(crate) fn bare_start(count: usize) -> Sample {
    let began = Instant::now();
    let pythons: Vec<Child> = (0..count).map(|_| bare_python(IMPORTS)).collect();
    for mut python in pythons {
        assert!(python.wait().expect("it can be waited for").success(), "python runs");
    }
    milliseconds(began.elapsed())
}

fn milliseconds(time: Duration) -> Sample {
    Sample::default().with("ms", time.as_secs_f64() * 1000.0)
}

fn bare_python(program: &str) -> Child {
    let mut command = Command::new(python());
    command.args(["-c", program]).stdin(Stdio::piped()).stdout(Stdio::piped());
    command.spawn().expect("python starts")
}

/// A daemon that has done nothing yet: its own memory and that of a worker.
pub(crate) async fn memory_at_rest(daemon: &Daemon) -> Sample {
    // Whatever starting left behind is settled by then.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let processes = daemon.processes();
    let workers = processes.workers.iter().map(|pid| mib(resident(*pid)));
    Sample::default().with("host_mib", mib(resident(processes.host[0]))).with("worker_mib", median(workers))
}

/// The memory of an interpreter with the same imports.
pub(crate) fn bare_memory() -> Sample {
    use std::io::Read;
    let mut python = bare_python(&format!("{IMPORTS}\nimport sys\nprint('.', flush=True)\nsys.stdin.read()"));
    let mut stdout = python.stdout.take().expect("its stdout is a pipe");
    stdout.read_exact(&mut [0]).expect("it gets that far");
    let used = resident(python.id());
    drop(python.stdin.take());
    assert!(python.wait().expect("it can be waited for").success(), "python runs");
    Sample::default().with("worker_mib", mib(used))
}

/// The most memory that a long stream through this host took, beside what a short one had taken.
pub(crate) async fn growth_embedded(host: &Snakepit, chunks: u64) -> Sample {
    let mut pids = processes(host).workers;
    pids.push(std::process::id());
    growth(&pids, async |count| stream(host, count).await.1, chunks).await
}

/// The same through the daemon.
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
    let right = loop {
        tokio::select! {
            right = &mut long => break right,
            _ = ticks.tick() => peak = peak.max(all()),
        }
    };
    Sample::default()
        .with("grown_mib", mib(peak.max(all()) - before))
        .with("errors", f64::from(u8::from(!short)) + f64::from(u8::from(!right)))
}

#[allow(clippy::cast_precision_loss, reason = "memory of a few processes")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / MIB
}
