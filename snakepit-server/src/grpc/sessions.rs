//! Ping and the life of a session.

use std::time::{Duration, SystemTime};

use snakepit_proto::pb;
use snakepit_session::{NewSession, SessionError};
use tonic::Status;

use super::{
    bridge::Bridge,
    request::{session_id, ttl},
};
use crate::status::{from_session_error, from_write_error};

impl Bridge {
    pub(super) fn pong(request: &pb::PingRequest) -> pb::PingResponse {
        pb::PingResponse {
            message: format!("pong: {}", request.message),
            server_time: Some(SystemTime::now().into()),
        }
    }

    /// Creates a session, unless it is there.
    pub(super) async fn open(&self, request: pb::InitializeSessionRequest) -> Result<(), Status> {
        let pb::InitializeSessionRequest { session_id: id, metadata, config: _, ttl_seconds } = request;
        let id = session_id(&id)?;
        let ttl = ttl("ttl_seconds", ttl_seconds)?;
        let new = NewSession { metadata, ttl };
        self.host().sessions.create(&id, new).await.map_err(|e| from_session_error(&e))?;
        Ok(())
    }

    pub(super) async fn cleanup(
        &self,
        request: &pb::CleanupSessionRequest,
    ) -> Result<pb::CleanupSessionResponse, Status> {
        let id = session_id(&request.session_id)?;
        let session = self.host().sessions.delete(&id).await.map_err(|e| from_write_error(&e))?;
        Ok(pb::CleanupSessionResponse {
            success: true,
            resources_cleaned: count(session.program_count + session.variable_count),
        })
    }

    /// Renews the session of a request that names one; a request need not. Unknown ones are refused.
    pub(super) async fn renew(&self, id: &str) -> Result<(), Status> {
        if !id.is_empty() {
            let id = session_id(id)?;
            self.host().sessions.get(&id).await.map_err(|e| from_session_error(&e))?;
        }
        Ok(())
    }

    pub(super) async fn session(
        &self,
        request: &pb::GetSessionRequest,
    ) -> Result<pb::GetSessionResponse, Status> {
        let id = session_id(&request.session_id)?;
        let session = self.host().sessions.get(&id).await.map_err(|e| from_session_error(&e))?;
        Ok(pb::GetSessionResponse {
            session_id: request.session_id.clone(),
            metadata: (&session.metadata).into(),
            created_at: Some(session.created_at.into()),
            variable_count: count(session.variable_count),
            tool_count: count(self.host().registry.len()),
            expires_in_ms: millis(session.expires_in),
            ttl_ms: millis(session.ttl),
            program_count: count(session.program_count),
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
                Err(error) => return Err(from_session_error(&error)),
            },
        };
        Ok(pb::HeartbeatResponse { server_time: Some(SystemTime::now().into()), session_valid })
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Counts on the wire are int32; nobody has more.
pub(super) fn count(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}
