//! A streamed answer that holds its worker until it ends. Dropped earlier, it leaves the call abandoned.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use futures_core::Stream;
use snakepit_registry::{Chunk, ChunkStream, ToolError};

use super::tether::Tether;

pub(super) struct Leased {
    /// `None` once it has ended. The pool's books share the source: whoever takes it out drops it.
    open: Option<(Source, Tether)>,
}

/// The worker's stream, shared with the pool's books: when the worker is taken away from a reader that has stalled, so is
/// this, because its unread chunks occupy the connection to the worker. Empty after that.
pub(crate) type Source = Arc<Mutex<Option<ChunkStream>>>;

impl Leased {
    pub(super) fn new(stream: ChunkStream, mut tether: Tether) -> Self {
        let source: Source = Arc::new(Mutex::new(Some(stream)));
        tether.share(&source);
        Self { open: Some((source, tether)) }
    }
}

fn poll_source(source: &Source, cx: &mut Context<'_>) -> Poll<Option<Result<Chunk, ToolError>>> {
    match &mut *source.lock().unwrap_or_else(PoisonError::into_inner) {
        Some(stream) => stream.as_mut().poll_next(cx),
        // The lease was revoked, and will say so.
        None => Poll::Pending,
    }
}

impl Stream for Leased {
    type Item = Result<Chunk, ToolError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some((source, tether)) = &mut self.open else { return Poll::Ready(None) };
        let item = ready!(tether.poll(cx, |cx| poll_source(source, cx)));
        if let Ok(Some(Ok(chunk))) = item {
            return Poll::Ready(Some(Ok(chunk)));
        }
        let Some((source, tether)) = self.open.take() else { return Poll::Ready(None) };
        drop(source.lock().unwrap_or_else(PoisonError::into_inner).take());
        Poll::Ready(match item {
            Ok(Some(Err(error))) => Some(Err(tether.release(error))),
            // The lease is dropped unfinished: for all that is known, the worker still runs the call.
            Err(cut) => Some(Err(cut)),
            Ok(_) => {
                tether.finish(None);
                None
            }
        })
    }
}
