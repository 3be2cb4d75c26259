//! [`Operations`]: the requests of a client other than those for calls, variables and programs.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use prost::Message;
use pyo3::{
    prelude::*,
    types::{PyDict, PyList},
};
use snakepit_proto::pb;
use tonic::{Code, codegen::http::uri::PathAndQuery};

use crate::{
    call::{Call, NOTHING},
    caller::Caller,
    errors::HostError,
    host::{Host, RequestKind, RpcRequest},
    listing::describe_listed,
};

/// The standard health check of gRPC.
const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";
/// The status of a host that serves calls.
const SERVING: i32 = 1;

/// The answer of the health check.
#[derive(Clone, PartialEq, Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// The requests of a client to its host, and to the session of its `Call`.
#[pyclass(frozen, module = "snakepit_bridge._native")]
#[derive(Debug)]
pub(crate) struct Operations {
    call: Py<Call>,
}

#[pymethods]
impl Operations {
    #[new]
    const fn new(call: Py<Call>) -> Self {
        Self { call }
    }

    /// Returns whether the host serves calls. A host without health checks is ready if it answers.
    fn is_ready(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let check = |host: Host, caller: Caller| async move {
            let request =
                RpcRequest::encoded(RequestKind::Read, PathAndQuery::from_static(HEALTH_CHECK), Bytes::new());
            match host.send(&caller, request).await {
                Ok(answer) => Ok(HealthCheckResponse::decode(answer).is_ok_and(|it| it.status == SERVING)),
                Err(HostError::Status(status))
                    if matches!(status.code(), Code::Unimplemented | Code::NotFound) =>
                {
                    Ok(true)
                }
                Err(error) => Err(error),
            }
        };
        self.call.get().answer_of(py, check, |_, is_ready: bool| Ok(is_ready))
    }

    /// Creates the session if it does not exist. `ttl_seconds` is 0 for the default of the host.
    fn open_session(
        &self,
        py: Python<'_>,
        ttl_seconds: i64,
        metadata: BTreeMap<String, String>,
    ) -> PyResult<Py<PyAny>> {
        let session_id = self.call.get().session_id.clone();
        let request =
            pb::InitializeSessionRequest { session_id, metadata, ttl_seconds, ..Default::default() };
        // Initializing an existing session changes nothing, so the request may be repeated.
        self.call.get().answer(py, RequestKind::Read, request, |_, _| Ok(NOTHING))
    }

    /// Describes the session, and renews it.
    fn session_info(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let request = pb::GetSessionRequest { session_id: self.call.get().session_id.clone() };
        self.call.get().answer(py, RequestKind::Read, request, |py, session| {
            let entry = PyDict::new(py);
            entry.set_item("id", session.session_id)?;
            entry.set_item("metadata", session.metadata)?;
            entry.set_item("created_at", time(session.created_at))?;
            entry.set_item("expires_in", session.expires_in_ms as f64 / 1000.0)?;
            entry.set_item("ttl", session.ttl_ms as f64 / 1000.0)?;
            entry.set_item("variable_count", session.variable_count)?;
            entry.set_item("program_count", session.program_count)?;
            entry.set_item("bytes", session.bytes)?;
            let worker = session.last_worker_id;
            entry.set_item("last_worker", (!worker.is_empty()).then_some(worker))?;
            Ok(entry.unbind())
        })
    }

    /// Lists the tools of the host by name.
    fn tools(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.call.get().answer(py, RequestKind::Read, pb::ListToolsRequest {}, |py, listed| {
            let tools = PyDict::new(py);
            for tool in listed.tools {
                let entry = describe_listed(py, tool)?;
                tools.set_item(entry.as_any().get_item("name")?, entry)?;
            }
            Ok(tools.unbind())
        })
    }

    /// Lists the workers of the host, by slot.
    fn workers(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.call.get().answer(py, RequestKind::Read, pb::ListWorkersRequest {}, |py, listed| {
            describe_workers(py, listed.workers).map(Bound::unbind)
        })
    }

    /// Replaces all workers of the host. Returns the problem and the traceback of the worker that did not start, or `None`. Has no
    /// default timeout, because the duration depends on the start of the workers.
    fn restart_workers(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let restart = |host: Host, mut caller: Caller| async move {
            if let Caller::Program { timeout, .. } = &mut caller {
                timeout.get_or_insert(Duration::MAX);
            }
            host.request(&caller, RequestKind::Write, pb::RestartWorkersRequest {}).await
        };
        self.call.get().answer_of(py, restart, |_, restarted| {
            let pb::RestartWorkersResponse { success, error_message, traceback, .. } = restarted;
            Ok((!success).then_some((error_message, traceback)))
        })
    }

    /// Describes the pool of the host.
    fn status(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.call.get().answer(py, RequestKind::Read, pb::GetPoolStatusRequest {}, |py, status| {
            let entry = PyDict::new(py);
            entry.set_item("name", status.name)?;
            entry.set_item("queued", status.queued)?;
            entry.set_item("waiting_for_room", status.waiting_for_room)?;
            entry.set_item("in_flight", status.in_flight)?;
            entry.set_item("workers", describe_workers(py, status.workers)?)?;
            entry.set_item("retired_workers", describe_workers(py, status.retired_workers)?)?;
            let totals = status.calls.unwrap_or_default();
            let calls = PyDict::new(py);
            for (name, count) in [
                ("succeeded", totals.succeeded),
                ("failed", totals.failed),
                ("rejected", totals.rejected),
                ("timed_out", totals.timed_out),
                ("cancelled", totals.cancelled),
                ("lost", totals.lost),
                ("retried", totals.retried),
            ] {
                calls.set_item(name, count)?;
            }
            entry.set_item("calls", calls)?;
            Ok(entry.unbind())
        })
    }
}

fn describe_workers(py: Python<'_>, workers: Vec<pb::WorkerInfo>) -> PyResult<Bound<'_, PyList>> {
    let list = PyList::empty(py);
    for worker in workers {
        let entry = PyDict::new(py);
        entry.set_item("id", worker.worker_id)?;
        entry.set_item("pid", (worker.pid != 0).then_some(worker.pid))?;
        entry.set_item("state", worker.state)?;
        entry.set_item("address", worker.address)?;
        entry.set_item("started_at", time(worker.started_at))?;
        entry.set_item("calls", worker.calls)?;
        entry.set_item("restarts", worker.restarts)?;
        entry.set_item("last_end", (!worker.last_end.is_empty()).then_some(worker.last_end))?;
        list.append(entry)?;
    }
    Ok(list)
}

/// Converts a time. A missing or unrepresentable one is `None`.
fn time(time: Option<impl TryInto<SystemTime>>) -> Option<SystemTime> {
    time.and_then(|time| time.try_into().ok())
}
