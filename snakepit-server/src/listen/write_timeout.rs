//! Ends a connection whose client accepts no more bytes. The HTTP/2 keepalive alone does not suffice: it detects a frozen client, but
//! then sends GOAWAY, which would wait forever behind the unread data.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

/// A socket whose writes fail after a time without progress.
pub(super) struct WriteTimeout<Io> {
    io: Io,
    timeout: Duration,
    /// Whether the last write had to wait. The timer then runs.
    is_waiting: bool,
    timer: Option<Pin<Box<Sleep>>>,
}

impl<Io> WriteTimeout<Io> {
    pub(super) const fn new(io: Io, timeout: Duration) -> Self {
        Self { io, timeout, is_waiting: false, timer: None }
    }
}

impl<Io: AsyncWrite + Unpin> WriteTimeout<Io> {
    fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut Io>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let written = write(Pin::new(&mut self.io), cx);
        if written.is_ready() {
            self.is_waiting = false;
            return written;
        }
        let due = || Instant::now() + self.timeout;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due())));
        if !std::mem::replace(&mut self.is_waiting, true) {
            timer.as_mut().reset(due());
        }
        timer.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for WriteTimeout<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for WriteTimeout<Io> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll(cx, |io, cx| io.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll(cx, |io, cx| io.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(cx, |io, cx| io.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stops_reading_times_out_and_a_slow_one_does_not() {
        let (mut peer, io) = duplex(8);
        let mut io = WriteTimeout::new(io, Duration::from_secs(18));
        let slowly = async {
            for _ in 0..10 {
                tokio::time::sleep(Duration::from_secs(17)).await;
                peer.read_exact(&mut [0; 8]).await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(io.write_all(&[7; 80]), slowly);
        written.unwrap();
        let start = Instant::now();
        let error = io.write_all(&[7; 80]).await.unwrap_err();
        assert_eq!((error.kind(), start.elapsed().as_secs()), (io::ErrorKind::TimedOut, 18));
    }
}
