//! `RestartWorkers`: the rolling replacement of all workers.

use snakepit_pool::PoolError;
use snakepit_proto::pb;
use snakepit_registry::ToolError;
use snakepit_worker::error_chain;
use tonic::{Extensions, Status};

use super::bridge::Bridge;
use crate::{StartError, status::from_tool_error};

impl Bridge {
    pub(super) async fn restart(
        &self,
        extensions: &Extensions,
    ) -> Result<pb::RestartWorkersResponse, Status> {
        let host = self.host();
        let principal = self.principal(extensions);
        if host.authorizer().is_none() && !principal.is_local() {
            // Repeated restarts cost more than calls, so clients of other machines need a permission of the program.
            let problem = "only clients on this machine may restart the workers";
            return Err(from_tool_error(ToolError::access_denied(problem)));
        }
        let sees_tracebacks = host.tracebacks.shows_to(&principal);
        let pool = host.pool().await.map_err(from_tool_error)?;
        let slots = pool.status().workers.len();
        let Err(error) = host.restart_workers(pool).await else {
            let replaced_workers = u32::try_from(slots).unwrap_or(u32::MAX);
            return Ok(pb::RestartWorkersResponse { success: true, replaced_workers, ..Default::default() });
        };
        let replaced = if let PoolError::Start { replaced, .. } = &error { *replaced } else { 0 };
        let error = StartError::from(error);
        let (error_message, traceback) = match error.worker_error() {
            // The message may contain output of the worker.
            Some(_) if !sees_tracebacks => (format!("{error}; see the log of the server"), None),
            Some(cause) => (error_chain(&error).to_string(), cause.traceback()),
            None => (error.to_string(), None),
        };
        let traceback = traceback.unwrap_or_default().to_owned();
        let replaced_workers = u32::try_from(replaced).unwrap_or(u32::MAX);
        Ok(pb::RestartWorkersResponse { success: false, error_message, traceback, replaced_workers })
    }
}
