//! Tests that the memory backend stores hints immediately and other backends coalesce them in the background.

use snakepit_session::{MemoryBackend, NewSession, SessionLimits};

use super::*;

async fn session(sessions: &dyn SessionBackend) -> SessionId {
    let id = SessionId::try_new("s").unwrap();
    sessions.create(&id, NewSession::default()).await.unwrap();
    id
}

fn affinity(sessions: Arc<dyn SessionBackend>) -> AffinityWriter {
    AffinityWriter::new(sessions, TaskTracker::new(), Handle::current(), CancellationToken::new())
}

#[tokio::test]
async fn the_memory_backend_stores_a_hint_immediately() {
    let sessions: Arc<dyn SessionBackend> = Arc::new(MemoryBackend::new(SessionLimits::default()));
    let id = session(&*sessions).await;
    let affinity = affinity(Arc::clone(&sessions));
    affinity.store(id.clone(), "w-1".into());
    assert!(affinity.tasks.is_empty(), "no task is needed");
    assert_eq!(sessions.get(&id).await.unwrap().last_worker.as_deref(), Some("w-1"));
}

#[cfg(feature = "redb")]
#[tokio::test]
async fn a_file_backend_stores_the_latest_hint_in_the_background() {
    let dir = tempfile::tempdir().unwrap();
    let file = snakepit_session_redb::RedbBackend::open(dir.path().join("s.redb"), SessionLimits::default());
    let sessions: Arc<dyn SessionBackend> = Arc::new(file.await.unwrap());
    let id = session(&*sessions).await;
    let affinity = affinity(Arc::clone(&sessions));
    for n in 0..100 {
        affinity.store(id.clone(), format!("w-{n}").into());
    }
    assert!(affinity.tasks.len() <= 1, "one task per session");
    affinity.tasks.close();
    affinity.tasks.wait().await;
    assert_eq!(sessions.get(&id).await.unwrap().last_worker.as_deref(), Some("w-99"));
    assert!(affinity.writes().is_empty());
}
