//! [`Backlog`], a bounded buffer for the updates of a watch. It keeps a watch with a slow reader from exhausting the flow control
//! window of the connection, which calls share.

use std::{
    collections::{BTreeMap, VecDeque},
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
};

use futures_util::Stream;
use snakepit_proto::pb::VariableUpdate;
use tonic::Status;

/// The maximum size of the buffer in bytes, not counting initial values. The buffer keeps the newest update even if it is larger.
const MAX_BYTES: usize = 16 * 1024 * 1024;
/// The maximum total size of a client's backlogs in bytes, not counting initial values. Above it, the largest backlog drops its
/// oldest updates. Each backlog keeps its newest update.
const MAX_TOTAL_BYTES: usize = 64 * 1024 * 1024;
/// The overhead of an update in the accounting, in bytes.
const UPDATE_BYTES: usize = 512;
/// The type of an update with the number of dropped updates.
const LOST: &str = "lost";
/// The type of an update with the value of a variable when the watch starts.
const INITIAL: &str = "initial";

/// A stream of buffered updates. If the reader is slow, the buffer drops the oldest updates and yields an update of type `lost`
/// with their number. The stream ends like its source, after all updates that arrived before the end.
#[derive(Debug)]
pub struct Backlog(Arc<Mutex<State>>);

/// The memory budget of a client's backlogs. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct BacklogBudget(Arc<Usage>);

#[derive(Debug, Default)]
struct Usage {
    /// The size of all updates in backlogs in bytes, not counting initial values.
    bytes: AtomicUsize,
    freeable: Mutex<FreeableBacklogs>,
    last_id: AtomicU64,
}

/// The backlogs that can drop updates, in order of the bytes that would become free, and of their ids.
type FreeableBacklogs = BTreeMap<(usize, u64), Weak<Mutex<State>>>;

impl BacklogBudget {
    /// Drops the oldest updates of the largest backlogs until the total is within the limit. The caller must not hold the lock of
    /// a backlog.
    fn shrink(&self) {
        while self.0.bytes.load(Relaxed) > MAX_TOTAL_BYTES {
            let largest = lock(&self.0.freeable).last_key_value().and_then(|(_, state)| state.upgrade());
            let Some(largest) = largest else { return };
            let mut state = lock(&largest);
            // Its reader may have taken updates in the meantime.
            if state.freeable_bytes() > 0 {
                state.lose_oldest();
            }
        }
    }
}

#[derive(Debug, Default)]
struct State {
    budget: BacklogBudget,
    /// The number of bytes that the budget counts for this backlog.
    reserved: usize,
    /// The entry of this backlog in the budget: the number of bytes that it can free, or 0 if it has no entry.
    indexed: usize,
    id: u64,
    this: Weak<Mutex<Self>>,
    updates: VecDeque<BufferedUpdate>,
    /// The total size of the updates, in bytes.
    bytes: usize,
    /// The total size of the initial values among the updates, in bytes. The limit is larger by this size, so initial values
    /// alone do not cause a loss.
    initial_bytes: usize,
    /// The number of updates that were dropped and not reported yet.
    lost_count: u64,
    /// The end of the source.
    end: Option<Result<(), Status>>,
    /// The task that reads the backlog, while it waits.
    reader_waker: Option<Waker>,
    /// The task that reads the source, while it waits.
    source_waker: Option<Waker>,
    /// Whether the backlog was dropped.
    is_closed: bool,
}

#[derive(Debug)]
struct BufferedUpdate {
    update: VariableUpdate,
    /// Its size in the accounting, in bytes.
    size: usize,
    is_initial: bool,
}

/// Buffers the updates of a watch. The future moves them into the backlog, until the source ends or the backlog is
/// dropped.
pub fn read_ahead<S>(
    source: S,
    budget: &BacklogBudget,
) -> (impl Future<Output = ()> + Send + 'static, Backlog)
where
    S: Stream<Item = Result<VariableUpdate, Status>> + Send + Unpin + 'static,
{
    let id = budget.0.last_id.fetch_add(1, Relaxed);
    let budget = budget.clone();
    let state =
        Arc::new_cyclic(|this| Mutex::new(State { budget, id, this: this.clone(), ..State::default() }));
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
            if state.is_closed {
                return Poll::Ready(());
            }
            let end = match polled {
                Poll::Pending => {
                    state.source_waker = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                Poll::Ready(Some(Ok(update))) => {
                    state.put(update);
                    None
                }
                Poll::Ready(Some(Err(status))) => Some(Err(status)),
                Poll::Ready(None) => Some(Ok(())),
            };
            let has_ended = end.is_some();
            state.end = end;
            let reader = state.reader_waker.take();
            let budget = state.budget.clone();
            drop(state);
            budget.shrink();
            if let Some(reader) = reader {
                reader.wake();
            }
            if has_ended {
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
            state.reader_waker.take()
        };
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

impl State {
    fn put(&mut self, update: VariableUpdate) {
        let size = UPDATE_BYTES + prost::Message::encoded_len(&update);
        let is_initial = update.update_type == INITIAL;
        if is_initial {
            self.initial_bytes += size;
        }
        self.bytes += size;
        self.updates.push_back(BufferedUpdate { update, size, is_initial });
        self.reserve();
        while self.reserved > MAX_BYTES && self.freeable_bytes() > 0 {
            self.lose_oldest();
        }
    }

    /// Returns how many bytes of the budget become free if the backlog drops updates. It never drops the newest update.
    /// Initial values do not count towards the budget.
    fn freeable_bytes(&self) -> usize {
        let newest = self.updates.back().filter(|newest| !newest.is_initial);
        self.reserved - newest.map_or(0, |newest| newest.size)
    }

    fn lose_oldest(&mut self) {
        let Some(oldest) = self.take() else { return };
        self.lost_count += if oldest.update_type == LOST { oldest.lost_updates } else { 1 };
    }

    /// Updates the budget with the current size of this backlog.
    fn reserve(&mut self) {
        let (old, new) = (self.reserved, self.bytes - self.initial_bytes);
        self.reserved = new;
        match new.checked_sub(old) {
            Some(more) => self.budget.0.bytes.fetch_add(more, Relaxed),
            None => self.budget.0.bytes.fetch_sub(old - new, Relaxed),
        };
        let freeable = self.freeable_bytes();
        // Both are 0 while the reader keeps up.
        if freeable != self.indexed {
            let mut index = lock(&self.budget.0.freeable);
            index.remove(&(self.indexed, self.id));
            if freeable > 0 {
                index.insert((freeable, self.id), self.this.clone());
            }
            self.indexed = freeable;
        }
    }

    /// Removes the oldest update.
    fn take(&mut self) -> Option<VariableUpdate> {
        let BufferedUpdate { update, size, is_initial } = self.updates.pop_front()?;
        self.bytes -= size;
        if is_initial {
            self.initial_bytes -= size;
        }
        self.reserve();
        Some(update)
    }
}

/// Locks a state. Ignores poisoning, because no code under the lock panics.
fn lock<T>(state: &Mutex<T>) -> MutexGuard<'_, T> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stream for Backlog {
    type Item = Result<VariableUpdate, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut state = lock(&self.0);
        if state.lost_count > 0 {
            let lost_updates = std::mem::take(&mut state.lost_count);
            let lost = VariableUpdate { update_type: LOST.to_owned(), lost_updates, ..Default::default() };
            return Poll::Ready(Some(Ok(lost)));
        }
        if let Some(update) = state.take() {
            return Poll::Ready(Some(Ok(update)));
        }
        match &mut state.end {
            // Yields the error once, then the end.
            Some(end) => Poll::Ready(std::mem::replace(end, Ok(())).err().map(Err)),
            None => {
                state.reader_waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Backlog {
    fn drop(&mut self) {
        let source = {
            let mut state = lock(&self.0);
            state.is_closed = true;
            state.updates.clear();
            (state.bytes, state.initial_bytes) = (0, 0);
            state.reserve();
            state.source_waker.take()
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

    /// The versions that a reader receives, with the number of lost updates as a negative number.
    async fn receive_all(backlog: Backlog) -> Vec<i64> {
        let version_or_loss = |update: Result<VariableUpdate, Status>| {
            let update = update.unwrap();
            match update.variable {
                Some(variable) => i64::from(variable.version),
                None => -i64::try_from(update.lost_updates).unwrap(),
            }
        };
        backlog.map(version_or_loss).collect().await
    }

    #[tokio::test]
    async fn a_slow_reader_loses_the_oldest_updates_and_receives_their_number() {
        const MIB: usize = 1024 * 1024;
        let updates = (1..=40).map(|version| Ok(update(version, MIB)));
        let (reading, backlog) = read_ahead(stream::iter(updates), &BacklogBudget::default());
        reading.await;
        let received = receive_all(backlog).await;
        assert_eq!(received[..2], [-25, 26]);
        assert_eq!(received[1..], Vec::from_iter(26..=40));
        // The newest update is kept, even beyond the limit.
        let (reading, backlog) = read_ahead(
            stream::iter([Ok(update(1, 1)), Ok(update(2, 2 * MAX_BYTES))]),
            &BacklogBudget::default(),
        );
        reading.await;
        assert_eq!(self::receive_all(backlog).await, [-1, 2]);
    }

    #[tokio::test]
    async fn the_backlogs_of_a_client_share_a_budget() {
        const MIB: usize = 1024 * 1024;
        let budget = BacklogBudget::default();
        let used = || budget.0.bytes.load(Relaxed);
        let fill = async |count: i32| {
            let updates = (1..=count).map(|version| Ok(update(version, MIB - 1000)));
            let (reading, backlog) = read_ahead(stream::iter(updates), &budget);
            reading.await;
            backlog
        };
        let small = fill(2).await;
        let mut backlogs = Vec::new();
        for count in 1..=8 {
            backlogs.push(fill(16).await);
            assert!(used() <= MAX_TOTAL_BYTES, "{count}: {}", used());
        }
        assert!(used() > MAX_TOTAL_BYTES - 2 * MIB, "{}", used());
        assert_eq!(receive_all(small).await, [1, 2], "a small backlog loses nothing");
        for backlog in backlogs {
            let received = receive_all(backlog).await;
            let lost = -received[0];
            assert!((7..=9).contains(&lost), "the large ones lose about the same: {received:?}");
            assert_eq!(received[1..], Vec::from_iter(lost + 1..=16));
        }
        assert_eq!((used(), lock(&budget.0.freeable).len()), (0, 0), "read and closed backlogs use nothing");
        assert_eq!(receive_all(fill(16).await).await, Vec::from_iter(1..=16));
    }

    #[tokio::test]
    async fn initial_values_are_complete_and_lost_updates_add_up() {
        let initial = VariableUpdate { update_type: INITIAL.to_owned(), ..update(0, MAX_BYTES) };
        let lost = VariableUpdate { update_type: LOST.to_owned(), lost_updates: 7, ..Default::default() };
        let updates = [initial.clone(), initial, update(1, 10)].map(Ok);
        let (reading, backlog) = read_ahead(stream::iter(updates), &BacklogBudget::default());
        reading.await;
        assert_eq!(receive_all(backlog).await, [0, 0, 1]);
        let updates = [lost, update(1, 10), update(2, MAX_BYTES)].map(Ok);
        let (reading, backlog) = read_ahead(stream::iter(updates), &BacklogBudget::default());
        reading.await;
        assert_eq!(receive_all(backlog).await, [-8, 2]);
    }

    #[tokio::test]
    async fn a_client_with_many_watches_of_one_update_loses_no_initial_values() {
        const MIB: usize = 1024 * 1024;
        let budget = BacklogBudget::default();
        let initial = || VariableUpdate { update_type: INITIAL.to_owned(), ..update(0, 10) };
        let read = async |updates: Vec<VariableUpdate>| {
            let (reading, backlog) = read_ahead(stream::iter(updates.into_iter().map(Ok)), &budget);
            reading.await;
            backlog
        };
        let initial_only = read(vec![initial(), initial()]).await;
        let with_update = read(vec![initial(), initial(), update(1, 10)]).await;
        let mut others = Vec::new();
        for _ in 0..70 {
            others.push(read(vec![update(1, MIB)]).await);
        }
        assert!(budget.0.bytes.load(Relaxed) > MAX_TOTAL_BYTES, "each backlog keeps its newest update");
        assert_eq!(receive_all(initial_only).await, [0, 0]);
        assert_eq!(receive_all(with_update).await, [0, 0, 1]);
        for backlog in others {
            assert_eq!(receive_all(backlog).await, [1]);
        }
    }

    #[tokio::test]
    async fn initial_values_that_were_read_or_dropped_do_not_raise_the_limit() {
        let initial = VariableUpdate { update_type: INITIAL.to_owned(), ..update(0, MAX_BYTES) };
        let updates = [Ok(update(1, MAX_BYTES / 2)), Ok(update(2, MAX_BYTES))];
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let (reading, mut backlog) =
            read_ahead(stream::poll_fn(move |cx| receiver.poll_recv(cx)), &BacklogBudget::default());
        let mut reading = Box::pin(reading);
        sender.send(Ok(initial.clone())).unwrap();
        assert!(reading.as_mut().now_or_never().is_none());
        assert_eq!(backlog.next().await.unwrap().unwrap(), initial);
        updates.clone().into_iter().for_each(|update| sender.send(update).unwrap());
        assert!(reading.as_mut().now_or_never().is_none());
        // The backlog loses the first update, although both updates would fit together with the initial value.
        let lost = backlog.next().await.unwrap().unwrap();
        assert_eq!((lost.update_type.as_str(), lost.lost_updates), (LOST, 1));
        drop(sender);
        reading.await;
        assert_eq!(receive_all(backlog).await, [2]);
        let (reading, backlog) =
            read_ahead(stream::iter([Ok(initial)].into_iter().chain(updates)), &BacklogBudget::default());
        reading.await;
        assert_eq!(receive_all(backlog).await, [-2, 2], "the initial value is older than the updates");
    }

    #[tokio::test]
    async fn the_end_follows_the_updates_before_it() {
        let updates = [Ok(update(1, 1)), Err(Status::unavailable("broken")), Ok(update(2, 1))];
        let (reading, mut backlog) = read_ahead(stream::iter(updates), &BacklogBudget::default());
        reading.await;
        assert!(backlog.next().await.unwrap().is_ok());
        assert_eq!(backlog.next().await.unwrap().unwrap_err().message(), "broken");
        assert!(backlog.next().await.is_none());
        let (reading, mut backlog) = read_ahead(stream::pending(), &BacklogBudget::default());
        drop(reading);
        assert!(backlog.next().await.unwrap().is_err(), "the source is not read");
    }

    #[tokio::test]
    async fn a_dropped_backlog_ends_the_future() {
        let (reading, backlog) = read_ahead(stream::pending(), &BacklogBudget::default());
        let mut reading = Box::pin(reading);
        assert!(reading.as_mut().now_or_never().is_none());
        drop(backlog);
        reading.await;
    }
}
