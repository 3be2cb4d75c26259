//! Host tools as Python tools see them.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use snakepit_server::{Builder, Client, ErrorKind, FnTool, Host, Snakepit};
use snakepit_tests::{python, root};

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

/// A hidden tool does not exist for Python tools, even as clients of the host. Rust and other clients can call it.
#[tokio::test]
async fn a_hidden_host_tool_does_not_exist_for_python_tools() {
    let dir = tempfile::tempdir().unwrap();
    let snakepit = builder(&dir)
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
    let connect = async |name: &str| {
        let errors: Vec<String> =
            snakepit.execute("connects", json!({"address": address, "name": name})).await.unwrap();
        errors.into_iter().map(|error| error.replace(name, "NAME")).collect::<Vec<_>>()
    };
    let hidden = connect("hidden").await;
    assert_eq!(hidden, ["NotFoundError: tool `NAME` not found", "NotFoundError: tool `NAME` not found"]);
    assert_eq!(hidden, connect("hiddex").await);

    let arguments = json!({"name": "relay", "arguments": {}});
    assert_eq!(snakepit.execute::<String>("calls", arguments).await.unwrap(), "secret", "Rust reaches it");
    assert_eq!(snakepit.execute::<String>("hidden", ()).await.unwrap(), "secret");
    let client = Client::connect(&address).await.unwrap();
    assert_eq!(client.execute::<String>("hidden", ()).await.unwrap(), "secret");
    assert_eq!(client.execute::<String>("hiden", ()).await.unwrap_err().kind(), ErrorKind::ToolNotFound);
    assert!(!snakepit.host_tool_status().iter().find(|tool| tool.name == "hidden").unwrap().exposed);
    snakepit.shutdown().await.unwrap();
}
