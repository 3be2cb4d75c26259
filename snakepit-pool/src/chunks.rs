//! Wraps the stream of a reply on its way out through the layers.

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
    let inner = std::mem::replace(stream, Box::pin(Ended));
    *stream = Box::pin(wrapper(inner));
}

/// A placeholder for the stream that is being wrapped.
struct Ended;

impl Stream for Ended {
    type Item = Result<Chunk, ToolError>;

    fn poll_next(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(None)
    }
}
