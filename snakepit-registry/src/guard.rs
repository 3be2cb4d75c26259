//! Runs and drops code of the embedding program, so that its panics fail only one call.
//!
//! `catch_unwind` around a poll is not enough: the destructor of a future, of a stream or of a panic's payload can panic too.
//! Such a panic would unwind through the task that drops the value, which can serve all calls of a connection.

use std::{
    any::Any,
    future::Future,
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_core::Stream;

/// Calls a function of the program.
///
/// # Errors
/// The message of its panic, or an empty string if the panic has none.
pub fn catch<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|payload| {
        let message = message_of(&*payload).to_owned();
        discard(payload);
        message
    })
}

/// Drops a value of the program. Ignores a panic of its destructor, which the panic hook has reported.
pub fn drop_quietly<T>(value: T) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(value))) {
        discard(payload);
    }
}

/// Drops the payload of a panic. If its destructor panics too, leaks the payload of that panic, whose destructor could panic
/// again.
fn discard(payload: Box<dyn Any + Send>) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        mem::forget(payload);
    }
}

/// Returns the message of a panic, or an empty string if it has none.
fn message_of(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or_default()
}

/// Wraps a future or a stream of the program. Converts a panic to `Err` with the message of the panic, which is the last item of
/// a stream. A panic of the destructor has no effect.
///
/// # Panics
/// A future panics if it is polled after its end, like the future of an `async fn`. A stream is fused: it yields `None` after its
/// end.
#[derive(Debug)]
pub struct Guarded<T: ?Sized> {
    /// `None` after the end.
    inner: Option<Pin<Box<T>>>,
}

impl<T: ?Sized> Guarded<T> {
    /// Guards a future or a stream.
    pub const fn new(inner: Pin<Box<T>>) -> Self {
        Self { inner: Some(inner) }
    }

    /// Polls the value, and drops it after a panic.
    ///
    /// # Panics
    /// If the value has ended.
    fn poll_with<P>(&mut self, poll: impl FnOnce(Pin<&mut T>) -> Poll<P>) -> Poll<Result<P, String>> {
        let Some(inner) = &mut self.inner else { panic!("`Guarded` polled after its end") };
        match catch(|| poll(inner.as_mut())) {
            Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
            Ok(Poll::Pending) => Poll::Pending,
            Err(message) => {
                self.end();
                Poll::Ready(Err(message))
            }
        }
    }

    fn end(&mut self) {
        if let Some(inner) = self.inner.take() {
            drop_quietly(inner);
        }
    }
}

impl<F: Future + ?Sized> Future for Guarded<F> {
    type Output = Result<F::Output, String>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let output = ready!(self.poll_with(|future| future.poll(cx)));
        self.end();
        Poll::Ready(output)
    }
}

impl<S: Stream + ?Sized> Stream for Guarded<S> {
    type Item = Result<S::Item, String>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.inner.is_none() {
            return Poll::Ready(None);
        }
        let item = ready!(self.poll_with(|stream| stream.poll_next(cx)));
        if matches!(item, Ok(None)) {
            self.end();
        }
        Poll::Ready(item.transpose())
    }
}

impl<T: ?Sized> Drop for Guarded<T> {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        panic::panic_any,
        sync::{Arc, Mutex},
    };

    use futures_util::{FutureExt, StreamExt, future, stream};

    use super::*;

    /// Records its end, and panics.
    struct PanicsInDrop(Arc<Mutex<u32>>);

    impl Drop for PanicsInDrop {
        fn drop(&mut self) {
            *self.0.lock().unwrap() += 1;
            // A second panic while the first one unwinds would abort the process.
            if !std::thread::panicking() {
                panic_any(PanicsInDrop(Arc::clone(&self.0)));
            }
        }
    }

    #[test]
    fn no_panic_of_a_destructor_escapes() {
        let drops = Arc::new(Mutex::new(0));
        let value = || PanicsInDrop(Arc::clone(&drops));
        drop_quietly(value());
        assert_eq!(catch(|| panic_any(value())), Err(String::new()));
        assert_eq!(catch(|| panic!("a {}", "text")), Err::<(), _>("a text".to_owned()));

        let before = *drops.lock().unwrap();
        let held = value();
        drop(Guarded::new(Box::pin(async move { future::pending::<()>().map(|()| drop(held)).await })));
        let held = value();
        drop(Guarded::new(Box::pin(stream::pending::<()>().map(move |()| size_of_val(&held)))));
        assert!(*drops.lock().unwrap() >= before + 2, "both were dropped");
    }

    #[tokio::test]
    async fn a_panic_is_the_last_item() {
        let mut items = Guarded::new(Box::pin(stream::iter(0..3).map(|i| {
            assert_ne!(i, 1, "no item");
            i
        })));
        assert_eq!(items.next().await, Some(Ok(0)));
        assert!(items.next().await.unwrap().unwrap_err().contains("no item"));
        assert_eq!(items.next().await, None);
        let panics = Guarded::new(Box::pin(async { panic!("no value") }));
        assert_eq!(panics.await, Err::<(), _>("no value".to_owned()));
        assert_eq!(Guarded::new(Box::pin(async { 1 })).await, Ok(1));
    }

    #[test]
    fn a_poll_after_the_end_panics_for_a_future_and_ends_a_stream() {
        let mut future = Guarded::new(Box::pin(async { 1 }));
        assert_eq!((&mut future).now_or_never(), Some(Ok(1)));
        assert!(catch(|| future.now_or_never()).unwrap_err().contains("after its end"));
        let mut items = Guarded::new(Box::pin(stream::poll_fn(|_| Poll::Ready(None::<u8>))));
        for _ in 0..2 {
            assert_eq!(items.next().now_or_never(), Some(None));
        }
    }
}
