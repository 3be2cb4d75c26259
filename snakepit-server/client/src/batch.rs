//! Batches of calls with a limit on the number of calls in flight.

use futures_util::{Stream, StreamExt, stream};
use serde::de::DeserializeOwned;

use crate::{CallBuilder, Caller, Error, HostHandle, Reply};

/// A batch of calls, created by [`Caller::call_many`] or [`Caller::call_many_from`].
#[derive(Debug)]
#[must_use = "a batch does nothing until you poll the stream of `in_order` or `as_completed`"]
pub struct CallBatch<S> {
    calls: S,
    concurrency: usize,
}

impl<H: HostHandle> Caller<H> {
    /// Makes a call for each item, and keeps up to `concurrency` calls in flight. A `concurrency` of 0 counts as 1.
    ///
    /// `prepare` creates the call of an item when the call can begin, so the batch never holds more than `concurrency` calls
    /// or unread replies.
    ///
    /// ```
    /// use futures_util::TryStreamExt;
    /// use snakepit_client::{Caller, Error, HostHandle};
    ///
    /// async fn squares<H: HostHandle>(caller: &Caller<H>) -> Result<Vec<i64>, Error> {
    ///     let calls = caller.call_many(1..=100, 8, |caller, n| caller.call("square").arg("n", n));
    ///     calls.in_order::<i64>().map_ok(|reply| reply.value).try_collect().await
    /// }
    /// ```
    ///
    /// Add [`wait_for_room`](CallBuilder::wait_for_room) if `concurrency` exceeds the number of workers plus the queue limit of
    /// the host, or if other callers share the host. Otherwise, calls can fail with `Overloaded`.
    pub fn call_many<I, F>(
        &self,
        items: I,
        concurrency: usize,
        prepare: F,
    ) -> CallBatch<impl Stream<Item = CallBuilder<H>> + use<H, I, F>>
    where
        I: IntoIterator,
        F: FnMut(&Self, I::Item) -> CallBuilder<H>,
    {
        self.call_many_from(stream::iter(items), concurrency, prepare)
    }

    /// Like [`call_many`](Self::call_many), for the items of a stream. While `concurrency` calls are in flight, or their replies
    /// are unread, the batch does not poll the stream (backpressure).
    pub fn call_many_from<S, F>(
        &self,
        items: S,
        concurrency: usize,
        mut prepare: F,
    ) -> CallBatch<impl Stream<Item = CallBuilder<H>> + use<H, S, F>>
    where
        S: Stream,
        F: FnMut(&Self, S::Item) -> CallBuilder<H>,
    {
        let caller = self.clone();
        let calls = items.map(move |item| prepare(&caller, item));
        CallBatch { calls, concurrency: concurrency.max(1) }
    }
}

impl<S, H> CallBatch<S>
where
    S: Stream<Item = CallBuilder<H>>,
    H: HostHandle,
{
    /// Returns the replies in the order of the items. `T` is the type of a value: `calls.in_order::<serde_json::Value>()` for any
    /// value that JSON can express.
    ///
    /// A failed call is an `Err` item, and the others continue. `try_collect` and `try_for_each` end the batch at the first
    /// error.
    ///
    /// # Errors
    /// Each item fails as [`CallBuilder::unary`] does.
    ///
    /// # Cancel safety
    /// Calls make progress only while you poll the stream. Dropping it cancels the calls in flight, and does not start further
    /// ones.
    pub fn in_order<T: DeserializeOwned>(self) -> impl Stream<Item = Result<Reply<T>, Error>> {
        self.calls.map(CallBuilder::unary::<T>).buffered(self.concurrency)
    }

    /// Returns the replies as they arrive, each with the index of its item, from 0. `T` is the type of a value, as for
    /// [`in_order`](Self::in_order).
    ///
    /// # Errors
    /// As for [`in_order`](Self::in_order).
    ///
    /// # Cancel safety
    /// As for [`in_order`](Self::in_order).
    pub fn as_completed<T: DeserializeOwned>(self) -> impl Stream<Item = (usize, Result<Reply<T>, Error>)> {
        let indexed = |(index, call): (usize, CallBuilder<H>)| async move { (index, call.unary().await) };
        self.calls.enumerate().map(indexed).buffer_unordered(self.concurrency)
    }
}
