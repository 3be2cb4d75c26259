//! The state behind the gRPC service: the host, and for the listener of a worker, its launch.

use std::sync::Arc;

use snakepit_worker::process::Launch;
use tonic::Status;

use crate::{host::Host, status::reserved_for_clients};

/// The bridge service of a host. [`service`](super::service) implements the generated trait for it.
#[derive(Debug)]
pub(crate) struct Bridge {
    host: Arc<Host>,
    /// The launch whose listener this is. `None` for the listeners of clients.
    launch: Option<Arc<Launch>>,
}

impl Bridge {
    pub(crate) const fn new(host: Arc<Host>) -> Self {
        Self { host, launch: None }
    }

    /// The service for the listener of one launch, with only the RPCs that a worker needs.
    pub(crate) const fn for_launch(host: Arc<Host>, launch: Arc<Launch>) -> Self {
        Self { host, launch: Some(launch) }
    }

    pub(super) const fn host(&self) -> &Arc<Host> {
        &self.host
    }

    pub(super) const fn launch(&self) -> Option<&Arc<Launch>> {
        self.launch.as_ref()
    }

    /// Rejects an RPC that only clients may use, if it arrives on the listener of a launch.
    pub(super) fn require_client(&self, rpc: &str) -> Result<(), Status> {
        match self.launch {
            None => Ok(()),
            Some(_) => Err(reserved_for_clients(rpc)),
        }
    }
}
