//! Restarts long-lived tasks after a panic, which may come from foreign code: a log subscriber or a session backend of the
//! program that embeds the host.

use std::time::Duration;

use snakepit_registry::guard::{Guarded, catch};

/// The pause before a restart, so that a task that panics immediately does not keep a processor busy.
const RESTART_PAUSE: Duration = Duration::from_millis(100);

/// Runs a part of a task. Logs a panic of the part, and then returns `false`, so that the caller runs the part again.
pub(crate) async fn completes_without_panic(task: &str, part: impl Future<Output = ()>) -> bool {
    if Guarded::new(Box::pin(part)).await.is_ok() {
        return true;
    }
    // If the log subscriber panicked, this report may panic too.
    let _ = catch(|| tracing::error!(task, "a task of the host panicked; restarting it"));
    tokio::time::sleep(RESTART_PAUSE).await;
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_continues_with_its_state() {
        let mut items = vec![1, 2, 3];
        let mut panics = 0;
        let mut part = async || {
            while let Some(next) = items.pop() {
                tokio::task::yield_now().await;
                assert_ne!(next, 2, "on purpose");
            }
        };
        while !completes_without_panic("a test", part()).await {
            panics += 1;
        }
        assert_eq!((panics, items.len()), (1, 0));
    }
}
