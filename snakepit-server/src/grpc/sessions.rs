//! `Ping`, and RPCs that create, read, renew and delete sessions.

use std::time::{Duration, SystemTime};

use snakepit_proto::pb;
use snakepit_session::{NewSession, SessionError};
use tonic::Status;

use super::{
    bridge::Bridge,
    request::{count_to_wire, read_status, session_id, ttl, write_status},
};

impl Bridge {
    pub(super) fn pong(request: &pb::PingRequest) -> pb::PingResponse {
        pb::PingResponse {
            message: format!("pong: {}", request.message),
            server_time: Some(SystemTime::now().into()),
            version: snakepit_proto::launch::VERSION.to_owned(),
        }
    }

    /// Creates a session unless it exists.
    pub(super) async fn open(&self, request: pb::InitializeSessionRequest) -> Result<(), Status> {
        let pb::InitializeSessionRequest { session_id: id, metadata, config: _, ttl_seconds } = request;
        let id = session_id(&id)?;
        let ttl = ttl("ttl_seconds", ttl_seconds)?;
        let new = NewSession { metadata, ttl };
        self.host().sessions.create(&id, new).await.map_err(read_status)?;
        Ok(())
    }

    pub(super) async fn cleanup(
        &self,
        request: &pb::CleanupSessionRequest,
    ) -> Result<pb::CleanupSessionResponse, Status> {
        let id = session_id(&request.session_id)?;
        let session = self.host().sessions.delete(&id).await.map_err(write_status)?;
        Ok(pb::CleanupSessionResponse {
            success: true,
            resources_cleaned: count_to_wire(session.program_count + session.variable_count),
        })
    }

    /// Renews the session that a request names, if any.
    ///
    /// # Errors
    /// The session does not exist.
    pub(super) async fn renew(&self, id: &str) -> Result<(), Status> {
        if !id.is_empty() {
            let id = session_id(id)?;
            self.host().sessions.get(&id).await.map_err(read_status)?;
        }
        Ok(())
    }

    pub(super) async fn session(
        &self,
        request: &pb::GetSessionRequest,
    ) -> Result<pb::GetSessionResponse, Status> {
        let id = session_id(&request.session_id)?;
        let session = self.host().sessions.get(&id).await.map_err(read_status)?;
        Ok(pb::GetSessionResponse {
            session_id: request.session_id.clone(),
            metadata: (&session.metadata).into(),
            created_at: Some(session.created_at.into()),
            variable_count: count_to_wire(session.variable_count),
            tool_count: count_to_wire(self.host().registry.len()),
            expires_in_ms: millis(session.expires_in),
            ttl_ms: millis(session.ttl),
            program_count: count_to_wire(session.program_count),
            bytes: session.bytes as u64,
            last_worker_id: session.last_worker.as_deref().unwrap_or_default().to_owned(),
        })
    }

    pub(super) async fn beat(&self, request: &pb::HeartbeatRequest) -> Result<pb::HeartbeatResponse, Status> {
        let session_valid = match session_id(&request.session_id) {
            Err(_) => false,
            Ok(id) => match self.host().sessions.get(&id).await {
                Ok(_) => true,
                Err(SessionError::NotFound { .. }) => false,
                Err(error) => return Err(read_status(error)),
            },
        };
        Ok(pb::HeartbeatResponse { server_time: Some(SystemTime::now().into()), session_valid })
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
