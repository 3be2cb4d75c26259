//! The program authorizes each operation of a client, in every RPC, and tools receive the principal of their caller.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::{
    os::unix::fs::MetadataExt,
    sync::{Arc, Mutex},
};

use prost::Message;
use serde_json::{Value, json};
use snakepit_proto::pb::{self, bridge_service_client::BridgeServiceClient};
use snakepit_server::{
    Builder, CallOutcome, CallRecord, Client, Denied, ErrorKind, FnTool, Host, Operation, Principal, Reason,
    ReplyBody, SessionId, Snakepit, ToolCall, ToolContext, ToolError, ToolReply, testing::InProcessWorkers,
};
use tonic::{Code, Request, client::Grpc, transport::Channel};
use tonic_prost::ProstCodec;
use tower::Service;

struct Fixture {
    snakepit: Snakepit,
    run_dir: tempfile::TempDir,
}

impl Fixture {
    async fn start(configure: impl FnOnce(Builder) -> Builder) -> Self {
        let run_dir = tempfile::tempdir().unwrap();
        let workers = InProcessWorkers::new()
            .fn_tool(FnTool::typed("value", |_: Value| async { 1 }))
            .fn_tool(FnTool::new("stream", |_: Value| futures_util::stream::iter([1])));
        let caller = FnTool::new("caller", |_: Value, context: ToolContext| async move {
            context.principal.name().into_owned()
        });
        let builder = Snakepit::builder()
            .launcher(Arc::new(workers))
            .workers(1)
            .run_dir(run_dir.path())
            .listen(([127, 0, 0, 1], 0).into())
            .fn_tool(caller);
        let snakepit = configure(builder).start().await.unwrap();
        Self { snakepit, run_dir }
    }

    async fn unix_client(&self) -> Client {
        Client::connect(&format!("unix:{}", self.snakepit.socket().display())).await.unwrap()
    }

    async fn tcp_client(&self) -> Client {
        Client::connect(&format!("http://{}", self.snakepit.address().unwrap())).await.unwrap()
    }

    async fn channel(&self) -> Channel {
        let url = format!("http://{}", self.snakepit.address().unwrap());
        tonic::transport::Endpoint::try_from(url).unwrap().connect().await.unwrap()
    }
}

async fn call(snakepit: &Snakepit, principal: Principal, tool: &str) -> Result<Value, ToolError> {
    let mut call = ToolCall::new(tool);
    call.principal = principal;
    let ToolReply { body: ReplyBody::Value(value), .. } = snakepit.service().call(call).await? else {
        panic!("a stream");
    };
    Ok(value.to_serde().unwrap())
}

/// The RPCs of the bridge service, and whether their requests are streams.
fn rpcs() -> Vec<(String, bool)> {
    let files = prost_types::FileDescriptorSet::decode(snakepit_proto::FILE_DESCRIPTOR_SET).unwrap().file;
    let services = files.into_iter().flat_map(|file| file.service);
    let methods =
        services.filter(|service| service.name() == "BridgeService").flat_map(|service| service.method);
    methods.map(|method| (method.name().to_owned(), method.client_streaming())).collect()
}

#[tokio::test]
async fn every_rpc_asks_for_permission() {
    // `Ping` is open, and workers register with their own credentials. Calls need more than an empty request; see below.
    const OPEN: [&str; 1] = ["Ping"];
    const OF_WORKERS: [&str; 1] = ["RegisterTools"];
    const CALLS: [&str; 5] = [
        "ExecuteTool",
        "ExecuteStreamingTool",
        "ExecuteElixirTool",
        "ExecuteStreamingElixirTool",
        "Multiplex",
    ];

    let fixture = Fixture::start(|builder| builder.authorize(|_, _| Err(Denied::new("on purpose")))).await;
    let mut client = Grpc::new(fixture.channel().await);
    let mut denied = 0;
    for (rpc, is_streaming) in rpcs() {
        let path = format!("/snakepit.bridge.BridgeService/{rpc}").parse().unwrap();
        client.ready().await.unwrap();
        let codec = ProstCodec::<(), ()>::default();
        let result = if is_streaming {
            let requests = Request::new(futures_util::stream::empty());
            client.streaming(requests, path, codec).await.map(drop)
        } else {
            client.server_streaming(Request::new(()), path, codec).await.map(drop)
        };
        let code = result.as_ref().err().map_or(Code::Ok, tonic::Status::code);
        if OPEN.contains(&rpc.as_str()) {
            assert_eq!(code, Code::Ok, "{rpc}: {result:?}");
        } else if code != Code::Unimplemented && !CALLS.contains(&rpc.as_str()) {
            assert_eq!(code, Code::PermissionDenied, "{rpc}: {result:?}");
            let reason = snakepit_proto::status::details_of(&result.unwrap_err()).reason;
            let expected =
                if OF_WORKERS.contains(&rpc.as_str()) { Reason::Reserved } else { Reason::AccessDenied };
            assert_eq!(reason.as_deref(), Some(expected.as_str()), "{rpc}");
            denied += 1;
        }
    }
    assert!(denied > 20, "{denied}");

    let mut client = BridgeServiceClient::new(fixture.channel().await);
    let call = || pb::ExecuteToolRequest { tool_name: "value".into(), ..Default::default() };
    let of_host = || pb::ExecuteElixirToolRequest { tool_name: "caller".into(), ..Default::default() };
    for status in [
        client.execute_tool(call()).await.map(drop).unwrap_err(),
        client.execute_streaming_tool(call()).await.map(drop).unwrap_err(),
        client.execute_elixir_tool(of_host()).await.map(drop).unwrap_err(),
        client.execute_streaming_elixir_tool(of_host()).await.map(drop).unwrap_err(),
    ] {
        assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "access denied: on purpose"));
    }
    // The client of this project uses `Multiplex`.
    let error = fixture.tcp_client().await.execute::<i64>("value", ()).await.unwrap_err();
    assert_eq!((error.kind(), error.may_have_run()), (ErrorKind::AccessDenied, false), "{error:?}");
    fixture.snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn the_function_receives_the_principal_and_the_operation() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    let fixture = Fixture::start(|builder| {
        builder.authorize(move |principal, operation| {
            seen.lock().unwrap().push((principal.to_string(), format!("{operation:?}")));
            Ok(())
        })
    })
    .await;
    let operations = || std::mem::take(&mut *asked.lock().unwrap());
    let in_session = |tool: &str| format!("Call {{ tool: {tool:?}, session: Some(\"s\") }}");
    let user = format!("uid:{}", fixture.run_dir.path().metadata().unwrap().uid());
    for (client, name) in
        [(fixture.unix_client().await, user.as_str()), (fixture.tcp_client().await, "loopback")]
    {
        operations();
        client.session("s").await.unwrap();
        let answer = client.call("caller").session("s").unary::<String>().await.unwrap().value;
        assert_eq!(answer, name, "the tool receives the principal of its caller");
        let asked = operations();
        let expected = [
            (name.to_owned(), "WriteSession { session: \"s\" }".to_owned()),
            // The response to the first request lists the tools.
            (name.to_owned(), "ListTools".to_owned()),
            (name.to_owned(), in_session("caller")),
            (name.to_owned(), "WriteSession { session: \"s\" }".to_owned()),
        ];
        assert_eq!(asked, expected);
    }
    // The program may do everything.
    fixture.snakepit.session("s").await.unwrap();
    let caller: String = fixture.snakepit.execute("caller", ()).await.unwrap();
    assert_eq!((caller.as_str(), operations().len()), ("program", 0));
    fixture.snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_program_calls_for_its_own_principals() {
    let records = Arc::new(Mutex::new(Vec::<CallRecord>::new()));
    let seen = Arc::clone(&records);
    let fixture = Fixture::start(|builder| {
        builder.on_call_end(move |record| seen.lock().unwrap().push(record.clone())).authorize(
            |principal, operation| match operation {
                Operation::Call { tool, .. } if principal.has_grant(tool) => Ok(()),
                _ => Err(Denied::new(format!("{principal} may not"))),
            },
        )
    })
    .await;
    let alice = || Principal::new("alice", "test").with_grants(["caller"]);
    assert_eq!(call(&fixture.snakepit, alice(), "caller").await.unwrap(), json!("alice"));
    let denied = call(&fixture.snakepit, alice(), "value").await.unwrap_err();
    assert_eq!(denied.to_string(), "access denied: alice may not");
    // The tool could use the session.
    let mut in_session = ToolCall::new("caller");
    in_session.session = Some(SessionId::try_new("of-bob").unwrap());
    in_session.principal = alice();
    let denied_session = fixture.snakepit.service().call(in_session).await.map(drop).unwrap_err();
    assert_eq!(denied_session.kind(), ErrorKind::AccessDenied);
    // The answer does not show whether a tool exists.
    let unknown = call(&fixture.snakepit, alice(), "no_such_tool").await.unwrap_err();
    assert_eq!(unknown.to_string(), denied.to_string());
    let records = records.lock().unwrap().clone();
    let outcomes: Vec<_> = records.iter().map(|record| record.outcome).collect();
    assert_eq!(outcomes[0], CallOutcome::Succeeded);
    assert_eq!(outcomes[1..], [CallOutcome::Rejected; 3]);
    assert!(records.iter().all(|record| record.principal == alice()));
    fixture.snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_listener_that_sets_no_principal_is_closed() {
    let fixture = Fixture::start(|builder| builder.authorize(|_, _| Ok(()))).await;
    let denied = call(&fixture.snakepit, Principal::unset(), "caller").await.unwrap_err();
    assert_eq!(denied.kind(), ErrorKind::AccessDenied);
    assert!(denied.to_string().contains("set `ToolCall::principal`"), "{denied}");
    // The program's own calls have the principal `program`.
    assert_eq!(fixture.snakepit.execute::<String>("caller", ()).await.unwrap(), "program");
    fixture.snakepit.shutdown().await.unwrap();

    // A host without an authorizer does not require a principal.
    let open = Fixture::start(|builder| builder).await;
    assert_eq!(call(&open.snakepit, Principal::unset(), "caller").await.unwrap(), json!("unset"));
    open.snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_host_tool_acts_for_its_caller_and_needs_no_permission() {
    let relay = FnTool::new("relay", |host: Host| async move { host.execute::<String>("caller", ()).await });
    let fixture = Fixture::start(|builder| {
        builder.fn_tool(relay).authorize(|principal, operation| match operation {
            Operation::Call { tool: "relay", .. } => Ok(()),
            _ => Err(Denied::new(format!("{principal} may not"))),
        })
    })
    .await;
    let alice = || Principal::new("alice", "test");
    assert_eq!(call(&fixture.snakepit, alice(), "relay").await.unwrap(), json!("alice"));
    assert_eq!(call(&fixture.snakepit, alice(), "caller").await.unwrap_err().kind(), ErrorKind::AccessDenied);
    assert_eq!(fixture.snakepit.execute::<String>("relay", ()).await.unwrap(), "program");
    fixture.snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn opening_a_session_lists_tools_only_to_those_who_may_list_them() {
    for may_list in [true, false] {
        let fixture = Fixture::start(|builder| {
            builder.authorize(move |_, operation| match operation {
                Operation::ListTools if !may_list => Err(Denied::new("may not list")),
                _ => Ok(()),
            })
        })
        .await;
        let mut client = BridgeServiceClient::new(fixture.channel().await);
        let request = pb::InitializeSessionRequest { session_id: "s".into(), ..Default::default() };
        let response = client.initialize_session(request).await.unwrap().into_inner();
        assert!(response.success);
        assert_eq!(response.available_tools.contains_key("caller"), may_list, "{response:?}");
        assert_eq!(response.available_tools.is_empty(), !may_list, "{response:?}");
        drop(client);
        fixture.snakepit.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn a_program_calls_for_a_principal() {
    let fixture = Fixture::start(|builder| {
        builder.authorize(|principal, operation| match operation {
            Operation::Call { tool, .. } if principal.has_grant(tool) => Ok(()),
            _ => Err(Denied::new("no grant")),
        })
    })
    .await;
    let alice = Principal::new("alice", "test").with_grants(["caller"]);
    let call = |tool: &str| fixture.snakepit.call(tool).args(json!({})).principal(alice.clone());
    assert_eq!(call("caller").unary::<String>().await.unwrap().value, "alice");
    let denied = call("value").unary::<Value>().await.unwrap_err();
    assert_eq!(denied.kind(), ErrorKind::AccessDenied, "{denied}");
    let own = fixture.snakepit.execute::<String>("caller", json!({})).await.unwrap();
    assert_eq!(own, "program", "the host does not ask about the program");
    fixture.snakepit.shutdown().await.unwrap();
}
