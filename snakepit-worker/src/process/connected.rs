//! [`ConnectedWorker`]: a worker that a custom launcher started, and that serves gRPC.

use std::{fmt, pin::Pin, sync::Arc, time::Duration};

use snakepit_proto::mux::Multiplexer;
use tokio::{sync::watch, time::Instant};
use tonic::Code;

use super::{
    connect::{self, Client, Failure},
    exit_watch::ExitWatch,
    host_access::HostAccess,
    progress_file::ProgressFile,
    readiness::WorkerAddress,
    remote_worker::{RemoteWorker, WorkerDiagnostics},
};
use crate::{LauncherEnd, Worker, WorkerError, WorkerId};

/// A worker that serves gRPC at an address, for launchers that start processes themselves: in a container, or on another
/// machine behind a tunnel. The default launcher covers child processes.
#[derive(Debug)]
#[non_exhaustive]
pub struct ConnectedWorker {
    /// The pool's end, which [`launch`](crate::WorkerLauncher::launch) returns.
    pub worker: Worker,
    /// The launcher's end, for the task that supervises the worker.
    pub launcher_end: LauncherEnd,
    /// The connection, for the same task.
    pub connection: WorkerConnection,
}

/// The connection to a [`ConnectedWorker`]: a future that reads the answers of the worker.
///
/// The task that supervises the worker must poll it, or calls do not end. It completes when the worker closes the connection.
/// The state of the worker's calls is then unknown, so end the worker. The future never completes for workers that do not
/// serve `Multiplex`.
#[must_use = "calls end only while this future is polled"]
pub struct WorkerConnection {
    connection: Pin<Box<dyn Future<Output = ()> + Send>>,
    client: Client,
}

impl ConnectedWorker {
    /// Connects to a worker and pings it, with retries until it answers or `timeout` has passed. `address` is `unix:/path` or
    /// `host:port`. The connection is not encrypted.
    ///
    /// # Errors
    /// [`WorkerError::Connect`] with the last problem.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection.
    pub async fn connect(
        id: WorkerId,
        pid: Option<u32>,
        address: &str,
        timeout: Duration,
    ) -> Result<Self, WorkerError> {
        let failed = |Failure { problem, source }| WorkerError::Connect {
            address: address.to_owned(),
            problem,
            output_lines: Vec::new(),
            source,
        };
        let too_long = || failed(Failure::new(format!("the timeout of {timeout:?} is too long")));
        let deadline = Instant::now().checked_add(timeout).ok_or_else(too_long)?;
        let client =
            connect::connect_until(&WorkerAddress::parse(address), deadline).await.map_err(failed)?;
        let opened = tokio::time::timeout_at(deadline, Multiplexer::open(client.clone())).await;
        let (multiplexer, connection): (_, Pin<Box<dyn Future<Output = ()> + Send>>) = match opened {
            Ok(Ok((multiplexer, incoming))) => (Some(multiplexer), Box::pin(incoming)),
            Ok(Err(status)) if status.code() == Code::Unimplemented => {
                (None, Box::pin(std::future::pending()))
            }
            Ok(Err(status)) => return Err(failed(Failure::of_status(status))),
            Err(_) => {
                return Err(failed(Failure::new(format!(
                    "it did not open the `Multiplex` stream within {timeout:?}"
                ))));
            }
        };
        let (exit_sender, exit) = watch::channel(None);
        let diagnostics = WorkerDiagnostics {
            id: id.clone(),
            exit: ExitWatch::new(exit.clone()),
            progress: ProgressFile::default(),
            output_lines: 0,
        };
        let queues_calls = multiplexer.is_some();
        let handler = Arc::new(RemoteWorker::new(client.clone(), multiplexer, diagnostics, None));
        let (worker, launcher_end) = Worker::with_exit(id, pid, address.into(), handler, (exit_sender, exit));
        let worker = worker.with_call_queue(queues_calls);
        Ok(Self { worker, launcher_end, connection: WorkerConnection { connection, client } })
    }

    /// Also reads the events of the worker, while the [connection](Self::connection) is polled.
    #[must_use]
    pub fn with_telemetry(mut self, host: &HostAccess) -> Self {
        let (telemetry, id) = (host.telemetry().clone(), self.worker.id().clone());
        let WorkerConnection { connection, client } = self.connection;
        let events_client = client.clone();
        let connection = Box::pin(async move {
            let events = telemetry.forward(&id, events_client);
            let events = async {
                events.await;
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = connection => {}
                () = events => {}
            }
        });
        self.connection = WorkerConnection { connection, client };
        self
    }
}

impl Future for WorkerConnection {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<()> {
        self.connection.as_mut().poll(cx)
    }
}

impl fmt::Debug for WorkerConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WorkerConnection")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_does_not_answer_fails_with_its_address() {
        let connect =
            |timeout| ConnectedWorker::connect(WorkerId::new("w"), None, "unix:/nowhere.sock", timeout);
        let error = connect(Duration::from_secs(1)).await.unwrap_err().to_string();
        assert!(error.starts_with("cannot connect to worker at `unix:/nowhere.sock`: "), "{error}");
        connect(Duration::MAX).await.unwrap_err();
    }
}
