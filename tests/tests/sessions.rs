//! Sessions and their programs over gRPC, as clients of the protocol rely on them.

use bytes::Bytes;
use snakepit_proto::pb;
use snakepit_tests::{Client, SHOWCASE, Sandbox};
use tonic::Code;

async fn open(client: &mut Client, id: &str, metadata: &[(&str, &str)]) -> pb::InitializeSessionResponse {
    let metadata = metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let request = pb::InitializeSessionRequest { session_id: id.to_owned(), metadata, ..Default::default() };
    client.initialize_session(request).await.unwrap().into_inner()
}

#[tokio::test]
async fn a_session_lives_from_initialize_to_cleanup() {
    let sandbox = Sandbox::adapter(SHOWCASE, 1).start().await;
    let mut client = sandbox.client().await;

    let pong = client.ping(pb::PingRequest { message: "hi".into() }).await.unwrap().into_inner();
    assert!(pong.message.contains("hi") && pong.server_time.unwrap().seconds > 1_600_000_000);

    let opened = open(&mut client, "s1", &[("user", "ada")]).await;
    assert!(opened.success && opened.available_tools.contains_key("add"));
    assert!(open(&mut client, "s1", &[("user", "eve")]).await.success, "an existing session is returned");

    let session =
        client.get_session(pb::GetSessionRequest { session_id: "s1".into() }).await.unwrap().into_inner();
    assert_eq!(session.session_id, "s1");
    assert_eq!(session.metadata["user"], "ada");
    assert!(session.created_at.unwrap().seconds > 1_600_000_000);
    assert!(session.tool_count > 5);

    let beat = |id: &str| pb::HeartbeatRequest { session_id: id.to_owned(), client_time: None };
    assert!(client.heartbeat(beat("s1")).await.unwrap().into_inner().session_valid);
    assert!(!client.heartbeat(beat("unknown")).await.unwrap().into_inner().session_valid);

    let cleanup = |id: &str| pb::CleanupSessionRequest { session_id: id.to_owned(), force: false };
    assert!(client.cleanup_session(cleanup("s1")).await.unwrap().into_inner().success);
    assert!(!client.heartbeat(beat("s1")).await.unwrap().into_inner().session_valid);

    for status in [
        client.get_session(pb::GetSessionRequest { session_id: "s1".into() }).await.unwrap_err(),
        client.cleanup_session(cleanup("s1")).await.unwrap_err(),
    ] {
        assert_eq!(status.code(), Code::NotFound);
        assert!(status.message().contains("not found"), "{status:?}");
    }
    let empty = pb::InitializeSessionRequest::default();
    assert_eq!(client.initialize_session(empty).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn programs_are_kept_by_the_host() {
    let sandbox = Sandbox::adapter(SHOWCASE, 1).start().await;
    let mut client = sandbox.client().await;
    open(&mut client, "s", &[]).await;
    let program = pb::Program {
        name: "model".into(),
        data: Bytes::from_static(b"\x00weights"),
        metadata: [("kind".to_owned(), "linear".to_owned())].into(),
        ..Default::default()
    };
    let put = pb::PutProgramRequest { session_id: "s".into(), program: Some(program.clone()) };
    assert!(client.put_program(put.clone()).await.unwrap().into_inner().created);
    assert!(!client.put_program(put).await.unwrap().into_inner().created);

    let get = pb::GetProgramRequest { session_id: "s".into(), name: "model".into() };
    let got = client.get_program(get.clone()).await.unwrap().into_inner().program.unwrap();
    assert_eq!((got.data, got.metadata), (program.data, program.metadata));

    let list = pb::ListProgramsRequest { session_id: "s".into() };
    let listed = client.list_programs(list).await.unwrap().into_inner().programs;
    assert_eq!((listed.len(), listed[0].size, listed[0].data.len()), (1, 8, 0));

    let delete = pb::DeleteProgramRequest { session_id: "s".into(), name: "model".into() };
    client.delete_program(delete).await.unwrap();
    let status = client.get_program(get).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert!(status.message().contains("`model` not found"), "{status:?}");
}

#[tokio::test]
async fn tools_may_be_registered_again_and_never_over_the_hosts_own() {
    let sandbox = Sandbox::adapter(SHOWCASE, 1).start().await;
    let mut client = sandbox.client().await;
    let request = pb::RegisterToolsRequest {
        session_id: "s".into(),
        tools: vec![pb::ToolRegistration { name: "add".into(), ..Default::default() }],
        worker_id: "python-1".into(),
    };
    for _ in 0..2 {
        let response = client.register_tools(request.clone()).await.unwrap().into_inner();
        assert!(response.success || response.error_message.contains("duplicate_tool"), "{response:?}");
    }
    let exposed = client
        .get_exposed_elixir_tools(pb::GetExposedElixirToolsRequest { session_id: "s".into() })
        .await
        .unwrap()
        .into_inner();
    assert!(exposed.tools.is_empty(), "the daemon has no tools of its own");
    let variable = client.get_variable(pb::GetVariableRequest::default()).await.unwrap_err();
    assert_eq!(variable.code(), Code::Unimplemented);
}
