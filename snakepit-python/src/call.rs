//! [`Call`]: the call that a tool serves, or the session that a client uses, and its requests to the host.

use std::{collections::BTreeMap, future::Future, pin::Pin, sync::Arc};

use bytes::Bytes;
use pyo3::{IntoPyObjectExt, prelude::*};

use crate::{
    caller::Caller,
    errors::{HostError, HostUnavailableError},
    host::{Host, RequestKind, RpcRequest},
    pending::{CompletionHandle, Convert, PendingRequest},
    rpc::{self, UnaryRpc},
    runtime::RuntimeHandle,
};

/// The answer of a request that returns nothing. In Python, `()` would be an empty tuple.
pub(crate) const NOTHING: Option<bool> = None;

/// The largest answer that is decoded with the GIL held, in bytes.
const MAX_QUICK_BYTES: usize = 64 * 1024;

/// A request to the host.
pub(crate) type HostFuture<T> = Pin<Box<dyn Future<Output = Result<T, HostError>> + Send>>;

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
    pub(crate) fn wait<T: Send>(&self, py: Python<'_>, call: HostFuture<T>) -> PyResult<T> {
        Ok(self.runtime()?.wait(py, call)??)
    }

    /// Releases the GIL and sends one request. See [`Host::request`].
    ///
    /// # Errors
    /// The exception for the host's error or for the reason why it did not answer.
    pub(crate) fn request<Q: UnaryRpc>(
        &self,
        py: Python<'_>,
        kind: RequestKind,
        request: Q,
    ) -> PyResult<Q::Answer> {
        let request = self.send(RpcRequest::new(kind, Q::PATH, request))?;
        decode::<Q>(py, self.wait(py, request)?)
    }

    /// Sends one request and converts its answer. If a coroutine makes the request, returns a [`PendingRequest`] instead.
    ///
    /// # Errors
    /// As [`request`](Self::request), and those of `convert`.
    pub(crate) fn answer<Q: UnaryRpc, V>(
        &self,
        py: Python<'_>,
        kind: RequestKind,
        request: Q,
        convert: impl FnOnce(Python<'_>, Q::Answer) -> PyResult<V> + Send + 'static,
    ) -> PyResult<Py<PyAny>>
    where
        V: for<'py> IntoPyObject<'py>,
    {
        let request = self.send(RpcRequest::new(kind, Q::PATH, request))?;
        self.finish(
            py,
            request,
            Box::new(|py, answer| convert(py, decode::<Q>(py, answer)?)?.into_py_any(py)),
        )
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
        let request = request(self.host()?.clone(), self.caller.clone());
        self.finish(py, Box::pin(request), Box::new(|py, answer| convert(py, answer)?.into_py_any(py)))
    }

    /// The future that sends a request. See [`Host::send`].
    ///
    /// # Errors
    /// As [`host`](Self::host).
    pub(crate) fn send(&self, request: RpcRequest) -> PyResult<HostFuture<Bytes>> {
        let (host, caller) = (self.host()?.clone(), self.caller.clone());
        Ok(Box::pin(async move { host.send(&caller, request).await }))
    }

    /// Waits for a request, or returns a [`PendingRequest`] if a coroutine makes it.
    fn finish<A: Send + 'static>(
        &self,
        py: Python<'_>,
        request: HostFuture<A>,
        convert: Convert<A>,
    ) -> PyResult<Py<PyAny>> {
        match &self.completion {
            None => convert(py, self.wait(py, request)?),
            Some(completion) => {
                PendingRequest::start(self.runtime()?, completion, request, convert)?.into_py_any(py)
            }
        }
    }
}

/// Decodes an answer. Releases the GIL for a large one.
fn decode<Q: UnaryRpc>(py: Python<'_>, answer: Bytes) -> PyResult<Q::Answer> {
    let answer =
        if answer.len() > MAX_QUICK_BYTES { py.detach(|| rpc::decode(answer)) } else { rpc::decode(answer) };
    Ok(answer.map_err(HostError::from)?)
}
