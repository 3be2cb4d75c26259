//! [`LiveCall`]: a call on a separate stream, which carries progress and output in addition to the answer.

use std::time::Duration;

use snakepit_proto::{
    mux::{Call, CallEnd, CallEvent, Incoming, Multiplexer, STREAM_CREDIT, chunk_cost},
    pb,
    value::inline_nested,
};
use snakepit_wire::{payload_from_wire, payload_to_wire, value_from_wire, value_to_wire, without_buffers};
use tokio::time::Instant;
use tonic::{Code, Status, transport::Channel};

use crate::live_reports::Display;

type Client = pb::bridge_service_client::BridgeServiceClient<Channel>;

/// A running call, whose reports appear on stderr.
pub(crate) struct LiveCall {
    tool: String,
    call: Call,
    incoming: Incoming,
    /// Whether the stream has ended. It ends the call, too.
    is_cut: bool,
    /// The number of chunks so far.
    count: u64,
    /// After this time, reports are dropped, so that a slow terminal does not delay the end of the call. `None` without a timeout.
    deadline: Option<Instant>,
    pub(crate) display: Display,
}

/// An event of a call.
pub(crate) enum LiveEvent {
    /// Chunks with plain JSON.
    Chunks(Vec<pb::ToolChunk>),
    End(pb::CallReply),
}

impl LiveCall {
    /// Starts a call. Returns `None` if the server cannot send reports. `timeout_us` is 0 without a timeout.
    ///
    /// # Errors
    /// The status of the server, or the status of arguments that cannot be sent.
    pub(crate) async fn start(
        client: Client,
        request: pb::ExecuteToolRequest,
        stream: bool,
        timeout_us: u64,
        wanted: pb::CallReports,
    ) -> Result<Option<Self>, Status> {
        let pb::ExecuteToolRequest { session_id, tool_name, parameters, mut binary_parameters, .. } = request;
        let arguments = parameters.into_iter().map(|(name, any)| {
            let buffer = binary_parameters.remove(&name);
            let value = payload_from_wire(any, buffer)
                .map_err(|error| Status::invalid_argument(error.to_string()))?;
            Ok::<_, Status>(pb::CallArgument { name, value: Some(value_to_wire(value)) })
        });
        let tool = tool_name.clone();
        let start = pb::CallStart {
            tool_name,
            session_id,
            arguments: arguments.collect::<Result<_, _>>()?,
            timeout_us,
            stream,
            credit: if stream { STREAM_CREDIT } else { 0 },
            reports: Some(wanted),
            ..pb::CallStart::default()
        };
        let (multiplexer, incoming) = match Multiplexer::open(client).await {
            Ok(opened) => opened,
            Err(status) if status.code() == Code::Unimplemented => return Ok(None),
            Err(status) => return Err(status),
        };
        let call = multiplexer.start(start, 0);
        let timeout = (timeout_us > 0).then(|| Duration::from_micros(timeout_us));
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let display = Display::default();
        Ok(Some(Self { tool, call, incoming, is_cut: false, count: 0, deadline, display }))
    }

    /// Waits for chunks or the end, and shows the reports that arrive before.
    ///
    /// # Errors
    /// The status of the call.
    pub(crate) async fn next(&mut self) -> Result<LiveEvent, Status> {
        let end = loop {
            let event = tokio::select! {
                biased;
                event = self.call.event() => event,
                () = &mut self.incoming, if !self.is_cut => {
                    self.is_cut = true;
                    continue;
                }
            };
            match event {
                CallEvent::Reports(reports) => {
                    show_until(self.deadline, reports, |report| self.display.show(report));
                }
                CallEvent::Chunks(chunks) => return Ok(LiveEvent::Chunks(self.read(chunks))),
                CallEvent::End(end) => break end,
                CallEvent::Opened(_) => {}
            }
        };
        self.display.end();
        let reply = match end {
            CallEnd::Reply(reply) => reply,
            CallEnd::Broken(status) | CallEnd::Unsent(_, status) => return Err(status),
            CallEnd::Recalled => return Err(Status::internal("the server returned the call")),
        };
        match reply.status {
            Some(status) => Err((*status).into()),
            None => Ok(LiveEvent::End(reply)),
        }
    }

    /// Converts chunks to those of `ExecuteStreamingTool`, and lets the server send as many again.
    fn read(&mut self, chunks: Vec<pb::CallChunk>) -> Vec<pb::ToolChunk> {
        self.call.grant(chunks.iter().map(chunk_cost).sum());
        let chunk_of = |chunk: pb::CallChunk| {
            self.count += 1;
            let plain = chunk.binary.as_ref().and_then(|buffers| inline_nested(&chunk.data, buffers));
            pb::ToolChunk {
                chunk_id: format!("{}-{}", self.tool, self.count),
                data: plain.map_or(chunk.data, Into::into),
                metadata: chunk.metadata,
                ..pb::ToolChunk::default()
            }
        };
        chunks.into_iter().map(chunk_of).collect()
    }
}

/// Shows reports one by one, and drops those that remain at the deadline.
fn show_until<T>(deadline: Option<Instant>, reports: Vec<T>, show: impl FnMut(T)) {
    let is_in_time = |_: &T| deadline.is_none_or(|deadline| Instant::now() < deadline);
    reports.into_iter().take_while(is_in_time).for_each(show);
}

/// The answer of a unary call.
pub(crate) struct Answer {
    pub(crate) response: pb::ExecuteToolResponse,
    /// The worker that ran the call. Empty for a host tool.
    pub(crate) worker: String,
}

impl Answer {
    /// Converts a reply to the response of `ExecuteTool`.
    ///
    /// # Errors
    /// `INTERNAL` if the value cannot be read.
    pub(crate) fn of(reply: pb::CallReply) -> Result<Self, Status> {
        let mut response = pb::ExecuteToolResponse {
            success: reply.failure.is_none(),
            metadata: reply.metadata,
            execution_time_ms: i64::try_from(reply.execution_time_ns / 1_000_000).unwrap_or(i64::MAX),
            ..pb::ExecuteToolResponse::default()
        };
        if let Some(failure) = reply.failure {
            response.error_message = error_message(&failure);
            response.failure = Some(*failure);
        }
        if let Some(value) = reply.value {
            let value = value_from_wire(value).map_err(|error| Status::internal(error.to_string()))?;
            let (any, buffer) = payload_to_wire(without_buffers(value));
            (response.result, response.binary_result) = (Some(any), buffer.unwrap_or_default());
        }
        Ok(Self { response, worker: reply.worker_id })
    }
}

/// The text of a failure, as in `ExecuteToolResponse`.
pub(crate) fn error_message(failure: &pb::ToolFailure) -> String {
    match failure.r#type.as_str() {
        "" => failure.message.clone(),
        kind => format!("{kind}: {}", failure.message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_that_remain_at_the_deadline_are_dropped() {
        let mut shown = Vec::new();
        show_until(None, vec![1, 2], |report| shown.push(report));
        let deadline = Instant::now() + Duration::from_millis(20);
        show_until(Some(deadline), vec![3, 4, 5], |report| {
            shown.push(report);
            while report == 4 && Instant::now() < deadline {
                std::thread::yield_now();
            }
        });
        assert_eq!(shown, [1, 2, 3, 4]);
    }
}
