//! A custom launcher: each worker is a thread with its own runtime, which owns state that must stay on that thread.
//!
//! Run it with `cargo run -p snakepit-server --example custom_launcher`. It needs no Python.
#![allow(clippy::print_stdout, reason = "an example prints its results")]

use std::{cell::Cell, sync::Arc, thread};

use serde::Deserialize;
use serde_json::json;
use snakepit_server::{
    Error, ExitReason, LaunchRequest, Payload, Snakepit, ToolCall, ToolError, ToolHandler, ToolReply,
    ToolSpec, Worker, WorkerCommand, WorkerError, WorkerExit, WorkerLauncher,
};
use tokio::sync::{mpsc, oneshot};

/// Launches one thread per worker.
#[derive(Debug)]
struct ThreadLauncher;

/// A call on its way to the thread of a worker. The caller has dropped the call if `answer` is closed.
struct Job {
    call: ToolCall,
    answer: oneshot::Sender<Result<ToolReply, ToolError>>,
}

#[async_trait::async_trait]
impl WorkerLauncher for ThreadLauncher {
    async fn launch(&self, request: LaunchRequest) -> Result<Worker, WorkerError> {
        // The pool sends a worker as many calls at a time as its concurrency, so the channel is bounded.
        let (jobs, mut received) = mpsc::channel::<Job>(256);
        let handler = Arc::new(ThreadHandler { worker_id: request.id.to_string(), jobs });
        let (worker, mut launcher_end) = Worker::new(request.id.clone(), None, "thread", handler);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let start_error =
            |error: std::io::Error| WorkerError::start_failed("its thread cannot start").with_source(error);
        let runtime = runtime.map_err(start_error)?;
        let worker_id = request.id.to_string();
        let run = move || {
            let sum = Cell::new(0);
            let reason = runtime.block_on(async {
                loop {
                    tokio::select! {
                        command = launcher_end.command() => break match command {
                            WorkerCommand::Stop { .. } => ExitReason::Stopped,
                            WorkerCommand::Kill { reason } => ExitReason::Killed { reason },
                        },
                        Some(Job { call, answer }) = received.recv() => {
                            // A call that its caller has dropped must not run.
                            if !answer.is_closed() {
                                let _ = answer.send(add(&sum, &call));
                            }
                        }
                    }
                }
            });
            // Rejects further jobs. Jobs that are still queued did not run.
            received.close();
            while let Some(Job { answer, .. }) = received.blocking_recv() {
                let _ = answer.send(Err(lost(&worker_id, false)));
            }
            launcher_end.exited(WorkerExit::new(reason));
        };
        let spawned = thread::Builder::new().name(request.id.to_string()).spawn(run);
        spawned.map_err(start_error)?;
        // The host registers these tools when the launch returns.
        let spec = ToolSpec::new("add").parameter("n", "integer", "The summand");
        Ok(worker.with_tools([spec.deny_unknown_arguments()]))
    }
}

#[derive(Deserialize)]
struct Summand {
    n: i64,
}

/// Adds to the sum of this thread.
fn add(sum: &Cell<i64>, call: &ToolCall) -> Result<ToolReply, ToolError> {
    let Summand { n } = call.parse_arguments()?;
    sum.set(sum.get().saturating_add(n));
    let value = Payload::try_from_serde(&sum.get());
    value
        .map(ToolReply::value)
        .map_err(|error| ToolError::internal("the sum has no JSON form").with_source(error))
}

/// The error of a call whose worker has ended. `may_have_run`: whether the call may have run, so that a retry may run it twice.
fn lost(worker_id: &str, may_have_run: bool) -> ToolError {
    ToolError::worker_lost(worker_id, "its thread ended").with_may_have_run(may_have_run)
}

/// The pool's handle to the thread of a worker.
#[derive(Debug)]
struct ThreadHandler {
    worker_id: String,
    jobs: mpsc::Sender<Job>,
}

#[async_trait::async_trait]
impl ToolHandler for ThreadHandler {
    async fn call(&self, call: ToolCall) -> Result<ToolReply, ToolError> {
        let (answer, answered) = oneshot::channel();
        self.jobs.send(Job { call, answer }).await.map_err(|_| lost(&self.worker_id, false))?;
        // The thread panicked while it ran the call.
        answered.await.map_err(|_| lost(&self.worker_id, true))?
    }
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let snakepit = Snakepit::builder().launcher(Arc::new(ThreadLauncher)).workers(1).start().await?;

    for expected in [2, 4, 6] {
        let sum: i64 = snakepit.execute("add", json!({"n": 2})).await?;
        println!("the worker's sum is {sum}");
        assert_eq!(sum, expected);
    }
    let rejected = snakepit.execute::<i64>("add", json!({"m": 2})).await;
    assert!(matches!(rejected, Err(Error::Tool(ToolError::InvalidArguments { .. }))));

    snakepit.shutdown().await
}

#[cfg(test)]
mod tests {
    use snakepit_server::testing::launcher_contract;

    use super::*;

    #[test]
    fn the_example_runs() {
        super::main().unwrap();
    }

    #[tokio::test]
    async fn the_launcher_keeps_the_contract() {
        launcher_contract(Arc::new(ThreadLauncher)).await;
    }
}
