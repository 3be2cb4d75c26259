//! A streamed answer that holds its worker until it ends. Dropped earlier, it leaves the call abandoned.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_core::Stream;
use snakepit_registry::{Chunk, ChunkStream, ToolError};

use super::tether::Tether;

pub(super) struct Leased {
    /// `None` once it has ended. The stream stands first, and so is dropped before the lease.
    open: Option<(ChunkStream, Tether)>,
}

impl Leased {
    pub(super) fn new(stream: ChunkStream, tether: Tether) -> Self {
        Self { open: Some((stream, tether)) }
    }
}

impl Stream for Leased {
    type Item = Result<Chunk, ToolError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some((stream, tether)) = &mut self.open else { return Poll::Ready(None) };
        let item = ready!(tether.poll(cx, |cx| stream.as_mut().poll_next(cx)));
        if let Ok(Some(Ok(chunk))) = item {
            return Poll::Ready(Some(Ok(chunk)));
        }
        let Some((stream, tether)) = self.open.take() else { return Poll::Ready(None) };
        drop(stream);
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
