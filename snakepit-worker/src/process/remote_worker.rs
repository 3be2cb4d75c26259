//! [`RemoteWorker`]: runs calls on a worker over gRPC.

mod diagnostics;
mod per_call_rpc;
mod reports;

use std::pin::Pin;

use async_trait::async_trait;
use snakepit_proto::{launch::progress::MULTIPLEXED, mux::Multiplexer, pb};
use snakepit_registry::{CallId, CallReports, ToolCall, ToolError, ToolHandler, ToolReply};
use snakepit_wire::mux;

pub(super) use self::diagnostics::WorkerDiagnostics;
use super::{connect::Client, output::ReportReceivers};

/// A [`ToolHandler`] that sends calls to a worker process.
#[derive(Debug)]
pub(super) struct RemoteWorker {
    client: Client,
    /// The stream that calls share, if the worker serves `Multiplex`.
    multiplexer: Option<Multiplexer>,
    diagnostics: WorkerDiagnostics,
    /// The calls whose callers receive reports. `None` if the worker does not send reports.
    report_receivers: Option<ReportReceivers>,
}

impl RemoteWorker {
    pub(super) const fn new(
        client: Client,
        multiplexer: Option<Multiplexer>,
        diagnostics: WorkerDiagnostics,
        report_receivers: Option<ReportReceivers>,
    ) -> Self {
        Self { client, multiplexer, diagnostics, report_receivers }
    }

    /// Sends a call.
    fn send<'a>(
        &'a self,
        call: ToolCall,
    ) -> Pin<Box<dyn Future<Output = Result<ToolReply, ToolError>> + Send + 'a>> {
        match &self.multiplexer {
            Some(multiplexer) if mux::fits_shared_stream(&call) => {
                Box::pin(mux::call(multiplexer, &self.diagnostics, call))
            }
            multiplexer => {
                // Workers with `Multiplex` are those of this project.
                let takes_buffers = multiplexer.is_some();
                Box::pin(per_call_rpc::call(&self.client, &self.diagnostics, call, takes_buffers))
            }
        }
    }

    /// Cancels a call and waits until the worker confirms that it has ended.
    async fn confirm_cancelled(&self, call: CallId) -> Result<(), String> {
        if let Some(multiplexer) = &self.multiplexer
            && !multiplexer.cancel(call.as_u64()).await
        {
            return Err("its stream broke".to_owned());
        }
        // The call may have been a separate RPC instead, which the mux does not cover.
        let request = pb::CancelToolRequest { call_id: call.to_string() };
        let response = self.client.clone().cancel_tool(request).await;
        response.map(drop).map_err(|status| status.message().to_owned())
    }
}

#[async_trait]
impl ToolHandler for RemoteWorker {
    // Not an `async fn`: its future would contain the call, and space for the larger of the two futures.
    fn call<'a, 'f>(
        &'a self,
        call: ToolCall,
    ) -> Pin<Box<dyn Future<Output = Result<ToolReply, ToolError>> + Send + 'f>>
    where
        'a: 'f,
        Self: 'f,
    {
        if let Some(receivers) = &self.report_receivers
            && let Some(reports) = CallReports::of(&call)
        {
            let guard = receivers.add(call.id, reports.clone(), call.deadline);
            return Box::pin(reports::with_reports(guard, self.send(call)));
        }
        self.send(call)
    }

    async fn cancel(&self, call: CallId) -> Result<(), ToolError> {
        let problem = match self.confirm_cancelled(call).await {
            Ok(()) => return Ok(()),
            Err(problem) => problem,
        };
        let worker = self.diagnostics.id.to_string();
        // A dying worker breaks its connections shortly before its exit is reported. The exit explains more than the error.
        if let Some(reason) = self.diagnostics.exit_reason().await {
            let (may_have_run, output_lines) = (true, Vec::new());
            return Err(ToolError::worker_lost(worker, reason)
                .with_may_have_run(may_have_run)
                .with_output_lines(output_lines));
        }
        let problem = format!("worker `{worker}` did not confirm that the call has ended: {problem}");
        Err(ToolError::internal(problem))
    }

    fn recall(&self, call: CallId) {
        if let Some(multiplexer) = &self.multiplexer {
            multiplexer.recall(call.as_u64());
        }
    }

    fn find_call(&self, reported: u64) -> Option<CallId> {
        if reported & MULTIPLEXED == 0 {
            return Some(CallId::from_u64(reported));
        }
        // The host opens only one stream, so the remaining bits are the id on that stream.
        let tag = self.multiplexer.as_ref()?.tag_of(reported & !MULTIPLEXED)?;
        Some(CallId::from_u64(tag))
    }
}
