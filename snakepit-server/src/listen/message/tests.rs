//! Tests of messages that arrive in segments, slowly or incompletely, and of messages that are too large.

use std::{
    convert::Infallible,
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::time::Instant;
use tonic::Code;

use super::*;
use crate::listen::{
    ResponseBudget,
    budget::ArrivalBudgets,
    connections::{Admission, Connection, Connections, Peer},
};

/// A body that yields these segments, each after a pause, and then ends or stalls.
struct TestBody {
    segments: VecDeque<Bytes>,
    pause: Option<Duration>,
    timer: Option<Pin<Box<tokio::time::Sleep>>>,
    never_ends: bool,
}

fn test_body<const N: usize>(segments: [Vec<u8>; N], never_ends: bool) -> TestBody {
    TestBody {
        segments: segments.into_iter().map(Bytes::from).collect(),
        pause: None,
        timer: None,
        never_ends,
    }
}

impl Body for TestBody {
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
        match self.segments.pop_front() {
            Some(data) => Poll::Ready(Some(Ok(Frame::data(data)))),
            None if self.never_ends => Poll::Pending,
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.segments.is_empty() && !self.never_ends
    }
}

/// Reads a message, with its memory.
async fn read(
    body: TestBody,
    limits: MessageLimits,
    connection: &Arc<Connection>,
) -> Result<(Message, RequestMemory), Status> {
    let mut memory = RequestMemory::new(Arc::clone(connection));
    Ok((read_message(body, limits, &mut memory).await?, memory))
}

fn prefixed(announced_size: u32, arrived: usize) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend(announced_size.to_be_bytes());
    bytes.resize(5 + arrived, 7);
    bytes
}

fn connection(bytes: usize, arriving: &ArrivalBudgets) -> Arc<Connection> {
    let connections =
        Connections::new(1, bytes, arriving.clone(), Arc::new(ResponseBudget::new(1)), Weak::new(), false);
    let Admission::Admitted(permit) = connections.admit(Peer::Unknown) else { panic!("rejected") };
    Arc::clone(permit.connection())
}

const fn limits(bytes: usize) -> MessageLimits {
    MessageLimits { bytes, nested: &[] }
}

async fn rejection(body: TestBody, limit: usize, connection: &Arc<Connection>) -> Status {
    read(body, limits(limit), connection).await.map(drop).unwrap_err()
}

#[tokio::test]
async fn a_message_counts_until_its_response() {
    let arriving = ArrivalBudgets::new(10_000);
    let connection = connection(10_000, &arriving);
    let body = test_body([prefixed(6000, 3000), vec![7; 3000]], false);
    let (message, memory) = read(body, limits(6000), &connection).await.unwrap();
    assert_eq!((message.bytes, arriving.clients.used()), (6005, 0), "the message has arrived");
    let status = rejection(test_body([prefixed(6000, 6000)], false), 6000, &connection).await;
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("hold 6261 bytes already, the limit is 10000"), "{status}");
    drop(memory);
    read(test_body([prefixed(6000, 6000)], false), limits(6000), &connection).await.unwrap();
}

#[tokio::test]
async fn unfinished_messages_of_all_connections_share_a_budget() {
    let arriving = ArrivalBudgets::new(10_000);
    let (one, other) = (connection(1 << 20, &arriving), connection(1 << 20, &arriving));
    let unfinished = read(test_body([prefixed(9000, 8000)], true), limits(9000), &one);
    let mut unfinished = Box::pin(unfinished);
    assert!(futures_util::poll!(unfinished.as_mut()).is_pending());
    let status = rejection(test_body([prefixed(9000, 8000)], true), 9000, &other).await;
    assert!(status.message().contains("hold 8133 bytes already, the limit is 10000"), "{status}");
    // A message in one segment does not count as arriving.
    read(test_body([prefixed(9000, 9000)], false), limits(9000), &other).await.unwrap();
    drop(unfinished);
    assert_eq!(arriving.clients.used(), 0);
}

#[tokio::test]
async fn tiny_segments_count_with_their_overhead() {
    let arriving = ArrivalBudgets::new(1 << 20);
    let connection = connection(1 << 20, &arriving);
    let mut body = test_body([prefixed(1 << 20, 0)], true);
    body.segments.extend((0..1_000_000).map(|_| Bytes::from_static(b"x")));
    let status = rejection(body, 1 << 20, &connection).await;
    assert_eq!(status.code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn a_large_message_is_rejected_before_it_arrives() {
    let arriving = ArrivalBudgets::new(1 << 20);
    let connection = connection(1 << 20, &arriving);
    let prefix = prefixed(1001, 0);
    let body = test_body([prefix[..2].to_vec(), prefix[2..].to_vec()], true);
    let status = rejection(body, 1000, &connection).await;
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("has 1001 bytes, the limit is 1000"), "{status}");
    // A message that is longer than its prefix announces.
    let body = test_body([prefixed(10, 10), vec![0; 2000]], true);
    assert!(rejection(body, 1000, &connection).await.message().contains("the limit is 1000"));
}

#[tokio::test(start_paused = true)]
async fn a_message_that_stalls_or_trickles_is_rejected() {
    let arriving = ArrivalBudgets::new(1 << 30);
    let connection = connection(1 << 30, &arriving);
    let start = Instant::now();
    let status = rejection(test_body([prefixed(1000, 10)], true), 1000, &connection).await;
    assert_eq!((status.code(), start.elapsed().as_secs()), (Code::DeadlineExceeded, 30));
    let start = Instant::now();
    let mut trickle = test_body([prefixed(1000, 10)], true);
    trickle.pause = Some(Duration::from_secs(7));
    trickle.segments.extend((0..900).map(|_| Bytes::from_static(b"x")));
    let status = rejection(trickle, 1000, &connection).await;
    assert_eq!((status.code(), start.elapsed().as_secs()), (Code::DeadlineExceeded, 30));
    // A message that arrives slowly but steadily may take longer.
    let mut slow = test_body([prefixed(64 << 20, 0)], false);
    slow.pause = Some(Duration::from_secs(4));
    slow.segments.extend((0..64).map(|_| Bytes::from(vec![7; 1 << 20])));
    assert_eq!(read(slow, limits(64 << 20), &connection).await.unwrap().0.bytes, (64 << 20) + 5);
}

#[tokio::test]
async fn a_second_message_is_rejected() {
    let connection = connection(1 << 20, &ArrivalBudgets::new(1 << 20));
    for cut in [0, 3, 5, 15, 25] {
        let both = [prefixed(10, 10), prefixed(10, 10)].concat();
        let body = test_body([both[..cut].to_vec(), both[cut..].to_vec()], false);
        let status = rejection(body, 1000, &connection).await;
        assert_eq!(status.code(), Code::Unimplemented, "{cut}: {status}");
    }
}
