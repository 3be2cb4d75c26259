//! Tests that sessions in use outlive their TTL, but only while they are used.

use futures_util::stream;
use snakepit_session::{MemoryBackend, NewSession, SessionLimits};
use tokio::time::{advance, sleep};
use tokio_util::task::AbortOnDropHandle;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

struct Fixture {
    sessions: Arc<MemoryBackend>,
    renewer: Arc<SessionRenewer>,
    _task: AbortOnDropHandle<()>,
}

impl Fixture {
    fn new() -> Self {
        let sessions = Arc::new(MemoryBackend::new(SessionLimits::default()));
        let renewer = Arc::<SessionRenewer>::default();
        let running = Arc::clone(&renewer).run(sessions.clone(), CancellationToken::new());
        let task = tokio_util::task::TaskTracker::new().spawn(running);
        Self { sessions, renewer, _task: AbortOnDropHandle::new(task) }
    }

    async fn session(&self, name: &str) -> SessionId {
        let id = SessionId::try_new(name).unwrap();
        let new = NewSession { ttl: Some(SECOND), ..NewSession::default() };
        self.sessions.create(&id, new).await.unwrap();
        id
    }

    async fn exists(&self, id: &SessionId) -> bool {
        // Listing sessions does not renew them.
        let page = self.sessions.list(Default::default()).await.unwrap();
        page.items.iter().any(|session| session.id == *id)
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_outlives_its_last_call_by_most_of_its_ttl() {
    let fixture = Fixture::new();
    let id = fixture.session("s").await;
    let unused = fixture.session("unused").await;
    let first = fixture.renewer.begin_use(&id, SECOND, None).unwrap();
    let second = fixture.renewer.begin_use(&id, SECOND, None).unwrap();
    sleep(3 * SECOND).await;
    drop(first);
    sleep(3 * SECOND).await;
    assert!(fixture.exists(&id).await && !fixture.exists(&unused).await);
    drop(second);
    sleep(SECOND * 6 / 10).await;
    assert!(fixture.exists(&id).await, "idle for less than its TTL");
    sleep(SECOND / 2).await;
    assert!(!fixture.exists(&id).await, "its renewal has stopped");
    assert!(fixture.renewer.lock().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_call_that_ends_before_the_first_renewal_is_not_counted() {
    let fixture = Fixture::new();
    let id = fixture.session("s").await;
    let soon = Instant::now() + SECOND / 4;
    assert!(fixture.renewer.begin_use(&id, SECOND, Some(soon)).is_none());
    assert!(fixture.renewer.begin_use(&id, SECOND, Some(soon + SECOND)).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_stream_keeps_its_session_alive_until_it_ends() {
    let fixture = Fixture::new();
    let id = fixture.session("s").await;
    let slow = stream::unfold(0, |n| async move {
        sleep(3 * SECOND).await;
        let chunk = Chunk { data: "1".into(), ..Chunk::default() };
        (n < 2).then_some((Ok(chunk), n + 1))
    });
    let session_use = fixture.renewer.begin_use(&id, SECOND, None).unwrap();
    let reply = session_use.until_complete(ToolReply::stream(Box::pin(slow)));
    let ReplyBody::Stream(mut chunks) = reply.body else { panic!("a value") };
    while chunks.next().await.is_some() {
        assert!(fixture.exists(&id).await);
    }
    assert!(fixture.renewer.lock().is_empty(), "released at the end, though the stream is still held");
}

#[tokio::test(start_paused = true)]
async fn many_sessions_are_renewed_concurrently() {
    let fixture = Fixture::new();
    let mut uses = Vec::new();
    for n in 0..10 * MAX_CONCURRENT {
        let id = fixture.session(&format!("s{n}")).await;
        uses.push(fixture.renewer.begin_use(&id, SECOND, None).unwrap());
        advance(Duration::from_millis(1)).await;
    }
    sleep(5 * SECOND).await;
    assert_eq!(
        fixture
            .sessions
            .list(snakepit_session::PageRequest { size: 1000, token: None })
            .await
            .unwrap()
            .items
            .len(),
        uses.len()
    );
}
