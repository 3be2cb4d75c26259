//! [`Call`]: the call that a tool serves, or the session that a client uses, and its requests to the host.

use std::{collections::BTreeMap, future::Future, sync::Arc};

use pyo3::{IntoPyObjectExt, prelude::*};
use snakepit_proto::{Message, pb};
use tonic::{Request, Response, Status, transport::Channel};

use crate::{
    caller::Caller,
    errors::{HostError, HostUnavailableError},
    host::{Host, RequestKind},
    pending::{CompletionHandle, PendingRequest},
    runtime::RuntimeHandle,
};

/// The answer of a request that returns nothing. In Python, `()` would be an empty tuple.
pub(crate) const NOTHING: Option<bool> = None;

/// The generated client of the host.
pub(crate) type Client = pb::bridge_service_client::BridgeServiceClient<Channel>;

/// The call that a tool serves, or the session that a client uses.
#[pyclass(frozen, module = "snakepit_bridge._native")]
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) caller: Caller,
    pub(crate) host: Option<Host>,
    pub(crate) session_id: String,
    pub(crate) worker_id: Arc<str>,
    pub(crate) metadata: BTreeMap<String, String>,
    /// The wait of the coroutine that makes the next request. `None` if requests block their thread.
    pub(crate) completion: Option<CompletionHandle>,
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

    /// Sends one request and converts its answer. If a coroutine makes the request, returns a [`PendingRequest`] instead.
    ///
    /// # Errors
    /// As [`request`](Self::request), and those of `convert`.
    pub(crate) fn answer<Q, A, F, V>(
        &self,
        py: Python<'_>,
        kind: RequestKind,
        message: Q,
        rpc: impl Fn(Client, Request<Q>) -> F + Send + Sync + 'static,
        convert: impl FnOnce(Python<'_>, A) -> PyResult<V> + Send + 'static,
    ) -> PyResult<Py<PyAny>>
    where
        Q: Message + Clone + 'static,
        A: Send + 'static,
        F: Future<Output = Result<Response<A>, Status>> + Send + 'static,
        V: for<'py> IntoPyObject<'py>,
    {
        let request =
            move |host: Host, caller: Caller| async move { host.request(&caller, kind, message, rpc).await };
        self.answer_of(py, request, convert)
    }

    /// Runs a request of several steps, as [`answer`](Self::answer) does.
    ///
    /// # Errors
    /// As [`answer`](Self::answer).
    pub(crate) fn answer_of<A, F, V>(
        &self,
        py: Python<'_>,
        request: impl FnOnce(Host, Caller) -> F,
        convert: impl FnOnce(Python<'_>, A) -> PyResult<V> + Send + 'static,
    ) -> PyResult<Py<PyAny>>
    where
        A: Send + 'static,
        F: Future<Output = Result<A, HostError>> + Send + 'static,
        V: for<'py> IntoPyObject<'py>,
    {
        let host = self.host()?;
        let request = request(host.clone(), self.caller.clone());
        let convert = move |py: Python<'_>, answer| convert(py, answer)?.into_py_any(py);
        match &self.completion {
            None => convert(py, self.wait(py, request)?),
            Some(completion) => {
                PendingRequest::start(host.runtime(), completion, request, convert)?.into_py_any(py)
            }
        }
    }
}
