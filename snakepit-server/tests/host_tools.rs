//! Host tools made from closures: state, the session, nested calls, streams, counters, and their errors at startup.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests may panic and detach tasks")]

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, TryStreamExt, stream};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use snakepit_server::{
    Builder, Error, FnTool, Host, HostToolStatus, Payload, SessionHandle, Snakepit, State, ToolCall,
    ToolContext, ToolError, testing::InProcessWorkers,
};
use tower::util::MapRequestLayer;

#[derive(Deserialize, JsonSchema)]
struct Order {
    /// The name on the label.
    item: String,
    #[serde(default)]
    count: Option<u32>,
}

#[derive(Debug, Clone)]
struct Prices(Arc<[(&'static str, f64)]>);

fn builder(dir: &tempfile::TempDir) -> Builder {
    let double = FnTool::typed("double", |args: HashMap<String, i64>| async move { args["n"] * 2 });
    let workers = InProcessWorkers::new().fn_tool(double);
    Snakepit::builder().launcher(Arc::new(workers)).workers(2).run_dir(dir.path())
}

fn status(snakepit: &Snakepit, name: &str) -> HostToolStatus {
    snakepit.host_tool_status().into_iter().find(|status| status.name == name).unwrap()
}

#[tokio::test]
async fn closures_get_state_the_session_and_the_host() {
    let dir = tempfile::tempdir().unwrap();
    let price = |order: Order, State(Prices(prices)): State<Prices>, host: Host, session: SessionHandle| async move {
        let (_, price) = prices.iter().find(|(item, _)| *item == order.item).ok_or("no such item")?;
        let count: i64 =
            host.execute("double", json!({"n": order.count.unwrap_or(1)})).await.map_err(|_| "double")?;
        // The handle of the session calls tools and has the variables of the session.
        let again: i64 = session.execute("double", json!({"n": count})).await.map_err(|_| "double")?;
        Ok::<_, &str>(json!([session.id().as_str(), price * f64::from(u8::try_from(again).unwrap())]))
    };
    let snakepit = builder(&dir)
        .state(Prices(Arc::new([("tea", 1.5)])))
        .host_tool("price", price)
        .start()
        .await
        .unwrap();
    let session = snakepit.session("alice").await.unwrap();
    let answer: Value = session.execute("price", json!({"item": "tea", "count": 3})).await.unwrap();
    assert_eq!(answer, json!(["alice", 18.0]));
    let error = snakepit.execute::<Value>("price", json!({"item": "tea"})).await.unwrap_err().to_string();
    assert_eq!(
        error,
        "argument `session_id` of tool `price` is missing; the tool uses a session, so call it in one"
    );
    let error =
        session.execute::<Value>("price", json!({"name": "tea", "size": 1})).await.unwrap_err().to_string();
    assert_eq!(
        error,
        "argument `item` of tool `price` is missing, `name` is unknown, and `size` is unknown; the tool takes item (string), \
         count (integer, optional)"
    );
    let (spec, provider) = &snakepit.tools().into_iter().find(|(spec, _)| spec.name == "price").unwrap();
    assert_eq!(
        (provider.as_str(), spec.parameters[0].description.as_str()),
        ("host", "The name on the label.")
    );
    snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn tools_that_the_host_cannot_call_fail_the_start() {
    let dir = tempfile::tempdir().unwrap();
    for (builder, problem) in [
        (
            builder(&dir).host_tool("greet", |name: String| async move { name }),
            "host tool `greet` takes `alloc::string::String`, which is a string",
        ),
        (
            builder(&dir).host_tool("price", |State(prices): State<Prices>| async move { prices.0.len() }),
            "host tool `price` needs a `State<host_tools::Prices>`, which the host does not have",
        ),
    ] {
        let error = builder.start().await.unwrap_err().to_string();
        assert!(error.contains(problem), "{error}");
    }
}

#[tokio::test]
async fn a_host_handle_marks_calls_as_nested_in_spawned_tasks_too() {
    let dir = tempfile::tempdir().unwrap();
    let passed = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&passed);
    let counting = MapRequestLayer::new(move |call: ToolCall| {
        counter.fetch_add(1, Ordering::Relaxed);
        call
    });
    let spawning = |host: Host| async move {
        let nested = tokio::spawn(async move { host.execute::<i64>("double", json!({"n": 2})).await });
        nested.await.unwrap().map_err(|error| error.to_string())
    };
    let snakepit = builder(&dir).layer(counting).host_tool("spawning", spawning).start().await.unwrap();
    assert_eq!(snakepit.execute::<i64>("spawning", ()).await.unwrap(), 4);
    assert_eq!(passed.load(Ordering::Relaxed), 1, "only the outer call goes through the layers");
    snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn counters_show_every_end_of_a_call() {
    let dir = tempfile::tempdir().unwrap();
    let fail = |_: ToolContext| async { Err::<(), _>("on purpose") };
    let count = |order: Order| stream::iter(0..order.count.unwrap_or(0));
    let snakepit = builder(&dir)
        .host_tool("fail", fail)
        .host_tool("count", count)
        .host_tool("endless", || stream::iter([1]).chain(stream::pending()))
        .host_tool("hang", std::future::pending::<()>)
        .start()
        .await
        .unwrap();
    snakepit.execute::<()>("fail", ()).await.unwrap_err();
    let failed = status(&snakepit, "fail");
    assert_eq!((failed.calls, failed.failures, failed.in_flight, failed.exposed), (1, 1, 0, true));

    let items = snakepit.execute_stream::<u32>("count", json!({"item": "x", "count": 3})).await.unwrap();
    assert_eq!(status(&snakepit, "count").in_flight, 1, "the stream has not ended");
    assert_eq!(items.try_collect::<Vec<_>>().await.unwrap(), [0, 1, 2]);
    let counted = status(&snakepit, "count");
    assert_eq!((counted.calls, counted.failures, counted.in_flight), (1, 0, 0));
    let unary = snakepit.execute::<u32>("count", json!({"item": "x"})).await.unwrap_err();
    assert!(unary.to_string().contains("streams its results"), "{unary}");

    let mut endless = snakepit.execute_stream::<u32>("endless", ()).await.unwrap();
    assert_eq!(endless.try_next().await.unwrap(), Some(1));
    drop(endless);
    let hang = snakepit.call("hang").timeout(Duration::from_millis(20)).unary::<()>().await.unwrap_err();
    assert!(matches!(hang, Error::Tool(ToolError::DeadlineExceeded { .. })), "{hang}");
    for name in ["endless", "hang"] {
        let dropped = status(&snakepit, name);
        assert_eq!((dropped.calls, dropped.cancelled, dropped.in_flight), (1, 1, 0), "{name}");
    }
    assert!(status(&snakepit, "hang").total_time >= Duration::from_millis(20));
    snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn an_answer_that_does_not_fit_a_message_to_a_worker_is_too_large() {
    use snakepit_proto::{pb, status::details_of};

    // Workers receive the buffer twice: inline for those of the original Snakepit, and as bytes.
    let answer =
        |arguments: HashMap<String, usize>| async move { Payload::bytes(vec![0; arguments["bytes"]].into()) };
    let dir = tempfile::tempdir().unwrap();
    let snakepit = builder(&dir).host_tool("zeros", answer).start().await.unwrap();
    let url = format!("unix://{}", snakepit.socket().display());
    let channel = tonic::transport::Endpoint::try_from(url).unwrap().connect().await.unwrap();
    let mut client = pb::bridge_service_client::BridgeServiceClient::new(channel);
    let mut call = async |bytes: &'static str| {
        let parameters = [(
            "bytes".to_owned(),
            pb::Any { type_url: "type.googleapis.com/snakepit.integer".to_owned(), value: bytes.into() },
        )];
        let tool_name = "zeros".to_owned();
        client
            .execute_elixir_tool(pb::ExecuteElixirToolRequest {
                tool_name,
                parameters: parameters.into(),
                ..Default::default()
            })
            .await
    };
    assert_eq!(call("1000").await.unwrap().into_inner().binary_result.len(), 1000);
    let error = call("60000000").await.unwrap_err();
    assert_eq!(details_of(&error).reason.as_deref(), Some("ANSWER_TOO_LARGE"), "{error:?}");
    assert!(call("1000").await.is_ok(), "the connection remains");
    snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn the_error_of_a_missed_deadline_names_the_limit_and_who_set_it() {
    let dir = tempfile::tempdir().unwrap();
    let snakepit = builder(&dir)
        .default_timeout(Some(Duration::from_millis(30)))
        .host_tool("hang", std::future::pending::<()>)
        .host_tool("endless", || stream::iter([1]).chain(stream::pending()))
        .start()
        .await
        .unwrap();
    let client =
        snakepit_server::Client::connect(&format!("unix:{}", snakepit.socket().display())).await.unwrap();
    let (soon, default) = (Duration::from_millis(20), "after the host's default timeout of 30ms");
    for (error, limit) in [
        (snakepit.execute::<()>("hang", ()).await.unwrap_err(), default),
        (client.execute::<()>("hang", ()).await.unwrap_err(), default),
        (
            snakepit.call("hang").timeout(soon).unary::<()>().await.unwrap_err(),
            "after the caller's timeout of 20ms",
        ),
        (
            client.call("hang").timeout(soon).unary::<()>().await.unwrap_err(),
            "after the caller's timeout of 20ms",
        ),
    ] {
        assert!(error.is_timeout() && error.to_string().contains(limit), "{error}");
    }
    let mut items = client.call("endless").timeout(soon).stream::<u32>().await.unwrap();
    assert_eq!(items.try_next().await.unwrap(), Some(1));
    let error = items.try_next().await.unwrap_err().to_string();
    assert!(error.contains("exceeded while running, after the caller's timeout of 20ms"), "{error}");
    for mut items in [
        snakepit.call("endless").stream::<u32>().await.unwrap(),
        client.call("endless").stream::<u32>().await.unwrap(),
    ] {
        assert_eq!(items.try_next().await.unwrap(), Some(1));
        let error = items.try_next().await.unwrap_err().to_string();
        assert!(error.contains(&format!("exceeded while running, {default}")), "{error}");
    }
    drop(client);
    snakepit.shutdown().await.unwrap();
}

/// Panics when it is dropped. Does not panic during another panic, because that would abort the process.
struct PanicsInDrop;

impl Drop for PanicsInDrop {
    fn drop(&mut self) {
        assert!(std::thread::panicking(), "in a destructor");
    }
}

#[tokio::test]
async fn a_panic_in_a_destructor_does_not_affect_other_calls_of_the_client() {
    let dir = tempfile::tempdir().unwrap();
    let gate = Arc::new(tokio::sync::Notify::new());
    let opened = Arc::clone(&gate);
    let snakepit = builder(&dir)
        .host_tool("held", || async {
            let _held = PanicsInDrop;
            std::future::pending::<()>().await;
        })
        .host_tool("items", || {
            let held = PanicsInDrop;
            stream::repeat(1).map(move |item| item + size_of_val(&held))
        })
        .host_tool("payload", || async { std::panic::panic_any(PanicsInDrop) as () })
        .host_tool("neighbor", move || {
            let opened = Arc::clone(&opened);
            async move { opened.notified().await }
        })
        .start()
        .await
        .unwrap();
    let client =
        snakepit_server::Client::connect(&format!("unix:{}", snakepit.socket().display())).await.unwrap();
    let neighbor = client.execute::<()>("neighbor", ());
    let others = async {
        let late = client.call("held").timeout(Duration::from_millis(50)).unary::<()>().await.unwrap_err();
        assert!(late.is_timeout(), "{late}");
        let mut items = client.call("items").stream::<usize>().await.unwrap();
        assert_eq!(items.try_next().await.unwrap(), Some(1));
        drop(items);
        let error = client.execute::<()>("payload", ()).await.unwrap_err();
        assert!(error.to_string().contains("panicked"), "{error}");
        // The counters show that the host has ended the stream.
        for _ in 0..1000 {
            if status(&snakepit, "items").cancelled == 1 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(status(&snakepit, "items").cancelled, 1);
        gate.notify_one();
    };
    let (answer, ()) = tokio::join!(neighbor, others);
    answer.unwrap();
    drop(client);
    snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn numbers_without_a_json_form_reach_rust_callers() {
    let dir = tempfile::tempdir().unwrap();
    let snakepit = builder(&dir)
        .host_tool("nan", || async { f64::NAN })
        .host_tool("limits", || async { [f64::INFINITY, f64::NEG_INFINITY, 0.5] })
        .host_tool("echo", |args: HashMap<String, f64>| async move { args })
        .host_tool("items", || stream::iter([f64::INFINITY, f64::NAN]))
        .start()
        .await
        .unwrap();
    let client =
        snakepit_server::Client::connect(&format!("unix:{}", snakepit.socket().display())).await.unwrap();
    assert!(snakepit.execute::<f64>("nan", ()).await.unwrap().is_nan());
    assert!(client.execute::<f64>("nan", ()).await.unwrap().is_nan());
    let limits: Vec<f64> = client.execute("limits", ()).await.unwrap();
    assert_eq!(limits, [f64::INFINITY, f64::NEG_INFINITY, 0.5]);
    let arguments = HashMap::from([("x", f64::NEG_INFINITY)]);
    let echoed: HashMap<String, f64> = client.execute("echo", arguments).await.unwrap();
    assert_eq!(echoed["x"], f64::NEG_INFINITY);
    let items: Vec<f64> = client.call("items").stream::<f64>().await.unwrap().try_collect().await.unwrap();
    assert!(items[0] == f64::INFINITY && items[1].is_nan(), "{items:?}");
    drop(client);
    snakepit.shutdown().await.unwrap();
}
