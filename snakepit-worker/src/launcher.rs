//! The trait [`WorkerLauncher`], and the [`LaunchRequest`] that it receives.

use std::sync::Arc;

use async_trait::async_trait;
use snakepit_registry::HostState;

#[cfg(feature = "process")]
use crate::process::HostAccess;
use crate::{Worker, WorkerError, WorkerId};

/// Launches workers, for example as child processes, in containers, on other machines, or in a test.
///
/// A launcher may wrap another one, for example to log launches or to limit their number.
///
/// To test an implementation, run the suite `snakepit_server::testing::launcher_contract` (feature `testing`). It is also the
/// module `contract` of `snakepit_worker` (feature `test-util`), whose documentation has an example.
#[async_trait]
pub trait WorkerLauncher: Send + Sync + std::fmt::Debug + 'static {
    /// Starts a worker and returns when the worker accepts calls. Launches may run concurrently.
    ///
    /// The returned [`Worker`] must have the id of the request. A host registers the tools that the worker
    /// [announces](Worker::with_tools) before it sends the first call. Processes may also register their tools over the
    /// host's socket, with the token that [`LaunchRequest::host`] provides.
    ///
    /// # Errors
    /// [`WorkerError`] if the worker could not be started. A process that the launch started must have exited by then. The pool
    /// launches again after a backoff.
    ///
    /// # Cancel safety
    /// Dropping the future must kill the process that the launch started.
    async fn launch(&self, request: LaunchRequest) -> Result<Worker, WorkerError>;
}

/// The place of a worker in its pool. A launcher can use it to assign devices or ports.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerSlot {
    /// The name of the pool.
    pub pool: Arc<str>,
    /// The index of the worker, from 0 to `count - 1`. The replacement of a lost worker has the same index.
    pub index: usize,
    /// The number of workers in the pool.
    pub count: usize,
}

impl WorkerSlot {
    /// Creates a slot.
    #[must_use]
    pub fn new(pool: impl Into<Arc<str>>, index: usize, count: usize) -> Self {
        Self { pool: pool.into(), index, count }
    }
}

/// The request to launch one worker.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LaunchRequest {
    /// The id of the worker. Ids are never reused.
    pub id: WorkerId,
    /// The place of the worker in its pool. `None` for a worker that belongs to no pool.
    pub slot: Option<WorkerSlot>,
    /// The host that the worker can call. `None` for a pool without a host.
    #[cfg(feature = "process")]
    pub host: Option<HostAccess>,
    /// The state of the host, for tools that run in the process of the host. `None` for a pool without a host.
    pub host_state: Option<Arc<HostState>>,
}

impl LaunchRequest {
    /// Creates a request without a host.
    #[must_use]
    pub const fn new(id: WorkerId) -> Self {
        Self {
            id,
            slot: None,
            #[cfg(feature = "process")]
            host: None,
            host_state: None,
        }
    }

    /// Sets the place of the worker in its pool.
    #[must_use]
    pub fn with_slot(mut self, slot: WorkerSlot) -> Self {
        self.slot = Some(slot);
        self
    }

    /// Sets the state of the host.
    #[must_use]
    pub fn with_host_state(mut self, state: Arc<HostState>) -> Self {
        self.host_state = Some(state);
        self
    }

    /// Sets the host that the worker can call.
    #[cfg(feature = "process")]
    #[must_use]
    pub fn with_host(mut self, host: HostAccess) -> Self {
        self.host = Some(host);
        self
    }
}
