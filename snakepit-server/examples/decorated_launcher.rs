//! Decorates the launcher of workers: logs each launch, and starts at most two workers at a time.
//!
//! Run it with `cargo run -p snakepit-server --example decorated_launcher`. It needs no Python.
#![allow(clippy::print_stdout, reason = "an example prints its results")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use snakepit_server::{
    Builder, Error, LaunchRequest, Snakepit, StartError, Worker, WorkerError, WorkerLauncher,
    testing::InProcessWorkers,
};
use tokio::{sync::Semaphore, time::Instant};

/// Prints how long each launch takes.
#[derive(Debug)]
struct TimedLauncher {
    inner: Arc<dyn WorkerLauncher>,
    finished: Arc<AtomicUsize>,
}

#[async_trait::async_trait]
impl WorkerLauncher for TimedLauncher {
    async fn launch(&self, request: LaunchRequest) -> Result<Worker, WorkerError> {
        let (id, began) = (request.id.clone(), Instant::now());
        let worker = self.inner.launch(request).await;
        self.finished.fetch_add(1, Ordering::Relaxed);
        println!("launch of {id}: ok={} after {:?}", worker.is_ok(), began.elapsed());
        worker
    }
}

/// Limits the number of concurrent launches.
#[derive(Debug)]
struct LimitedLauncher {
    inner: Arc<dyn WorkerLauncher>,
    launches: Semaphore,
}

#[async_trait::async_trait]
impl WorkerLauncher for LimitedLauncher {
    async fn launch(&self, request: LaunchRequest) -> Result<Worker, WorkerError> {
        // The pool drops this future when it shuts down, which returns the permit.
        let _permit =
            self.launches.acquire().await.map_err(|_| WorkerError::start_failed("no more launches"))?;
        self.inner.launch(request).await
    }
}

/// Starts a host that launches at most two workers at a time.
async fn start(builder: Builder) -> Result<Snakepit, StartError> {
    builder
        .decorate_launcher(|inner| Arc::new(LimitedLauncher { inner, launches: Semaphore::new(2) }))
        .start()
        .await
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let finished = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&finished);
    // In-process workers, whose launches are slow. With `Builder::adapter`, the decorators wrap the launcher of Python workers.
    let workers = InProcessWorkers::new();
    workers.delay_launches(4, Duration::from_millis(20));

    let builder = Snakepit::builder()
        .launcher(Arc::new(workers))
        .workers(4)
        .decorate_launcher(|inner| Arc::new(TimedLauncher { inner, finished: count }));
    let snakepit = start(builder).await?;
    assert_eq!(finished.load(Ordering::Relaxed), 4);

    snakepit.shutdown().await
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_example_runs() {
        super::main().unwrap();
    }
}
