//! Lists tools, workers and sessions, and reports statistics and session events, for operators and the command line.

use std::{pin::Pin, time::SystemTime};

use futures_core::Stream;
use futures_util::stream;
use snakepit_pool::WorkerStatus;
use snakepit_proto::pb;
use snakepit_session::{PageRequest, Session, SessionStats};
use snakepit_wire::spec_to_wire;
use tonic::{Extensions, Status};

use super::{
    bridge::Bridge,
    open_ended::OpenEndedStream,
    request::{count_to_wire, is_from_worker, read_status},
};
use crate::status::{from_tool_error, invalid_field};

impl Bridge {
    /// Lists all tools. A process of a worker does not see hidden host tools.
    pub(super) fn tools(&self, extensions: &Extensions) -> pb::ListToolsResponse {
        let registry = &self.host().registry;
        let tools = if is_from_worker(extensions) { registry.exposed_tools() } else { registry.tools() };
        let tools = tools.into_iter();
        let tools =
            tools.map(|(spec, provider)| pb::ToolInfo { spec: Some(spec_to_wire(spec)), provider }).collect();
        pb::ListToolsResponse { tools }
    }

    pub(super) fn workers(&self) -> pb::ListWorkersResponse {
        let Some(status) = self.host().pool_status() else { return pb::ListWorkersResponse::default() };
        pb::ListWorkersResponse {
            workers: status.workers.into_iter().map(worker_info).collect(),
            retired_workers: status.retired_workers.into_iter().map(worker_info).collect(),
        }
    }

    /// Reports the state of the pool. Waits for the pool while the host starts.
    pub(super) async fn pool_status(&self) -> Result<pb::GetPoolStatusResponse, Status> {
        let status = self.host().pool().await.map_err(from_tool_error)?.status();
        let totals = status.calls;
        Ok(pb::GetPoolStatusResponse {
            name: status.name,
            queued: status.queued as u64,
            waiting_for_room: status.waiting_for_room as u64,
            in_flight: status.in_flight as u64,
            workers: status.workers.into_iter().map(worker_info).collect(),
            retired_workers: status.retired_workers.into_iter().map(worker_info).collect(),
            calls: Some(pb::CallTotals {
                succeeded: totals.succeeded,
                failed: totals.failed,
                rejected: totals.rejected,
                timed_out: totals.timed_out,
                cancelled: totals.cancelled,
                lost: totals.lost,
                retried: totals.retried,
            }),
        })
    }

    pub(super) async fn sessions(
        &self,
        request: pb::ListSessionsRequest,
    ) -> Result<pb::ListSessionsResponse, Status> {
        let pb::ListSessionsRequest { page_size, page_token } = request;
        let Ok(size) = usize::try_from(page_size) else {
            return Err(invalid_field("page_size", "is negative; use 0 for the default"));
        };
        let token = (!page_token.is_empty()).then_some(page_token);
        let page = self.host().sessions.list(PageRequest { size, token }).await.map_err(read_status)?;
        Ok(pb::ListSessionsResponse {
            sessions: page.items.iter().map(session_info).collect(),
            next_page_token: page.next.unwrap_or_default(),
        })
    }

    pub(super) async fn session_stats(&self) -> Result<pb::GetSessionStatsResponse, Status> {
        let stats = self.host().sessions.stats().await.map_err(read_status)?;
        let SessionStats { created, deleted, expired, sweeps, live, variables, programs, bytes, .. } = stats;
        Ok(pb::GetSessionStatsResponse {
            created,
            deleted,
            expired,
            sweeps,
            live,
            variables,
            programs,
            bytes,
        })
    }

    pub(super) fn session_events(
        &self,
    ) -> Pin<Box<dyn Stream<Item = Result<pb::SessionEvent, Status>> + Send>> {
        let events = stream::unfold(self.host().sessions.subscribe(), async |mut events| {
            let event = events.next().await?;
            let event = match event {
                Ok(event) => pb::SessionEvent {
                    session_id: event.id.to_string(),
                    event: event.kind.as_str().to_owned(),
                    timestamp: Some(event.at.into()),
                    lost_events: 0,
                },
                Err(lost_events) => {
                    pb::SessionEvent { event: "lost".to_owned(), lost_events, ..Default::default() }
                }
            };
            Some((Ok(event), events))
        });
        Box::pin(OpenEndedStream::new(events, self.host().stop.clone()))
    }
}

fn worker_info(worker: WorkerStatus) -> pb::WorkerInfo {
    pb::WorkerInfo {
        worker_id: worker.id.to_string(),
        pid: worker.pid.unwrap_or_default(),
        state: worker.state.to_string(),
        address: worker.address,
        started_at: worker.started_at.map(Into::into),
        calls: worker.calls,
        restarts: worker.restarts,
        last_end: worker.last_end.unwrap_or_default(),
    }
}

fn session_info(session: &Session) -> pb::SessionInfo {
    pb::SessionInfo {
        session_id: session.id.to_string(),
        metadata: (&session.metadata).into(),
        created_at: Some(session.created_at.into()),
        expires_at: Some((SystemTime::now() + session.expires_in).into()),
        program_count: count_to_wire(session.program_count),
        last_worker_id: session.last_worker.as_deref().unwrap_or_default().to_owned(),
        variable_count: count_to_wire(session.variable_count),
        bytes: session.bytes as u64,
    }
}
