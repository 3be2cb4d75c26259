//! What a call gives back.

use std::{collections::BTreeMap, fmt, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_core::Stream;
use snakepit_session::Payload;

use crate::ToolError;

/// One item of a streamed answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// JSON of the yielded value.
    pub data: Bytes,
    /// What the tool attached to this item.
    pub metadata: BTreeMap<String, String>,
}

/// The items of a streamed answer. It ends with `None`, or with the first error.
///
/// Dropping it before its end cancels the call.
pub type ChunkStream = Pin<Box<dyn Stream<Item = Result<Chunk, ToolError>> + Send>>;

/// The answer itself.
pub enum ReplyBody {
    /// Of a unary call.
    Value(Payload),
    /// Of a streaming call.
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

/// What a call gives back.
#[derive(Debug)]
pub struct ToolReply {
    /// The answer.
    pub body: ReplyBody,
    /// What the tool attached.
    pub metadata: BTreeMap<String, String>,
    /// The worker that ran the call; `None` when it ran in this process.
    pub worker: Option<Arc<str>>,
    /// How long the tool itself took, where known.
    pub execution_time: Option<Duration>,
}

impl ToolReply {
    /// A plain value.
    #[must_use]
    pub const fn value(value: Payload) -> Self {
        Self { body: ReplyBody::Value(value), metadata: BTreeMap::new(), worker: None, execution_time: None }
    }

    /// A stream of chunks.
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
