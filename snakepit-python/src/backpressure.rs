//! [`Backpressure`]: shows whether the worker's connections have accepted all written bytes.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
};
use tonic::transport::server::Connected;

/// Counts the connections whose socket buffer is full. Clones share the count.
#[derive(Debug, Clone, Default)]
pub(crate) struct Backpressure(Arc<ConnectionCounter>);

#[derive(Debug, Default)]
struct ConnectionCounter {
    full_connections: AtomicUsize,
    /// Notified when a connection accepts bytes again.
    released: Notify,
}

impl Backpressure {
    /// Returns whether a connection holds unsent bytes because its reader is slow.
    pub(crate) fn is_full(&self) -> bool {
        self.0.full_connections.load(SeqCst) > 0
    }

    /// Waits until no connection is full. Cancel safe.
    pub(crate) async fn released(&self) {
        loop {
            let released = self.0.released.notified();
            if !self.is_full() {
                return;
            }
            released.await;
        }
    }

    /// Wraps a connection to track its writes.
    pub(crate) fn monitor<S>(&self, stream: S) -> MonitoredStream<S> {
        MonitoredStream { stream, backpressure: self.clone(), is_full: false }
    }
}

/// A connection that reports whether its socket buffer is full.
#[derive(Debug)]
pub(crate) struct MonitoredStream<S> {
    stream: S,
    backpressure: Backpressure,
    is_full: bool,
}

impl<S> MonitoredStream<S> {
    fn track<T>(&mut self, written: Poll<T>) -> Poll<T> {
        if written.is_pending() != self.is_full {
            self.is_full = written.is_pending();
            if self.is_full {
                self.backpressure.0.full_connections.fetch_add(1, SeqCst);
            } else {
                self.release();
            }
        }
        written
    }

    fn release(&self) {
        self.backpressure.0.full_connections.fetch_sub(1, SeqCst);
        self.backpressure.0.released.notify_waiters();
    }
}

impl<S> Drop for MonitoredStream<S> {
    fn drop(&mut self) {
        if self.is_full {
            self.release();
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for MonitoredStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for MonitoredStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.track(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.track(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl<S: Connected> Connected for MonitoredStream<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> S::ConnectInfo {
        self.stream.connect_info()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_slow_reader_makes_the_connection_full_until_it_reads_or_disconnects() {
        let backpressure = Backpressure::default();
        let (mut reader, writer) = tokio::io::duplex(8);
        let mut writer = backpressure.monitor(writer);
        writer.write_all(b"12345678").await.unwrap();
        assert!(!backpressure.is_full());
        backpressure.released().await;
        let mut rest = Box::pin(writer.write_all(b"9"));
        assert!(
            futures_core::Future::poll(rest.as_mut(), &mut Context::from_waker(std::task::Waker::noop()))
                .is_pending()
        );
        assert!(backpressure.is_full());
        reader.read_exact(&mut [0; 8]).await.unwrap();
        rest.await.unwrap();
        assert!(!backpressure.is_full());
        writer.write_all(b"2345678").await.unwrap();
        let (full, ends) = (backpressure.clone(), async {
            tokio::task::yield_now().await;
            assert!(backpressure.is_full());
        });
        tokio::select! {
            _ = writer.write_all(b"9") => panic!("the reader does not read"),
            () = ends => {}
        }
        drop(writer);
        full.released().await;
    }
}
