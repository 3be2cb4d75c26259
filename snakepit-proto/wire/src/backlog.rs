//! [`Backlog`]: updates of a watch, read from the connection as they come. A watch that nobody reads then occupies none of the
//! connection's flow control window, which calls need too.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use futures_util::Stream;
use snakepit_proto::pb::VariableUpdate;
use tonic::Status;

/// How many bytes of updates may wait for their reader. The newest update stays whatever its size.
const MAX_BYTES: usize = 16 * 1024 * 1024;
/// How many bytes an update counts beyond its content.
const UPDATE_BYTES: usize = 512;
/// The type of an update that says how many are missing.
const LOST: &str = "lost";
/// The type of an update that tells how a variable was when the watch began.
const INITIAL: &str = "initial";

/// Updates that were read ahead, as a stream. When the reader is slow the oldest ones give way, and an update of type `lost`
/// says how many they were. Ends as the source does, after all that arrived before.
#[derive(Debug)]
pub struct Backlog(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    updates: VecDeque<VariableUpdate>,
    bytes: usize,
    /// How many bytes the initial values have that came: these are there already and come whole.
    initial_bytes: usize,
    /// How many updates are missing before the first.
    lost: u64,
    /// How the source ended.
    end: Option<Result<(), Status>>,
    reader: Option<Waker>,
    /// The task that reads the source.
    source: Option<Waker>,
    closed: bool,
}

/// Reads the updates of a watch ahead. The future moves them and ends with the source, or when the backlog is dropped.
pub fn read_ahead<S>(source: S) -> (impl Future<Output = ()> + Send + 'static, Backlog)
where
    S: Stream<Item = Result<VariableUpdate, Status>> + Send + Unpin + 'static,
{
    let state = Arc::<Mutex<State>>::default();
    (ReadAhead { source, state: Arc::clone(&state) }, Backlog(state))
}

struct ReadAhead<S> {
    source: S,
    state: Arc<Mutex<State>>,
}

impl<S: Stream<Item = Result<VariableUpdate, Status>> + Unpin> Future for ReadAhead<S> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        loop {
            let polled = Pin::new(&mut this.source).poll_next(cx);
            let mut state = lock(&this.state);
            if state.closed {
                return Poll::Ready(());
            }
            let end = match polled {
                Poll::Pending => {
                    state.source = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                Poll::Ready(Some(Ok(update))) => {
                    state.put(update);
                    None
                }
                Poll::Ready(Some(Err(status))) => Some(Err(status)),
                Poll::Ready(None) => Some(Ok(())),
            };
            let ended = end.is_some();
            state.end = end;
            let reader = state.reader.take();
            drop(state);
            if let Some(reader) = reader {
                reader.wake();
            }
            if ended {
                return Poll::Ready(());
            }
        }
    }
}

impl<S> Drop for ReadAhead<S> {
    fn drop(&mut self) {
        let reader = {
            let mut state = lock(&self.state);
            let dropped = || Err(Status::unavailable("the watch is no longer read from its connection"));
            state.end.get_or_insert_with(dropped);
            state.reader.take()
        };
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

impl State {
    fn put(&mut self, update: VariableUpdate) {
        let size = size(&update);
        if update.update_type == INITIAL {
            self.initial_bytes += size;
        }
        self.bytes += size;
        self.updates.push_back(update);
        while self.bytes > MAX_BYTES + self.initial_bytes && self.updates.len() > 1 {
            let Some(oldest) = self.updates.pop_front() else { return };
            self.bytes -= self::size(&oldest);
            self.lost += if oldest.update_type == LOST { oldest.lost_updates } else { 1 };
        }
    }
}

fn size(update: &VariableUpdate) -> usize {
    UPDATE_BYTES + prost::Message::encoded_len(update)
}

/// No code that could panic runs under the lock, so a poisoned one still holds sound data.
fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stream for Backlog {
    type Item = Result<VariableUpdate, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut state = lock(&self.0);
        if state.lost > 0 {
            let lost_updates = std::mem::take(&mut state.lost);
            let lost = VariableUpdate { update_type: LOST.to_owned(), lost_updates, ..Default::default() };
            return Poll::Ready(Some(Ok(lost)));
        }
        if let Some(update) = state.updates.pop_front() {
            state.bytes -= size(&update);
            return Poll::Ready(Some(Ok(update)));
        }
        match &mut state.end {
            // The error comes once; after it the stream has ended.
            Some(end) => Poll::Ready(std::mem::replace(end, Ok(())).err().map(Err)),
            None => {
                state.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Backlog {
    fn drop(&mut self) {
        let source = {
            let mut state = lock(&self.0);
            state.closed = true;
            state.updates.clear();
            state.source.take()
        };
        if let Some(source) = source {
            source.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, StreamExt, stream};
    use snakepit_proto::pb::Variable;

    use super::*;

    fn update(version: i32, bytes: usize) -> VariableUpdate {
        let variable = Variable { version, binary_value: vec![0; bytes].into(), ..Variable::default() };
        VariableUpdate {
            update_type: "set".to_owned(),
            variable: Some(variable),
            ..VariableUpdate::default()
        }
    }

    /// The versions that a reader sees, lost ones as their negative number.
    async fn seen(backlog: Backlog) -> Vec<i64> {
        let one = |update: Result<VariableUpdate, Status>| {
            let update = update.unwrap();
            match update.variable {
                Some(variable) => i64::from(variable.version),
                None => -i64::try_from(update.lost_updates).unwrap(),
            }
        };
        backlog.map(one).collect().await
    }

    #[tokio::test]
    async fn a_slow_reader_loses_the_oldest_updates_and_hears_how_many() {
        const MIB: usize = 1024 * 1024;
        let updates = (1..=40).map(|version| Ok(update(version, MIB)));
        let (reading, backlog) = read_ahead(stream::iter(updates));
        reading.await;
        let seen = seen(backlog).await;
        assert_eq!(seen[..2], [-25, 26]);
        assert_eq!(seen[1..], Vec::from_iter(26..=40));
        // One alone stays, however large.
        let (reading, backlog) = read_ahead(stream::iter([Ok(update(1, 1)), Ok(update(2, 2 * MAX_BYTES))]));
        reading.await;
        assert_eq!(self::seen(backlog).await, [-1, 2]);
    }

    #[tokio::test]
    async fn initial_values_come_whole_and_missing_ones_add_up() {
        let initial = VariableUpdate { update_type: INITIAL.to_owned(), ..update(0, MAX_BYTES) };
        let lost = VariableUpdate { update_type: LOST.to_owned(), lost_updates: 7, ..Default::default() };
        let updates = [initial.clone(), initial, update(1, 10)].map(Ok);
        let (reading, backlog) = read_ahead(stream::iter(updates));
        reading.await;
        assert_eq!(seen(backlog).await, [0, 0, 1]);
        let updates = [lost, update(1, 10), update(2, MAX_BYTES)].map(Ok);
        let (reading, backlog) = read_ahead(stream::iter(updates));
        reading.await;
        assert_eq!(seen(backlog).await, [-8, 2]);
    }

    #[tokio::test]
    async fn the_end_comes_after_what_arrived_before_it() {
        let updates = [Ok(update(1, 1)), Err(Status::unavailable("broken")), Ok(update(2, 1))];
        let (reading, mut backlog) = read_ahead(stream::iter(updates));
        reading.await;
        assert!(backlog.next().await.unwrap().is_ok());
        assert_eq!(backlog.next().await.unwrap().unwrap_err().message(), "broken");
        assert!(backlog.next().await.is_none());
        let (reading, mut backlog) = read_ahead(stream::pending());
        drop(reading);
        assert!(backlog.next().await.unwrap().is_err(), "nobody reads the source");
    }

    #[tokio::test]
    async fn nothing_is_read_for_a_reader_that_is_gone() {
        let (reading, backlog) = read_ahead(stream::pending());
        let mut reading = Box::pin(reading);
        assert!(reading.as_mut().now_or_never().is_none());
        drop(backlog);
        reading.await;
    }
}
