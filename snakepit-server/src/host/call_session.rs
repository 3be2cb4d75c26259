//! The session of a running call.

use std::sync::Arc;

use snakepit_registry::ToolReply;
use snakepit_session::SessionId;

use super::{affinity::AffinityWriter, renewal::SessionUse};

/// The session of a call.
pub(super) struct CallSession {
    pub(super) id: SessionId,
    /// The worker that served the session last.
    pub(super) last_worker: Option<Arc<str>>,
    /// `None` if the session does not need a renewal during the call.
    pub(super) session_use: Option<SessionUse>,
}

impl CallSession {
    /// Stores the worker that ran the call, and ends the use of the session when the reply is complete.
    pub(super) fn finish(self, reply: ToolReply, affinity: &AffinityWriter) -> ToolReply {
        let Self { id, last_worker, session_use } = self;
        if let Some(worker) = &reply.worker
            && last_worker.as_ref() != Some(worker)
        {
            affinity.store(id, Arc::clone(worker));
        }
        match session_use {
            Some(session_use) => session_use.until_complete(reply),
            None => reply,
        }
    }
}
