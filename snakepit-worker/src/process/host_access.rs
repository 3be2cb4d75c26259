//! [`HostAccess`]: how the workers of a launcher reach the host, and how they prove that the host launched them.

use std::{fmt, net::SocketAddr, path::Path, sync::Arc};

use super::{
    launches::{LaunchGuard, Launches},
    telemetry::WorkerTelemetry,
};
use crate::{WorkerError, WorkerId};

/// The access of workers to their host.
///
/// A launcher that starts processes [admits](Self::admit) each worker before it starts the process, and passes the worker
/// the [token](LaunchGuard::token) of the admission. With it, the worker registers its tools over the host's socket.
/// Workers that run in the host's process do not need it: they [announce](crate::Worker::with_tools) their tools.
#[derive(Clone)]
pub struct HostAccess {
    launches: Arc<Launches>,
    socket: Arc<Path>,
    run_id: Arc<str>,
}

impl HostAccess {
    pub(super) fn new(launches: Arc<Launches>, socket: &Path, run_id: &str) -> Self {
        Self { launches, socket: socket.into(), run_id: run_id.into() }
    }

    /// The Unix socket of the host. Only processes of this user can connect to it.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The id of the host's run, which workers receive in the launch contract.
    #[must_use]
    pub fn run_id(&self) -> &str {
        &self.run_id
    }

    /// Replaces the run id, for a launcher that records its processes in its own run directory.
    #[must_use]
    pub fn with_run_id(mut self, run_id: impl Into<Arc<str>>) -> Self {
        self.run_id = run_id.into();
        self
    }

    /// The host's receiver of worker events.
    pub(super) fn telemetry(&self) -> &WorkerTelemetry {
        self.launches.telemetry()
    }

    /// Admits a worker to the host's socket. Hold the guard as long as the worker lives.
    #[must_use = "dropping the guard ends the admission"]
    pub fn admit(&self, worker: &WorkerId) -> LaunchGuard {
        self.launches.begin(worker, &self.socket, &self.run_id)
    }

    /// Opens a loopback listener for a worker that cannot present a token, and returns the address of the listener. On Linux, the
    /// listener serves only processes of the launch, so call [`LaunchGuard::record_pid`].
    ///
    /// # Errors
    /// [`WorkerError::NoHost`] if no port is free, or the host does not serve such listeners.
    pub async fn admit_on_listener(
        &self,
        worker: &WorkerId,
    ) -> Result<(LaunchGuard, SocketAddr), WorkerError> {
        self.launches.begin_with_listener(worker, &self.run_id).await
    }
}

impl fmt::Debug for HostAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostAccess").field("socket", &self.socket).finish_non_exhaustive()
    }
}
