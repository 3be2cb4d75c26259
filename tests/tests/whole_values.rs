//! Bytes, arrays and objects of every type, at any depth, in each place where values travel.

use std::{borrow::Cow, process::Stdio};

use bytes::Bytes;
use futures_util::StreamExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use snakepit_proto::{
    headers,
    pb::{self, bridge_service_client::BridgeServiceClient},
};
use snakepit_server::{Caller, Client, HostHandle, Payload, Snakepit};
use snakepit_tests::{python, root};

#[derive(Deserialize, JsonSchema)]
struct Mirror {
    value: Payload,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Frame {
    name: String,
    image: Bytes,
    boxes: Payload,
    scores: Vec<f64>,
}

fn frame() -> Frame {
    Frame {
        name: "a".to_owned(),
        image: Bytes::from_static(b"\x89PNG"),
        boxes: Payload::tensor(&[2, 2], &[1.5_f32, 2.0, f32::INFINITY, -4.0]).unwrap(),
        scores: vec![0.5, f64::NEG_INFINITY],
    }
}

async fn start(dir: &tempfile::TempDir) -> Snakepit {
    Snakepit::builder()
        .adapter("whole_values:WholeValues")
        .env("PYTHONPATH", root().join("tests/adapters").display().to_string())
        .python(python())
        .run_dir(dir.path())
        .workers(2)
        .host_tool("mirror", |mirror: Mirror| async move { mirror.value })
        .host_tool("mirror_stream", |mirror: Mirror| futures_util::stream::iter([mirror.value]))
        .listen(([127, 0, 0, 1], 0).into())
        .start()
        .await
        .unwrap()
}

#[tokio::test]
async fn values_of_every_type_arrive_whole_in_every_place() {
    let dir = tempfile::tempdir().unwrap();
    let snakepit = start(&dir).await;
    let output = tokio::process::Command::new(python())
        .arg(root().join("tests/clients/whole_values_client.py"))
        .arg(snakepit.address().unwrap().to_string())
        .env("PYTHONPATH", root().join("tests/adapters"))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let (printed, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let (counts, problems) = printed.split_once('\n').unwrap_or_default();
    let counts: Vec<usize> = counts.split(' ').filter_map(|count| count.parse().ok()).collect();
    assert!(counts.first().is_some_and(|samples| *samples > 50), "{printed}{errors}");
    assert_eq!((problems.trim(), counts[1]), ("", counts[0] * 10), "{errors}");
    snakepit.shutdown().await.unwrap();
}

async fn buffers_stay_in_structs(caller: &Caller<impl HostHandle>) {
    let sent = [frame(), Frame { name: "b".to_owned(), ..frame() }];
    let back: Vec<Frame> = caller.execute("echo", json_free(&sent[..])).await.unwrap();
    for (back, sent) in back.iter().zip(&sent) {
        assert_eq!((&back.name, &back.image, &back.scores), (&sent.name, &sent.image, &sent.scores));
        assert_eq!(
            (back.boxes.shape(), back.boxes.items::<f32>().unwrap()),
            (Some(vec![2, 2]), sent.boxes.items().unwrap())
        );
    }
    let mut chunks = caller.execute_stream::<Payload>("make_all", json!({"depth": 2})).await.unwrap();
    let mut count = 0;
    while let Some(chunk) = chunks.next().await {
        chunk.unwrap();
        count += 1;
    }
    assert!(count > 50, "{count} chunks");
    let mut frames = caller.execute_stream::<Payload>("repeat", json_free(&sent[..])).await.unwrap();
    let first: Vec<Frame> = frames.next().await.unwrap().unwrap().to_serde().unwrap();
    assert_eq!(first[1].boxes.items::<f32>().unwrap(), sent[1].boxes.items::<f32>().unwrap());
}

#[derive(Serialize)]
struct Arguments<T> {
    value: T,
}

const fn json_free<T>(value: T) -> Arguments<T> {
    Arguments { value }
}

#[tokio::test]
async fn bytes_and_arrays_stay_in_structs_of_rust() {
    let dir = tempfile::tempdir().unwrap();
    let snakepit = start(&dir).await;
    buffers_stay_in_structs(&snakepit).await;
    let client = Client::connect(&snakepit.address().unwrap().to_string()).await.unwrap();
    buffers_stay_in_structs(&client).await;
    snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn large_arrays_of_workers_are_aligned() {
    let dir = tempfile::tempdir().unwrap();
    let snakepit = start(&dir).await;
    let (_, array): (Bytes, Payload) = snakepit.execute("ones", json!({"count": 100_000})).await.unwrap();
    let items = array.items::<f64>().unwrap();
    assert!(matches!(&items, Cow::Borrowed(items) if items[99_999] == 1.0));
    snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn the_host_rejects_references_to_bytes_that_are_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let snakepit = start(&dir).await;
    let mut client = raw_client(&snakepit).await;
    let json = r#"{"binary_format":"nested","value":[{"__snakepit__":"bytes","offset":0,"length":9}]}"#;
    let value =
        pb::Any { type_url: "type.googleapis.com/snakepit.list.binary".to_owned(), value: json.into() };
    let request = |bytes: &'static [u8]| pb::ExecuteToolRequest {
        tool_name: "echo".to_owned(),
        parameters: [("value".to_owned(), value.clone())].into(),
        binary_parameters: [("value".to_owned(), Bytes::from_static(bytes))].into(),
        ..Default::default()
    };
    assert!(client.execute_tool(request(b"123456789")).await.unwrap().into_inner().success);
    let status = client.execute_tool(request(b"12345678")).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    assert!(
        status.message().contains("refers to bytes 0 to 9 of its buffers, which have 8 bytes"),
        "{status}"
    );
    snakepit.shutdown().await.unwrap();
}

async fn raw_client(snakepit: &Snakepit) -> BridgeServiceClient<tonic::transport::Channel> {
    let url = format!("http://{}", snakepit.address().unwrap());
    let channel = tonic::transport::Endpoint::from_shared(url).unwrap().connect().await.unwrap();
    BridgeServiceClient::new(channel)
}

#[tokio::test]
async fn clients_without_buffers_send_and_receive_base64() {
    let dir = tempfile::tempdir().unwrap();
    let snakepit = start(&dir).await;
    let mut client = raw_client(&snakepit).await;
    let value = |json: Value| pb::Any {
        type_url: format!("type.googleapis.com/snakepit.{}", if json.is_array() { "list" } else { "map" }),
        value: json.to_string().into(),
    };
    let plain = json!([{"__snakepit__": "bytes", "data": "AP8="}, 1.5]);
    let request = |tool: &str| pb::ExecuteToolRequest {
        tool_name: tool.to_owned(),
        parameters: [("value".to_owned(), value(plain.clone()))].into(),
        ..Default::default()
    };
    let answer = client.execute_tool(request("echo")).await.unwrap().into_inner();
    assert!(answer.success && answer.binary_result.is_empty(), "{answer:?}");
    let result = answer.result.unwrap();
    assert_eq!(result.type_url, "type.googleapis.com/snakepit.list");
    assert_eq!(serde_json::from_slice::<Value>(&result.value).unwrap(), plain);

    let mut chunks = client.execute_streaming_tool(request("repeat")).await.unwrap().into_inner();
    let chunk = chunks.message().await.unwrap().unwrap();
    assert_eq!((serde_json::from_slice::<Value>(&chunk.data).unwrap(), chunk.binary), (plain.clone(), None));

    // A multiplexed stream without `takes_buffers`.
    let start = pb::CallStart {
        id: 1,
        tool_name: "echo".to_owned(),
        arguments: vec![pb::CallArgument {
            name: "value".to_owned(),
            value: Some(pb::CallValue {
                r#type: pb::CallValueType::List.into(),
                json: plain.to_string().into(),
                ..Default::default()
            }),
        }],
        ..Default::default()
    };
    let batch = pb::CallBatch { calls: vec![start], ..Default::default() };
    let outbound = futures_util::stream::iter([batch]).chain(futures_util::stream::pending());
    let mut replies = client.multiplex(outbound).await.unwrap().into_inner();
    let reply = loop {
        let batch = replies.message().await.unwrap().unwrap();
        if let Some(reply) = batch.replies.into_iter().next() {
            break reply.value.unwrap();
        }
    };
    assert_eq!((serde_json::from_slice::<Value>(&reply.json).unwrap(), reply.binary), (plain.clone(), None));

    // A variable, read with and without buffers.
    let session_id = "plain".to_owned();
    let open = pb::InitializeSessionRequest { session_id: session_id.clone(), ..Default::default() };
    client.initialize_session(open).await.unwrap();
    let nested = Payload::try_from_serde(&[Bytes::from_static(b"\x00\xff")]).unwrap();
    let (any, buffers) = snakepit_wire::payload_to_wire(nested);
    let register = pb::RegisterVariableRequest {
        session_id: session_id.clone(),
        name: "x".to_owned(),
        r#type: "list".to_owned(),
        initial_value: Some(any),
        initial_binary_value: buffers.unwrap(),
        ..Default::default()
    };
    client.register_variable(register).await.unwrap();
    let get = || pb::GetVariableRequest {
        session_id: session_id.clone(),
        variable_identifier: "x".to_owned(),
        ..Default::default()
    };
    let read = client.get_variable(get()).await.unwrap().into_inner().variable.unwrap();
    let json: Value = serde_json::from_slice(&read.value.unwrap().value).unwrap();
    assert_eq!((json, read.binary_value), (json!([{"__snakepit__": "bytes", "data": "AP8="}]), Bytes::new()));
    let mut with_buffers = tonic::Request::new(get());
    with_buffers.metadata_mut().insert(headers::TAKES_BUFFERS, "true".parse().unwrap());
    let read = client.get_variable(with_buffers).await.unwrap().into_inner().variable.unwrap();
    assert_eq!(
        (&read.value.unwrap().type_url[..], &read.binary_value[..]),
        ("type.googleapis.com/snakepit.list.binary", &b"\x00\xff"[..])
    );
    snakepit.shutdown().await.unwrap();
}
