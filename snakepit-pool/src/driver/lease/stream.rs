//! A streamed reply that holds its lease until it ends. Dropping the stream earlier abandons the call.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use futures_core::Stream;
use snakepit_registry::{Chunk, ChunkStream, ToolError};

use super::Lease;

/// The worker's stream, shared by its reader and the lease's record. If the driver revokes the lease of a stalled reader, it
/// also drops the stream, because the unread chunks occupy the connection to the worker. `None` after that.
pub(in crate::driver) type SharedChunks = Arc<Mutex<Option<ChunkStream>>>;

/// A stream with its lease.
pub(super) struct LeasedStream {
    /// `None` after the end of the stream.
    open: Option<(SharedChunks, Lease)>,
}

impl LeasedStream {
    pub(super) fn new(stream: ChunkStream, mut lease: Lease) -> Self {
        let chunks: SharedChunks = Arc::new(Mutex::new(Some(stream)));
        lease.share_chunks(&chunks);
        Self { open: Some((chunks, lease)) }
    }
}

impl Drop for LeasedStream {
    fn drop(&mut self) {
        // Drops the stream before the lease, so that the worker gets its next call only afterwards.
        if let Some((chunks, _)) = &self.open {
            drop(chunks.lock().unwrap_or_else(PoisonError::into_inner).take());
        }
    }
}

fn poll_chunks(chunks: &SharedChunks, cx: &mut Context<'_>) -> Poll<Option<Result<Chunk, ToolError>>> {
    match &mut *chunks.lock().unwrap_or_else(PoisonError::into_inner) {
        Some(stream) => stream.as_mut().poll_next(cx),
        // The lease was revoked, so its signal ends the stream.
        None => Poll::Pending,
    }
}

impl Stream for LeasedStream {
    type Item = Result<Chunk, ToolError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some((chunks, lease)) = &mut self.open else { return Poll::Ready(None) };
        let item = ready!(lease.poll(cx, |cx| poll_chunks(chunks, cx)));
        if let Ok(Some(Ok(chunk))) = item {
            return Poll::Ready(Some(Ok(chunk)));
        }
        let Some((chunks, lease)) = self.open.take() else { return Poll::Ready(None) };
        drop(chunks.lock().unwrap_or_else(PoisonError::into_inner).take());
        Poll::Ready(match item {
            Ok(Some(Err(error))) => Some(Err(lease.fail(error).error)),
            // Drops the lease unfinished, because the worker may still run the call.
            Err(error) => Some(Err(error)),
            Ok(_) => {
                lease.finish(None);
                None
            }
        })
    }
}
