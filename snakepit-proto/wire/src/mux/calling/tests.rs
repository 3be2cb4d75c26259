//! Outcomes of calls whose connection ends.

use bytes::Bytes;
use futures_util::StreamExt;
use snakepit_proto::mux::Frames;
use snakepit_registry::CallMode;
use snakepit_session::Payload;

use super::*;
use crate::mux::value_reply;

/// A worker that died, with the reply that it stored, if any.
#[derive(Debug, Clone)]
struct DeadWorker(Option<pb::CallReply>);

fn internal(problem: &str) -> ToolError {
    ToolError::internal(problem)
}

#[async_trait]
impl CallErrors for DeadWorker {
    async fn rejection_error(&self, _: &CallInfo, _: Status) -> ToolError {
        internal("rejected")
    }

    async fn lost_call(&self, _: &CallInfo, id: u64, _: Status) -> LostCall {
        let stored_reply = self.0.clone().map(|reply| pb::CallReply { id, ..reply });
        LostCall { stored_reply, error: internal("lost") }
    }

    async fn unsent_error(&self, _: &CallInfo, _: Status) -> ToolError {
        internal("unsent")
    }

    fn failure_error(&self, _: &CallInfo, failure: ToolFailure) -> ToolError {
        ToolError::Failed(Box::new(failure))
    }

    fn bad_value_error(&self, error: &WireError) -> ToolError {
        internal(&error.to_string())
    }

    fn protocol_error(&self, violation: &str) -> ToolError {
        internal(violation)
    }

    fn worker(&self, _: &str) -> Option<Arc<str>> {
        None
    }
}

const ID: u64 = 1;

fn chunks(data: &[u8]) -> pb::ReplyBatch {
    let chunk = pb::CallChunk { data: data.to_vec().into(), ..pb::CallChunk::default() };
    let opened = vec![pb::CallOpened { id: ID, ..pb::CallOpened::default() }];
    let chunks = vec![pb::CallChunks { id: ID, chunks: vec![chunk] }];
    pb::ReplyBatch { opened, chunks, ..pb::ReplyBatch::default() }
}

/// Returns the end of a stream after one chunk, then `last`, then the end of its connection.
async fn end_of_stream(callee: &DeadWorker, last: pb::ReplyBatch) -> Option<String> {
    let (multiplexer, frames) = Frames::open();
    let mut streaming = ToolCall::new("stream");
    streaming.mode = CallMode::Streaming;
    let started = call(&multiplexer, callee, streaming);
    let mut frames = frames;
    assert!(frames.poll_take(&mut Context::from_waker(std::task::Waker::noop())).is_ready());
    frames.deliver(chunks(b"1"));
    let ReplyBody::Stream(mut stream) = started.await.unwrap().body else { panic!("it streams") };
    assert_eq!(&stream.next().await.unwrap().unwrap().data[..], b"1");
    frames.deliver(last);
    frames.cut(&Status::unavailable("broken"));
    let end = stream.next().await.map(|end| end.unwrap_err().to_string());
    assert!(stream.next().await.is_none());
    end
}

fn end_of(reply: pb::CallReply) -> pb::ReplyBatch {
    pb::ReplyBatch { replies: vec![pb::CallReply { id: ID, ..reply }], ..pb::ReplyBatch::default() }
}

#[tokio::test]
async fn a_stream_is_complete_only_if_its_end_arrived() {
    let complete = pb::CallReply::default();
    let empty = pb::ReplyBatch::default();
    let lost = internal("lost").to_string();
    // The worker stored the end, but did not send the chunks before it.
    for stored in [None, Some(complete.clone()), Some(value_reply(0, Payload::null(), None))] {
        assert_eq!(end_of_stream(&DeadWorker(stored), empty.clone()).await, Some(lost.clone()));
    }
    assert_eq!(end_of_stream(&DeadWorker(None), end_of(complete)).await, None);
    let value = end_of(value_reply(0, Payload::null(), None));
    assert_eq!(
        end_of_stream(&DeadWorker(None), value).await,
        Some(internal("ended a stream with a value").to_string())
    );
}

#[tokio::test]
async fn a_chunk_with_an_invalid_reference_ends_its_stream() {
    let json = r#"{"binary_format":"nested","value":[{"__snakepit__":"bytes","offset":0,"length":9}]}"#;
    let chunk = |bytes: &'static [u8]| {
        let binary = Some(Bytes::from_static(bytes));
        let chunk = pb::CallChunk { data: json.into(), binary, ..pb::CallChunk::default() };
        vec![pb::CallChunks { id: ID, chunks: vec![chunk.clone(), chunk] }]
    };
    let batch = pb::ReplyBatch { chunks: chunk(b"12345678"), ..pb::ReplyBatch::default() };
    let problem = end_of_stream(&DeadWorker(None), batch).await.unwrap();
    assert!(problem.contains("refers to bytes 0 to 9 of its buffers, which have 8 bytes"), "{problem}");
}

#[tokio::test]
async fn a_stored_value_is_the_reply_of_a_lost_call() {
    let unary = async |stored| {
        let (multiplexer, mut frames) = Frames::open();
        let callee = DeadWorker(stored);
        let answer = call(&multiplexer, &callee, ToolCall::new("echo"));
        assert!(frames.poll_take(&mut Context::from_waker(std::task::Waker::noop())).is_ready());
        frames.cut(&Status::unavailable("broken"));
        answer.await
    };
    assert!(unary(Some(value_reply(0, Payload::null(), None))).await.is_ok());
    for stored in [None, Some(pb::CallReply::default())] {
        assert_eq!(unary(stored).await.unwrap_err().to_string(), internal("lost").to_string());
    }
}
