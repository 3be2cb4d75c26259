//! Messages that arrive in pieces, slowly, in too many fields, or not at all.

use std::{convert::Infallible, sync::Weak, time::Duration};

use tokio::time::Instant;
use tonic::Code;

use super::*;
use crate::listen::{
    Outgoing,
    budget::Arriving,
    connections::{Admission, Connections, Peer},
};

/// A body that gives these pieces, each after a pause, and then ends or stalls.
struct Pieces {
    left: VecDeque<Bytes>,
    pause: Option<Duration>,
    timer: Option<Pin<Box<tokio::time::Sleep>>>,
    stalls: bool,
}

fn pieces<const N: usize>(pieces: [Vec<u8>; N], stalls: bool) -> Pieces {
    Pieces { left: pieces.into_iter().map(Bytes::from).collect(), pause: None, timer: None, stalls }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(pause) = self.pause {
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(pause)));
            std::task::ready!(timer.as_mut().poll(cx));
            self.timer = None;
        }
        match self.left.pop_front() {
            Some(data) => Poll::Ready(Some(Ok(Frame::data(data)))),
            None if self.stalls => Poll::Pending,
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty() && !self.stalls
    }
}

fn prefixed(announced: u32, here: usize) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend(announced.to_be_bytes());
    bytes.resize(5 + here, 7);
    bytes
}

fn connection(bytes: usize, arriving: &Arriving) -> Arc<Connection> {
    let connections = Connections::new(1, bytes, arriving.clone(), Arc::new(Outgoing::new(1)), Weak::new());
    let Admission::Admitted(slot) = connections.admit(Peer::Unknown) else { panic!("refused") };
    Arc::clone(slot.connection())
}

const fn limits(bytes: usize) -> MessageLimits {
    MessageLimits { bytes, nested: &[] }
}

async fn refused(body: Pieces, limit: usize, connection: &Arc<Connection>) -> Status {
    collect(body, limits(limit), connection).await.map(drop).unwrap_err()
}

#[tokio::test]
async fn a_message_counts_until_it_is_answered() {
    let arriving = Arriving::new(10_000);
    let connection = connection(10_000, &arriving);
    let body = pieces([prefixed(6000, 3000), vec![7; 3000]], false);
    let (message, share) = collect(body, limits(6000), &connection).await.unwrap();
    assert_eq!((message.bytes, arriving.clients.used()), (6005, 0), "it has arrived");
    let status = refused(pieces([prefixed(6000, 6000)], false), 6000, &connection).await;
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("hold 6261 bytes already, the limit is 10000"), "{status}");
    drop(share);
    collect(pieces([prefixed(6000, 6000)], false), limits(6000), &connection).await.unwrap();
}

#[tokio::test]
async fn unfinished_messages_of_all_connections_share_a_budget() {
    let arriving = Arriving::new(10_000);
    let (one, other) = (connection(1 << 20, &arriving), connection(1 << 20, &arriving));
    let unfinished = collect(pieces([prefixed(9000, 8000)], true), limits(9000), &one);
    let mut unfinished = Box::pin(unfinished);
    assert!(futures_util::poll!(unfinished.as_mut()).is_pending());
    let status = refused(pieces([prefixed(9000, 8000)], true), 9000, &other).await;
    assert!(status.message().contains("hold 8133 bytes already, the limit is 10000"), "{status}");
    // One that is here at once does not arrive slowly, and passes.
    collect(pieces([prefixed(9000, 9000)], false), limits(9000), &other).await.unwrap();
    drop(unfinished);
    assert_eq!(arriving.clients.used(), 0);
}

#[tokio::test]
async fn tiny_pieces_cost_what_they_occupy() {
    let arriving = Arriving::new(1 << 20);
    let connection = connection(1 << 20, &arriving);
    let mut body = pieces([prefixed(1 << 20, 0)], true);
    body.left.extend((0..1_000_000).map(|_| Bytes::from_static(b"x")));
    let status = refused(body, 1 << 20, &connection).await;
    assert_eq!(status.code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn a_large_message_is_refused_before_it_arrives() {
    let arriving = Arriving::new(1 << 20);
    let connection = connection(1 << 20, &arriving);
    let prefix = prefixed(1001, 0);
    let body = pieces([prefix[..2].to_vec(), prefix[2..].to_vec()], true);
    let status = refused(body, 1000, &connection).await;
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("has 1001 bytes, the limit is 1000"), "{status}");
    // What is longer than it says.
    let body = pieces([prefixed(10, 10), vec![0; 2000]], true);
    assert!(refused(body, 1000, &connection).await.message().contains("the limit is 1000"));
}

#[tokio::test(start_paused = true)]
async fn a_message_that_stalls_or_trickles_is_given_up() {
    let arriving = Arriving::new(1 << 30);
    let connection = connection(1 << 30, &arriving);
    let start = Instant::now();
    let status = refused(pieces([prefixed(1000, 10)], true), 1000, &connection).await;
    assert_eq!((status.code(), start.elapsed().as_secs()), (Code::DeadlineExceeded, 30));
    let start = Instant::now();
    let mut trickle = pieces([prefixed(1000, 10)], true);
    trickle.pause = Some(Duration::from_secs(7));
    trickle.left.extend((0..900).map(|_| Bytes::from_static(b"x")));
    let status = refused(trickle, 1000, &connection).await;
    assert_eq!((status.code(), start.elapsed().as_secs()), (Code::DeadlineExceeded, 30));
    // One that arrives slowly but steadily has the time it needs.
    let mut slow = pieces([prefixed(64 << 20, 0)], false);
    slow.pause = Some(Duration::from_secs(4));
    slow.left.extend((0..64).map(|_| Bytes::from(vec![7; 1 << 20])));
    assert_eq!(collect(slow, limits(64 << 20), &connection).await.unwrap().0.bytes, (64 << 20) + 5);
}

#[tokio::test]
async fn a_second_message_is_refused() {
    let connection = connection(1 << 20, &Arriving::new(1 << 20));
    for cut in [0, 3, 5, 15, 25] {
        let both = [prefixed(10, 10), prefixed(10, 10)].concat();
        let body = pieces([both[..cut].to_vec(), both[cut..].to_vec()], false);
        let status = refused(body, 1000, &connection).await;
        assert_eq!(status.code(), Code::Unimplemented, "{cut}: {status}");
    }
}
