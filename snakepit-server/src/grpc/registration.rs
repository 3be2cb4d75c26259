//! `RegisterTools`, which only workers that this host launched may call.

use std::sync::Arc;

use snakepit_proto::{launch::VERSION, pb};
use snakepit_registry::{MAX_NAME_BYTES, RegistryError, ToolHandler};
use snakepit_wire::spec_from_registration;
use snakepit_worker::process::Launch;
use tonic::{Extensions, Request, Response, Status};

use super::{bridge::Bridge, request::bounded};
use crate::{
    listen::Connection,
    status::{from_tool_error, incompatible_worker, invalid_field, reserved_for_workers},
};

impl Bridge {
    pub(super) async fn register(
        &self,
        request: Request<pb::RegisterToolsRequest>,
    ) -> Result<Response<pb::RegisterToolsResponse>, Status> {
        let (_, extensions, request) = request.into_parts();
        let pb::RegisterToolsRequest { session_id, tools, worker_id, identity } = request;
        bounded("worker_id", &worker_id, MAX_NAME_BYTES)?;
        // Workers of this project also register when they have no tools.
        let may_be_empty = identity.is_some();
        let serves_any_tool = identity.as_ref().is_some_and(|identity| identity.serves_any_tool);
        // A worker needs credentials unless it uses the listener of its launch.
        let credentials = match self.launch() {
            Some(_) => None,
            None => Some(Self::credentials(&extensions, identity)?),
        };
        self.renew(&session_id).await?;
        if tools.is_empty() && !may_be_empty {
            return Err(invalid_field("tools", "is empty; register at least one tool"));
        }
        let pool = self.host().pool().await.map_err(from_tool_error)?;
        // The claim invalidates the token. No `await` follows, so a worker can repeat a request that was cancelled.
        let launch = match (self.launch(), credentials) {
            (Some(launch), _) => Arc::clone(launch),
            (None, Some((peer, identity))) => {
                let launch = self.claim(peer, identity).await?;
                if let Some(connection) = extensions.get::<Arc<Connection>>() {
                    connection.set_launch(&launch);
                }
                launch
            }
            (None, None) => return Err(reserved_for_workers()),
        };
        let name = pool.status().name;
        let handler: Arc<dyn ToolHandler> = pool.tool();
        let tool_ids =
            tools.iter().map(|tool| (tool.name.clone(), format!("{name}/{}", tool.name))).collect();
        let count = tools.len();
        let specs = tools.into_iter().map(spec_from_registration).collect();
        // A rejection is part of the response. A status could break the session of a worker that registers with every call.
        let registry = &self.host().registry;
        let registered = registry.register_remote_or_defer(&name, launch.announcer(), &handler, specs);
        let response = match registered {
            Ok(_) => {
                if serves_any_tool {
                    registry.announce_fallback(&name, launch.announcer(), handler);
                } else {
                    registry.remove_stale_fallback(&name);
                }
                tracing::debug!(worker = %launch.id(), as = worker_id, pool = name, count, "tools registered");
                pb::RegisterToolsResponse { success: true, tool_ids, error_message: String::new() }
            }
            Err(error) => {
                let worker = launch.id();
                if matches!(error, RegistryError::DuplicateTool { .. }) {
                    // Logged at INFO, because each restart after a change to a signature causes it.
                    tracing::info!(%worker, pool = name, %error,
                        "the adapter of a worker differs from that of older workers; its tools are used once those have ended");
                } else {
                    tracing::warn!(%worker, pool = name, %error, "tools rejected");
                }
                let error_message = error.to_string();
                self.host().rejections.record(launch.id(), error);
                pb::RegisterToolsResponse { success: false, error_message, ..Default::default() }
            }
        };
        Ok(Response::new(response))
    }

    /// The credentials of the worker: the process at the other end of the socket, and the identity that it presents.
    fn credentials(
        extensions: &Extensions,
        identity: Option<pb::WorkerIdentity>,
    ) -> Result<(u32, pb::WorkerIdentity), Status> {
        let connection = extensions.get::<Arc<Connection>>();
        let peer = connection.and_then(|connection| connection.peer_pid());
        if let (Some(peer), Some(identity)) = (peer, identity) {
            return Ok((peer, identity));
        }
        // A runtime older than the tokens cannot explain this itself.
        Err(match connection.is_some_and(|connection| connection.find_launch().is_some()) {
            true => incompatible_worker(&format!(
                "this snakepit_bridge is older than its host, snakepit {VERSION}: it presents no version and no token; \
                 install snakepit_bridge {VERSION}"
            )),
            false => reserved_for_workers(),
        })
    }

    /// Finds the launch of the worker by its token.
    async fn claim(&self, peer: u32, identity: pb::WorkerIdentity) -> Result<Arc<Launch>, Status> {
        let launches = &self.host().launches;
        let pb::WorkerIdentity { token, version, protocol, .. } = identity;
        let launch = launches.claim(&token, peer).await.ok_or_else(reserved_for_workers)?;
        snakepit_proto::launch::check_version(&version, protocol)
            .map_err(|error| incompatible_worker(&error.to_string()))?;
        if version != VERSION {
            tracing::warn!(worker = %launch.id(), version, host = VERSION, "snakepit_bridge has another patch version than its host");
        }
        Ok(launch)
    }
}
