//! The memory that one request occupies, charged to the budgets of its connection and of the host.

use std::sync::Arc;

use snakepit_registry::ToolError;

use super::{budget::Reservation, connections::Connection};
use crate::status::{arrival_budget_exhausted, connection_budget_exhausted};

/// The maximum headroom for one message of a stream, in bytes. Clients limit messages with several calls to about half of it.
pub(super) const MESSAGE_HEADROOM: usize = 2 * 1024 * 1024;

/// The bytes that a request has reserved. Dropping it releases them.
#[derive(Debug)]
pub(super) struct RequestMemory {
    connection: Arc<Connection>,
    /// The bytes reserved in the budget of the connection.
    bytes: usize,
    /// `None` for a request that arrived in one piece.
    arriving: Option<Reservation>,
    /// Whether the memory belongs to a message of a stream.
    is_stream: bool,
    /// The reservations in the headroom of the connection and of the host. `None` until a budget was exhausted.
    headroom: Option<[Reservation; 2]>,
}

impl RequestMemory {
    /// Creates an empty reservation.
    pub(super) const fn new(connection: Arc<Connection>) -> Self {
        Self { connection, bytes: 0, arriving: None, is_stream: false, headroom: None }
    }

    /// Creates an empty reservation for a message of a stream, which may use headroom when a budget is exhausted. Without
    /// headroom, the host would have to reject an incomplete message, which ends the stream and all calls on it. With it, the
    /// message becomes complete, and the host rejects its calls individually.
    pub(super) fn for_stream(connection: &Arc<Connection>) -> Self {
        let connection = Arc::clone(connection);
        Self { connection, bytes: 0, arriving: None, is_stream: true, headroom: None }
    }

    /// Reserves headroom after a budget was exhausted. Returns `false` if the headroom is also exhausted, or if the message is
    /// too large for it.
    pub(super) fn take_headroom(&mut self, bytes: usize) -> bool {
        if !self.is_stream {
            return false;
        }
        let headroom = self.headroom.get_or_insert_with(|| self.connection.headroom());
        // If only one reservation grows, the caller rejects the message and thereby releases it.
        headroom[0].bytes() + bytes <= MESSAGE_HEADROOM
            && headroom.iter_mut().all(|reservation| reservation.grow(bytes).is_ok())
    }

    /// Reserves more of the connection's budget.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<(), ToolError> {
        self.connection.reserve(bytes, self.bytes).map_err(connection_budget_exhausted)?;
        self.bytes += bytes;
        Ok(())
    }

    /// Reserves more of the budget that all arriving requests share.
    pub(super) fn grow_arriving(&mut self, bytes: usize) -> Result<(), ToolError> {
        let arriving = self.arriving.get_or_insert_with(|| self.connection.arrival_reservation());
        arriving.grow(bytes).map_err(arrival_budget_exhausted)
    }

    /// Releases the share of the arrival budget, because the message is complete.
    pub(super) fn release_arriving(&mut self) {
        if let Some(arriving) = &mut self.arriving {
            arriving.clear();
        }
    }

    /// Releases all bytes.
    pub(super) fn clear(&mut self) {
        self.release_own();
        self.release_arriving();
        self.headroom.iter_mut().flatten().for_each(Reservation::clear);
    }

    /// The connection of the request.
    pub(super) const fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    fn release_own(&mut self) {
        if self.bytes > 0 {
            self.connection.release(std::mem::take(&mut self.bytes));
        }
    }
}

impl Drop for RequestMemory {
    fn drop(&mut self) {
        self.release_own();
    }
}
