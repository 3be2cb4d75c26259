//! [`HangupTolerantStream`], a connection that stays readable after the peer has hung up.
//!
//! The last bytes that a worker sent remain readable after its death, but writes fail, and HTTP/2 closes a connection at the
//! first error. This stream discards writes after a hangup, so the caller reads all data up to end-of-file.

use std::{
    io::{self, ErrorKind, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream that discards writes after the peer has hung up.
#[derive(Debug)]
pub(super) struct HangupTolerantStream<S> {
    stream: S,
    has_hung_up: bool,
}

impl<S> HangupTolerantStream<S> {
    pub(super) const fn new(stream: S) -> Self {
        Self { stream, has_hung_up: false }
    }

    /// Returns `written`, or `discarded` if the write failed because the peer has hung up.
    fn discard_if_hung_up<T>(&mut self, written: Poll<io::Result<T>>, discarded: T) -> Poll<io::Result<T>> {
        match written {
            Poll::Ready(Err(error)) if is_hangup(&error) => {
                self.has_hung_up = true;
                Poll::Ready(Ok(discarded))
            }
            written => written,
        }
    }
}

fn is_hangup(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::NotConnected)
}

impl<S: AsyncRead + Unpin> AsyncRead for HangupTolerantStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for HangupTolerantStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.has_hung_up {
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.discard_if_hung_up(written, bytes.len())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.discard_if_hung_up(flushed, ())
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.discard_if_hung_up(shut, ())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = slices.iter().map(|slice| slice.len()).sum();
        if self.has_hung_up {
            return Poll::Ready(Ok(length));
        }
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.discard_if_hung_up(written, length)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::UnixStream,
    };

    use super::*;

    #[tokio::test]
    async fn data_of_a_dead_peer_is_readable_after_writes_fail() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut near = HangupTolerantStream::new(near);
        far.write_all(b"the last words").await.unwrap();
        // The peer closes with unread data, so the next write fails.
        near.write_all(b"unread").await.unwrap();
        drop(far);
        near.write_all(b"into the void").await.unwrap();
        assert_eq!(near.write_vectored(&[IoSlice::new(b"and more")]).await.unwrap(), 8);
        near.flush().await.unwrap();
        let mut received = [0; 14];
        near.read_exact(&mut received).await.unwrap();
        assert_eq!(&received, b"the last words");
        let end = near.read(&mut received).await;
        assert!(end.as_ref().map_or_else(is_hangup, |length| *length == 0), "{end:?}");
        near.shutdown().await.unwrap();
    }
}
