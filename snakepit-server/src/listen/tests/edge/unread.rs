//! Tests of clients that do not read their responses, over raw HTTP/2.

use snakepit_session::{Program, ProgramName, ProgramOwner, SessionBackend};

use super::*;

const GET: &str = "/snakepit.bridge.BridgeService/GetProgram";
const MIB: usize = 1 << 20;
const PROGRAM_BYTES: usize = 3 * MIB;
const READS: usize = 20;

/// Begins a request without reading its response.
async fn begin(client: &SendRequest<Bytes>, path: &str, body: Bytes) -> h2::client::ResponseFuture {
    let mut client = client.clone().ready().await.unwrap();
    let (response, mut send) = client.send_request(request(path).body(()).unwrap(), false).unwrap();
    send.send_data(body, true).unwrap();
    response
}

/// A server with a large program, and the request message for [`GET`].
async fn server_with_program(connection_bytes: usize) -> (TestServer, Bytes) {
    let server = TestServer::new(connection_bytes).await;
    let (owner, name) = (ProgramOwner::Global, ProgramName::try_new("large").unwrap());
    let program = Program::new(vec![7; PROGRAM_BYTES], "x");
    server.sessions.put_program(&owner, &name, program).await.unwrap();
    let get = pb::GetProgramRequest { name: "large".to_owned(), global: true, ..Default::default() };
    (server, message(&get))
}

#[tokio::test]
async fn responses_wait_until_earlier_ones_are_read_and_none_is_rejected() {
    let (mut server, get) = server_with_program(4 * MIB).await;
    let (client, state) = server.client_with_window(64 * 1024).await;
    let mut responses = Vec::new();
    for _ in 0..READS {
        responses.push(begin(&client, GET, get.clone()).await);
    }
    // Wait until the budget is used up. The other responses wait.
    while state.unread().used() < 4 * MIB {
        assert_eq!(ping(&client).await, 0);
    }
    for _ in 0..100 {
        assert_eq!(ping(&client).await, 0, "small responses do not wait");
        let used = state.unread().used();
        assert!(used < 4 * MIB + PROGRAM_BYTES, "{used}");
    }
    let reads = futures_util::future::join_all(responses.into_iter().map(status)).await;
    assert_eq!(reads.len(), READS);
    for (code, text) in reads {
        assert_eq!(code, 0, "{text}");
    }
    assert_eq!(state.unread().used(), 0);
}

#[tokio::test]
async fn calls_wait_while_too_many_values_are_unread() {
    let mut server = TestServer::new(4 * MIB).await;
    let (client, state) = server.client_with_window(64 * 1024).await;
    let large = || message(&pb::ExecuteToolRequest { tool_name: "large".to_owned(), ..Default::default() });
    let mut responses = Vec::new();
    // Begin the second call once the value of the first one counts.
    for _ in 0..2 {
        let used = state.unread().used();
        responses.push(begin(&client, EXECUTE, large()).await);
        while state.unread().used() == used {
            assert_eq!(ping(&client).await, 0);
        }
    }
    // The third call does not begin while the budget is used up.
    let mut third = Box::pin(begin(&client, EXECUTE, large()).await);
    for _ in 0..100 {
        assert_eq!(ping(&client).await, 0);
        assert!(futures_util::poll!(&mut third).is_pending());
    }
    for response in responses {
        assert_eq!(status(response).await.0, 0);
    }
    assert_eq!(status(*std::pin::Pin::into_inner(third)).await.0, 0);
    assert_eq!(state.unread().used(), 0);
}

#[tokio::test]
async fn the_unread_responses_of_a_lost_client_are_freed() {
    let (mut server, get) = server_with_program(4 * MIB).await;
    let (client, state) = server.client_with_window(64 * 1024).await;
    let response = begin(&client, GET, get).await;
    while state.unread().used() < PROGRAM_BYTES {
        assert_eq!(ping(&client).await, 0);
    }
    drop((response, client));
    server.tasks.abort_all();
    while server.tasks.join_next().await.is_some() {}
    drop(server);
    while state.unread().used() > 0 {
        tokio::task::yield_now().await;
    }
}
