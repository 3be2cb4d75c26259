//! Beginning heavy work on a thread that may block: decoding a large message, and checking what it carries, would hold up
//! all that the runtime's thread serves.

use std::{
    future::poll_fn,
    task::{Context, Poll},
};

/// Runs a future whose first step is heavy: that step is taken by a blocking thread, the others by the caller.
///
/// # Cancel safety
/// When the future is dropped during its first step, so is the inner one once that step ends.
pub(super) async fn begin_elsewhere<F>(future: F) -> F::Output
where
    F: Future<Output: Send> + Send + 'static,
{
    let mut future = Box::pin(future);
    let waker = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
    let first = tokio::task::spawn_blocking(move || {
        let polled = future.as_mut().poll(&mut Context::from_waker(&waker));
        (polled, future)
    });
    match first.await {
        Ok((Poll::Ready(output), _)) => output,
        // It is polled again by whoever waits now, so a wake that came meanwhile is not lost.
        Ok((Poll::Pending, future)) => future.await,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime shuts down.
            Err(_) => std::future::pending().await,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_step_is_taken_elsewhere_and_the_rest_here() {
        let here = std::thread::current().id();
        let steps = begin_elsewhere(async {
            let first = std::thread::current().id();
            tokio::task::yield_now().await;
            (first, std::thread::current().id())
        });
        let (first, second) = steps.await;
        assert_ne!(first, here);
        assert_eq!(second, here);
    }

    #[tokio::test]
    async fn a_wake_during_the_first_step_is_not_lost() {
        let (send, receive) = tokio::sync::oneshot::channel();
        let waits = begin_elsewhere(async move {
            std::thread::spawn(move || send.send(7));
            receive.await
        });
        assert_eq!(waits.await, Ok(7));
    }
}
