//! The memory that one request occupies, charged to the budgets of its connection and of the host.

use std::sync::Arc;

use tonic::Status;

use super::{budget::Reservation, connections::Connection};
use crate::status::{arrival_budget_exhausted, connection_budget_exhausted, from_tool_error};

/// The bytes that a request has reserved. Dropping it releases them.
#[derive(Debug)]
pub(super) struct RequestMemory {
    connection: Arc<Connection>,
    reservation: Reservation,
    /// `None` for a request that arrived in one piece.
    arriving: Option<Reservation>,
}

impl RequestMemory {
    /// Reserves nothing yet.
    pub(super) fn new(connection: &Arc<Connection>) -> Self {
        Self { connection: Arc::clone(connection), reservation: connection.reservation(), arriving: None }
    }

    /// Reserves more of the connection's budget.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<(), Status> {
        self.reservation.grow(bytes).map_err(|full| from_tool_error(connection_budget_exhausted(full)))
    }

    /// Reserves more of the budget that all arriving requests share.
    pub(super) fn grow_arriving(&mut self, bytes: usize) -> Result<(), Status> {
        let arriving = self.arriving.get_or_insert_with(|| self.connection.arrival_reservation());
        arriving.grow(bytes).map_err(|full| from_tool_error(arrival_budget_exhausted(full)))
    }

    /// Releases the share of the arrival budget, because the message is complete.
    pub(super) fn arrived(&mut self) {
        if let Some(arriving) = &mut self.arriving {
            arriving.clear();
        }
    }

    /// Releases everything.
    pub(super) fn clear(&mut self) {
        self.reservation.clear();
        self.arrived();
    }
}
