//! gzip for clients that compress their requests. The host decompresses messages within the limits that apply to all messages, and
//! compresses responses message by message. Both run on blocking threads. tonic would do this work on the runtime's threads,
//! without a limit on the decompressed size.

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
    framing::{MessageLimits, PREFIX_BYTES, PolledFrame, Segments, announced_size},
    request_memory::RequestMemory,
};
use crate::{
    blocking::run_blocking,
    status::{from_tool_error, invalid_field},
};

const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");
const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GZIP: &str = "gzip";
/// Bytes to decompress between two checks of the budget.
const STEP_BYTES: u64 = 64 * 1024;
/// Smaller messages, in bytes with their prefix, are sent uncompressed, because compression would hardly shrink them.
const MIN_COMPRESSED_BYTES: usize = 256;

type BoxedFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type Decompressed = (Segments, RequestMemory);

/// Returns whether a request is compressed. Removes the header, because the service receives decompressed messages.
pub(super) fn take_gzip_encoding(headers: &mut HeaderMap) -> bool {
    let is_gzip = headers.get(&ENCODING).is_some_and(|encoding| encoding == GZIP);
    if is_gzip {
        headers.remove(&ENCODING);
    }
    is_gzip
}

/// Whether a client accepts compressed responses.
pub(super) fn accepts_gzip(headers: &HeaderMap) -> bool {
    let accepted =
        headers.get(&ACCEPT_ENCODING).and_then(|accepted| accepted.to_str().ok()).unwrap_or_default();
    accepted.split(',').any(|encoding| encoding.trim() == GZIP)
}

/// Decompresses a message if its flag says that it is compressed. The result counts towards the request's memory too.
pub(super) async fn decompress_message(
    message: Segments,
    limits: MessageLimits,
    memory: RequestMemory,
) -> Result<Decompressed, Status> {
    if message.remaining() < PREFIX_BYTES || !message.is_compressed() {
        return Ok((message, memory));
    }
    run_blocking(move || decompress(message, limits, memory)).await
}

fn decompress(
    mut message: Segments,
    limits: MessageLimits,
    mut memory: RequestMemory,
) -> Result<Decompressed, Status> {
    message.advance(PREFIX_BYTES);
    let mut output = vec![0; PREFIX_BYTES];
    let mut decoder = GzDecoder::new(message.reader());
    loop {
        let read = decoder.by_ref().take(STEP_BYTES).read_to_end(&mut output);
        let read = read.map_err(|error| invalid_field("message", format_args!("is not gzip: {error}")))?;
        if read == 0 {
            break;
        }
        limits.check_size(output.len() - PREFIX_BYTES).map_err(|error| limits.status(error))?;
        if let Err(error) = memory.grow(read)
            && !memory.take_headroom(read)
        {
            return Err(from_tool_error(error));
        }
    }
    let size = output.len() - PREFIX_BYTES;
    output[1..PREFIX_BYTES].copy_from_slice(&u32::try_from(size).unwrap_or(u32::MAX).to_be_bytes());
    limits.check_fields(&mut &output[PREFIX_BYTES..]).map_err(|error| limits.status(error))?;
    let mut segments = Segments::default();
    segments.push(output.into());
    Ok((segments, memory))
}

/// The request body of a streaming RPC, with its messages decompressed.
pub(super) struct DecompressedBody<B> {
    body: B,
    limits: MessageLimits,
    connection: Arc<Connection>,
    /// Data that has arrived: an incomplete message, or messages that wait for the one before them.
    arrived: Segments,
    /// The message that a blocking thread decompresses.
    decompressing: Option<BoxedFuture<Result<Decompressed, Status>>>,
    /// Decompressed data for the service.
    ready: Option<Decompressed>,
}

impl<B> DecompressedBody<B> {
    /// Wraps a body that enforces the limits on compressed messages.
    pub(super) fn new(body: B, limits: MessageLimits, connection: &Arc<Connection>) -> Self {
        let connection = Arc::clone(connection);
        Self { body, limits, connection, arrived: Segments::default(), decompressing: None, ready: None }
    }
}

impl<B> http_body::Body for DecompressedBody<B>
where
    B: http_body::Body<Data = Bytes, Error = Status> + Unpin,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> PolledFrame {
        let this = &mut *self;
        loop {
            if let Some((segments, _)) = &mut this.ready {
                let segment = segments.copy_to_bytes(segments.chunk().len());
                if !segment.is_empty() {
                    return Poll::Ready(Some(Ok(Frame::data(segment))));
                }
                this.ready = None;
            }
            if let Some(decompressing) = &mut this.decompressing {
                let decompressed = ready!(decompressing.as_mut().poll(cx));
                this.decompressing = None;
                match decompressed {
                    Ok(decompressed) => this.ready = Some(decompressed),
                    Err(status) => return Poll::Ready(Some(Err(status))),
                }
                continue;
            }
            if let Some(message) = this.arrived.take_message() {
                let mut memory = RequestMemory::for_stream(&this.connection);
                if let Err(error) = memory.grow(message.remaining())
                    && !memory.take_headroom(message.remaining())
                {
                    return Poll::Ready(Some(Err(from_tool_error(error))));
                }
                this.decompressing = Some(Box::pin(decompress_message(message, this.limits, memory)));
                continue;
            }
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                // The service's decoder reports an incomplete message.
                None if this.arrived.has_remaining() => {
                    let rest = std::mem::take(&mut this.arrived);
                    this.ready = Some((rest, RequestMemory::for_stream(&this.connection)));
                }
                None => return Poll::Ready(None),
                Some(Err(status)) => return Poll::Ready(Some(Err(status))),
                // gRPC requests have no trailers.
                Some(Ok(frame)) => drop(frame.into_data().map(|data| this.arrived.push(data))),
            }
        }
    }
}

/// Compresses the messages of a response.
pub(super) fn compress_response(response: Response<Body>) -> Response<Body> {
    // A response with its status in the headers has no message.
    if response.headers().contains_key(&STATUS) {
        return response;
    }
    let (mut head, body) = response.into_parts();
    head.headers.insert(ENCODING, HeaderValue::from_static(GZIP));
    Response::from_parts(head, Body::new(CompressedBody { body, compressing: None }))
}

/// A response body that compresses its messages.
struct CompressedBody {
    body: Body,
    compressing: Option<BoxedFuture<Bytes>>,
}

impl http_body::Body for CompressedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> PolledFrame {
        loop {
            if let Some(compressing) = &mut self.compressing {
                let compressed = ready!(compressing.as_mut().poll(cx));
                self.compressing = None;
                return Poll::Ready(Some(Ok(Frame::data(compressed))));
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if data.len() < MIN_COMPRESSED_BYTES => {
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                    Ok(data) => self.compressing = Some(Box::pin(run_blocking(move || compress(data)))),
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                other => return Poll::Ready(other),
            }
        }
    }
}

/// Compresses one data frame of a service, which consists of whole messages.
fn compress(mut data: Bytes) -> Bytes {
    let mut compressed = BytesMut::new();
    while let Some(size) = announced_size(data.iter().copied()) {
        let message = data.split_to((PREFIX_BYTES + size).min(data.len()));
        compressed.extend_from_slice(&compress_message(&message));
    }
    compressed.extend_from_slice(&data);
    compressed.freeze()
}

fn compress_message(message: &Bytes) -> Bytes {
    if message.len() < MIN_COMPRESSED_BYTES {
        return message.clone();
    }
    let mut encoder = GzEncoder::new(vec![1, 0, 0, 0, 0], Compression::fast());
    // Writing to memory does not fail. The fallback is the uncompressed message.
    let written = encoder.write_all(&message[PREFIX_BYTES..]).and_then(|()| encoder.finish());
    let Ok(mut compressed) = written else { return message.clone() };
    let size = u32::try_from(compressed.len() - PREFIX_BYTES).unwrap_or(u32::MAX);
    compressed[1..PREFIX_BYTES].copy_from_slice(&size.to_be_bytes());
    compressed.into()
}
