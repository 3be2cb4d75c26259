//! Host tools as Python tools see them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, stream};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use snakepit_server::{
    Builder, Client, Denied, ErrorKind, FnTool, Host, HostError, Operation, Principal, Program, ProgramName,
    ProgramOwner, ReplyBody, Snakepit, ToolCall, ToolContext, ToolError, ToolFailure, ValueType,
    VariableType,
};
use snakepit_tests::{Signal, eventually, python, root, signal};
use tower::ServiceExt;

#[derive(Deserialize, JsonSchema)]
struct Order {
    /// The name on the label.
    item: String,
    #[serde(default)]
    count: Option<u32>,
}

fn builder(dir: &tempfile::TempDir) -> Builder {
    Snakepit::builder()
        .adapter("host_tools:HostTools")
        .python(python())
        .env("PYTHONPATH", root().join("tests/adapters").display().to_string())
        .run_dir(dir.path())
        .workers(1)
        .multiplex(!snakepit_tests::plain_calls())
}

#[tokio::test]
async fn python_lists_the_parameters_of_host_tools() {
    let dir = tempfile::tempdir().unwrap();
    let order =
        FnTool::new("order", |order: Order| async move { format!("{} {:?}", order.item, order.count) })
            .describe(|spec| spec.description("Orders an item."));
    let snakepit = builder(&dir).fn_tool(order).start().await.unwrap();
    let listed: Value = snakepit.execute("listed", ()).await.unwrap();
    let parameter = |index: usize| listed["order"]["parameters"][index].clone();
    assert_eq!(listed["order"]["description"], "Orders an item.");
    assert_eq!(parameter(0)["name"], "item");
    assert_eq!(parameter(0)["description"], "The name on the label.");
    assert_eq!((&parameter(0)["type"], &parameter(0)["required"]), (&json!("string"), &json!(true)));
    assert_eq!((&parameter(1)["type"], &parameter(1)["required"]), (&json!("integer"), &json!(false)));
    let call =
        |arguments: Value| snakepit.call("calls").args(json!({"name": "order", "arguments": arguments}));
    let answer = call(json!({"item": "tea"})).unary::<String>().await.unwrap().value;
    assert_eq!(answer, "tea None");
    let error = call(json!({"itm": "tea", "sise": 1})).unary::<Value>().await.unwrap_err();
    let text = error.to_string();
    let problem = "argument `item` of tool `order` is missing, `itm` is unknown (did you mean `item`?), and `sise` is unknown";
    assert!(text.contains("InvalidArgumentError") && text.contains(problem), "{text}");
    snakepit.shutdown().await.unwrap();
}

/// Python tools cannot see a hidden tool, even if they connect as clients of the host. Rust and other clients can call it.
#[tokio::test]
async fn a_hidden_host_tool_does_not_exist_for_python_tools() {
    let dir = tempfile::tempdir().unwrap();
    let snakepit = builder(&dir)
        .listen(([127, 0, 0, 1], 0).into())
        .fn_tool(FnTool::new("hidden", || async { "secret" }).exposed(false))
        .host_tool("relay", |host: Host| async move { host.execute::<String>("hidden", ()).await })
        .start()
        .await
        .unwrap();
    let listed: Value = snakepit.execute("listed", ()).await.unwrap();
    assert_eq!(listed.as_object().unwrap().keys().collect::<Vec<_>>(), ["relay"]);
    let call = async |name: &str| {
        let arguments = json!({"name": name, "arguments": {}});
        let error = snakepit.execute::<Value>("calls", arguments).await.unwrap_err().to_string();
        error.replace(name, "NAME").replace(&format!("{:?}", name), "NAME")
    };
    let (hidden, unknown) = (call("hidden").await, call("hiddex").await);
    assert!(hidden.contains("NotFoundError: host tool `NAME` not found"), "{hidden}");
    assert_eq!(hidden, unknown, "the error does not reveal the tool");

    let address = format!("unix:{}", snakepit.socket().display());
    // On Linux, the host identifies the worker that opened a TCP connection, both to its listener and to the program's server.
    let incoming = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mounted = incoming.local_addr().unwrap();
    let server = tonic::transport::Server::builder().add_routes(snakepit.routes());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let incoming = tonic::transport::server::TcpIncoming::from(incoming);
    let mut serving = tokio::task::JoinSet::new();
    serving.spawn(server.serve_with_incoming_shutdown(incoming, async { drop(stopped.await) }));
    let mut addresses = vec![address.clone()];
    if cfg!(target_os = "linux") {
        addresses.extend([snakepit.address().unwrap().to_string(), mounted.to_string()]);
    }
    for address in addresses {
        let connect = async |name: &str| {
            let errors: Vec<String> =
                snakepit.execute("connects", json!({"address": address, "name": name})).await.unwrap();
            errors.into_iter().map(|error| error.replace(name, "NAME")).collect::<Vec<_>>()
        };
        let hidden = connect("hidden").await;
        assert_eq!(hidden, ["NotFoundError: tool `NAME` not found", "NotFoundError: tool `NAME` not found"]);
        assert_eq!(hidden, connect("hiddex").await, "{address}");
        let client = Client::connect(&address).await.unwrap();
        assert_eq!(client.execute::<String>("hidden", ()).await.unwrap(), "secret", "{address}");
    }
    drop(stop);
    let ended = tokio::time::timeout(Duration::from_secs(10), serving.join_next()).await;
    ended.expect("the server ends").unwrap().unwrap().unwrap();

    let arguments = json!({"name": "relay", "arguments": {}});
    assert_eq!(snakepit.execute::<String>("calls", arguments).await.unwrap(), "secret", "Rust reaches it");
    assert_eq!(snakepit.execute::<String>("hidden", ()).await.unwrap(), "secret");
    let client = Client::connect(&address).await.unwrap();
    assert_eq!(client.execute::<String>("hidden", ()).await.unwrap(), "secret");
    assert_eq!(client.execute::<String>("hiden", ()).await.unwrap_err().kind(), ErrorKind::ToolNotFound);
    assert!(!snakepit.host_tool_status().iter().find(|tool| tool.name == "hidden").unwrap().exposed);
    snakepit.shutdown().await.unwrap();
}

/// The arguments of the Python tool `peeks`.
#[derive(Deserialize, Serialize, JsonSchema)]
struct Peek {
    address: String,
    session: String,
    name: String,
}

/// Calls a tool for a principal. Returns its value, or the text of its error.
async fn call_as(
    snakepit: &Snakepit,
    principal: &Principal,
    tool: &str,
    arguments: Value,
) -> Result<Value, String> {
    let mut call = ToolCall::new(tool);
    for (name, value) in arguments.as_object().unwrap() {
        call = call.try_with_argument(name, value).unwrap();
    }
    call.principal = principal.clone();
    let reply = snakepit.service().oneshot(call).await.map_err(|error: ToolError| error.to_string())?;
    let ReplyBody::Value(value) = reply.body else { panic!("a stream") };
    Ok(value.to_serde().unwrap())
}

/// A tool must not use a session, a program or a host tool without the permission of its caller.
#[tokio::test]
async fn a_tool_acts_for_the_principal_of_its_call() {
    let dir = tempfile::tempdir().unwrap();
    let whoami = FnTool::new("whoami", |context: ToolContext| async move { context.principal.to_string() });
    let inner =
        FnTool::new(
            "inner",
            |host: Host, peek: Peek| async move { host.execute::<i64>("peeks", peek).await },
        );
    let snakepit = builder(&dir)
        .workers(2)
        .listen(([127, 0, 0, 1], 0).into())
        .fn_tool(whoami)
        .fn_tool(inner)
        .authorize(|principal, operation| match operation {
            _ if principal.is_worker() || &*principal.name() == "bob" => Ok(()),
            // A program may permit more to its tools than to their callers.
            Operation::Call { tool: "whoami", .. } if principal.worker_id().is_none() => {
                Err(Denied::new("call a tool"))
            }
            Operation::Call { .. } | Operation::ListTools => Ok(()),
            _ => Err(Denied::new(format!("{principal} may not"))),
        })
        .start()
        .await
        .unwrap();
    snakepit
        .session("of-bob")
        .await
        .unwrap()
        .register("secret", VariableType::new(ValueType::Integer).unwrap(), 7)
        .await
        .unwrap();
    let program = ProgramName::try_new("model").unwrap();
    let bytes = Program::new(vec![1, 2, 3], "x");
    snakepit.sessions().put_program(&ProgramOwner::Global, &program, bytes).await.unwrap();
    let (alice, bob) = (Principal::new("alice", "test"), Principal::new("bob", "test"));
    let unix = format!("unix:{}", snakepit.socket().display());
    let mut addresses = vec![unix.clone()];
    if cfg!(target_os = "linux") {
        addresses.push(snakepit.address().unwrap().to_string());
    }
    for address in addresses {
        let peek = json!({"address": address, "session": "of-bob", "name": "secret"});
        let refused = call_as(&snakepit, &alice, "peeks", peek.clone()).await.unwrap_err();
        assert!(refused.contains("access denied: alice may not"), "{address}: {refused}");
        assert_eq!(call_as(&snakepit, &bob, "peeks", peek.clone()).await, Ok(json!(7)), "{address}");
        // A tool that the program calls acts as its worker.
        assert_eq!(snakepit.execute::<i64>("peeks", peek).await.unwrap(), 7);
    }
    // Through the session context of the call.
    let name = json!({"name": "model"});
    let refused = call_as(&snakepit, &alice, "global_program", name.clone()).await.unwrap_err();
    assert!(refused.contains("access denied: alice may not"), "{refused}");
    assert_eq!(call_as(&snakepit, &bob, "global_program", name).await, Ok(json!(3)));
    // Host tools receive the principal of the tool's caller, even if another host tool is in between.
    let calls = json!({"name": "whoami", "arguments": {}});
    assert_eq!(call_as(&snakepit, &alice, "calls", calls).await, Ok(json!("alice")));
    assert!(call_as(&snakepit, &alice, "whoami", json!({})).await.is_err());
    let peek = json!({"address": unix, "session": "of-bob", "name": "secret"});
    let nested = json!({"name": "inner", "arguments": peek});
    let refused = call_as(&snakepit, &alice, "calls", nested.clone()).await.unwrap_err();
    assert!(refused.contains("access denied: alice may not"), "{refused}");
    assert_eq!(call_as(&snakepit, &bob, "calls", nested).await, Ok(json!(7)));
    snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn python_receives_the_errors_of_host_tools_as_exceptions_of_their_classes() {
    let dir = tempfile::tempdir().unwrap();
    let missing = || HostError::new("no such item").code("not_found").data(json!({"left": [3, null]}));
    let failing = |class: &'static str| move || async move { Err::<(), _>(missing().python_type(class)) };
    let snakepit = builder(&dir)
        .host_tool("plain", || async { Err::<(), _>("plain text") })
        .host_tool("coded", move || async move { Err::<(), _>(missing()) })
        .host_tool("converted", || async { Ok::<u8, HostError>("x".parse()?) })
        .host_tool("builtin", failing("KeyError"))
        .host_tool("imported", failing("host_tools:MissingError"))
        .host_tool("absent", failing("no_such_module:Error"))
        .host_tool("no_exception", failing("os:path"))
        .start()
        .await
        .unwrap();
    let caught = async |name: &str| {
        let arguments = json!({"name": name, "arguments": {}});
        snakepit.execute::<Value>("caught", arguments).await.unwrap()
    };
    let described = |kind: &str, text: &str, type_name: &str, code: &str, data: Value| json!({"kind": kind, "text": text, "type_name": type_name, "code": code, "data": data});
    let host_tool_error = "snakepit_bridge.errors.HostToolError";
    let data = || json!({"left": [3, null]});
    assert_eq!(
        caught("plain").await,
        described(host_tool_error, "plain text", "HostToolError", "", json!(null))
    );
    for (name, kind) in [
        ("coded", host_tool_error),
        ("builtin", "builtins.KeyError"),
        ("imported", "host_tools.MissingError"),
        ("absent", host_tool_error),
        ("no_exception", host_tool_error),
    ] {
        assert_eq!(
            caught(name).await,
            described(kind, "no such item", "HostToolError", "not_found", data()),
            "{name}"
        );
    }
    let converted = "ParseIntError: invalid digit found in string";
    assert_eq!(
        caught("converted").await,
        described(host_tool_error, converted, "ParseIntError", "", json!(null))
    );
    // An exception that the Python tool does not catch keeps the code and the data.
    let uncaught =
        snakepit.execute::<Value>("calls", json!({"name": "coded", "arguments": {}})).await.unwrap_err();
    let failure = uncaught.failure().unwrap();
    assert_eq!((failure.code.as_str(), failure.data.clone()), ("not_found", Some(data())));
    snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn callers_receive_the_parts_of_python_exceptions() {
    let dir = tempfile::tempdir().unwrap();
    let snakepit = builder(&dir).start().await.unwrap();
    let client = Client::connect(&format!("unix:{}", snakepit.socket().display())).await.unwrap();
    for how in ["coded", "published"] {
        let failures: Vec<ToolFailure> = [
            snakepit.execute::<()>("raises", json!({"how": how})).await.unwrap_err(),
            client.execute::<()>("raises", json!({"how": how})).await.unwrap_err(),
        ]
        .iter()
        .map(|error| error.failure().unwrap().clone())
        .collect();
        for failure in failures {
            if how == "coded" {
                assert_eq!(failure.error_type, "snakepit_bridge.errors.ToolError");
                assert_eq!(
                    (failure.code.as_str(), failure.data),
                    ("not_found", Some(json!({"left": [3, null]})))
                );
                assert_eq!((failure.args, failure.attributes.len()), (vec![json!("no such item")], 0));
            } else {
                assert_eq!(
                    (failure.error_type.as_str(), failure.code.as_str()),
                    ("host_tools.OutOfStockError", "")
                );
                assert_eq!((failure.args, failure.data), (vec![json!("tea"), json!(3)], None));
                assert_eq!(
                    failure.attributes.into_iter().collect::<Vec<_>>(),
                    [("item".to_owned(), json!("tea"))]
                );
            }
        }
    }
    snakepit.shutdown().await.unwrap();
}

struct CountOnDrop(Arc<AtomicUsize>);

impl Drop for CountOnDrop {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A host with a stream that never ends, and the numbers of created results and of ended streams.
async fn streaming_host(dir: &tempfile::TempDir) -> (Snakepit, Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let (created, ended) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let (creating, counting, ending) = (Arc::clone(&created), Arc::clone(&created), Arc::clone(&ended));
    let endless = move || {
        let (created, guard) = (Arc::clone(&creating), CountOnDrop(Arc::clone(&ending)));
        stream::repeat_with(move || {
            let _guard = &guard;
            format!("{:01000}", created.fetch_add(1, Ordering::SeqCst))
        })
    };
    let failing =
        || stream::iter([Ok(json!([1])), Ok(json!(null)), Err(HostError::new("no more").code("empty"))]);
    let snakepit = builder(dir)
        .host_tool("endless", endless)
        .host_tool("created", move || {
            let created = counting.load(Ordering::SeqCst);
            async move { created }
        })
        .host_tool("three", || stream::iter([Some(1), None, Some(3)]))
        .host_tool("failing", failing)
        .host_tool("large", || stream::iter([1, 2]).map(|n| n.to_string().repeat(3 << 20)))
        .host_tool("unary", || async { 7 })
        .start()
        .await
        .unwrap();
    (snakepit, created, ended)
}

#[tokio::test]
async fn python_reads_streams_of_host_tools() {
    let dir = tempfile::tempdir().unwrap();
    let (snakepit, _, ended) = streaming_host(&dir).await;
    for tool in ["streamed", "streamed_async"] {
        let read = async |name: &str, limit: u32| {
            snakepit.execute::<Value>(tool, json!({"name": name, "limit": limit})).await
        };
        assert_eq!(read("three", 9).await.unwrap(), json!([1, null, 3]), "{tool}");
        assert_eq!(read("unary", 9).await.unwrap(), json!([7]), "a tool that does not stream has one result");
        let large: Vec<String> = serde_json::from_value(read("large", 9).await.unwrap()).unwrap();
        assert_eq!(large.iter().map(String::len).collect::<Vec<_>>(), [3 << 20, 3 << 20]);
        assert_eq!(read("endless", 2).await.unwrap().as_array().unwrap().len(), 2);
        let missing = read("no_such", 1).await.unwrap_err().to_string();
        assert!(missing.contains("NotFoundError: host tool `no_such` not found"), "{missing}");
    }
    eventually("the streams have ended", TEST_TIMEOUT, async || ended.load(Ordering::SeqCst) == 2).await;
    let failed: Value = snakepit.execute("stream_error", json!({"name": "failing"})).await.unwrap();
    let error = json!({
        "kind": "snakepit_bridge.errors.HostToolError", "text": "no more", "type_name": "HostToolError", "code": "empty",
        "data": null
    });
    assert_eq!(failed, json!([[1], null, error]));
    let advice =
        snakepit.execute::<Value>("calls", json!({"name": "three", "arguments": {}})).await.unwrap_err();
    let problem = "host tool `three` streams its results; read them with `stream_host_tool`";
    assert!(advice.to_string().contains(problem), "{advice}");
    snakepit.shutdown().await.unwrap();
}

const TEST_TIMEOUT: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_slow_reader_stops_the_stream_of_a_host_tool() {
    let dir = tempfile::tempdir().unwrap();
    let (snakepit, created, ended) = streaming_host(&dir).await;
    let count: usize = snakepit.execute("reads_slowly", json!({"name": "endless"})).await.unwrap();
    // Each result has 1 KiB.
    assert!((1..400).contains(&count), "{count} results were created for a reader that read one");
    assert!(created.load(Ordering::SeqCst) >= 2 * count, "the stream continued");
    eventually("the stream has ended", TEST_TIMEOUT, async || ended.load(Ordering::SeqCst) == 1).await;
    snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn the_end_of_a_call_or_its_worker_ends_the_streams_that_it_reads() {
    let dir = tempfile::tempdir().unwrap();
    let (snakepit, _, ended) = streaming_host(&dir).await;
    let leave_open = |hang: bool| snakepit.call("leaves_open").args(json!({"name": "endless", "hang": hang}));
    leave_open(false).unary::<()>().await.unwrap();
    eventually("the end of the call ends the stream", TEST_TIMEOUT, async || {
        ended.load(Ordering::SeqCst) == 1
    })
    .await;

    let cancelled = leave_open(true).timeout(Duration::from_millis(300)).unary::<()>().await.unwrap_err();
    assert!(cancelled.is_timeout(), "{cancelled}");
    eventually("the deadline ends the stream", TEST_TIMEOUT, async || ended.load(Ordering::SeqCst) == 2)
        .await;

    let hanging = leave_open(true).unary::<()>();
    let kill = async {
        let in_flight = || {
            snakepit.host_tool_status().into_iter().any(|tool| tool.name == "endless" && tool.in_flight == 1)
        };
        eventually("the stream runs", TEST_TIMEOUT, async || in_flight()).await;
        for worker in snakepit.status().workers {
            signal(worker.pid.unwrap(), Signal::SIGKILL);
        }
    };
    let (lost, ()) = tokio::join!(hanging, kill);
    assert!(lost.is_err());
    eventually("the death of the worker ends the stream", TEST_TIMEOUT, async || {
        ended.load(Ordering::SeqCst) == 3
    })
    .await;
    snakepit.shutdown().await.unwrap();
}
