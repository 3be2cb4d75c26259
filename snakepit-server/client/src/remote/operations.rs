//! Operations of a remote host that belong to no session and no call: listings, statistics, events and global programs.

use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use snakepit_proto::{pb, status::check_request_size};
use snakepit_registry::{CallTotals, ToolSpec};
use snakepit_session::{
    Created, Page, PageRequest, Program, ProgramInfo, ProgramName, SessionEvent, SessionEventKind, SessionId,
    SessionStats,
};
use snakepit_wire::spec_from_wire;
use tokio::time::Instant;

use super::{
    RemoteHost,
    closing::{UntilClosed, closed},
    state::{count, malformed_response, read_rpc, time, whole_seconds, write_rpc},
};
use crate::{
    Client, Error, GlobalPrograms, RemotePoolStatus, RemoteWorkerStatus, SessionEventStream, SessionInfo,
    SessionWatchEvent, transport::BridgeClient,
};

impl Client {
    /// Checks that the host answers, and returns the round-trip time.
    ///
    /// # Errors
    /// [`Error::Unreachable`] if the connection fails; [`Error::TimedOut`].
    ///
    /// # Cancel safety
    /// Dropping the future cancels the request, which changes nothing.
    pub async fn ping(&self) -> Result<Duration, Error> {
        let (host, start) = (self.host(), Instant::now());
        read_rpc!(host, "Ping", ping(pb::PingRequest { message: "client".to_owned() }));
        Ok(start.elapsed())
    }

    /// Lists the registered tools with their providers: `host`, or the name of a pool.
    ///
    /// # Errors
    /// As for [`ping`](Self::ping).
    ///
    /// # Cancel safety
    /// As for [`ping`](Self::ping).
    pub async fn tools(&self) -> Result<Vec<(ToolSpec, String)>, Error> {
        let host = self.host();
        let response = read_rpc!(host, "ListTools", list_tools(pb::ListToolsRequest {}));
        let tools = response.tools.into_iter();
        Ok(tools.map(|tool| (spec_from_wire(tool.spec.unwrap_or_default()), tool.provider)).collect())
    }

    /// Lists the workers of the host, by slot.
    ///
    /// # Errors
    /// As for [`ping`](Self::ping).
    ///
    /// # Cancel safety
    /// As for [`ping`](Self::ping).
    pub async fn workers(&self) -> Result<Vec<RemoteWorkerStatus>, Error> {
        let host = self.host();
        let response = read_rpc!(host, "ListWorkers", list_workers(pb::ListWorkersRequest {}));
        Ok(response.workers.into_iter().map(worker_info).collect())
    }

    /// Returns the state of the host's pool: its queue, its workers, and the number of ended calls by outcome.
    ///
    /// ```no_run
    /// # async fn example(client: snakepit_client::Client) -> Result<(), snakepit_client::Error> {
    /// let pool = client.status().await?;
    /// println!("{} calls wait, {} run, {} failed", pool.queued, pool.in_flight, pool.calls.failed);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As for [`ping`](Self::ping), and [`Error::Rejected`] if the host does not offer this request, because it is an older
    /// version or the original Snakepit.
    ///
    /// # Cancel safety
    /// As for [`ping`](Self::ping).
    pub async fn status(&self) -> Result<RemotePoolStatus, Error> {
        let host = self.host();
        let status = read_rpc!(host, "GetPoolStatus", get_pool_status(pb::GetPoolStatusRequest {}));
        let size = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
        let totals = status.calls.unwrap_or_default();
        let mut calls = CallTotals::default();
        calls.succeeded = totals.succeeded;
        calls.failed = totals.failed;
        calls.rejected = totals.rejected;
        calls.timed_out = totals.timed_out;
        calls.cancelled = totals.cancelled;
        calls.lost = totals.lost;
        calls.retried = totals.retried;
        Ok(RemotePoolStatus {
            name: status.name,
            queued: size(status.queued),
            waiting_for_room: size(status.waiting_for_room),
            in_flight: size(status.in_flight),
            workers: status.workers.into_iter().map(worker_info).collect(),
            retired_workers: status.retired_workers.into_iter().map(worker_info).collect(),
            calls,
        })
    }

    /// Replaces all workers of the host, for example after the code of their adapter has changed. In each slot, the new worker is
    /// ready before the old one gets no more calls. Old workers finish their calls, and sessions stay.
    ///
    /// The duration depends on the start of the workers, so the [`request_timeout`](crate::ClientBuilder::request_timeout) does not
    /// apply. Use `tokio::time::timeout` to wait for a limited time.
    ///
    /// ```no_run
    /// # async fn example(client: snakepit_client::Client) -> Result<(), snakepit_client::Error> {
    /// client.restart_workers().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Start`] if a new worker did not start, with its traceback as the source. The old workers that were not replaced
    /// remain in service. [`Error::Tool`] with [`AccessDenied`](crate::ToolError::AccessDenied) if this client must not restart the
    /// workers: a host without authorization permits it to clients on its own machine only. [`Error::Rejected`] if the host does
    /// not offer this request. Otherwise as for [`ping`](Self::ping), except [`Error::TimedOut`].
    ///
    /// # Cancel safety
    /// If the future is dropped, or the connection breaks, the restart continues. Call this method again to wait for a complete
    /// one.
    pub async fn restart_workers(&self) -> Result<(), Error> {
        let host = &self.host().0;
        let send = |mut client: BridgeClient| async move {
            client.restart_workers(pb::RestartWorkersRequest {}).await
        };
        let restarted = async {
            let response = host.request(false, send).await;
            response.map_err(|status| host.options.request_timeout.error("RestartWorkers", &status))
        };
        let pb::RestartWorkersResponse { success, error_message, traceback, .. } =
            host.until_cut(restarted).await?.into_inner();
        if success { Ok(()) } else { Err(restart_error(error_message, traceback)) }
    }

    /// Lists live sessions, ordered by id, without renewing them. Pass [`Page::next`] of the last page for the next one.
    ///
    /// # Errors
    /// As for [`ping`](Self::ping), and [`Error::Rejected`] if the host did not issue the token.
    ///
    /// # Cancel safety
    /// As for [`ping`](Self::ping).
    pub async fn sessions(&self, page: PageRequest) -> Result<Page<SessionInfo>, Error> {
        let host = self.host();
        let request = pb::ListSessionsRequest {
            page_size: i32::try_from(page.size).unwrap_or(i32::MAX),
            page_token: page.token.unwrap_or_default(),
        };
        let response = read_rpc!(host, "ListSessions", list_sessions(request));
        let items = response.sessions.into_iter().map(session_info).collect::<Result<_, _>>()?;
        Ok(Page { items, next: Some(response.next_page_token).filter(|token| !token.is_empty()) })
    }

    /// Returns the counters of the host's session backend.
    ///
    /// # Errors
    /// As for [`ping`](Self::ping), and [`Error::Session`] if the backend fails.
    ///
    /// # Cancel safety
    /// As for [`ping`](Self::ping).
    pub async fn session_stats(&self) -> Result<SessionStats, Error> {
        let host = self.host();
        let stats = read_rpc!(host, "GetSessionStats", get_session_stats(pb::GetSessionStatsRequest {}));
        let mut totals = SessionStats::default();
        totals.created = stats.created;
        totals.deleted = stats.deleted;
        totals.expired = stats.expired;
        totals.sweeps = stats.sweeps;
        totals.live = stats.live;
        totals.variables = stats.variables;
        totals.programs = stats.programs;
        totals.bytes = stats.bytes;
        Ok(totals)
    }

    /// Watches the lifecycle of all sessions: the events from now on, until an error ends the stream.
    ///
    /// # Errors
    /// As for [`ping`](Self::ping).
    ///
    /// # Cancel safety
    /// Dropping the future or the stream ends the watch. Dropping a future that waits for the next event does not lose an event.
    pub async fn session_events(&self) -> Result<SessionEventStream, Error> {
        let host = &self.host().0;
        let timeout = host.options.request_timeout;
        let send = |mut client: BridgeClient| async move {
            client.watch_sessions(pb::WatchSessionsRequest {}).await
        };
        let response = timeout.within("WatchSessions", host.request(false, send));
        let events =
            host.until_cut(response).await.map_err(Error::into_read_error)?.map(move |event| match event {
                Ok(event) => session_event(event),
                Err(status) => Err(timeout.error("WatchSessions", &status).into_read_error()),
            });
        Ok(UntilClosed::new(events, &host.close.closing, closed(false).into()).boxed())
    }

    /// Returns the programs of the host that belong to no session.
    #[must_use]
    pub fn global_programs(&self) -> GlobalPrograms {
        GlobalPrograms::new(self.host().clone())
    }
}

/// Programs of a session, or global programs for `None`.
impl RemoteHost {
    pub(crate) async fn put_program_of(
        &self,
        session: Option<&SessionId>,
        name: &ProgramName,
        program: Program,
    ) -> Result<Created, Error> {
        let Program { data, content_type, metadata, ttl, updated_at: _ } = program;
        let program = pb::Program {
            name: name.to_string(),
            data,
            content_type,
            metadata,
            ttl_seconds: ttl.map_or(0, whole_seconds),
            ..pb::Program::default()
        };
        let (session_id, global) = owner(session);
        let request = pb::PutProgramRequest { session_id, program: Some(program), global };
        let response = write_rpc!(self, "PutProgram", put_program(request));
        Ok(if response.created { Created::New } else { Created::Existing })
    }

    pub(crate) async fn program_of(
        &self,
        session: Option<&SessionId>,
        name: &ProgramName,
    ) -> Result<Program, Error> {
        let (session_id, global) = owner(session);
        let request =
            pb::GetProgramRequest { session_id, name: name.to_string(), global, unless_updated_at: None };
        let response = read_rpc!(self, "GetProgram", get_program(request));
        let pb::Program { data, content_type, metadata, updated_at, ttl_seconds, .. } =
            response.program.unwrap_or_default();
        Ok(Program { data, content_type, metadata, ttl: ttl(ttl_seconds), updated_at: time(updated_at) })
    }

    pub(crate) async fn programs_of(&self, session: Option<&SessionId>) -> Result<Vec<ProgramInfo>, Error> {
        let (session_id, global) = owner(session);
        let request = pb::ListProgramsRequest { session_id, global };
        let response = read_rpc!(self, "ListPrograms", list_programs(request));
        let info = |program: pb::Program| {
            Ok(ProgramInfo {
                name: ProgramName::try_new(program.name)?,
                size: usize::try_from(program.size).unwrap_or_default(),
                content_type: program.content_type,
                metadata: program.metadata,
                ttl: ttl(program.ttl_seconds),
                updated_at: time(program.updated_at),
            })
        };
        response.programs.into_iter().map(info).collect()
    }

    pub(crate) async fn delete_program_of(
        &self,
        session: Option<&SessionId>,
        name: &ProgramName,
    ) -> Result<(), Error> {
        let (session_id, global) = owner(session);
        let request = pb::DeleteProgramRequest { session_id, name: name.to_string(), global };
        write_rpc!(self, "DeleteProgram", delete_program(request));
        Ok(())
    }
}

/// The fields `session_id` and `global` of a request.
fn owner(session: Option<&SessionId>) -> (String, bool) {
    (session.map(SessionId::to_string).unwrap_or_default(), session.is_none())
}

/// Programs of a session have no TTL, which is 0 on the wire.
fn ttl(seconds: i64) -> Option<Duration> {
    u64::try_from(seconds).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs)
}

/// The error of a restart whose new workers did not start.
#[derive(Debug, thiserror::Error)]
#[error("the workers were not restarted: {problem}")]
struct RestartError {
    problem: String,
    #[source]
    traceback: Option<Traceback>,
}

/// The traceback of a worker that did not start.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Traceback(String);

fn restart_error(problem: String, traceback: String) -> Error {
    let traceback = Some(traceback).filter(|text| !text.is_empty()).map(Traceback);
    Error::Start(Box::new(RestartError { problem, traceback }))
}

fn worker_info(worker: pb::WorkerInfo) -> RemoteWorkerStatus {
    RemoteWorkerStatus {
        id: worker.worker_id,
        pid: (worker.pid != 0).then_some(worker.pid),
        state: worker.state,
        address: worker.address,
        started_at: worker.started_at.and_then(|at| SystemTime::try_from(at).ok()),
        calls: worker.calls,
        restarts: worker.restarts,
        last_end: (!worker.last_end.is_empty()).then_some(worker.last_end),
    }
}

fn session_info(session: pb::SessionInfo) -> Result<SessionInfo, Error> {
    Ok(SessionInfo {
        id: SessionId::try_new(session.session_id)?,
        metadata: session.metadata.into(),
        created_at: time(session.created_at),
        expires_at: time(session.expires_at),
        program_count: count(session.program_count),
        variable_count: count(session.variable_count),
        bytes: usize::try_from(session.bytes).unwrap_or(usize::MAX),
        last_worker: Some(session.last_worker_id).filter(|id| !id.is_empty()),
    })
}

fn session_event(event: pb::SessionEvent) -> Result<SessionWatchEvent, Error> {
    let kind = match event.event.as_str() {
        "created" => SessionEventKind::Created,
        "expired" => SessionEventKind::Expired,
        "deleted" => SessionEventKind::Deleted,
        "lost" => return Ok(SessionWatchEvent::Lost(event.lost_events)),
        other => return Err(malformed_response(format!("a session event of type `{other}`"))),
    };
    let id = SessionId::try_new(event.session_id)?;
    Ok(SessionWatchEvent::Session(SessionEvent::new(id, kind, time(event.timestamp))))
}
