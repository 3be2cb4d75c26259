//! The reply to a call.

use std::{collections::BTreeMap, fmt, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_core::Stream;
use snakepit_session::{Payload, PayloadError};

use crate::ToolError;

/// A chunk of a streamed reply.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chunk {
    /// The yielded value as JSON. [`into_value`](Self::into_value) converts it to a payload.
    pub data: Bytes,
    /// Key-value pairs that the tool attached to this chunk.
    pub metadata: BTreeMap<String, String>,
    /// The buffer of a value with bytes or arrays. The JSON refers to it.
    pub binary: Option<Bytes>,
}

impl Chunk {
    /// Creates a chunk from a value, without metadata.
    #[must_use]
    pub fn of(value: Payload) -> Self {
        let (data, binary) = value.into_chunk_parts();
        Self { data, binary, metadata: BTreeMap::new() }
    }

    /// Creates a chunk that arrived from a peer.
    ///
    /// # Errors
    /// [`PayloadError::Nested`] if the value refers to bytes that are not in its buffer, or to the same bytes twice.
    pub fn from_peer(
        data: Bytes,
        metadata: BTreeMap<String, String>,
        binary: Option<Bytes>,
    ) -> Result<Self, PayloadError> {
        Payload::check_buffers(&data, binary.as_ref())?;
        Ok(Self { data, metadata, binary })
    }

    /// Returns the value of the chunk.
    #[must_use]
    pub fn into_value(self) -> Payload {
        Payload::of_chunk(self.data, self.binary)
    }

    /// The size of the value in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.data.len() + self.binary.as_ref().map_or(0, Bytes::len)
    }
}

/// The chunks of a streamed reply. The stream ends after its first error.
///
/// Dropping the stream before its end cancels the call.
pub type ChunkStream = Pin<Box<dyn Stream<Item = Result<Chunk, ToolError>> + Send>>;

/// The content of a [`ToolReply`].
pub enum ReplyBody {
    /// The value of a unary call.
    Value(Payload),
    /// The chunks of a streaming call.
    Stream(ChunkStream),
}

impl fmt::Debug for ReplyBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(value) => f.debug_tuple("Value").field(value).finish(),
            Self::Stream(_) => f.write_str("Stream(..)"),
        }
    }
}

/// The reply to a call.
///
/// ```
/// use snakepit_registry::{ReplyBody, ToolReply};
/// use snakepit_session::Payload;
///
/// let reply = ToolReply::value(Payload::float(0.5));
/// assert!(matches!(reply.body, ReplyBody::Value(value) if value.to_float() == Some(0.5)));
/// ```
#[derive(Debug)]
pub struct ToolReply {
    /// The value or the chunks.
    pub body: ReplyBody,
    /// Key-value pairs that the tool attached.
    pub metadata: BTreeMap<String, String>,
    /// The id of the worker that ran the call; `None` if it ran in this process.
    pub worker: Option<Arc<str>>,
    /// The execution time of the tool, if known.
    pub execution_time: Option<Duration>,
}

impl ToolReply {
    /// Creates a reply with a value.
    #[must_use]
    pub const fn value(value: Payload) -> Self {
        Self { body: ReplyBody::Value(value), metadata: BTreeMap::new(), worker: None, execution_time: None }
    }

    /// Creates a reply with a stream of chunks.
    #[must_use]
    pub fn stream(chunks: ChunkStream) -> Self {
        Self {
            body: ReplyBody::Stream(chunks),
            metadata: BTreeMap::new(),
            worker: None,
            execution_time: None,
        }
    }
}
