//! A call of a tool, as it travels through the host.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use serde::Serialize;
use snakepit_session::{Payload, PayloadError, SessionId};
use tokio::time::Instant;

use crate::Arguments;

/// Identifies one call within this host's life. Also names the call towards workers, for cancellation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(u64);

impl CallId {
    /// An id never handed out before in this process.
    #[must_use]
    pub fn next() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Self(LAST.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// The id of a call that another process numbered.
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

/// How the caller wants the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CallMode {
    /// One value.
    #[default]
    Unary,
    /// A stream of chunks.
    Streaming,
}

/// W3C trace context, passed on unparsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    /// The `traceparent` header.
    pub traceparent: String,
    /// The `tracestate` header, if there was one.
    pub tracestate: Option<String>,
}

/// A call of a tool.
#[derive(Debug, Clone)]
pub struct ToolCall {
    /// Names this call.
    pub id: CallId,
    /// The tool's name.
    pub tool: Arc<str>,
    /// The session the call belongs to; `None` for a call without state.
    pub session: Option<SessionId>,
    /// The arguments, by parameter name.
    pub arguments: Arguments,
    /// What the caller attached for the tool to read.
    pub metadata: BTreeMap<String, String>,
    /// Unary or streaming.
    pub mode: CallMode,
    /// When the caller stops caring. Covers queueing, all attempts, and the whole stream of a streaming call.
    pub deadline: Option<Instant>,
    /// Whether running the call twice does no harm.
    pub idempotent: bool,
    /// The worker that should run the call if it is free: a hint.
    pub preferred_worker: Option<Arc<str>>,
    /// The trace the call belongs to.
    pub trace: Option<TraceContext>,
    /// The calls on workers of this host that wait for this one, outermost first: those of tools that called a host tool
    /// that made this call. `None` for a call from outside.
    pub ancestors: Option<Arc<[CallId]>>,
}

impl ToolCall {
    /// A unary call without session, arguments or deadline.
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
        }
    }

    /// What the arguments and the metadata occupy, in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        let metadata = self.metadata.iter().map(|(key, value)| key.len() + value.len());
        self.arguments.size() + metadata.sum::<usize>()
    }

    /// Adds an argument.
    ///
    /// # Errors
    /// When the value does not serialize to JSON.
    pub fn try_with_argument<T: Serialize + ?Sized>(
        mut self,
        name: impl Into<String>,
        value: &T,
    ) -> Result<Self, PayloadError> {
        self.arguments.insert(name.into(), Payload::try_from_serde(value)?);
        Ok(self)
    }

    /// Turns the call into a streaming one.
    #[must_use]
    pub fn streaming(mut self) -> Self {
        self.mode = CallMode::Streaming;
        self
    }

    /// Sets the deadline.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Instant) -> Self {
        self.deadline = Some(deadline);
        self
    }
}
