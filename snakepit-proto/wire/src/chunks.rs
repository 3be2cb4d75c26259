//! Streams of chunks, in the form of `ExecuteStreamingTool`.

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use snakepit_proto::{mux::MAX_ITEM_BYTES, pb, value::inline_nested};
use snakepit_registry::{Chunk, ToolError};
use tonic::Status;

/// The number of digits of the largest chunk number.
const MAX_DIGITS: usize = 20;

/// Checks that an answer of this size, or a chunk of it, fits into one message.
///
/// # Errors
/// [`ToolError::AnswerTooLarge`].
pub const fn check_answer_size(size: usize) -> Result<(), ToolError> {
    if size <= MAX_ITEM_BYTES { Ok(()) } else { Err(ToolError::answer_too_large(size, MAX_ITEM_BYTES)) }
}

/// Converts a stream of `tool` to messages. Chunks have the ids `tool-1`, `tool-2` and so on. A final message without data marks
/// the end, which distinguishes a complete stream from a broken connection. An error ends a gRPC stream, so a client does not
/// receive the final message after one.
///
/// Nested values become plain JSON unless `takes_buffers` is set.
pub fn chunks_to_wire<S>(
    tool: &str,
    chunks: S,
    takes_buffers: bool,
    to_status: impl Fn(ToolError) -> Status + Send + 'static,
) -> impl Stream<Item = Result<pb::ToolChunk, Status>> + Send + 'static
where
    S: Stream<Item = Result<Chunk, ToolError>> + Send + 'static,
{
    let prefix = format!("{tool}-");
    let mut count = 0_u64;
    let numbered = chunks.map(move |chunk| {
        let Chunk { mut data, metadata, mut binary } = chunk.map_err(&to_status)?;
        if let Some(buffers) = &binary
            && !takes_buffers
            && let Some(plain) = inline_nested(&data, buffers)
        {
            (data, binary) = (plain.into(), None);
        }
        check_answer_size(data.len() + binary.as_ref().map_or(0, Bytes::len)).map_err(&to_status)?;
        count += 1;
        // One allocation, because a stream may have millions of chunks.
        let mut chunk_id = String::with_capacity(prefix.len() + MAX_DIGITS);
        chunk_id.push_str(&prefix);
        chunk_id.push_str(itoa::Buffer::new().format(count));
        Ok(pb::ToolChunk { chunk_id, data, is_final: false, metadata, binary })
    });
    numbered.chain(stream::iter([Ok(pb::ToolChunk { is_final: true, ..pb::ToolChunk::default() })]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn chunks_are_numbered_and_the_end_is_marked() {
        let chunk = |data: &'static str| Chunk { data: data.into(), ..Chunk::default() };
        let items = [Ok(chunk("1")), Ok(chunk("2")), Err(ToolError::cancelled("count"))];
        let chunks =
            chunks_to_wire("count", stream::iter(items), true, |error| Status::aborted(error.to_string()));
        let messages: Vec<_> = chunks.collect().await;
        let ids: Vec<_> =
            messages.iter().map(|message| message.as_ref().map(|it| it.chunk_id.as_str()).ok()).collect();
        assert_eq!(ids, [Some("count-1"), Some("count-2"), None, Some("")]);
        assert_eq!(messages[1].as_ref().unwrap().data, "2");
        assert!(messages[3].as_ref().unwrap().is_final && !messages[0].as_ref().unwrap().is_final);
    }

    #[tokio::test]
    async fn a_chunk_above_the_limit_of_a_message_is_an_error() {
        let chunk = Chunk { data: vec![b' '; MAX_ITEM_BYTES + 1].into(), ..Chunk::default() };
        let to_status = |error: ToolError| Status::aborted(error.kind().reason().as_str());
        let mut chunks = Box::pin(chunks_to_wire("count", stream::iter([Ok(chunk)]), true, to_status));
        let status = chunks.next().await.unwrap().unwrap_err();
        assert_eq!(status.message(), "ANSWER_TOO_LARGE");
    }
}
