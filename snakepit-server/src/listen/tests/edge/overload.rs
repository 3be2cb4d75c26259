//! Tests of clients that exhaust the memory budget of their requests.

use std::{collections::HashMap, task::Poll};

use prost::Message;
use snakepit_proto::{
    flow::MAX_HEADER_LIST_SIZE,
    pb,
    status::{ClosedByPeer, details_of, root_cause},
};
use tonic::Status;

use super::{MULTIPLEX, PING, TestServer, gzipped, message, ping, read_messages, request, trailers};

/// Reads messages of a call stream until each of these calls has a reply. Returns the codes of their statuses.
async fn reply_codes<const N: usize>(body: &mut h2::RecvStream, ids: [u64; N]) -> [i32; N] {
    let mut codes = HashMap::new();
    while !ids.iter().all(|id| codes.contains_key(id)) {
        let (_, message) = read_messages(body, 1).await.remove(0);
        let replies = pb::ReplyBatch::decode(&*message).unwrap().replies;
        codes.extend(replies.into_iter().map(|reply| (reply.id, reply.status.map_or(0, |s| s.code))));
    }
    ids.map(|id| codes[&id])
}

#[tokio::test]
async fn an_exhausted_budget_rejects_single_calls_and_keeps_their_stream_open() {
    const LIMIT: usize = 1 << 20;
    let overloaded = tonic::Code::ResourceExhausted as i32;
    for is_gzip in [false, true] {
        let mut server = TestServer::new(LIMIT).await;
        let (client, state) = server.client().await;
        let call = |id, tool_name: &str, bytes| {
            let value = pb::CallValue {
                r#type: pb::CallValueType::String.into(),
                json: format!("\"{}\"", "x".repeat(bytes)).into(),
                ..pb::CallValue::default()
            };
            let arguments = vec![pb::CallArgument { name: "x".to_owned(), value: Some(value) }];
            pb::CallStart { id, tool_name: tool_name.to_owned(), arguments, ..Default::default() }
        };
        let batch = |calls: &[pb::CallStart]| pb::CallBatch { calls: calls.to_vec(), ..Default::default() };
        let encode = |batch: &pb::CallBatch| match is_gzip {
            true => gzipped(&batch.encode_to_vec()),
            false => message(batch),
        };
        let mut open = request(MULTIPLEX);
        if is_gzip {
            open = open.header("grpc-encoding", "gzip");
        }
        let mut ready = client.clone().ready().await.unwrap();
        let (response, mut send) = ready.send_request(open.body(()).unwrap(), false).unwrap();
        let sleep = pb::CallStart { id: 1, tool_name: "sleep".to_owned(), ..Default::default() };
        send.send_data(encode(&batch(&[sleep])), false).unwrap();
        let mut body = response.await.unwrap().into_body();
        while !state.is_in_use() {
            assert_eq!(ping(&client).await, 0);
        }
        // Other requests of the client use the whole budget.
        state.reserve(LIMIT, 0).unwrap();
        // Together, these messages exceed the headroom of the connection.
        for id in (2..120).step_by(2) {
            let large = encode(&batch(&[call(id, "missing", 200_000), call(id + 1, "missing", 10)]));
            let half = large.len() / 2;
            send.send_data(large.slice(..half), false).unwrap();
            assert_eq!(ping(&client).await, 8, "the budget is exhausted");
            send.send_data(large.slice(half..), false).unwrap();
            // The host has no workers, so admitted calls are unavailable.
            let admitted = tonic::Code::Unavailable as i32;
            assert_eq!(reply_codes(&mut body, [id, id + 1]).await, [overloaded, admitted], "gzip: {is_gzip}");
        }
        state.release(LIMIT);
        send.send_data(encode(&batch(&[call(200, "missing", 200_000)])), false).unwrap();
        assert_eq!(reply_codes(&mut body, [200]).await, [tonic::Code::Unavailable as i32]);
        assert!(state.is_in_use(), "the first call still runs");
    }
}

#[tokio::test]
async fn a_stream_whose_first_message_exceeds_the_budget_reports_that_nothing_was_delivered() {
    const LIMIT: usize = 4 << 20;
    let mut server = TestServer::new(LIMIT).await;
    let (client, state) = server.client().await;
    state.reserve(LIMIT, 0).unwrap();
    for has_earlier in [false, true] {
        let mut ready = client.clone().ready().await.unwrap();
        let (response, mut send) = ready.send_request(request(MULTIPLEX).body(()).unwrap(), false).unwrap();
        if has_earlier {
            send.send_data(message(&pb::CallBatch::default()), false).unwrap();
        }
        let mut large = vec![0];
        large.extend((8_u32 << 20).to_be_bytes());
        large.resize(4 << 20, 0);
        send.send_data(large.into(), false).unwrap();
        let trailers = trailers(response).await;
        assert_eq!(trailers["grpc-status"], "8");
        let details = details_of(&Status::from_header_map(&trailers).unwrap());
        assert_eq!(details.reason.as_deref(), Some("OVERLOADED"));
        assert_eq!(details.metadata["delivered"], has_earlier.to_string());
        assert!(details.retry_after.is_some());
    }
}

#[tokio::test]
async fn half_sent_messages_on_streams_count_towards_the_budgets() {
    const LIMIT: usize = 1 << 20;
    const HEADROOM: usize = 8 << 20;
    for (announced, has_earlier, max_buffered) in
        [(60_u32 << 20, true, LIMIT), (1 << 20, false, LIMIT), (1 << 20, true, LIMIT + HEADROOM)]
    {
        let mut server = TestServer::new(LIMIT).await;
        let (client, _) = server.client().await;
        let (mut open, mut buffered) = (Vec::new(), 0);
        for _ in 0..32 {
            let mut ready = client.clone().ready().await.unwrap();
            let (response, mut send) =
                ready.send_request(request(MULTIPLEX).body(()).unwrap(), false).unwrap();
            if has_earlier {
                send.send_data(message(&pb::CallBatch::default()), false).unwrap();
            }
            let mut half = vec![0];
            half.extend(announced.to_be_bytes());
            half.resize(400 << 10, 0);
            send.send_data(half.into(), false).unwrap();
            open.push((response, send));
        }
        let mut rejected = vec![false; open.len()];
        // Each ping lets the server process more of what was sent.
        for _ in 0..1000 {
            ping(&client).await;
            for (is_rejected, (_, send)) in rejected.iter_mut().zip(&mut open) {
                let reset = std::future::poll_fn(|cx| Poll::Ready(send.poll_reset(cx))).await;
                *is_rejected |= reset.is_ready();
            }
            buffered = rejected.iter().filter(|is_rejected| !**is_rejected).count() * (400 << 10);
            if buffered <= max_buffered {
                break;
            }
        }
        assert!(
            buffered > 0 && buffered <= max_buffered,
            "{announced} {has_earlier}: {buffered} bytes are buffered"
        );
    }
}

/// The Rust client therefore does not send such headers.
#[tokio::test]
async fn headers_far_above_the_limit_end_the_connection_and_its_other_requests() {
    let mut server = TestServer::new(1 << 20).await;
    let (client, state) = server.client().await;
    let mut ready = client.clone().ready().await.unwrap();
    let (open, _send) = ready.send_request(request(MULTIPLEX).body(()).unwrap(), false).unwrap();
    let mut open = open.await.unwrap().into_body();
    while !state.has_served() {
        assert_eq!(ping(&client).await, 0);
    }
    let mut large = request(PING);
    for n in 0..20 {
        large = large.header(format!("x-{n}"), "x".repeat(MAX_HEADER_LIST_SIZE as usize));
    }
    let (refused, _) = ready.ready().await.unwrap().send_request(large.body(()).unwrap(), true).unwrap();
    assert!(refused.await.is_err());
    let lost = open.data().await.unwrap().unwrap_err();
    // h2 reports a broken pipe.
    assert!(root_cause(&lost).is::<ClosedByPeer>(), "{lost}");
}
