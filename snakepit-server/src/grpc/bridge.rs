//! The generated service trait, method by method. Every body is a line or two; the work is in the files beside this.

use std::{future::Future, pin::Pin, sync::Arc};

use futures_core::Stream;
use snakepit_proto::pb::{self, bridge_service_server::BridgeService};
use snakepit_worker::process::Launch;
use tonic::{Request, Response, Status, Streaming};

use super::{calls::ChunkResponse, multiplex::BatchResponse, opening, variables::Updates};
use crate::{
    host::Host,
    status::{reserved_for_clients, rpc_not_offered},
};

/// The bridge service, answered by a host.
#[derive(Debug)]
pub(crate) struct Bridge {
    host: Arc<Host>,
    /// Whose listener this is, if it is a worker's.
    launch: Option<Arc<Launch>>,
}

impl Bridge {
    pub(crate) const fn new(host: Arc<Host>) -> Self {
        Self { host, launch: None }
    }

    /// For the listener of one launch: what a worker needs, and no more.
    pub(crate) const fn of_launch(host: Arc<Host>, launch: Arc<Launch>) -> Self {
        Self { host, launch: Some(launch) }
    }

    pub(super) const fn launch(&self) -> Option<&Arc<Launch>> {
        self.launch.as_ref()
    }

    /// Refuses RPCs that are for clients on a worker's listener.
    fn for_clients(&self, rpc: &str) -> Result<(), Status> {
        match self.launch {
            None => Ok(()),
            Some(_) => Err(reserved_for_clients(rpc)),
        }
    }

    pub(super) const fn host(&self) -> &Arc<Host> {
        &self.host
    }
}

type Answer<T> = Result<Response<T>, Status>;
type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// RPCs that this server does not answer, each with what to do instead.
macro_rules! unimplemented_rpcs {
    ($($rpc:ident($request:ty) -> $response:ty: $instead:literal;)*) => {
        // Spelled out as `async_trait` would: it does not see into macros.
        $(fn $rpc<'a, 'b>(
            &'a self,
            _: Request<$request>,
        ) -> Pin<Box<dyn Future<Output = Answer<$response>> + Send + 'b>>
        where
            'a: 'b,
            Self: 'b,
        {
            let refusal = rpc_not_offered(stringify!($rpc), $instead);
            Box::pin(std::future::ready(Err(refusal)))
        })*
    };
}

#[tonic::async_trait]
impl BridgeService for Bridge {
    async fn ping(&self, request: Request<pb::PingRequest>) -> Answer<pb::PingResponse> {
        Ok(Response::new(Self::pong(request.get_ref())))
    }

    /// [`BridgeRoutes`](super::opening::BridgeRoutes) answers in its stead, with the same in encoded form.
    async fn initialize_session(
        &self,
        request: Request<pb::InitializeSessionRequest>,
    ) -> Answer<pb::InitializeSessionResponse> {
        self.open(request.into_inner()).await?;
        Ok(Response::new(opening::answer(&self.host.registry)))
    }

    async fn cleanup_session(
        &self,
        request: Request<pb::CleanupSessionRequest>,
    ) -> Answer<pb::CleanupSessionResponse> {
        self.cleanup(request.get_ref()).await.map(Response::new)
    }

    async fn get_session(&self, request: Request<pb::GetSessionRequest>) -> Answer<pb::GetSessionResponse> {
        self.session(request.get_ref()).await.map(Response::new)
    }

    async fn heartbeat(&self, request: Request<pb::HeartbeatRequest>) -> Answer<pb::HeartbeatResponse> {
        self.beat(request.get_ref()).await.map(Response::new)
    }

    async fn execute_tool(
        &self,
        request: Request<pb::ExecuteToolRequest>,
    ) -> Answer<pb::ExecuteToolResponse> {
        self.for_clients("ExecuteTool")?;
        self.execute(request).await
    }

    type ExecuteStreamingToolStream = ChunkResponse;

    async fn execute_streaming_tool(
        &self,
        request: Request<pb::ExecuteToolRequest>,
    ) -> Answer<ChunkResponse> {
        self.for_clients("ExecuteStreamingTool")?;
        self.execute_streaming(request).await
    }

    type MultiplexStream = BatchResponse;

    async fn multiplex(&self, request: Request<Streaming<pb::CallBatch>>) -> Answer<BatchResponse> {
        self.for_clients("Multiplex")?;
        let (_, mut extensions, inbound) = request.into_parts();
        Ok(Response::new(self.serve_calls(inbound, extensions.remove())))
    }

    async fn register_tools(
        &self,
        request: Request<pb::RegisterToolsRequest>,
    ) -> Answer<pb::RegisterToolsResponse> {
        self.register(request).await
    }

    async fn get_exposed_elixir_tools(
        &self,
        request: Request<pb::GetExposedElixirToolsRequest>,
    ) -> Answer<pb::GetExposedElixirToolsResponse> {
        self.exposed_tools(request.get_ref()).await.map(Response::new)
    }

    async fn execute_elixir_tool(
        &self,
        request: Request<pb::ExecuteElixirToolRequest>,
    ) -> Answer<pb::ExecuteElixirToolResponse> {
        self.execute_host_tool(request).await
    }

    type StreamTelemetryStream = Events<pb::TelemetryEvent>;

    async fn stream_telemetry(
        &self,
        request: Request<Streaming<pb::TelemetryControl>>,
    ) -> Answer<Self::StreamTelemetryStream> {
        Ok(Response::new(self.telemetry(request.into_inner())))
    }

    async fn put_program(&self, request: Request<pb::PutProgramRequest>) -> Answer<pb::PutProgramResponse> {
        self.put(request.into_inner()).await.map(Response::new)
    }

    async fn get_program(&self, request: Request<pb::GetProgramRequest>) -> Answer<pb::GetProgramResponse> {
        self.program(request.into_inner()).await.map(Response::new)
    }

    async fn list_programs(
        &self,
        request: Request<pb::ListProgramsRequest>,
    ) -> Answer<pb::ListProgramsResponse> {
        self.programs(request.get_ref()).await.map(Response::new)
    }

    async fn delete_program(
        &self,
        request: Request<pb::DeleteProgramRequest>,
    ) -> Answer<pb::DeleteProgramResponse> {
        self.remove_program(request.get_ref()).await.map(|()| Response::new(pb::DeleteProgramResponse {}))
    }

    async fn list_tools(&self, _: Request<pb::ListToolsRequest>) -> Answer<pb::ListToolsResponse> {
        self.for_clients("ListTools")?;
        Ok(Response::new(self.tools()))
    }

    async fn list_workers(&self, _: Request<pb::ListWorkersRequest>) -> Answer<pb::ListWorkersResponse> {
        self.for_clients("ListWorkers")?;
        Ok(Response::new(self.workers()))
    }

    async fn list_sessions(
        &self,
        request: Request<pb::ListSessionsRequest>,
    ) -> Answer<pb::ListSessionsResponse> {
        self.for_clients("ListSessions")?;
        self.sessions(request.into_inner()).await.map(Response::new)
    }

    async fn register_variable(
        &self,
        request: Request<pb::RegisterVariableRequest>,
    ) -> Answer<pb::RegisterVariableResponse> {
        self.register_one(request.into_inner()).await.map(Response::new)
    }

    async fn get_variable(
        &self,
        request: Request<pb::GetVariableRequest>,
    ) -> Answer<pb::GetVariableResponse> {
        self.variable(request.get_ref()).await.map(Response::new)
    }

    async fn set_variable(
        &self,
        request: Request<pb::SetVariableRequest>,
    ) -> Answer<pb::SetVariableResponse> {
        self.set_one(request.into_inner()).await.map(Response::new)
    }

    async fn get_variables(
        &self,
        request: Request<pb::BatchGetVariablesRequest>,
    ) -> Answer<pb::BatchGetVariablesResponse> {
        self.variables(request.into_inner()).await.map(Response::new)
    }

    async fn set_variables(
        &self,
        request: Request<pb::BatchSetVariablesRequest>,
    ) -> Answer<pb::BatchSetVariablesResponse> {
        self.set_many(request.into_inner()).await.map(Response::new)
    }

    async fn list_variables(
        &self,
        request: Request<pb::ListVariablesRequest>,
    ) -> Answer<pb::ListVariablesResponse> {
        self.list(request.get_ref()).await.map(Response::new)
    }

    async fn delete_variable(
        &self,
        request: Request<pb::DeleteVariableRequest>,
    ) -> Answer<pb::DeleteVariableResponse> {
        self.delete_one(request.get_ref()).await.map(Response::new)
    }

    async fn get_variable_history(
        &self,
        request: Request<pb::GetVariableHistoryRequest>,
    ) -> Answer<pb::GetVariableHistoryResponse> {
        self.history(request.get_ref()).await.map(Response::new)
    }

    async fn rollback_variable(
        &self,
        request: Request<pb::RollbackVariableRequest>,
    ) -> Answer<pb::RollbackVariableResponse> {
        self.rollback(request.into_inner()).await.map(Response::new)
    }

    type WatchVariablesStream = Updates;

    async fn watch_variables(&self, request: Request<pb::WatchVariablesRequest>) -> Answer<Updates> {
        self.watch(request).await.map(Response::new)
    }

    async fn get_session_stats(
        &self,
        _: Request<pb::GetSessionStatsRequest>,
    ) -> Answer<pb::GetSessionStatsResponse> {
        self.for_clients("GetSessionStats")?;
        self.session_stats().await.map(Response::new)
    }

    type WatchSessionsStream = Events<pb::SessionEvent>;

    async fn watch_sessions(&self, _: Request<pb::WatchSessionsRequest>) -> Answer<Events<pb::SessionEvent>> {
        self.for_clients("WatchSessions")?;
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
