//! The life of sessions, told to whoever listens, and counted.

use std::time::SystemTime;

use tokio::sync::broadcast;

use crate::SessionId;

/// How many events wait for a slow listener before it loses the oldest.
const BACKLOG: usize = 1024;

/// What happened to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionEventKind {
    /// It was created.
    Created,
    /// Its TTL ran out. Told when the session is reclaimed, which may be a little later.
    Expired,
    /// Somebody deleted it.
    Deleted,
}

impl SessionEventKind {
    /// Its name: `created`, `expired` or `deleted`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Expired => "expired",
            Self::Deleted => "deleted",
        }
    }
}

/// A session came or went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionEvent {
    /// Which session.
    pub id: SessionId,
    /// What happened to it.
    pub kind: SessionEventKind,
    /// When.
    pub at: SystemTime,
}

/// The events of all sessions from the moment of [`SessionBackend::subscribe`](crate::SessionBackend::subscribe) on.
#[derive(Debug)]
pub struct SessionEvents {
    receiver: broadcast::Receiver<Result<SessionEvent, u64>>,
}

impl SessionEvents {
    /// Waits for the next event. `Err`: so many events were lost, because nobody asked for them in time; what comes
    /// next is newer. `None`: the backend is gone.
    ///
    /// # Cancel safety
    /// Cancel safe: no event is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Result<SessionEvent, u64>> {
        match self.receiver.recv().await {
            Ok(notified) => Some(notified),
            Err(broadcast::error::RecvError::Lagged(lost)) => Some(Err(lost)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

/// Where a backend tells what happens to its sessions, and `tracing` with it.
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
    /// A sender that nobody listens to yet.
    #[must_use]
    pub fn new() -> Self {
        Self { sender: broadcast::Sender::new(BACKLOG) }
    }

    /// Listens from now on.
    #[must_use]
    pub fn subscribe(&self) -> SessionEvents {
        SessionEvents { receiver: self.sender.subscribe() }
    }

    /// Tells of a session. Never waits.
    pub fn notify(&self, id: &SessionId, kind: SessionEventKind) {
        tracing::debug!(session = %id, "session {}", kind.as_str());
        if self.sender.receiver_count() > 0 {
            // Fails when the last listener left just now, which is all the same.
            let _ = self.sender.send(Ok(SessionEvent { id: id.clone(), kind, at: SystemTime::now() }));
        }
    }

    /// Tells that events are missing which this host never saw.
    pub fn notify_lost(&self, events: u64) {
        // Fails when nobody listens, which is all the same.
        let _ = self.sender.send(Err(events));
    }
}

/// What a backend's sessions did and hold. Of a backend that several hosts share, it is what all of them did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SessionStats {
    /// Sessions created.
    pub created: u64,
    /// Sessions ended by [`delete`](crate::SessionBackend::delete).
    pub deleted: u64,
    /// Sessions ended by their TTL, counted when they are reclaimed.
    pub expired: u64,
    /// How many times [`sweep`](crate::SessionBackend::sweep) ran.
    pub sweeps: u64,
    /// Sessions there are, expired ones included that are not reclaimed yet.
    pub live: u64,
    /// Variables in all of them.
    pub variables: u64,
    /// Programs in all of them, and global ones.
    pub programs: u64,
    /// What all of this holds, in bytes, as [`SessionLimits`](crate::SessionLimits) counts.
    pub bytes: u64,
}
