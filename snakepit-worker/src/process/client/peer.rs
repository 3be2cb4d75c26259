//! What an answer of a worker, or the end of the connection to it, means for a call.

use std::{error::Error as _, sync::Arc, time::Duration};

use snakepit_proto::{
    pb,
    status::{caused_by, failure_of},
};
use snakepit_registry::{CallStage, ReplyBody, ToolError, ToolFailure, ToolReply};
use snakepit_session::Payload;
use tokio::time::Instant;
use tonic::{Code, Status};

use super::super::{output::OutputTail, progress::Progress, ready::ended, supervise::ExitWatch};
use crate::{
    WorkerId,
    wire::{WireError, failure_from_wire, payload_from_wire},
};

/// How long a broken connection waits for the worker's exit to be known, so that the error can say how it ended.
const EXIT_KNOWN_WITHIN: Duration = Duration::from_secs(1);
/// How much earlier than a deadline a timer set for it may fire.
const TIMER_GRAIN: Duration = Duration::from_millis(2);

/// What is known of the worker when a call fails.
#[derive(Debug, Clone)]
pub(in super::super) struct Peer {
    pub(in super::super) id: WorkerId,
    pub(in super::super) exit: ExitWatch,
    pub(in super::super) tail: OutputTail,
    /// Which multiplexed calls have begun.
    pub(in super::super) progress: Progress,
}

/// What is known of a call when it fails.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) tool: Arc<str>,
    pub(super) deadline: Option<Instant>,
}

impl Peer {
    pub(super) fn reply(
        &self,
        tool: &str,
        response: pb::ExecuteToolResponse,
    ) -> Result<ToolReply, ToolError> {
        let pb::ExecuteToolResponse {
            success,
            result,
            error_message,
            metadata,
            execution_time_ms,
            binary_result,
            failure,
        } = response;
        if !success {
            let failure = failure.map(failure_from_wire).unwrap_or_default();
            return Err(self.failed(tool, failure, error_message));
        }
        let binary = (!binary_result.is_empty()).then_some(binary_result);
        let value = match (result, binary) {
            (None, None) => Payload::null(),
            (result, binary) => payload_from_wire(result.unwrap_or_default(), binary)
                .map_err(|error| self.bad_value(&error))?,
        };
        Ok(ToolReply {
            body: ReplyBody::Value(value),
            metadata,
            worker: Some(self.id.shared()),
            execution_time: u64::try_from(execution_time_ms).ok().map(Duration::from_millis),
        })
    }

    pub(super) fn bad_value(&self, error: &WireError) -> ToolError {
        ToolError::Internal { problem: format!("worker `{}` answered with a bad value: {error}", self.id) }
    }

    pub(super) fn failed(&self, tool: &str, failure: ToolFailure, message: String) -> ToolError {
        let message = if failure.message.is_empty() && failure.error_type.is_empty() {
            message
        } else {
            failure.message
        };
        let worker = self.id.to_string();
        ToolError::Failed(Box::new(ToolFailure { tool: tool.to_owned(), message, worker, ..failure }))
    }

    /// What a status means: the worker's own word, or the end of the connection.
    pub(super) async fn error(&self, Asked { tool, deadline }: &Asked, status: Status) -> ToolError {
        let tool = &**tool;
        // The worker's transport keeps time too, and answers a call that is late with CANCELLED.
        let late = status.code() == Code::Cancelled
            && deadline.is_some_and(|deadline| Instant::now() + TIMER_GRAIN >= deadline);
        if late || caused_by::<tonic::TimeoutExpired>(&status) {
            return ToolError::DeadlineExceeded { tool: tool.to_owned(), stage: CallStage::Running };
        }
        // Only a status made on this side has a source; one that the worker sent has none.
        if status.source().is_some() {
            // Without a connection the request cannot have reached the worker.
            let delivered = !caused_by::<tonic::ConnectError>(&status);
            return self.lost(&status, delivered).await;
        }
        let failure = failure_of(&status).map(failure_from_wire);
        let (code, message) = (status.code(), status.message().to_owned());
        let tool_name = || tool.to_owned();
        match (failure, code) {
            (Some(failure), _) => self.failed(tool, failure, message),
            (None, Code::InvalidArgument) => ToolError::InvalidArgument {
                tool: tool_name(),
                argument: "arguments".to_owned(),
                problem: format!("were refused by the worker: {message}"),
            },
            (None, Code::NotFound) => ToolError::NotFound { tool: tool_name(), suggestion: None },
            (None, Code::Unimplemented) => ToolError::Unsupported { tool: tool_name(), problem: message },
            (None, Code::DeadlineExceeded) => {
                ToolError::DeadlineExceeded { tool: tool_name(), stage: CallStage::Running }
            }
            (None, Code::Cancelled) => ToolError::Cancelled { tool: tool_name() },
            (None, Code::Unavailable) => self.lost(&status, true).await,
            // Workers of the original end a failed stream with INTERNAL and the exception's text.
            (None, _) => self.failed(tool, ToolFailure::default(), message),
        }
    }

    /// The connection broke: says how the worker ended, when that is known soon enough.
    pub(super) async fn lost(&self, status: &Status, delivered: bool) -> ToolError {
        let mut exit = self.exit.clone();
        let (reason, output_lines) = match tokio::time::timeout(EXIT_KNOWN_WITHIN, ended(&mut exit)).await {
            Ok(exit) => (exit.reason.to_string(), exit.output_lines),
            Err(_) => (format!("its connection broke: {}", status.message()), self.tail.lines()),
        };
        ToolError::WorkerLost { worker: self.id.to_string(), reason, delivered, output_lines }
    }
}
