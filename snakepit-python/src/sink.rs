//! [`Sink`] and [`Source`]: the bounded queue between a generator and its gRPC stream.
//!
//! The executor queues each item that the generator yields, and the stream takes all queued items together. If the reader
//! is slow, the queue fills and the executor stops pulling the generator, so memory stays bounded.

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use futures_core::Stream;
use snakepit_registry::{Chunk, ToolError};

/// The maximum number of queued chunks.
const MAX_CHUNKS: usize = 1024;
/// The number of queued bytes at which the generator pauses. One chunk may be larger.
const MAX_BYTES: usize = 1024 * 1024;

/// The generator's end. Clones share the queue.
#[derive(Debug, Clone)]
pub(crate) struct Sink(Arc<ChunkQueue>);

/// The stream's end. Dropping it closes the queue.
#[derive(Debug)]
pub(crate) struct Source {
    shared: Arc<ChunkQueue>,
    /// Chunks that were taken from the queue together.
    ready: VecDeque<Chunk>,
}

/// The result of [`Sink::put`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Put {
    /// Queued, with space for more.
    Queued,
    /// Queued, and the queue is full now. Wait before producing another chunk.
    Full,
    /// Dropped, because the reader has closed the queue.
    Closed,
}

#[derive(Debug, Default)]
struct ChunkQueue {
    queue: Mutex<Queue>,
    space: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    chunks: VecDeque<Chunk>,
    bytes: usize,
    is_closed: bool,
    end: Option<Result<(), ToolError>>,
    reader: Option<Waker>,
    /// The task that waits for space.
    writer: Option<Waker>,
}

impl Queue {
    fn is_full(&self) -> bool {
        self.chunks.len() >= MAX_CHUNKS || self.bytes >= MAX_BYTES
    }
}

/// Creates a queue and returns its ends.
pub(crate) fn channel() -> (Sink, Source) {
    let shared = Arc::new(ChunkQueue::default());
    (Sink(Arc::clone(&shared)), Source { shared, ready: VecDeque::new() })
}

impl Sink {
    /// Queues a chunk, even if the queue is full, and wakes the reader. The caller must wait after [`Put::Full`].
    pub(crate) fn put(&self, chunk: Chunk) -> Put {
        let (put, reader) = self.put_without_wake(chunk);
        reader.into_iter().for_each(Waker::wake);
        put
    }

    /// Like [`put`](Self::put), for callers that can wake the reader at a lower cost later. Returns its waker if it waits.
    pub(crate) fn put_without_wake(&self, chunk: Chunk) -> (Put, Option<Waker>) {
        let mut queue = self.0.lock();
        if queue.is_closed {
            return (Put::Closed, None);
        }
        queue.bytes += chunk.size();
        queue.chunks.push_back(chunk);
        (if queue.is_full() { Put::Full } else { Put::Queued }, queue.reader.take())
    }

    /// Blocks until the queue has space. Returns `false` if the reader has closed the queue.
    pub(crate) fn wait_for_space(&self) -> bool {
        let queue = self.0.lock();
        let queue = self.0.space.wait_while(queue, |queue| queue.is_full() && !queue.is_closed);
        !queue.unwrap_or_else(PoisonError::into_inner).is_closed
    }

    /// Waits until the queue has space. Returns `false` if the reader has closed the queue. Cancel safe. Only one task may wait.
    pub(crate) async fn space(&self) -> bool {
        poll_fn(|cx| {
            let mut queue = self.0.lock();
            if queue.is_full() && !queue.is_closed {
                queue.writer = Some(cx.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(!queue.is_closed)
        })
        .await
    }

    /// Closes the queue for both ends.
    pub(crate) fn close(&self) {
        let mut queue = self.0.lock();
        queue.is_closed = true;
        self.0.wake_writers(queue);
    }

    /// Ends the stream, successfully or with an error, after the queued chunks. Returns the waker of the reader if it waits.
    #[must_use = "the end leaves only after the reader was woken"]
    pub(crate) fn finish(&self, end: Result<(), ToolError>) -> Option<Waker> {
        let mut queue = self.0.lock();
        queue.end.get_or_insert(end);
        queue.reader.take()
    }
}

impl ChunkQueue {
    /// Releases the lock and wakes the threads and the task that wait for space.
    fn wake_writers(&self, mut queue: MutexGuard<'_, Queue>) {
        let writer = queue.writer.take();
        drop(queue);
        self.space.notify_all();
        if let Some(writer) = writer {
            writer.wake();
        }
    }

    /// Code under this lock does not panic, so a poisoned lock still holds consistent data.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stream for Source {
    type Item = Result<Chunk, ToolError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(chunk) = self.ready.pop_front() {
            return Poll::Ready(Some(Ok(chunk)));
        }
        let this = &mut *self;
        let mut queue = this.shared.lock();
        if !queue.chunks.is_empty() {
            std::mem::swap(&mut queue.chunks, &mut this.ready);
            queue.bytes = 0;
            this.shared.wake_writers(queue);
            return Poll::Ready(this.ready.pop_front().map(Ok));
        }
        match &mut queue.end {
            // The error is returned once. Afterwards the stream has ended.
            Some(end) => Poll::Ready(std::mem::replace(end, Ok(())).err().map(Err)),
            None => {
                queue.reader = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        Sink(Arc::clone(&self.shared)).close();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use tokio_stream::StreamExt;

    use super::*;

    fn chunk(data: impl Into<Bytes>) -> Chunk {
        Chunk { data: data.into(), ..Chunk::default() }
    }

    #[tokio::test]
    async fn chunks_come_out_in_order_and_the_error_last() {
        let (sink, mut source) = channel();
        assert_eq!(sink.put(chunk("1")), Put::Queued);
        assert_eq!(sink.put(chunk("2")), Put::Queued);
        assert!(sink.finish(Err(ToolError::internal("x"))).is_none(), "no reader waits");
        assert_eq!(source.next().await.unwrap().unwrap(), chunk("1"));
        assert_eq!(source.next().await.unwrap().unwrap(), chunk("2"));
        assert!(source.next().await.unwrap().is_err());
        assert!(source.next().await.is_none());
    }

    #[tokio::test]
    async fn a_writer_waits_until_a_full_queue_is_read() {
        let (sink, mut source) = channel();
        assert_eq!(sink.put(chunk(vec![0; MAX_BYTES])), Put::Full);
        let writer = std::thread::spawn(move || {
            assert!(sink.wait_for_space());
            sink.put(chunk("next"))
        });
        std::thread::sleep(Duration::from_millis(20));
        assert!(!writer.is_finished(), "the writer did not wait although the queue is full");
        source.next().await.unwrap().unwrap();
        assert_eq!(source.next().await.unwrap().unwrap(), chunk("next"));
        assert_eq!(writer.join().unwrap(), Put::Queued);
    }

    #[tokio::test]
    async fn a_task_waits_for_space_until_the_reader_reads_or_leaves() {
        let (sink, mut source) = channel();
        assert!(sink.space().await);
        let full = || assert_eq!(sink.put(chunk(vec![0; MAX_BYTES])), Put::Full);
        full();
        let (has_space, _) = tokio::join!(sink.space(), async { source.next().await.unwrap().unwrap() });
        assert!(has_space);
        full();
        let (has_space, ()) = tokio::join!(sink.space(), async { drop(source) });
        assert!(!has_space);
    }

    #[test]
    fn a_dropped_reader_releases_the_writer() {
        let (sink, source) = channel();
        assert_eq!(sink.put(chunk(vec![0; MAX_BYTES])), Put::Full);
        let waiting = sink.clone();
        let writer = std::thread::spawn(move || waiting.wait_for_space());
        drop(source);
        assert!(!writer.join().unwrap());
        assert_eq!(sink.put(chunk("late")), Put::Closed);
    }
}
