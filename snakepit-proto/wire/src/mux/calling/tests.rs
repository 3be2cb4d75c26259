//! What the end of a connection means for its calls.

use futures_util::StreamExt;
use snakepit_proto::mux::Frames;
use snakepit_registry::CallMode;
use snakepit_session::Payload;

use super::*;
use crate::mux::value_reply;

/// A worker that is gone, and left an answer behind or did not.
#[derive(Debug, Clone)]
struct Gone(Option<pb::CallReply>);

fn gone(what: &str) -> ToolError {
    ToolError::Internal { problem: what.to_owned() }
}

#[async_trait]
impl Callee for Gone {
    async fn refused(&self, _: &CallInfo, _: Status) -> ToolError {
        gone("refused")
    }

    async fn broken(&self, _: &CallInfo, id: u64, _: Status) -> LostCall {
        let answer = self.0.clone().map(|reply| pb::CallReply { id, ..reply });
        LostCall { answer, error: gone("lost") }
    }

    async fn unsent(&self, _: &CallInfo, _: Status) -> ToolError {
        gone("unsent")
    }

    fn failed(&self, _: &CallInfo, failure: ToolFailure) -> ToolError {
        ToolError::Failed(Box::new(failure))
    }

    fn bad_value(&self, error: &WireError) -> ToolError {
        gone(&error.to_string())
    }

    fn protocol_error(&self, what: &str) -> ToolError {
        gone(what)
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

/// A stream of which one chunk arrived, then `last`, before its connection broke: how it ends.
async fn stream_ends(callee: &Gone, last: pb::ReplyBatch) -> Option<String> {
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
    let nothing = pb::ReplyBatch::default();
    let lost = gone("lost").to_string();
    // The worker recorded the end, but the chunks before it had not left.
    for kept in [None, Some(complete.clone()), Some(value_reply(0, Payload::null(), None))] {
        assert_eq!(stream_ends(&Gone(kept), nothing.clone()).await, Some(lost.clone()));
    }
    assert_eq!(stream_ends(&Gone(None), end_of(complete)).await, None);
    let value = end_of(value_reply(0, Payload::null(), None));
    assert_eq!(stream_ends(&Gone(None), value).await, Some(gone("ended a stream with a value").to_string()));
}

#[tokio::test]
async fn a_value_that_was_left_behind_is_the_answer() {
    let unary = async |kept| {
        let (multiplexer, mut frames) = Frames::open();
        let callee = Gone(kept);
        let answer = call(&multiplexer, &callee, ToolCall::new("echo"));
        assert!(frames.poll_take(&mut Context::from_waker(std::task::Waker::noop())).is_ready());
        frames.cut(&Status::unavailable("broken"));
        answer.await
    };
    assert!(unary(Some(value_reply(0, Payload::null(), None))).await.is_ok());
    for kept in [None, Some(pb::CallReply::default())] {
        assert_eq!(unary(kept).await.unwrap_err().to_string(), gone("lost").to_string());
    }
}
