//! Heavy work on blocking threads. Decoding or checking a large message on a thread of the runtime would delay everything else
//! that this thread serves.

use std::{
    future::poll_fn,
    task::{Context, Poll},
};

/// Runs a closure on a blocking thread. A panic continues in the caller.
///
/// # Cancel safety
/// When the future is dropped, the closure still runs to its end, unless it has not started yet.
pub(crate) async fn run_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(output) => output,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down.
            Err(_) => std::future::pending().await,
        },
    }
}

/// The size in bytes above which the conversion of a value takes about a millisecond or more, which delays other calls.
const HEAVY_BYTES: usize = 64 * 1024;

/// Converts a value of this size in bytes, on a blocking thread if it is large. A panic continues in the caller.
///
/// # Cancel safety
/// As for [`run_blocking`].
pub(crate) async fn run_if_heavy<T: Send + 'static>(
    size: usize,
    convert: impl FnOnce() -> T + Send + 'static,
) -> T {
    if size > HEAVY_BYTES { run_blocking(convert).await } else { convert() }
}

/// Polls a future on a blocking thread the first time and in the caller's task after that. Use it for futures that do their heavy
/// work before they first wait.
///
/// # Cancel safety
/// When this future is dropped during the first poll, the inner future is dropped after that poll.
pub(crate) async fn poll_first_blocking<F>(future: F) -> F::Output
where
    F: Future<Output: Send> + Send + 'static,
{
    let mut future = Box::pin(future);
    let waker = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
    let first = run_blocking(move || {
        let polled = future.as_mut().poll(&mut Context::from_waker(&waker));
        (polled, future)
    });
    match first.await {
        (Poll::Ready(output), _) => output,
        // This polls again, so a wake-up during the first poll is not lost.
        (Poll::Pending, future) => future.await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_first_poll_runs_on_another_thread() {
        let here = std::thread::current().id();
        let polls = poll_first_blocking(async {
            let first = std::thread::current().id();
            tokio::task::yield_now().await;
            (first, std::thread::current().id())
        });
        let (first, second) = polls.await;
        assert_ne!(first, here);
        assert_eq!(second, here);
    }

    #[tokio::test]
    async fn a_wake_up_during_the_first_poll_is_not_lost() {
        let (send, receive) = tokio::sync::oneshot::channel();
        let waits = poll_first_blocking(async move {
            std::thread::spawn(move || send.send(7));
            receive.await
        });
        assert_eq!(waits.await, Ok(7));
    }
}
