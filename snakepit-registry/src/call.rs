//! A call to a tool.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};
use snakepit_session::{Payload, PayloadError, SessionId};
use tokio::time::Instant;

use crate::{Arguments, Extensions, Principal, ToolError, arguments::from_arguments};

/// Identifies a call within one process. Workers receive it too, so that the host can cancel the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(u64);

impl CallId {
    /// Returns a new id, unique within this process.
    #[must_use]
    pub fn next() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Self(LAST.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Creates the id of a call from the number that another process gave it.
    #[must_use]
    pub const fn from_u64(id: u64) -> Self {
        Self(id)
    }

    /// The id as a number.
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The kind of reply that the caller expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CallMode {
    /// One value.
    #[default]
    Unary,
    /// A stream of chunks.
    Streaming,
}

/// A W3C trace context. The host forwards it without parsing it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    /// The `traceparent` header.
    pub traceparent: String,
    /// The `tracestate` header, if any.
    pub tracestate: Option<String>,
}

/// The value of [`ToolCall::with_wait_for_room`], stored as an extension because few calls set it.
struct RoomWait {
    limit: Duration,
    /// The end of the wait, which begins with the first attempt. Copies of the call share it. `None` if the clock cannot
    /// represent it.
    end: OnceLock<Option<Instant>>,
}

/// The value of [`ToolCall::at_most_once`], stored as an extension because few calls set it.
struct AtMostOnce(bool);

/// A call to a tool.
///
/// ```
/// use std::time::Duration;
///
/// use snakepit_registry::ToolCall;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), snakepit_session::PayloadError> {
/// let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
/// let call = ToolCall::new("add").try_with_argument("a", &1)?.try_with_argument("b", &2)?.with_deadline(deadline);
/// assert_eq!((&*call.tool, call.arguments.len()), ("add", 2));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ToolCall {
    /// The id of this call.
    pub id: CallId,
    /// The tool's name.
    pub tool: Arc<str>,
    /// The session of the call; `None` for a call without state.
    pub session: Option<SessionId>,
    /// The arguments, by parameter name.
    pub arguments: Arguments,
    /// Key-value pairs from the caller, for the tool.
    pub metadata: BTreeMap<String, String>,
    /// Unary or streaming.
    pub mode: CallMode,
    /// The time at which the call fails with [`DeadlineExceeded`](crate::ToolError::DeadlineExceeded). The time in the queue, all
    /// attempts, and the whole stream of a streaming call count.
    pub deadline: Option<Instant>,
    /// Whether the call is idempotent, so that the host may run it twice. If the tool is declared idempotent, the host sets this
    /// field, except for calls that run [at most once](Self::at_most_once).
    pub idempotent: bool,
    /// The id of the worker that should run the call, as a hint. Ignored if that worker is busy.
    pub preferred_worker: Option<Arc<str>>,
    /// The trace of the call.
    pub trace: Option<TraceContext>,
    /// The running calls that wait for this one (its ancestors), outermost first. Empty for a nested call whose ancestors are
    /// unknown. `None` for a call that is not nested.
    pub ancestors: Option<Arc<[CallId]>>,
    /// The authenticated party that makes the call. [`Principal::program`] for a call that the program itself makes through a
    /// handle of the host. [`Principal::unset`] until the host or a listener sets it.
    pub principal: Principal,
    /// Typed values that layers attach to the call, for other layers of this process. The host keeps its own values here, so a
    /// layer changes the call that it receives and does not replace it with a new one.
    pub extensions: Extensions,
}

impl ToolCall {
    /// Creates a unary call with a new id, without session, arguments, deadline or principal.
    #[must_use]
    pub fn new(tool: impl Into<Arc<str>>) -> Self {
        Self {
            id: CallId::next(),
            tool: tool.into(),
            session: None,
            arguments: Arguments::new(),
            metadata: BTreeMap::new(),
            mode: CallMode::Unary,
            deadline: None,
            idempotent: false,
            preferred_worker: None,
            trace: None,
            ancestors: None,
            principal: Principal::unset(),
            extensions: Extensions::default(),
        }
    }

    /// Forbids or permits a second run of the call if its tool is declared idempotent. By default, a second run is permitted. If it
    /// is forbidden, and the worker or the connection is lost, the host or client repeats the call only if it cannot have begun.
    #[must_use]
    pub fn at_most_once(mut self, at_most_once: bool) -> Self {
        self.idempotent &= !at_most_once;
        self.extensions.insert(AtMostOnce(at_most_once));
        self
    }

    /// Whether [`at_most_once`](Self::at_most_once) forbids a second run.
    #[must_use]
    pub fn is_at_most_once(&self) -> bool {
        self.extensions.get().is_some_and(|&AtMostOnce(at_most_once)| at_most_once)
    }

    /// The size of the arguments and the metadata, in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        let metadata = self.metadata.iter().map(|(key, value)| key.len() + value.len());
        self.arguments.size() + metadata.sum::<usize>()
    }

    /// Lets the call wait for room in a full queue for up to this time, instead of failing with
    /// [`ToolError::Overloaded`](crate::ToolError::Overloaded) immediately. The deadline applies in addition.
    ///
    /// The limit covers the waits of all attempts together, starting with the first attempt. At most 100,000 calls can wait for
    /// room in one pool. The pool rejects further calls.
    #[must_use]
    pub fn with_wait_for_room(mut self, limit: Duration) -> Self {
        self.extensions.insert(RoomWait { limit, end: OnceLock::new() });
        self
    }

    /// The time that the call may wait for room in a full queue.
    #[inline]
    #[must_use]
    pub fn wait_for_room(&self) -> Option<Duration> {
        self.extensions.get::<RoomWait>().map(|wait| wait.limit)
    }

    /// Returns the time that the call may still wait for room, or `None` if it must not wait. The first call to this method
    /// starts the clock.
    #[inline]
    #[must_use]
    pub fn remaining_wait_for_room(&self) -> Option<Duration> {
        let RoomWait { limit, end } = self.extensions.get()?;
        let now = Instant::now();
        let end = end.get_or_init(|| now.checked_add(*limit));
        Some(end.map_or(*limit, |end| end.saturating_duration_since(now)))
    }

    /// Adds an argument.
    ///
    /// # Errors
    /// [`PayloadError`] if the value does not serialize to JSON.
    pub fn try_with_argument<T: Serialize + ?Sized>(
        mut self,
        name: impl Into<String>,
        value: &T,
    ) -> Result<Self, PayloadError> {
        self.arguments.insert(name.into(), Payload::try_from_serde(value)?);
        Ok(self)
    }

    /// Converts all arguments into one value, such as a struct or a map. A whole float, such as 5.0, is a valid integer.
    ///
    /// # Errors
    /// [`ToolError::InvalidArguments`], with the name of the argument if serde reports it.
    pub fn parse_arguments<A: DeserializeOwned>(&self) -> Result<A, ToolError> {
        from_arguments(&self.tool, &self.arguments)
    }

    /// Makes the call a streaming call.
    #[must_use]
    pub fn streaming(mut self) -> Self {
        self.mode = CallMode::Streaming;
        self
    }

    /// Sets the session.
    #[must_use]
    pub fn with_session(mut self, session: SessionId) -> Self {
        self.session = Some(session);
        self
    }

    /// Marks the call as idempotent, so that the pool may repeat it if its worker is lost.
    #[must_use]
    pub const fn idempotent(mut self) -> Self {
        self.idempotent = true;
        self
    }

    /// Sets the worker that should run the call, if it is idle.
    #[must_use]
    pub fn with_preferred_worker(mut self, worker: impl Into<Arc<str>>) -> Self {
        self.preferred_worker = Some(worker.into());
        self
    }

    /// Sets the calls that wait for this one.
    #[must_use]
    pub fn with_ancestors(mut self, ancestors: impl Into<Option<Arc<[CallId]>>>) -> Self {
        self.ancestors = ancestors.into();
        self
    }

    /// Sets the principal of the call.
    #[must_use]
    pub fn with_principal(mut self, principal: Principal) -> Self {
        self.principal = principal;
        self
    }

    /// Sets the deadline.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Instant) -> Self {
        self.deadline = Some(deadline);
        self
    }
}
