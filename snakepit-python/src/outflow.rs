//! [`Outflow`]: whether the connections of this worker have taken everything that was written to them.

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

/// Counts the connections whose socket is full. Clones are the same count.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outflow(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    full: AtomicUsize,
    /// Notified when there may be no full one any more.
    free: Notify,
}

impl Outflow {
    /// Whether a connection holds back bytes because its reader is slow.
    pub(crate) fn is_full(&self) -> bool {
        self.0.full.load(SeqCst) > 0
    }

    /// Waits until no connection does. Cancel safe.
    pub(crate) async fn free(&self) {
        loop {
            let free = self.0.free.notified();
            if !self.is_full() {
                return;
            }
            free.await;
        }
    }

    /// Watches what is written to a connection.
    pub(crate) fn watch<S>(&self, stream: S) -> Watched<S> {
        Watched { stream, outflow: self.clone(), is_full: false }
    }
}

/// A connection that says when its socket is full.
#[derive(Debug)]
pub(crate) struct Watched<S> {
    stream: S,
    outflow: Outflow,
    is_full: bool,
}

impl<S> Watched<S> {
    fn note<T>(&mut self, written: Poll<T>) -> Poll<T> {
        if written.is_pending() != self.is_full {
            self.is_full = written.is_pending();
            if self.is_full {
                self.outflow.0.full.fetch_add(1, SeqCst);
            } else {
                self.release();
            }
        }
        written
    }

    fn release(&self) {
        self.outflow.0.full.fetch_sub(1, SeqCst);
        self.outflow.0.free.notify_waiters();
    }
}

impl<S> Drop for Watched<S> {
    fn drop(&mut self) {
        if self.is_full {
            self.release();
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.note(written)
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
        self.note(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl<S: Connected> Connected for Watched<S> {
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
    async fn a_reader_that_pauses_is_noticed_until_it_reads_or_the_connection_ends() {
        let outflow = Outflow::default();
        let (mut reader, writer) = tokio::io::duplex(8);
        let mut writer = outflow.watch(writer);
        writer.write_all(b"12345678").await.unwrap();
        assert!(!outflow.is_full());
        outflow.free().await;
        let mut rest = Box::pin(writer.write_all(b"9"));
        assert!(
            futures_core::Future::poll(rest.as_mut(), &mut Context::from_waker(std::task::Waker::noop()))
                .is_pending()
        );
        assert!(outflow.is_full());
        reader.read_exact(&mut [0; 8]).await.unwrap();
        rest.await.unwrap();
        assert!(!outflow.is_full());
        writer.write_all(b"2345678").await.unwrap();
        let (full, ends) = (outflow.clone(), async {
            tokio::task::yield_now().await;
            assert!(outflow.is_full());
        });
        tokio::select! {
            _ = writer.write_all(b"9") => panic!("nobody reads"),
            () = ends => {}
        }
        drop(writer);
        full.free().await;
    }
}
