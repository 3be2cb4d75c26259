//! Wrapping the stream of a reply on its way out through the layers.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use futures_core::Stream;
use snakepit_registry::{Chunk, ChunkStream, ToolError};

/// Replaces a stream by one that wraps it.
pub(crate) fn wrap<S>(stream: &mut ChunkStream, wrapper: impl FnOnce(ChunkStream) -> S)
where
    S: Stream<Item = Result<Chunk, ToolError>> + Send + 'static,
{
    // An empty struct behind a box costs no allocation.
    let inner = std::mem::replace(stream, Box::pin(Ended));
    *stream = Box::pin(wrapper(inner));
}

/// The stream that stands in while another is taken out.
struct Ended;

impl Stream for Ended {
    type Item = Result<Chunk, ToolError>;

    fn poll_next(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(None)
    }
}
