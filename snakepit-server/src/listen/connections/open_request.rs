//! The guards that count a request, or the calls of a stream, as a use of their connection.

use std::sync::Arc;

use super::{Connection, Peer};
use crate::listen::response_budget::UnreadResponses;

/// A request whose response is not complete.
#[derive(Debug)]
pub(crate) struct OpenRequest {
    pub(super) connection: Arc<Connection>,
    pub(super) is_use: bool,
}

impl OpenRequest {
    /// Whether the program's own server sends the response.
    pub(in crate::listen) fn is_mounted(&self) -> bool {
        matches!(self.connection.peer, Peer::Mounted(_))
    }

    /// The unread responses of its connection.
    pub(in crate::listen) fn unread(&self) -> &Arc<UnreadResponses> {
        self.connection.unread()
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        if self.is_use {
            self.connection.end_use();
        } else {
            self.connection.end_call_stream();
        }
    }
}

/// Tracks whether calls of a `Multiplex` stream run, which is a use of their connection.
#[derive(Debug)]
pub(crate) struct StreamUse {
    connection: Arc<Connection>,
    is_running: bool,
}

impl StreamUse {
    pub(crate) const fn new(connection: Arc<Connection>) -> Self {
        Self { connection, is_running: false }
    }

    /// Begins a use before calls run. Returns `false` if the connection has been evicted, so the calls must not run.
    pub(crate) fn begin(&mut self) -> bool {
        if !self.is_running && !self.connection.begin_use() {
            self.connection.end_use();
            return false;
        }
        self.is_running = true;
        true
    }

    /// Ends the use after the last running call.
    pub(crate) fn end(&mut self) {
        if std::mem::take(&mut self.is_running) {
            self.connection.end_use();
        }
    }
}

impl Drop for StreamUse {
    fn drop(&mut self) {
        self.end();
    }
}
