//! The results of [`Client`](crate::Client) operations outside of sessions and calls.

use std::{fmt, time::SystemTime};

use futures_util::stream::BoxStream;
use snakepit_registry::CallTotals;
use snakepit_session::{Created, Metadata, Program, ProgramInfo, ProgramName, SessionEvent, SessionId};

use crate::{Error, RemoteHost};

/// A worker of a remote host: [`Client::workers`](crate::Client::workers).
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct RemoteWorkerStatus {
    /// The worker's id.
    pub id: String,
    /// The id of its process, if one runs.
    pub pid: Option<u32>,
    /// The worker's state: `starting`, `idle`, `busy`, `quarantined`, `stopping` or `dead`. A newer host may report others.
    pub state: String,
    /// The address on which it serves; empty unless it is up.
    pub address: String,
    /// The time at which the worker became ready for calls, or `None` if it is not up. Serialized as Unix time in seconds.
    #[serde(serialize_with = "as_unix_time")]
    pub started_at: Option<SystemTime>,
    /// The number of calls that ended on workers of this slot, including failed calls.
    pub calls: u64,
    /// The number of workers that were launched in this slot after the first.
    pub restarts: u64,
    /// The id of the last worker of this slot that has exited, and the reason for its end. `None` for a host of an earlier version.
    pub last_end: Option<String>,
}

/// The pool state of a remote host: [`Client::status`](crate::Client::status). It has the fields of the `PoolStatus` of a
/// host in this process, and serializes like it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct RemotePoolStatus {
    /// The pool's name.
    pub name: String,
    /// The number of calls that wait for a worker.
    pub queued: usize,
    /// The number of calls that wait for room in the full queue.
    pub waiting_for_room: usize,
    /// The number of calls that hold a worker.
    pub in_flight: usize,
    /// The workers, by slot.
    pub workers: Vec<RemoteWorkerStatus>,
    /// The workers that finish their calls beside their replacements. Empty for a host of an earlier version.
    pub retired_workers: Vec<RemoteWorkerStatus>,
    /// Counters of ended calls.
    pub calls: CallTotals,
}

#[allow(clippy::ref_option, reason = "serde passes the field by reference")]
fn as_unix_time<S: serde::Serializer>(time: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
    let seconds = time.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    serde::Serialize::serialize(&seconds.map(|since| since.as_secs_f64()), serializer)
}

/// A session of a remote host: [`Client::sessions`](crate::Client::sessions).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionInfo {
    /// The session's id.
    pub id: SessionId,
    /// The session's metadata.
    pub metadata: Metadata,
    /// The time of its creation, on the host's clock.
    pub created_at: SystemTime,
    /// The time at which it expires unless it is used, on the host's clock.
    pub expires_at: SystemTime,
    /// The number of its programs.
    pub program_count: usize,
    /// The number of its variables.
    pub variable_count: usize,
    /// The size of its metadata, variables with their history, and programs, in bytes.
    pub bytes: usize,
    /// The worker that served the session last.
    pub last_worker: Option<String>,
}

/// A session event of a remote host.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionWatchEvent {
    /// A session was created, deleted, or expired.
    Session(SessionEvent),
    /// This number of events was dropped, because the reader was too slow.
    Lost(u64),
}

/// The session events of a remote host, up to and including the error that ends the stream:
/// [`Client::session_events`](crate::Client::session_events). Dropping the stream unsubscribes.
pub type SessionEventStream = BoxStream<'static, Result<SessionWatchEvent, Error>>;

/// The programs of a remote host that belong to no session: [`Client::global_programs`](crate::Client::global_programs). All
/// clients can read and replace them. Each has a TTL, which every read renews.
///
/// # Errors
/// Those of session operations, see [`SessionHandle`](crate::SessionHandle). [`Error::Session`] if a program does not exist.
///
/// # Cancel safety
/// As for [`SessionHandle`](crate::SessionHandle).
#[derive(Clone)]
pub struct GlobalPrograms {
    host: RemoteHost,
}

impl GlobalPrograms {
    pub(crate) const fn new(host: RemoteHost) -> Self {
        Self { host }
    }

    /// Stores a program, and replaces a program of the same name.
    ///
    /// # Errors
    /// [`Error::Session`] if the name is invalid, the program is too large, or the host has too many programs.
    pub async fn put(&self, name: &str, program: Program) -> Result<Created, Error> {
        self.host.put_program_of(None, &ProgramName::try_new(name)?, program).await
    }

    /// Returns a program, and renews its TTL.
    ///
    /// # Errors
    /// [`Error::Session`] if the program does not exist.
    pub async fn get(&self, name: &str) -> Result<Program, Error> {
        self.host.program_of(None, &ProgramName::try_new(name)?).await
    }

    /// Lists the programs, ordered by name.
    ///
    /// # Errors
    /// If the connection fails.
    pub async fn list(&self) -> Result<Vec<ProgramInfo>, Error> {
        self.host.programs_of(None).await
    }

    /// Deletes a program.
    ///
    /// # Errors
    /// [`Error::Session`] if the program does not exist.
    pub async fn delete(&self, name: &str) -> Result<(), Error> {
        self.host.delete_program_of(None, &ProgramName::try_new(name)?).await
    }
}

impl fmt::Debug for GlobalPrograms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GlobalPrograms").finish_non_exhaustive()
    }
}
