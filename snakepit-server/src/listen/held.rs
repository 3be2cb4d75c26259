//! What one request may be and may hold: the limits of its messages, and the bytes that it takes from the budgets.

use std::sync::Arc;

use bytes::Buf;
use tonic::Status;

use super::{
    budget::Share,
    connections::Connection,
    fields,
    frames::{Excess, MAX_LIGHT_BYTES},
};
use crate::status::{from_tool_error, message_refused, too_much_arriving, too_much_of_a_connection};

/// The limits of one message.
#[derive(Debug, Clone, Copy)]
pub(super) struct MessageLimits {
    pub(super) bytes: usize,
    /// The fields of a message that hold messages with fields of their own.
    pub(super) nested: &'static [u32],
}

impl MessageLimits {
    /// Refuses what is too large.
    pub(super) const fn check_size(self, size: usize) -> Result<(), Excess> {
        if size > self.bytes { Err(Excess::Bytes(size)) } else { Ok(()) }
    }

    /// Refuses a heavy message with too many fields.
    pub(super) fn check_fields(self, message: &mut impl Buf) -> Result<(), Excess> {
        let size = message.remaining();
        if size > MAX_LIGHT_BYTES && fields::count(message, size, self.nested).is_none() {
            return Err(Excess::Fields);
        }
        Ok(())
    }

    pub(super) fn refused(self, excess: Excess) -> Status {
        message_refused(excess, self.bytes)
    }
}

/// What a request holds, given back on drop.
#[derive(Debug)]
pub(super) struct Held {
    connection: Arc<Connection>,
    share: Share,
    /// Taken only by what does not arrive at once.
    arriving: Option<Share>,
}

impl Held {
    /// Nothing yet.
    pub(super) fn by(connection: &Arc<Connection>) -> Self {
        Self { connection: Arc::clone(connection), share: connection.share(), arriving: None }
    }

    /// Takes more of the connection's budget.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<(), Status> {
        self.share.grow(bytes).map_err(|full| from_tool_error(too_much_of_a_connection(full)))
    }

    /// Takes more of the budget of all requests that are still arriving.
    pub(super) fn grow_arriving(&mut self, bytes: usize) -> Result<(), Status> {
        let arriving = self.arriving.get_or_insert_with(|| self.connection.arriving_share());
        arriving.grow(bytes).map_err(|full| from_tool_error(too_much_arriving(full)))
    }

    /// Nothing arrives any more.
    pub(super) fn arrived(&mut self) {
        if let Some(arriving) = &mut self.arriving {
            arriving.clear();
        }
    }

    /// Gives all back.
    pub(super) fn clear(&mut self) {
        self.share.clear();
        self.arrived();
    }
}
