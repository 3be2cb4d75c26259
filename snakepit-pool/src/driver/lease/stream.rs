//! A streamed reply that holds its lease until it ends. Dropping the stream earlier abandons the call.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use futures_core::Stream;
use snakepit_registry::{Chunk, ChunkStream, ToolError};

use super::Lease;

/// The worker's stream, shared by its reader and the lease's record.
pub(in crate::driver) struct SharedChunks {
    /// If the driver revokes the lease of a stalled reader, it also drops the stream, because the unread chunks occupy the
    /// connection to the worker. `None` after that.
    stream: Mutex<Option<ChunkStream>>,
    /// Whether the lease has a signal. It spares the reader the driver's lock for each chunk.
    is_signalled: AtomicBool,
}

impl SharedChunks {
    /// Makes the reader look for a signal before its next chunk.
    pub(super) fn signal(&self) {
        self.is_signalled.store(true, Ordering::Release);
    }

    /// Drops the stream.
    pub(in crate::driver) fn discard(&self) {
        drop(self.stream.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Chunk, ToolError>>> {
        match &mut *self.stream.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(stream) => stream.as_mut().poll_next(cx),
            // The lease was revoked, so its signal ends the stream.
            None => Poll::Pending,
        }
    }
}

/// A stream with its lease.
pub(super) struct LeasedStream {
    /// `None` after the end of the stream.
    open: Option<(Arc<SharedChunks>, Lease)>,
}

impl LeasedStream {
    pub(super) fn new(stream: ChunkStream, mut lease: Lease) -> Self {
        let (stream, is_signalled) = (Mutex::new(Some(stream)), AtomicBool::new(false));
        let chunks = Arc::new(SharedChunks { stream, is_signalled });
        lease.share_chunks(&chunks);
        Self { open: Some((chunks, lease)) }
    }
}

impl Drop for LeasedStream {
    fn drop(&mut self) {
        // Drops the stream before the lease, so that the worker gets its next call only afterwards.
        if let Some((chunks, _)) = &self.open {
            chunks.discard();
        }
    }
}

impl Stream for LeasedStream {
    type Item = Result<Chunk, ToolError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some((chunks, lease)) = &mut self.open else { return Poll::Ready(None) };
        let mut polled = None;
        if !chunks.is_signalled.load(Ordering::Acquire) && !lease.is_overdue() {
            match chunks.poll(cx) {
                Poll::Ready(Some(Ok(chunk))) => return Poll::Ready(Some(Ok(chunk))),
                other => polled = Some(other),
            }
        }
        let item = ready!(lease.poll(cx, |cx| polled.unwrap_or_else(|| chunks.poll(cx))));
        if let Ok(Some(Ok(chunk))) = item {
            return Poll::Ready(Some(Ok(chunk)));
        }
        let Some((chunks, lease)) = self.open.take() else { return Poll::Ready(None) };
        chunks.discard();
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
