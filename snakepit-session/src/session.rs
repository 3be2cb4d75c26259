//! A session as callers see it: an immutable snapshot.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::{Serialize, Serializer};

use crate::{Metadata, SessionId};

/// The parameters of a new session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewSession {
    /// Metadata, stored with the session.
    pub metadata: BTreeMap<String, String>,
    /// The lifetime of the unused session. `None` uses the backend's default.
    pub ttl: Option<Duration>,
}

impl NewSession {
    /// Sets the lifetime of the unused session.
    #[must_use]
    pub const fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Adds an entry to the metadata.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use snakepit_session::NewSession;
    ///
    /// let new = NewSession::default().ttl(Duration::from_secs(600)).metadata("user", "ada");
    /// assert_eq!(new.metadata["user"], "ada");
    /// ```
    #[must_use]
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }
}

/// A snapshot of a session. Serializes with times in seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// The metadata that the creator attached.
    pub metadata: Metadata,
    /// When it was created. Serialized as Unix time in seconds.
    #[serde(serialize_with = "unix_seconds")]
    pub created_at: SystemTime,
    /// The remaining lifetime if the session is not used. Serialized in seconds.
    #[serde(serialize_with = "seconds")]
    pub expires_in: Duration,
    /// The lifetime of the unused session. Serialized in seconds.
    #[serde(serialize_with = "seconds")]
    pub ttl: Duration,
    /// The number of programs.
    pub program_count: usize,
    /// The number of variables.
    pub variable_count: usize,
    /// The size in bytes, as `SessionLimits` counts it.
    pub bytes: usize,
    /// The worker that served the session last. This is only a hint for the next call.
    pub last_worker: Option<Arc<str>>,
}

/// Serializes a time as Unix time in seconds.
pub(crate) fn unix_seconds<S: Serializer>(at: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    seconds(&at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default(), serializer)
}

fn seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use serde_json::{json, to_value};

    use super::*;
    use crate::{SessionEvent, SessionEventKind};

    #[test]
    fn sessions_and_events_serialize_with_times_in_seconds() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1500);
        let id = SessionId::try_new("alice").unwrap();
        let session = Session {
            id: id.clone(),
            metadata: [("user".to_owned(), "ada".to_owned())].into_iter().collect(),
            created_at: at,
            expires_in: Duration::from_millis(500),
            ttl: Duration::from_secs(60),
            program_count: 1,
            variable_count: 2,
            bytes: 3,
            last_worker: None,
        };
        let expected = json!({
            "id": "alice", "metadata": {"user": "ada"}, "created_at": 1.5, "expires_in": 0.5, "ttl": 60.0,
            "program_count": 1, "variable_count": 2, "bytes": 3, "last_worker": null,
        });
        assert_eq!(to_value(session).unwrap(), expected);
        let event = SessionEvent { id, kind: SessionEventKind::Expired, at };
        assert_eq!(to_value(event).unwrap(), json!({"id": "alice", "kind": "expired", "at": 1.5}));
    }
}
