//! Lifecycle events of sessions, and statistics.

use std::time::SystemTime;

use serde::Serialize;
use tokio::sync::broadcast;

use crate::SessionId;

/// The number of events queued for a slow subscriber. Above it, the oldest are dropped.
const BACKLOG: usize = 1024;

/// The kind of a lifecycle event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SessionEventKind {
    /// The session was created.
    Created,
    /// The TTL elapsed. The event is sent when the session is reclaimed, which may be a little later.
    Expired,
    /// A caller deleted the session.
    Deleted,
}

impl SessionEventKind {
    /// The name: `created`, `expired` or `deleted`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Expired => "expired",
            Self::Deleted => "deleted",
        }
    }
}

/// A lifecycle event of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SessionEvent {
    /// The session.
    pub id: SessionId,
    /// The kind of the event.
    pub kind: SessionEventKind,
    /// The time of the event. Serialized as Unix time in seconds.
    #[serde(serialize_with = "crate::session::unix_seconds")]
    pub at: SystemTime,
}

impl SessionEvent {
    /// Creates an event.
    #[must_use]
    pub const fn new(id: SessionId, kind: SessionEventKind, at: SystemTime) -> Self {
        Self { id, kind, at }
    }
}

/// A stream of all session events since [`SessionBackend::subscribe`](crate::SessionBackend::subscribe).
#[derive(Debug)]
pub struct SessionEvents {
    receiver: broadcast::Receiver<Result<SessionEvent, u64>>,
}

impl SessionEvents {
    /// Waits for the next event. `Err` holds the number of events that were dropped because the subscriber was slow. `None` means
    /// that the backend was dropped.
    ///
    /// # Cancel safety
    /// Cancel safe: no event is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Result<SessionEvent, u64>> {
        match self.receiver.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(lost)) => Some(Err(lost)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

/// The sending end of [`SessionEvents`], for backends. It also logs the events through `tracing`.
#[derive(Debug)]
pub struct SessionEventSender {
    sender: broadcast::Sender<Result<SessionEvent, u64>>,
}

impl Default for SessionEventSender {
    fn default() -> Self {
        Self::new()
    }
}

impl SessionEventSender {
    /// Creates a sender without subscribers.
    #[must_use]
    pub fn new() -> Self {
        Self { sender: broadcast::Sender::new(BACKLOG) }
    }

    /// Subscribes to events from now on.
    #[must_use]
    pub fn subscribe(&self) -> SessionEvents {
        SessionEvents { receiver: self.sender.subscribe() }
    }

    /// Sends an event. Never waits.
    pub fn notify(&self, id: &SessionId, kind: SessionEventKind) {
        tracing::debug!(session = %id, "session {}", kind.as_str());
        if self.sender.receiver_count() > 0 {
            // Fails if the last subscriber was dropped meanwhile, which does not matter.
            let _ = self.sender.send(Ok(SessionEvent { id: id.clone(), kind, at: SystemTime::now() }));
        }
    }

    /// Reports events that this host never received.
    pub fn notify_lost(&self, events: u64) {
        // Fails without subscribers, which does not matter.
        let _ = self.sender.send(Err(events));
    }
}

/// Counters of a backend. A backend that several hosts share counts the operations of all hosts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SessionStats {
    /// Sessions created.
    pub created: u64,
    /// Sessions deleted by `SessionBackend::delete`.
    pub deleted: u64,
    /// Sessions expired, counted when they are reclaimed.
    pub expired: u64,
    /// Runs of `SessionBackend::sweep`.
    pub sweeps: u64,
    /// Sessions in the backend, including expired ones that are not reclaimed yet.
    pub live: u64,
    /// Variables in all sessions.
    pub variables: u64,
    /// Programs in all sessions, and global programs.
    pub programs: u64,
    /// Their total size in bytes, as `SessionLimits` counts it.
    pub bytes: u64,
}
