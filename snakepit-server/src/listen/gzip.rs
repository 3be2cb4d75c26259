//! gzip, for clients that compress their requests: their messages are opened here, within the limits that others have, and
//! answered compressed, one by one where they are streams. Either is done by a blocking thread; tonic would do it on the
//! runtime's, for all that any message opens to.

use std::{
    io::{Read, Write},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use http::{HeaderMap, HeaderValue, Response, header::HeaderName};
use http_body::Frame;
use tonic::{Status, body::Body};

use super::{
    connections::Connection,
    frames::{PREFIX_BYTES, Pieces, announced},
    held::{Held, MessageLimits},
};
use crate::status::invalid_field;

const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const ACCEPTED: HeaderName = HeaderName::from_static("grpc-accept-encoding");
const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GZIP: &str = "gzip";
/// How much is opened before the budget is asked again, in bytes.
const STEP: u64 = 64 * 1024;
/// Answers below this size, in bytes with their prefix, are sent as they are: they would hardly shrink.
const LEAST_BYTES: usize = 256;

type Work<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Whether a request is compressed, which its service need not know.
pub(super) fn take_encoding(headers: &mut HeaderMap) -> bool {
    let is_gzip = headers.get(&ENCODING).is_some_and(|encoding| encoding == GZIP);
    if is_gzip {
        headers.remove(&ENCODING);
    }
    is_gzip
}

/// Whether a client takes compressed answers.
pub(super) fn is_accepted(headers: &HeaderMap) -> bool {
    let accepted = headers.get(&ACCEPTED).and_then(|accepted| accepted.to_str().ok()).unwrap_or_default();
    accepted.split(',').any(|encoding| encoding.trim() == GZIP)
}

/// Opens a message, if it is compressed. What it occupies then is held, too.
pub(super) async fn open(
    message: Pieces,
    limits: MessageLimits,
    held: Held,
) -> Result<(Pieces, Held), Status> {
    if message.remaining() < PREFIX_BYTES || !message.is_compressed() {
        return Ok((message, held));
    }
    elsewhere(move || decompress(message, limits, held)).await
}

fn decompress(mut message: Pieces, limits: MessageLimits, mut held: Held) -> Result<(Pieces, Held), Status> {
    message.advance(PREFIX_BYTES);
    let mut opened = vec![0; PREFIX_BYTES];
    let mut decoder = GzDecoder::new(message.reader());
    loop {
        let read = decoder.by_ref().take(STEP).read_to_end(&mut opened);
        let read = read.map_err(|error| invalid_field("message", format_args!("is not gzip: {error}")))?;
        if read == 0 {
            break;
        }
        limits.check_size(opened.len() - PREFIX_BYTES).map_err(|excess| limits.refused(excess))?;
        held.grow(read)?;
    }
    let size = opened.len() - PREFIX_BYTES;
    opened[1..PREFIX_BYTES].copy_from_slice(&u32::try_from(size).unwrap_or(u32::MAX).to_be_bytes());
    limits.check_fields(&mut &opened[PREFIX_BYTES..]).map_err(|excess| limits.refused(excess))?;
    let mut pieces = Pieces::default();
    pieces.push(opened.into());
    Ok((pieces, held))
}

/// A stream of messages, opened.
pub(super) struct Opened<B> {
    body: B,
    limits: MessageLimits,
    connection: Arc<Connection>,
    /// What has arrived and is no whole message yet, or waits for the one before it.
    arrived: Pieces,
    /// The message that is being opened.
    opening: Option<Work<Result<(Pieces, Held), Status>>>,
    /// What is opened, and not yet passed on, with what it holds.
    ready: Option<(Pieces, Held)>,
}

impl<B> Opened<B> {
    /// `body` has bounded the messages as they arrive.
    pub(super) fn new(body: B, limits: MessageLimits, connection: &Arc<Connection>) -> Self {
        let connection = Arc::clone(connection);
        Self { body, limits, connection, arrived: Pieces::default(), opening: None, ready: None }
    }
}

impl<B> http_body::Body for Opened<B>
where
    B: http_body::Body<Data = Bytes, Error = Status> + Unpin,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        loop {
            if let Some((pieces, _)) = &mut this.ready {
                let piece = pieces.copy_to_bytes(pieces.chunk().len());
                if !piece.is_empty() {
                    return Poll::Ready(Some(Ok(Frame::data(piece))));
                }
                this.ready = None;
            }
            if let Some(opening) = &mut this.opening {
                let opened = ready!(opening.as_mut().poll(cx));
                this.opening = None;
                match opened {
                    Ok(opened) => this.ready = Some(opened),
                    Err(refusal) => return Poll::Ready(Some(Err(refusal))),
                }
                continue;
            }
            if let Some(message) = this.arrived.take_message() {
                let mut held = Held::by(&this.connection);
                if let Err(refusal) = held.grow(message.remaining()) {
                    return Poll::Ready(Some(Err(refusal)));
                }
                this.opening = Some(Box::pin(open(message, this.limits, held)));
                continue;
            }
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                // A message that broke off is left to the decoder.
                None if this.arrived.has_remaining() => {
                    let rest = std::mem::take(&mut this.arrived);
                    this.ready = Some((rest, Held::by(&this.connection)));
                }
                None => return Poll::Ready(None),
                Some(Err(refusal)) => return Poll::Ready(Some(Err(refusal))),
                // Trailers say nothing in gRPC.
                Some(Ok(frame)) => drop(frame.into_data().map(|data| this.arrived.push(data))),
            }
        }
    }
}

/// Compresses the messages of an answer.
pub(super) fn close(response: Response<Body>) -> Response<Body> {
    // One with a status in its head has no message.
    if response.headers().contains_key(&STATUS) {
        return response;
    }
    let (mut head, body) = response.into_parts();
    head.headers.insert(ENCODING, HeaderValue::from_static(GZIP));
    Response::from_parts(head, Body::new(Closed { body, closing: None }))
}

/// A body whose messages are compressed.
struct Closed {
    body: Body,
    closing: Option<Work<Bytes>>,
}

impl http_body::Body for Closed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if let Some(closing) = &mut self.closing {
                let closed = ready!(closing.as_mut().poll(cx));
                self.closing = None;
                return Poll::Ready(Some(Ok(Frame::data(closed))));
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if data.len() < LEAST_BYTES => return Poll::Ready(Some(Ok(Frame::data(data)))),
                    Ok(data) => self.closing = Some(Box::pin(elsewhere(move || compress(data)))),
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                other => return Poll::Ready(other),
            }
        }
    }
}

/// Compresses what a service sends at a time, which are whole messages.
fn compress(mut data: Bytes) -> Bytes {
    let mut closed = BytesMut::new();
    while let Some(size) = announced(data.iter().copied()) {
        let message = data.split_to((PREFIX_BYTES + size).min(data.len()));
        closed.extend_from_slice(&compress_one(&message));
    }
    closed.extend_from_slice(&data);
    closed.freeze()
}

fn compress_one(message: &Bytes) -> Bytes {
    if message.len() < LEAST_BYTES {
        return message.clone();
    }
    let mut encoder = GzEncoder::new(vec![1, 0, 0, 0, 0], Compression::fast());
    // Writing to memory does not fail; as it is, the message would be as good.
    let written = encoder.write_all(&message[PREFIX_BYTES..]).and_then(|()| encoder.finish());
    let Ok(mut closed) = written else { return message.clone() };
    let size = u32::try_from(closed.len() - PREFIX_BYTES).unwrap_or(u32::MAX);
    closed[1..PREFIX_BYTES].copy_from_slice(&size.to_be_bytes());
    closed.into()
}

async fn elsewhere<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime shuts down.
            Err(_) => std::future::pending().await,
        },
    }
}
