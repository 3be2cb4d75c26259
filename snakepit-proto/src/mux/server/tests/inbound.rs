//! The messages of the caller: when they are polled.

use std::convert::Infallible;

use bytes::Bytes;
use http_body::{Body, Frame};
use tonic::codec::Codec;
use tonic_prost::ProstCodec;

use super::*;

/// A request body without messages, which counts its polls. Clones share the body.
#[derive(Clone, Default)]
struct SilentBody(Arc<(AtomicUsize, Mutex<Option<Waker>>)>);

impl SilentBody {
    fn polls(&self) -> usize {
        self.0.0.load(Ordering::Relaxed)
    }

    fn wake(&self) {
        wake(self.0.1.lock().unwrap().take());
    }
}

impl Body for SilentBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.0.fetch_add(1, Ordering::Relaxed);
        *self.0.1.lock().unwrap() = Some(cx.waker().clone());
        Poll::Pending
    }
}

struct NoCalls;

impl Calls for NoCalls {
    fn receive(&mut self, _: CallBatch) {}
}

#[test]
fn messages_are_polled_only_after_their_own_wake_up() {
    let (body, replies) = (SilentBody::default(), Replies::new());
    let decoder = ProstCodec::<ReplyBatch, CallBatch>::default().decoder();
    let inbound = Streaming::new_request(decoder, body.clone(), None, None);
    let mut serve = Serve::new(inbound, NoCalls, replies.clone());
    let wake_ups = Arc::new(WakeCount::default());
    let waker = Waker::from(Arc::clone(&wake_ups));
    let mut poll = || Pin::new(&mut serve).poll_next(&mut Context::from_waker(&waker)).is_ready();
    assert_eq!((poll(), body.polls()), (false, 1));
    // Replies, and wake-ups of the transport for other reasons, do not poll the messages.
    replies.send_reply(reply_of(1, 1));
    assert_eq!(wake_ups.0.load(Ordering::Relaxed), 1);
    assert_eq!((poll(), poll(), poll(), body.polls()), (true, false, false, 1));
    body.wake();
    assert_eq!(wake_ups.0.load(Ordering::Relaxed), 2);
    assert_eq!((poll(), body.polls()), (false, 2));
    // A message that arrives while the task runs for another reason.
    replies.send_reply(reply_of(2, 1));
    body.wake();
    assert_eq!((poll(), poll(), body.polls()), (true, false, 3));
}
