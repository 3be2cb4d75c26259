//! The generated service trait. Each method delegates to the file of its group of RPCs.

use std::{future::Future, pin::Pin};

use futures_core::Stream;
use snakepit_proto::pb::{self, bridge_service_server::BridgeService};
use tonic::{Request, Response, Status, Streaming};

use super::{
    bridge::Bridge,
    calls::ChunkResponse,
    initialize_session,
    inline_buffers::{InlineBuffers as _, takes_buffers},
    multiplex::BatchResponse,
    variables::Updates,
};
use crate::{Operation, status::rpc_not_offered};

type RpcResult<T> = Result<Response<T>, Status>;
type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// RPCs that this server does not offer, each with the alternative.
macro_rules! unimplemented_rpcs {
    ($($rpc:ident($request:ty) -> $response:ty: $instead:literal;)*) => {
        // The expansion of `async_trait`, which does not look into macros.
        $(fn $rpc<'a, 'b>(
            &'a self,
            _: Request<$request>,
        ) -> Pin<Box<dyn Future<Output = RpcResult<$response>> + Send + 'b>>
        where
            'a: 'b,
            Self: 'b,
        {
            let status = rpc_not_offered(stringify!($rpc), $instead);
            Box::pin(std::future::ready(Err(status)))
        })*
    };
}

#[tonic::async_trait]
impl BridgeService for Bridge {
    async fn ping(&self, request: Request<pb::PingRequest>) -> RpcResult<pb::PingResponse> {
        Ok(Response::new(Self::pong(request.get_ref())))
    }

    /// Not called, because [`BridgeRoutes`](initialize_session::BridgeRoutes) intercepts this RPC and sends a cached response.
    async fn initialize_session(
        &self,
        request: Request<pb::InitializeSessionRequest>,
    ) -> RpcResult<pb::InitializeSessionResponse> {
        self.may_write(&request)?;
        let may_list = self.authorize(request.extensions(), &Operation::ListTools).is_ok();
        self.open(request.into_inner()).await?;
        let response = may_list.then(|| initialize_session::response(&self.host().registry));
        Ok(Response::new(response.unwrap_or_else(initialize_session::without_tools)))
    }

    async fn cleanup_session(
        &self,
        request: Request<pb::CleanupSessionRequest>,
    ) -> RpcResult<pb::CleanupSessionResponse> {
        self.may_write(&request)?;
        self.cleanup(request.get_ref()).await.map(Response::new)
    }

    async fn get_session(
        &self,
        request: Request<pb::GetSessionRequest>,
    ) -> RpcResult<pb::GetSessionResponse> {
        self.may_read(&request)?;
        self.session(request.get_ref()).await.map(Response::new)
    }

    async fn heartbeat(&self, request: Request<pb::HeartbeatRequest>) -> RpcResult<pb::HeartbeatResponse> {
        self.may_read(&request)?;
        self.beat(request.get_ref()).await.map(Response::new)
    }

    async fn execute_tool(
        &self,
        request: Request<pb::ExecuteToolRequest>,
    ) -> RpcResult<pb::ExecuteToolResponse> {
        self.require_client("ExecuteTool")?;
        self.execute(request).await
    }

    type ExecuteStreamingToolStream = ChunkResponse;

    async fn execute_streaming_tool(
        &self,
        request: Request<pb::ExecuteToolRequest>,
    ) -> RpcResult<ChunkResponse> {
        self.require_client("ExecuteStreamingTool")?;
        self.execute_streaming(request).await
    }

    type MultiplexStream = BatchResponse;

    async fn multiplex(&self, request: Request<Streaming<pb::CallBatch>>) -> RpcResult<BatchResponse> {
        self.require_client("Multiplex")?;
        let (_, mut extensions, inbound) = request.into_parts();
        let principal_source = self.principal_source(&extensions);
        Ok(Response::new(self.serve_calls(inbound, extensions.remove(), principal_source)))
    }

    async fn register_tools(
        &self,
        request: Request<pb::RegisterToolsRequest>,
    ) -> RpcResult<pb::RegisterToolsResponse> {
        self.register(request).await
    }

    async fn get_exposed_elixir_tools(
        &self,
        request: Request<pb::GetExposedElixirToolsRequest>,
    ) -> RpcResult<pb::GetExposedElixirToolsResponse> {
        self.authorize(request.extensions(), &Operation::ListTools)?;
        if !request.get_ref().session_id.is_empty() {
            self.may_read(&request)?;
        }
        self.exposed_tools(request.get_ref()).await.map(Response::new)
    }

    async fn execute_elixir_tool(
        &self,
        request: Request<pb::ExecuteElixirToolRequest>,
    ) -> RpcResult<pb::ExecuteElixirToolResponse> {
        self.execute_host_tool(request).await
    }

    type ExecuteStreamingElixirToolStream = ChunkResponse;

    async fn execute_streaming_elixir_tool(
        &self,
        request: Request<pb::ExecuteElixirToolRequest>,
    ) -> RpcResult<ChunkResponse> {
        self.stream_host_tool(request).await
    }

    type StreamTelemetryStream = Events<pb::TelemetryEvent>;

    async fn stream_telemetry(
        &self,
        request: Request<Streaming<pb::TelemetryControl>>,
    ) -> RpcResult<Self::StreamTelemetryStream> {
        self.may_observe(&request)?;
        let (_, extensions, controls) = request.into_parts();
        self.telemetry(controls, &extensions).map(Response::new)
    }

    async fn put_program(
        &self,
        request: Request<pb::PutProgramRequest>,
    ) -> RpcResult<pb::PutProgramResponse> {
        self.may_write(&request)?;
        self.put(request.into_inner()).await.map(Response::new)
    }

    async fn get_program(
        &self,
        request: Request<pb::GetProgramRequest>,
    ) -> RpcResult<pb::GetProgramResponse> {
        self.may_read(&request)?;
        self.program(request.into_inner()).await.map(Response::new)
    }

    async fn list_programs(
        &self,
        request: Request<pb::ListProgramsRequest>,
    ) -> RpcResult<pb::ListProgramsResponse> {
        self.may_read(&request)?;
        self.programs(request.get_ref()).await.map(Response::new)
    }

    async fn delete_program(
        &self,
        request: Request<pb::DeleteProgramRequest>,
    ) -> RpcResult<pb::DeleteProgramResponse> {
        self.may_write(&request)?;
        self.remove_program(request.get_ref()).await.map(|()| Response::new(pb::DeleteProgramResponse {}))
    }

    async fn list_tools(&self, request: Request<pb::ListToolsRequest>) -> RpcResult<pb::ListToolsResponse> {
        self.require_client("ListTools")?;
        self.authorize(request.extensions(), &Operation::ListTools)?;
        Ok(Response::new(self.tools(request.extensions())))
    }

    async fn list_workers(
        &self,
        request: Request<pb::ListWorkersRequest>,
    ) -> RpcResult<pb::ListWorkersResponse> {
        self.require_client("ListWorkers")?;
        self.may_observe(&request)?;
        Ok(Response::new(self.workers()))
    }

    async fn get_pool_status(
        &self,
        request: Request<pb::GetPoolStatusRequest>,
    ) -> RpcResult<pb::GetPoolStatusResponse> {
        self.require_client("GetPoolStatus")?;
        self.may_observe(&request)?;
        self.pool_status().await.map(Response::new)
    }

    async fn list_sessions(
        &self,
        request: Request<pb::ListSessionsRequest>,
    ) -> RpcResult<pb::ListSessionsResponse> {
        self.require_client("ListSessions")?;
        self.may_observe(&request)?;
        self.sessions(request.into_inner()).await.map(Response::new)
    }

    async fn register_variable(
        &self,
        request: Request<pb::RegisterVariableRequest>,
    ) -> RpcResult<pb::RegisterVariableResponse> {
        self.may_write(&request)?;
        self.register_one(request.into_inner()).await.map(Response::new)
    }

    async fn get_variable(
        &self,
        request: Request<pb::GetVariableRequest>,
    ) -> RpcResult<pb::GetVariableResponse> {
        self.may_read(&request)?;
        let takes_buffers = takes_buffers(request.metadata());
        let response = self.variable(request.get_ref()).await?;
        Ok(Response::new(response.for_client(takes_buffers).await))
    }

    async fn set_variable(
        &self,
        request: Request<pb::SetVariableRequest>,
    ) -> RpcResult<pb::SetVariableResponse> {
        self.may_write(&request)?;
        self.set_one(request.into_inner()).await.map(Response::new)
    }

    async fn get_variables(
        &self,
        request: Request<pb::BatchGetVariablesRequest>,
    ) -> RpcResult<pb::BatchGetVariablesResponse> {
        self.may_read(&request)?;
        let takes_buffers = takes_buffers(request.metadata());
        let response = self.variables(request.into_inner()).await?;
        Ok(Response::new(response.for_client(takes_buffers).await))
    }

    async fn set_variables(
        &self,
        request: Request<pb::BatchSetVariablesRequest>,
    ) -> RpcResult<pb::BatchSetVariablesResponse> {
        self.may_write(&request)?;
        self.set_many(request.into_inner()).await.map(Response::new)
    }

    async fn list_variables(
        &self,
        request: Request<pb::ListVariablesRequest>,
    ) -> RpcResult<pb::ListVariablesResponse> {
        self.may_read(&request)?;
        let takes_buffers = takes_buffers(request.metadata());
        let response = self.list(request.get_ref()).await?;
        Ok(Response::new(response.for_client(takes_buffers).await))
    }

    async fn delete_variable(
        &self,
        request: Request<pb::DeleteVariableRequest>,
    ) -> RpcResult<pb::DeleteVariableResponse> {
        self.may_write(&request)?;
        self.delete_one(request.get_ref()).await.map(Response::new)
    }

    async fn delete_variables(
        &self,
        request: Request<pb::DeleteVariablesRequest>,
    ) -> RpcResult<pb::DeleteVariablesResponse> {
        self.may_write(&request)?;
        self.delete_many(request.get_ref()).await.map(Response::new)
    }

    async fn get_variable_history(
        &self,
        request: Request<pb::GetVariableHistoryRequest>,
    ) -> RpcResult<pb::GetVariableHistoryResponse> {
        self.may_read(&request)?;
        let takes_buffers = takes_buffers(request.metadata());
        let response = self.history(request.get_ref()).await?;
        Ok(Response::new(response.for_client(takes_buffers).await))
    }

    async fn rollback_variable(
        &self,
        request: Request<pb::RollbackVariableRequest>,
    ) -> RpcResult<pb::RollbackVariableResponse> {
        self.may_write(&request)?;
        let takes_buffers = takes_buffers(request.metadata());
        let response = self.rollback(request.into_inner()).await?;
        Ok(Response::new(response.for_client(takes_buffers).await))
    }

    type WatchVariablesStream = Updates;

    async fn watch_variables(&self, request: Request<pb::WatchVariablesRequest>) -> RpcResult<Updates> {
        self.may_read(&request)?;
        self.watch(request).await.map(Response::new)
    }

    async fn get_session_stats(
        &self,
        request: Request<pb::GetSessionStatsRequest>,
    ) -> RpcResult<pb::GetSessionStatsResponse> {
        self.require_client("GetSessionStats")?;
        self.may_observe(&request)?;
        self.session_stats().await.map(Response::new)
    }

    async fn restart_workers(
        &self,
        request: Request<pb::RestartWorkersRequest>,
    ) -> RpcResult<pb::RestartWorkersResponse> {
        self.require_client("RestartWorkers")?;
        self.authorize(request.extensions(), &Operation::RestartWorkers)?;
        self.restart(request.extensions()).await.map(Response::new)
    }

    type WatchSessionsStream = Events<pb::SessionEvent>;

    async fn watch_sessions(
        &self,
        request: Request<pb::WatchSessionsRequest>,
    ) -> RpcResult<Events<pb::SessionEvent>> {
        self.require_client("WatchSessions")?;
        self.may_observe(&request)?;
        Ok(Response::new(self.session_events()))
    }

    unimplemented_rpcs! {
        cancel_tool(pb::CancelToolRequest) -> pb::CancelToolResponse:
            "a client cancels its call by resetting the stream; this RPC is between host and worker";
        add_dependency(pb::AddDependencyRequest) -> pb::AddDependencyResponse:
            "the protocol names it but no version ever defined what it does";
        start_optimization(pb::StartOptimizationRequest) -> pb::StartOptimizationResponse:
            "the protocol names it but no version ever defined what it does";
        stop_optimization(pb::StopOptimizationRequest) -> pb::StopOptimizationResponse:
            "the protocol names it but no version ever defined what it does";
    }
}
