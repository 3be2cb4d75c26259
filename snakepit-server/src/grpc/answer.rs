//! The answer of a call on its way to the client: counted as unread before the call is recorded, and without internals that the
//! client must not see.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use snakepit_registry::{ReplyBody, ToolCall, ToolError, ToolReply};
use snakepit_session::Payload;
use snakepit_wire::{check_answer_size, inline_size};

use crate::{host::Host, listen::Connection, status::answer_dropped};

/// The client that receives the answer of a call.
#[derive(Debug, Clone)]
pub(super) struct AnswerRecipient {
    connection: Option<Arc<Connection>>,
    sees_tracebacks: bool,
}

impl AnswerRecipient {
    /// Creates the recipient of a call's answer on this connection.
    pub(super) fn of(host: &Host, call: &ToolCall, connection: Option<Arc<Connection>>) -> Self {
        Self { connection, sees_tracebacks: host.tracebacks.shows_to(&call.principal) }
    }

    /// Counts a value as unread until the client has read it.
    ///
    /// # Errors
    /// [`ToolError::AnswerDropped`] if the client already has too much to read.
    pub(super) fn account(&self, value: Payload) -> Result<Payload, ToolError> {
        let Some(connection) = &self.connection else { return Ok(value) };
        connection.count_unread(value).map_err(answer_dropped)
    }

    /// Counts a value that must fit into one message.
    ///
    /// # Errors
    /// [`ToolError::AnswerTooLarge`], and as for [`account`](Self::account).
    pub(super) fn account_message(&self, value: Payload) -> Result<Payload, ToolError> {
        check_answer_size(value.size())?;
        self.account(value)
    }

    /// Counts a value whose buffer must fit into one message twice: inline, and in a separate field.
    ///
    /// # Errors
    /// As for [`account_message`](Self::account_message).
    pub(super) fn account_inline(&self, value: Payload) -> Result<Payload, ToolError> {
        check_answer_size(inline_size(&value) + value.binary().map_or(0, Bytes::len))?;
        self.account(value)
    }

    /// Removes internals that the client must not see from the result of a call.
    pub(super) fn result(&self, result: Result<ToolReply, ToolError>) -> Result<ToolReply, ToolError> {
        if self.sees_tracebacks {
            return result;
        }
        let mut reply = result.map_err(ToolError::without_traceback)?;
        if let ReplyBody::Stream(chunks) = reply.body {
            let chunks = chunks.map(|chunk| chunk.map_err(ToolError::without_traceback));
            reply.body = ReplyBody::Stream(Box::pin(chunks));
        }
        Ok(reply)
    }
}
