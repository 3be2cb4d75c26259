//! Clients that do not read their answers, over raw HTTP/2.

use snakepit_session::{Program, ProgramName, ProgramOwner, SessionBackend};

use super::*;

const GET: &str = "/snakepit.bridge.BridgeService/GetProgram";
const MIB: usize = 1 << 20;
const PROGRAM: usize = 3 * MIB;
const READS: usize = 20;

/// Begins a request and leaves its answer unread.
async fn begin(client: &SendRequest<Bytes>, path: &str, body: Bytes) -> h2::client::ResponseFuture {
    let mut client = client.clone().ready().await.unwrap();
    let (response, mut send) = client.send_request(request(path).body(()).unwrap(), false).unwrap();
    send.send_data(body, true).unwrap();
    response
}

/// A host with a large program, and an argument for [`GET`].
async fn with_program(connection_bytes: usize) -> (Edge, Bytes) {
    let edge = Edge::new(connection_bytes).await;
    let (owner, name) = (ProgramOwner::Global, ProgramName::try_new("large").unwrap());
    let program = Program::new(vec![7; PROGRAM], "x");
    edge.sessions.put_program(&owner, &name, program).await.unwrap();
    let get = pb::GetProgramRequest { name: "large".to_owned(), global: true, ..Default::default() };
    (edge, message(&get))
}

#[tokio::test]
async fn answers_wait_until_earlier_ones_are_read_and_none_is_refused() {
    let (mut edge, get) = with_program(4 * MIB).await;
    let (client, state) = edge.client_with_window(64 * 1024).await;
    let mut answers = Vec::new();
    for _ in 0..READS {
        answers.push(begin(&client, GET, get.clone()).await);
    }
    // All that can be made are: the other heads are here, or will be once there is room.
    while state.unread().held() < 4 * MIB {
        assert_eq!(ping(&client).await, 0);
    }
    for _ in 0..100 {
        assert_eq!(ping(&client).await, 0, "small answers pass");
        let held = state.unread().held();
        assert!(held < 4 * MIB + PROGRAM, "{held}");
    }
    let reads = futures_util::future::join_all(answers.into_iter().map(status)).await;
    assert_eq!(reads.len(), READS);
    for (code, text) in reads {
        assert_eq!(code, 0, "{text}");
    }
    assert_eq!(state.unread().held(), 0);
}

#[tokio::test]
async fn values_of_tools_are_dropped_when_too_many_are_unread() {
    let mut edge = Edge::new(4 * MIB).await;
    let (client, state) = edge.client_with_window(64 * 1024).await;
    let large = || message(&pb::ExecuteToolRequest { tool_name: "large".to_owned(), ..Default::default() });
    let mut answers = Vec::new();
    // The next call is begun once the value of the last one is held.
    for _ in 0..2 {
        let held = state.unread().held();
        answers.push(begin(&client, EXECUTE, large()).await);
        while state.unread().held() == held {
            assert_eq!(ping(&client).await, 0);
        }
    }
    // Calls wait before they are begun.
    let mut third = Box::pin(begin(&client, EXECUTE, large()).await);
    for _ in 0..100 {
        assert_eq!(ping(&client).await, 0);
        assert!(futures_util::poll!(&mut third).is_pending());
    }
    for answer in answers {
        assert_eq!(status(answer).await.0, 0);
    }
    assert_eq!(status(*std::pin::Pin::into_inner(third)).await.0, 0);
    assert_eq!(state.unread().held(), 0);
}

#[tokio::test]
async fn what_a_lost_client_did_not_read_is_freed() {
    let (mut edge, get) = with_program(4 * MIB).await;
    let (client, state) = edge.client_with_window(64 * 1024).await;
    let answer = begin(&client, GET, get).await;
    while state.unread().held() < PROGRAM {
        assert_eq!(ping(&client).await, 0);
    }
    drop((answer, client));
    edge.tasks.abort_all();
    while edge.tasks.join_next().await.is_some() {}
    drop(edge);
    while state.unread().held() > 0 {
        tokio::task::yield_now().await;
    }
}
