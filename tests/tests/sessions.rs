//! Sessions and programs over gRPC.

use std::time::{Duration, SystemTime};

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
async fn a_session_exists_from_initialize_to_cleanup() {
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
async fn programs_are_stored_read_listed_and_deleted() {
    let sandbox = Sandbox::adapter(SHOWCASE, 1).start().await;
    let mut client = sandbox.client().await;
    open(&mut client, "s", &[]).await;
    let program = pb::Program {
        name: "model".into(),
        data: Bytes::from_static(b"\x00weights"),
        metadata: [("kind".to_owned(), "linear".to_owned())].into(),
        ..Default::default()
    };
    let put = pb::PutProgramRequest { session_id: "s".into(), program: Some(program.clone()), global: false };
    assert!(client.put_program(put.clone()).await.unwrap().into_inner().created);
    assert!(!client.put_program(put).await.unwrap().into_inner().created);

    let get = pb::GetProgramRequest { session_id: "s".into(), name: "model".into(), ..Default::default() };
    let found = client.get_program(get.clone()).await.unwrap().into_inner().program.unwrap();
    assert_eq!((found.data, found.metadata), (program.data.clone(), program.metadata));
    let known = pb::GetProgramRequest { unless_updated_at: found.updated_at, ..get.clone() };
    let answer = client.get_program(known.clone()).await.unwrap().into_inner();
    assert_eq!((answer.unchanged, answer.program.unwrap().data.len()), (true, 0));
    let mut other = known;
    other.unless_updated_at.as_mut().unwrap().seconds -= 1;
    let answer = client.get_program(other).await.unwrap().into_inner();
    assert_eq!((answer.unchanged, answer.program.unwrap().data), (false, program.data));

    let list = pb::ListProgramsRequest { session_id: "s".into(), global: false };
    let listed = client.list_programs(list).await.unwrap().into_inner().programs;
    assert_eq!((listed.len(), listed[0].size, listed[0].data.len()), (1, 8, 0));

    let delete = pb::DeleteProgramRequest { session_id: "s".into(), name: "model".into(), global: false };
    client.delete_program(delete).await.unwrap();
    let status = client.get_program(get).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert!(status.message().contains("`model` not found"), "{status:?}");
}

#[tokio::test]
async fn host_tools_are_listed_for_an_existing_session_and_without_a_session() {
    let sandbox = Sandbox::adapter(SHOWCASE, 1).start().await;
    let mut client = sandbox.client().await;
    let exposed = |session: &str| pb::GetExposedElixirToolsRequest { session_id: session.to_owned() };
    let status = client.get_exposed_elixir_tools(exposed("s")).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "{status:?}");
    assert!(status.message().contains("session `s` not found"), "{status:?}");

    open(&mut client, "s", &[]).await;
    for session in ["s", ""] {
        let exposed = client.get_exposed_elixir_tools(exposed(session)).await.unwrap().into_inner();
        assert_eq!(exposed.tools, [], "the daemon has no host tools");
    }
    let dependency = client.add_dependency(pb::AddDependencyRequest::default()).await.unwrap_err();
    assert_eq!(dependency.code(), Code::Unimplemented);
}

#[tokio::test]
async fn listing_host_tools_renews_the_session() {
    const PAUSE: Duration = Duration::from_millis(100);
    let sandbox = Sandbox::adapter(SHOWCASE, 1).start().await;
    let mut client = sandbox.client().await;
    open(&mut client, "s", &[]).await;
    let expiry = async || {
        // Time must pass, because the renewal moves the expiry by this time.
        tokio::time::sleep(PAUSE).await;
        let mut client = sandbox.client().await;
        let listed = client.list_sessions(pb::ListSessionsRequest::default()).await.unwrap().into_inner();
        SystemTime::try_from(listed.sessions[0].expires_at.unwrap()).unwrap()
    };
    let opened = expiry().await;
    let listed = expiry().await;
    assert!(listed < opened + PAUSE / 2, "listing sessions must not renew them");

    let request = pb::GetExposedElixirToolsRequest { session_id: "s".into() };
    client.get_exposed_elixir_tools(request).await.unwrap();
    assert!(expiry().await > opened + PAUSE, "listing host tools must renew the session");
}

#[tokio::test]
async fn global_programs_are_separate_from_sessions() {
    let sandbox = Sandbox::adapter(SHOWCASE, 1).start().await;
    let mut client = sandbox.client().await;
    open(&mut client, "s", &[]).await;
    let program =
        pb::Program { name: "m".into(), data: "weights".into(), ttl_seconds: 60, ..Default::default() };
    let put = pb::PutProgramRequest { session_id: String::new(), program: Some(program), global: true };
    assert!(client.put_program(put.clone()).await.unwrap().into_inner().created);
    let both = pb::PutProgramRequest { session_id: "s".into(), ..put.clone() };
    let rejected = client.put_program(both).await.unwrap_err();
    assert!(rejected.message().contains("`session_id` is set together with `global`"), "{rejected:?}");
    let neither = pb::PutProgramRequest { global: false, ..put };
    assert_eq!(client.put_program(neither).await.unwrap_err().code(), Code::InvalidArgument);

    let get = |session: &str, global| pb::GetProgramRequest {
        session_id: session.into(),
        name: "m".into(),
        global,
        ..Default::default()
    };
    assert_eq!(client.get_program(get("s", false)).await.unwrap_err().code(), Code::NotFound);
    let found = client.get_program(get("", true)).await.unwrap().into_inner().program.unwrap();
    assert_eq!((&found.data[..], found.ttl_seconds), (&b"weights"[..], 60));
    let list = pb::ListProgramsRequest { session_id: String::new(), global: true };
    assert_eq!(client.list_programs(list).await.unwrap().into_inner().programs.len(), 1);
    let delete = pb::DeleteProgramRequest { session_id: String::new(), name: "m".into(), global: true };
    client.delete_program(delete).await.unwrap();
    assert_eq!(client.get_program(get("", true)).await.unwrap_err().code(), Code::NotFound);
}
