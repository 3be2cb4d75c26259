//! Implements the service trait: delegates the RPCs of workers to [`WorkerService`], and rejects those of the host.

use snakepit_proto::pb::{self, bridge_service_server::BridgeService};
use tokio_stream::Empty;
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::{Batches, RpcResult, ToolChunks, WorkerService};
use crate::telemetry::{self, TelemetryEvents};

fn host_only<T>(rpc: &str) -> RpcResult<T> {
    Err(Status::unimplemented(format!("workers do not serve {rpc}; call it on the host")))
}

/// Expands to the code that `async_trait` generates for an `async fn`, because that attribute does not expand macro
/// calls.
macro_rules! host_only {
    ($($rpc:ident($request:ty) -> $response:ty;)*) => {$(
        fn $rpc<'life, 'future>(
            &'life self,
            _: Request<$request>,
        ) -> std::pin::Pin<Box<dyn Future<Output = RpcResult<$response>> + Send + 'future>>
        where
            'life: 'future,
            Self: 'future,
        {
            Box::pin(std::future::ready(host_only(stringify!($rpc))))
        }
    )*};
}

#[async_trait]
impl BridgeService for WorkerService {
    type ExecuteStreamingToolStream = ToolChunks;
    type WatchVariablesStream = Empty<Result<pb::VariableUpdate, Status>>;
    type StreamTelemetryStream = TelemetryEvents;
    type ExecuteStreamingElixirToolStream = Empty<Result<pb::ToolChunk, Status>>;
    type WatchSessionsStream = Empty<Result<pb::SessionEvent, Status>>;

    async fn ping(&self, request: Request<pb::PingRequest>) -> RpcResult<pb::PingResponse> {
        let message = request.into_inner().message;
        let server_time = Some(std::time::SystemTime::now().into());
        let version = snakepit_proto::launch::VERSION.to_owned();
        Ok(Response::new(pb::PingResponse { message, server_time, version }))
    }

    async fn execute_tool(
        &self,
        request: Request<pb::ExecuteToolRequest>,
    ) -> RpcResult<pb::ExecuteToolResponse> {
        self.execute(request).await
    }

    async fn execute_streaming_tool(
        &self,
        request: Request<pb::ExecuteToolRequest>,
    ) -> RpcResult<ToolChunks> {
        self.execute_streaming(request).await
    }

    type MultiplexStream = Batches;

    async fn multiplex(&self, request: Request<Streaming<pb::CallBatch>>) -> RpcResult<Batches> {
        Ok(Response::new(self.multiplex(request.into_inner())))
    }

    async fn stream_telemetry(
        &self,
        request: Request<Streaming<pb::TelemetryControl>>,
    ) -> RpcResult<TelemetryEvents> {
        telemetry::stream(request.into_inner()).map(Response::new)
    }

    async fn cancel_tool(
        &self,
        request: Request<pb::CancelToolRequest>,
    ) -> RpcResult<pb::CancelToolResponse> {
        self.cancel(request).await
    }

    host_only! {
        initialize_session(pb::InitializeSessionRequest) -> pb::InitializeSessionResponse;
        cleanup_session(pb::CleanupSessionRequest) -> pb::CleanupSessionResponse;
        get_session(pb::GetSessionRequest) -> pb::GetSessionResponse;
        heartbeat(pb::HeartbeatRequest) -> pb::HeartbeatResponse;
        register_variable(pb::RegisterVariableRequest) -> pb::RegisterVariableResponse;
        get_variable(pb::GetVariableRequest) -> pb::GetVariableResponse;
        set_variable(pb::SetVariableRequest) -> pb::SetVariableResponse;
        get_variables(pb::BatchGetVariablesRequest) -> pb::BatchGetVariablesResponse;
        set_variables(pb::BatchSetVariablesRequest) -> pb::BatchSetVariablesResponse;
        list_variables(pb::ListVariablesRequest) -> pb::ListVariablesResponse;
        delete_variable(pb::DeleteVariableRequest) -> pb::DeleteVariableResponse;
        delete_variables(pb::DeleteVariablesRequest) -> pb::DeleteVariablesResponse;
        watch_variables(pb::WatchVariablesRequest) -> Self::WatchVariablesStream;
        get_variable_history(pb::GetVariableHistoryRequest) -> pb::GetVariableHistoryResponse;
        rollback_variable(pb::RollbackVariableRequest) -> pb::RollbackVariableResponse;
        register_tools(pb::RegisterToolsRequest) -> pb::RegisterToolsResponse;
        get_exposed_elixir_tools(pb::GetExposedElixirToolsRequest) -> pb::GetExposedElixirToolsResponse;
        execute_elixir_tool(pb::ExecuteElixirToolRequest) -> pb::ExecuteElixirToolResponse;
        execute_streaming_elixir_tool(pb::ExecuteElixirToolRequest) -> Self::ExecuteStreamingElixirToolStream;
        add_dependency(pb::AddDependencyRequest) -> pb::AddDependencyResponse;
        start_optimization(pb::StartOptimizationRequest) -> pb::StartOptimizationResponse;
        stop_optimization(pb::StopOptimizationRequest) -> pb::StopOptimizationResponse;
        put_program(pb::PutProgramRequest) -> pb::PutProgramResponse;
        get_program(pb::GetProgramRequest) -> pb::GetProgramResponse;
        list_programs(pb::ListProgramsRequest) -> pb::ListProgramsResponse;
        delete_program(pb::DeleteProgramRequest) -> pb::DeleteProgramResponse;
        list_tools(pb::ListToolsRequest) -> pb::ListToolsResponse;
        list_workers(pb::ListWorkersRequest) -> pb::ListWorkersResponse;
        get_pool_status(pb::GetPoolStatusRequest) -> pb::GetPoolStatusResponse;
        restart_workers(pb::RestartWorkersRequest) -> pb::RestartWorkersResponse;
        list_sessions(pb::ListSessionsRequest) -> pb::ListSessionsResponse;
        get_session_stats(pb::GetSessionStatsRequest) -> pb::GetSessionStatsResponse;
        watch_sessions(pb::WatchSessionsRequest) -> Self::WatchSessionsStream;
    }
}
