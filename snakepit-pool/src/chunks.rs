//! Wraps the stream of a reply, so that a layer can observe or end it.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use futures_core::Stream;
use snakepit_registry::{Chunk, ChunkStream, ToolError};

/// Replaces a stream with one that wraps it.
pub(crate) fn wrap<S>(stream: &mut ChunkStream, wrapper: impl FnOnce(ChunkStream) -> S)
where
    S: Stream<Item = Result<Chunk, ToolError>> + Send + 'static,
{
    // Boxing a zero-sized type does not allocate.
    let inner = std::mem::replace(stream, Box::pin(Placeholder));
    *stream = Box::pin(wrapper(inner));
}

/// A placeholder for the stream that is being wrapped.
struct Placeholder;

impl Stream for Placeholder {
    type Item = Result<Chunk, ToolError>;

    fn poll_next(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(None)
    }
}
