//! [`Call`]: the call that a tool serves, or the session that a client uses, and its requests to the host.

use std::{collections::BTreeMap, future::Future, sync::Arc};

use pyo3::prelude::*;
use snakepit_proto::{Message, pb};
use tonic::{Request, Response, Status, transport::Channel};

use crate::{
    caller::Caller,
    errors::{HostError, HostUnavailableError},
    host::{Host, RequestKind},
    runtime::RuntimeHandle,
};

type Client = pb::bridge_service_client::BridgeServiceClient<Channel>;

/// The call that a tool serves, or the session that a client uses.
#[pyclass(frozen, module = "snakepit_bridge._native")]
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) caller: Caller,
    pub(crate) host: Option<Host>,
    pub(crate) session_id: String,
    pub(crate) worker_id: Arc<str>,
    pub(crate) metadata: BTreeMap<String, String>,
}

impl Call {
    /// The connection to the host.
    ///
    /// # Errors
    /// [`HostUnavailableError`] without a host, and in a forked process.
    pub(crate) fn host(&self) -> PyResult<&Host> {
        let host = self.host.as_ref();
        let host =
            host.ok_or_else(|| HostUnavailableError::new_err("this worker was started without a host"))?;
        host.runtime().check_not_forked()?;
        Ok(host)
    }

    /// The runtime that drives the requests to the host.
    ///
    /// # Errors
    /// As [`host`](Self::host).
    pub(crate) fn runtime(&self) -> PyResult<RuntimeHandle> {
        Ok(self.host()?.runtime())
    }

    /// Releases the GIL and waits for the outcome of a request.
    ///
    /// # Errors
    /// The exception for the outcome, and that of a Python signal handler.
    pub(crate) fn wait<T: Send>(
        &self,
        py: Python<'_>,
        call: impl Future<Output = Result<T, HostError>> + Send,
    ) -> PyResult<T> {
        Ok(self.runtime()?.wait(py, call)??)
    }

    /// Releases the GIL and sends one request. See [`Host::request`].
    ///
    /// # Errors
    /// The exception for the host's error or for the reason why it did not answer.
    pub(crate) fn request<Q, A, F>(
        &self,
        py: Python<'_>,
        kind: RequestKind,
        message: Q,
        rpc: impl Fn(Client, Request<Q>) -> F + Send + Sync,
    ) -> PyResult<A>
    where
        Q: Message + Clone,
        A: Send,
        F: Future<Output = Result<Response<A>, Status>> + Send,
    {
        self.wait(py, self.host()?.request(&self.caller, kind, message, rpc))
    }
}
