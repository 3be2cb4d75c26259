//! gzip, for clients that compress their requests: their messages are opened here, within the limits that others have, and
//! answered compressed. Either is done by a blocking thread. Streams are not compressed.

use std::{
    future::poll_fn,
    io::{Read, Write},
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes, BytesMut};
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use http::{HeaderMap, HeaderValue, Response, header::HeaderName};
use http_body::{Body as _, Frame};
use tonic::{Status, body::Body};

use super::{
    budget::Share,
    collect::Message,
    fields,
    frames::{Excess, MAX_LIGHT_BYTES, PREFIX_BYTES, Pieces},
};
use crate::status::{from_tool_error, invalid_field, message_refused, too_much_of_a_connection};

const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const ACCEPTED: HeaderName = HeaderName::from_static("grpc-accept-encoding");
const GZIP: &str = "gzip";
/// How much is opened before the budget is asked again, in bytes.
const STEP: u64 = 64 * 1024;

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

/// Opens a message. What it occupies then is taken from the share too.
pub(super) async fn open(
    message: Message,
    limit: usize,
    nested: &'static [u32],
    share: Share,
) -> Result<(Message, Share), Status> {
    let mut pieces = message.into_pieces();
    if pieces.remaining() < PREFIX_BYTES || pieces.chunk().first() != Some(&1) {
        return Ok((Message::of(pieces), share));
    }
    pieces.advance(PREFIX_BYTES);
    elsewhere(move || decompress(pieces, limit, nested, share)).await
}

fn decompress(
    pieces: Pieces,
    limit: usize,
    nested: &[u32],
    mut share: Share,
) -> Result<(Message, Share), Status> {
    let mut opened = vec![0; PREFIX_BYTES];
    let mut decoder = GzDecoder::new(pieces.reader());
    loop {
        let read = decoder.by_ref().take(STEP).read_to_end(&mut opened);
        let read = read.map_err(|error| invalid_field("message", format_args!("is not gzip: {error}")))?;
        if read == 0 {
            break;
        }
        let size = opened.len() - PREFIX_BYTES;
        if size > limit {
            return Err(message_refused(Excess::Bytes(size), limit));
        }
        share.grow(read).map_err(|full| from_tool_error(too_much_of_a_connection(full)))?;
    }
    let size = opened.len() - PREFIX_BYTES;
    opened[1..PREFIX_BYTES].copy_from_slice(&u32::try_from(size).unwrap_or(u32::MAX).to_be_bytes());
    if size > MAX_LIGHT_BYTES {
        let counted = fields::count(&mut &opened[PREFIX_BYTES..], size, nested);
        counted.ok_or_else(|| message_refused(Excess::Fields, limit))?;
    }
    let mut pieces = Pieces::default();
    pieces.push(opened.into());
    Ok((Message::of(pieces), share))
}

/// Compresses the one message of an answer.
pub(super) async fn close(response: Response<Body>) -> Response<Body> {
    let (mut head, mut body) = response.into_parts();
    let (mut data, mut trailers) = (BytesMut::new(), None);
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        match frame.map(Frame::into_data) {
            Ok(Ok(part)) => data.extend_from_slice(&part),
            Ok(Err(frame)) => trailers = frame.into_trailers().ok(),
            Err(status) => return status.into_http(),
        }
    }
    let data = data.freeze();
    let data = match data.first() {
        Some(0) => {
            head.headers.insert(ENCODING, HeaderValue::from_static(GZIP));
            elsewhere(move || compress(&data)).await
        }
        _ => data,
    };
    Response::from_parts(
        head,
        Body::new(Closed { data: Some(data).filter(|data| !data.is_empty()), trailers }),
    )
}

fn compress(message: &Bytes) -> Bytes {
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

/// A body that is here.
struct Closed {
    data: Option<Bytes>,
    trailers: Option<HeaderMap>,
}

impl http_body::Body for Closed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let data = self.data.take().map(Frame::data);
        Poll::Ready(data.or_else(|| self.trailers.take().map(Frame::trailers)).map(Ok))
    }
}
