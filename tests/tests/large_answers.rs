//! A large reply does not block small ones on the same stream (head-of-line blocking), if the caller accepts it in parts.

use std::{convert::Infallible, time::Duration};

use serde_json::{Value, json};
use snakepit_proto::{
    mux::{MAX_ITEM_BYTES, PART_BYTES},
    pb,
};
use snakepit_server::{Error, Snakepit, ToolError};
use snakepit_tests::{Client, python, root};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

const LARGE: usize = 60 * 1024 * 1024;

fn start(id: u64, tool: &str) -> pb::CallStart {
    pb::CallStart { id, tool_name: tool.to_owned(), ..pb::CallStart::default() }
}

/// Observations of a caller that makes sequential small calls until its large call ends.
#[derive(Debug, Default)]
struct Observations {
    /// The number of parts of the large reply.
    parts: usize,
    /// The number of small replies that arrived after the first part of the large one.
    small_between: usize,
    /// The longest duration of a small call.
    longest: Duration,
}

async fn small_calls_beside_a_large_one(client: &mut Client, takes_parts: bool) -> Observations {
    let (batches, outgoing) = mpsc::channel(8);
    let value = pb::CallValue {
        r#type: pb::CallValueType::Integer.into(),
        json: LARGE.to_string().into(),
        ..pb::CallValue::default()
    };
    let arguments = vec![pb::CallArgument { name: "size".to_owned(), value: Some(value) }];
    let calls = vec![pb::CallStart { arguments, ..start(1, "large") }, start(2, "small")];
    batches.send(pb::CallBatch { calls, takes_parts, ..pb::CallBatch::default() }).await.unwrap();
    let mut replies = client.multiplex(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
    let (mut observations, mut small, mut sent, mut bytes) = (Observations::default(), 2, Instant::now(), 0);
    loop {
        let batch = replies.message().await.unwrap().unwrap();
        for reply in batch.replies {
            let value = reply.value.expect("the reply has a value");
            if reply.id == 1 {
                let rest = value.binary.expect("the value is a buffer");
                assert_eq!((value.sent_in_parts, bytes + rest.len()), (bytes as u64, LARGE));
                observations.longest = observations.longest.max(sent.elapsed());
                return observations;
            }
            assert_eq!(reply.id, small);
            observations.longest = observations.longest.max(sent.elapsed());
            observations.small_between += usize::from(observations.parts > 0);
            (small, sent) = (small + 1, Instant::now());
            let calls = vec![start(small, "small")];
            batches.send(pb::CallBatch { calls, ..pb::CallBatch::default() }).await.unwrap();
        }
        for part in batch.parts {
            assert!(part.id == 1 && part.data.len() <= PART_BYTES);
            bytes += part.data.len();
            observations.parts += 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn small_replies_arrive_between_the_parts_of_a_large_one() {
    let dir = tempfile::tempdir().unwrap();
    let adapters = root().join("tests/adapters").display().to_string();
    let snakepit = Snakepit::builder()
        .adapter("large:LargeAdapter")
        .env("PYTHONPATH", adapters)
        .python(python())
        .run_dir(dir.path())
        .workers(1)
        .listen(([127, 0, 0, 1], 0).into())
        .host_tool("small", |_: Value| async { Ok::<_, Infallible>(1) })
        .start()
        .await
        .unwrap();
    let url = format!("http://{}", snakepit.address().unwrap());
    let channel = Endpoint::from_shared(url).unwrap().connect().await.unwrap();
    let mut client = Client::new(channel).max_decoding_message_size(usize::MAX);
    // Callers of older versions receive the reply in one piece.
    let whole = small_calls_beside_a_large_one(&mut client, false).await;
    assert_eq!((whole.parts, whole.small_between), (0, 0));
    let in_parts = small_calls_beside_a_large_one(&mut client, true).await;
    assert_eq!(in_parts.parts, LARGE / PART_BYTES - 1);
    assert!(in_parts.small_between >= 5, "{in_parts:?}");
    println!(
        "the slowest small call: {:?} during a reply in one piece, {:?} during one in parts",
        whole.longest, in_parts.longest
    );
    snakepit.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_above_the_limit_of_a_message_is_no_failure_of_the_tool() {
    for multiplex in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let snakepit = Snakepit::builder()
            .adapter("large:LargeAdapter")
            .env("PYTHONPATH", root().join("tests/adapters").display().to_string())
            .python(python())
            .run_dir(dir.path())
            .workers(1)
            .multiplex(multiplex)
            .start()
            .await
            .unwrap();
        let size = MAX_ITEM_BYTES + 1;
        // Writing a nested value stops at twice the limit.
        for (tool, size, qualifier) in [("large", size, ""), ("nested", 3 * size, "at least ")] {
            let error = snakepit.execute::<Value>(tool, json!({"size": size})).await.unwrap_err();
            let Error::Tool(ToolError::AnswerTooLarge { size: actual, limit: MAX_ITEM_BYTES, .. }) = error
            else {
                panic!("{tool}, {multiplex}: {error:?}");
            };
            assert!(actual >= size.min(2 * MAX_ITEM_BYTES) && error.may_have_run(), "{multiplex}: {actual}");
            let message = error.to_string();
            let numbers = format!("has {qualifier}{actual} bytes, the limit is {MAX_ITEM_BYTES}; ");
            assert!(message.contains(&numbers), "{message}");
        }
        snakepit.shutdown().await.unwrap();
    }
}
