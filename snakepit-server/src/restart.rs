//! Tasks that last as long as the host go on after a panic. What panics may be foreign code: a log subscriber of the program that
//! embeds the host, or a backend of its own.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use futures_util::FutureExt;

/// The pause before a task that panicked is run again: one that panics at once must not keep a processor busy.
const PAUSE: Duration = Duration::from_millis(100);

/// Runs a part of a task. `false` after a panic, which is reported: run it again.
pub(crate) async fn ends_well(task: &str, part: impl Future<Output = ()>) -> bool {
    if AssertUnwindSafe(part).catch_unwind().await.is_ok() {
        return true;
    }
    let report = || tracing::error!(task, "a task of the host panicked; it goes on");
    // If it was the subscriber that panicked, the report fares no better.
    let _ = catch_unwind(AssertUnwindSafe(report));
    tokio::time::sleep(PAUSE).await;
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_goes_on_with_what_it_had() {
        let mut left = vec![1, 2, 3];
        let mut panics = 0;
        let mut part = async || {
            while let Some(next) = left.pop() {
                tokio::task::yield_now().await;
                assert_ne!(next, 2, "on purpose");
            }
        };
        while !ends_well("a test", part()).await {
            panics += 1;
        }
        assert_eq!((panics, left.len()), (1, 0));
    }
}
