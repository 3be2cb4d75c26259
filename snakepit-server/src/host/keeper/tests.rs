//! Sessions in use outlive their TTL, and no longer than they are used.

use futures_util::stream;
use snakepit_session::{MemoryBackend, NewSession, SessionLimits};
use tokio::time::{advance, sleep};
use tokio_util::task::AbortOnDropHandle;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

struct Bench {
    sessions: Arc<MemoryBackend>,
    keeper: Arc<Keeper>,
    _task: AbortOnDropHandle<()>,
}

impl Bench {
    fn new() -> Self {
        let sessions = Arc::new(MemoryBackend::new(SessionLimits::default()));
        let keeper = Arc::<Keeper>::default();
        let running = Arc::clone(&keeper).run(sessions.clone(), CancellationToken::new());
        let task = tokio_util::task::TaskTracker::new().spawn(running);
        Self { sessions, keeper, _task: AbortOnDropHandle::new(task) }
    }

    async fn session(&self, name: &str) -> SessionId {
        let id = SessionId::try_new(name).unwrap();
        let new = NewSession { ttl: Some(SECOND), ..NewSession::default() };
        self.sessions.create(&id, new).await.unwrap();
        id
    }

    async fn lives(&self, id: &SessionId) -> bool {
        // A listing renews nothing.
        let page = self.sessions.list(Default::default()).await.unwrap();
        page.items.iter().any(|session| session.id == *id)
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_lives_while_the_last_of_its_calls_runs_and_then_for_most_of_its_ttl() {
    let bench = Bench::new();
    let id = bench.session("s").await;
    let unused = bench.session("unused").await;
    let first = bench.keeper.hold(&id, SECOND, None).unwrap();
    let second = bench.keeper.hold(&id, SECOND, None).unwrap();
    sleep(3 * SECOND).await;
    drop(first);
    sleep(3 * SECOND).await;
    assert!(bench.lives(&id).await && !bench.lives(&unused).await);
    drop(second);
    sleep(SECOND * 6 / 10).await;
    assert!(bench.lives(&id).await, "idle for less than its TTL");
    sleep(SECOND / 2).await;
    assert!(!bench.lives(&id).await, "nothing renews it any more");
    assert!(bench.keeper.uses().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_call_that_ends_before_the_session_needs_anything_is_not_counted() {
    let bench = Bench::new();
    let id = bench.session("s").await;
    let soon = Instant::now() + SECOND / 4;
    assert!(bench.keeper.hold(&id, SECOND, Some(soon)).is_none());
    assert!(bench.keeper.hold(&id, SECOND, Some(soon + SECOND)).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_stream_keeps_its_session_to_its_end() {
    let bench = Bench::new();
    let id = bench.session("s").await;
    let slow = stream::unfold(0, |n| async move {
        sleep(3 * SECOND).await;
        let chunk = Chunk { data: "1".into(), metadata: Default::default() };
        (n < 2).then_some((Ok(chunk), n + 1))
    });
    let in_use = bench.keeper.hold(&id, SECOND, None).unwrap();
    let reply = in_use.until_complete(ToolReply::stream(Box::pin(slow)));
    let ReplyBody::Stream(mut chunks) = reply.body else { panic!("a value") };
    while chunks.next().await.is_some() {
        assert!(bench.lives(&id).await);
    }
    assert!(bench.keeper.uses().is_empty(), "released at the end, though the stream is still held");
}

#[tokio::test(start_paused = true)]
async fn many_sessions_are_kept_at_the_same_time() {
    let bench = Bench::new();
    let mut held = Vec::new();
    for n in 0..10 * AT_ONCE {
        let id = bench.session(&format!("s{n}")).await;
        held.push(bench.keeper.hold(&id, SECOND, None).unwrap());
        advance(Duration::from_millis(1)).await;
    }
    sleep(5 * SECOND).await;
    assert_eq!(
        bench
            .sessions
            .list(snakepit_session::PageRequest { size: 1000, token: None })
            .await
            .unwrap()
            .items
            .len(),
        held.len()
    );
}
