//! The product embedded in this process, with scheduler, deadlines, counters and spans.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use futures_util::TryStreamExt;
use serde::Serialize;
use serde_json::json;
use snakepit_server::{Payload, Snakepit};
use snakepit_tests::{python, root};

use crate::{
    cpu::Processes,
    load::{Timing, check_result, closed_loop, open_loop},
    sample::{Sample, Times},
};

/// The adapter of the measurements.
pub(crate) const ADAPTER: &str = "bench_tools:BenchAdapter";

/// The queue limit. It is so large that a stall of the machine increases latencies instead of causing rejected calls.
const QUEUE_LIMIT: usize = 1_000_000;

#[derive(Debug, Serialize)]
struct Pair {
    a: u64,
    b: u64,
}

/// The directory of the adapter.
pub(crate) fn adapters() -> PathBuf {
    root().join("tests/adapters")
}

/// Starts a host with native workers.
pub(crate) async fn native(workers: usize) -> Snakepit {
    let builder = Snakepit::builder().adapter(ADAPTER).python(python());
    let builder = builder.env("PYTHONPATH", adapters().display().to_string());
    builder.workers(workers).queue_limit(QUEUE_LIMIT).start().await.expect("the host starts")
}

/// Starts a host with grpc.aio workers.
pub(crate) async fn grpcio(workers: usize) -> Snakepit {
    let worker = root().join("tests/workers/grpcio_aio_worker.py");
    let builder = Snakepit::builder()
        .worker_command([python().display().to_string(), worker.display().to_string()])
        .env("SNAKEPIT_TEST_STUBS", root().join(".venv/stubs").display().to_string());
    builder.workers(workers).queue_limit(QUEUE_LIMIT).start().await.expect("the host starts")
}

/// Returns the processes of the workers.
pub(crate) fn processes(host: &Snakepit) -> Processes {
    let workers = host.status().workers.iter().filter_map(|worker| worker.pid).collect();
    Processes { host: Vec::new(), workers }
}

/// Measures `add` in Python with a number of calls in flight.
pub(crate) async fn calls(host: &Snakepit, in_flight: usize, timing: Timing) -> Sample {
    let others = processes(host);
    let host = host.clone();
    closed_loop(in_flight, timing, &others, move |number| add(host.clone(), number)).await
}

/// Measures `add` in Python at a fixed rate.
pub(crate) async fn calls_at(host: &Snakepit, rate: f64, timing: Timing) -> Sample {
    let others = processes(host);
    open_loop(rate, timing, &others, |number| add(host.clone(), number)).await
}

async fn add(host: Snakepit, number: u64) -> bool {
    check_result(host.execute::<u64>("add", Pair { a: number, b: 1 }).await, |sum| *sum == number + 1)
}

/// Measures one long stream, and the first chunks of short streams.
pub(crate) async fn chunks(host: &Snakepit, count: u64) -> Sample {
    let mut first = Times::new();
    let mut errors = 0.0;
    for _ in 0..60 {
        let (took, is_correct) = stream(host, 16).await;
        first.record(took);
        errors += f64::from(u8::from(!is_correct));
    }
    let (before, began) = (processes(host).cpu_time(), Instant::now());
    errors += f64::from(u8::from(!stream(host, count).await.1));
    let (after, took) = (processes(host).cpu_time(), began.elapsed());
    per_chunk(count, took)
        .with("errors", errors)
        .with("first_p50_us", first.micros(0.5))
        .with("workers_cpu_us", (after.workers - before.workers) as f64 / count as f64)
}

/// Computes the rate of chunks.
pub(crate) fn per_chunk(count: u64, took: Duration) -> Sample {
    Sample::default().with("per_second", count as f64 / took.as_secs_f64())
}

/// Reads a stream. Returns the time to the first chunk, and whether every chunk was right.
pub(crate) async fn stream(host: &Snakepit, count: u64) -> (Duration, bool) {
    let began = Instant::now();
    let (mut first, mut next) = (Duration::ZERO, 0);
    let all = async {
        let mut chunks = host.execute_stream::<u64>("chunks", json!({"n": count})).await?;
        let mut in_order = true;
        while let Some(number) = chunks.try_next().await? {
            if next == 0 {
                first = began.elapsed();
            }
            in_order &= number == next;
            next += 1;
        }
        Ok::<_, snakepit_server::Error>(in_order)
    };
    let in_order = check_result(all.await, |in_order| *in_order);
    (first, in_order && next == count)
}

/// Measures sequential echoes of bytes. The comparison is not part of the measured time.
pub(crate) async fn echo(host: &Snakepit, size: usize, times: usize) -> Sample {
    let data: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
    let data = bytes::Bytes::from(data);
    let (mut taken, mut errors) = (Times::new(), 0.0);
    for run in 0..=times {
        let call = host.call("echo_bytes").payload("data", Payload::bytes(data.clone()));
        let began = Instant::now();
        let reply = call.payload_reply().await;
        let took = began.elapsed();
        if !check_result(reply, |reply| reply.value.binary() == Some(&data)) {
            errors += 1.0;
        } else if run > 0 {
            // The first echo is a warm-up.
            taken.record(took);
        }
    }
    let per_second = size as f64 / (taken.micros(0.5) / 1e6);
    Sample::default().with("mb_per_second", per_second / 1e6).with("errors", errors).with_times(&taken)
}
