//! Watches on variables. Each watcher has a bounded queue, so writers never wait for watchers.

use std::{
    collections::{HashSet, VecDeque},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, Waker},
};

use futures_core::Stream;
use serde::{Deserialize, Serialize};

use crate::{Note, SessionError, SessionId, SessionLimits, Variable, kit::SessionRecord};

/// The kind of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum UpdateKind {
    /// No change: the update shows the variable when the watch began.
    Initial,
    /// The variable was registered.
    Registered,
    /// The variable has a new value.
    Set,
    /// The variable has an earlier value again, as a new version.
    RolledBack,
    /// The variable was deleted. The update shows its last state.
    Deleted,
}

impl UpdateKind {
    const ALL: [Self; 5] = [Self::Initial, Self::Registered, Self::Set, Self::RolledBack, Self::Deleted];

    /// Returns the kind with this name in the protocol.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// The name in the protocol.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Initial => "initial",
            Self::Registered => "registered",
            Self::Set => "set",
            Self::RolledBack => "rolled_back",
            Self::Deleted => "deleted",
        }
    }
}

/// A change to a variable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VariableUpdate {
    /// The kind of the change.
    pub kind: UpdateKind,
    /// The variable after the change.
    pub variable: Variable,
    /// The note of the write.
    pub note: Note,
}

/// An event of a watch.
#[derive(Debug, Clone, PartialEq)]
pub enum WatchEvent {
    /// A watched variable changed.
    Update(VariableUpdate),
    /// This number of updates was dropped here because the watcher was slow. The next update is newer.
    Lost(u64),
}

/// Selects the watched variables.
#[derive(Debug)]
struct Filter {
    /// Empty to watch all variables.
    identifiers: HashSet<String>,
}

impl Filter {
    fn is_match(&self, variable: &Variable) -> bool {
        let contains = |identifier: &str| self.identifiers.contains(identifier);
        self.identifiers.is_empty() || contains(variable.name.as_str()) || contains(variable.id.as_str())
    }
}

/// A stream of changes to variables of a session.
///
/// Changes arrive once and in order, so the versions of each variable increase. Writers do not wait for watchers. If a
/// watcher falls too far behind, the oldest changes are dropped and a [`WatchEvent::Lost`] with their number takes their
/// place. The latest change is never dropped.
///
/// The stream ends with [`SessionError::NotFound`] when the session ends. A watch does not renew the session.
///
/// # Cancel safety
/// Dropping a future that waits for the next event does not lose an event. Dropping the watch ends it.
#[derive(Debug)]
pub struct VariableWatch {
    queue: Arc<Queue>,
}

impl VariableWatch {
    /// Waits for the next event. Returns `None` after the final error.
    ///
    /// # Errors
    /// [`SessionError::NotFound`] once, when the session has ended.
    pub async fn next(&mut self) -> Option<Result<WatchEvent, SessionError>> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }
}

impl Stream for VariableWatch {
    type Item = Result<WatchEvent, SessionError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut state = self.queue.state();
        if state.lost > 0 {
            return Poll::Ready(Some(Ok(WatchEvent::Lost(std::mem::take(&mut state.lost)))));
        }
        if let Some(update) = state.updates.pop_front() {
            state.bytes -= update.variable.value.size();
            return Poll::Ready(Some(Ok(WatchEvent::Update(update))));
        }
        match &mut state.phase {
            Phase::Open => {
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
            Phase::Ended(error) => {
                let error = error.take();
                Poll::Ready(error.map(Err))
            }
        }
    }
}

/// The queue of one watcher.
#[derive(Debug)]
struct Queue {
    state: Mutex<State>,
    filter: Filter,
    max_updates: usize,
    max_bytes: usize,
}

#[derive(Debug, Default)]
struct State {
    updates: VecDeque<VariableUpdate>,
    /// The size of all values in the queue.
    bytes: usize,
    /// The number of dropped updates before the first one in the queue.
    lost: u64,
    phase: Phase,
    waker: Option<Waker>,
}

#[derive(Debug, Default)]
enum Phase {
    #[default]
    Open,
    /// The final error; `None` after the watch returned it.
    Ended(Option<SessionError>),
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sending end of a watch, for backends. Sending never waits. Clones are cheap and do not keep the watch alive.
#[derive(Debug, Clone)]
pub struct Watcher {
    queue: Weak<Queue>,
}

impl Watcher {
    /// Starts a watch on variables of a record, by id or name, or on all variables if `identifiers` is empty. With `initial`, it
    /// begins with the current state of the loaded variables.
    ///
    /// # Errors
    /// [`SessionError::VariableNotFound`].
    pub fn for_record(
        limits: &SessionLimits,
        id: &SessionId,
        record: &SessionRecord,
        identifiers: &[String],
        initial: bool,
    ) -> Result<(Self, VariableWatch), SessionError> {
        for identifier in identifiers {
            record.variable(id, identifier)?;
        }
        let updates = record.variables.values().filter(|_| initial);
        Ok(Self::start(limits, identifiers, updates.map(|watched| watched.update(UpdateKind::Initial))))
    }

    /// Starts a watch on variables by id or name, or on all variables if `identifiers` is empty. The stream begins with those
    /// initial updates that match. The caller ensures that the changes sent later follow them without a gap.
    pub fn start(
        limits: &SessionLimits,
        identifiers: &[String],
        initial: impl IntoIterator<Item = VariableUpdate>,
    ) -> (Self, VariableWatch) {
        let filter = Filter { identifiers: identifiers.iter().cloned().collect() };
        let updates: VecDeque<_> =
            initial.into_iter().filter(|update| filter.is_match(&update.variable)).collect();
        // The bounds do not apply to the initial values, which are in memory already.
        let bytes: usize = updates.iter().map(|update| update.variable.value.size()).sum();
        let queue = Arc::new(Queue {
            filter,
            max_updates: limits.max_watch_backlog.max(1).saturating_add(updates.len()),
            max_bytes: limits.max_watch_backlog_bytes.saturating_add(bytes),
            state: Mutex::new(State { updates, bytes, ..State::default() }),
        });
        (Self { queue: Arc::downgrade(&queue) }, VariableWatch { queue })
    }

    /// Sends a change if it concerns a watched variable. Returns false if the watch was dropped.
    pub fn notify(&self, update: &VariableUpdate) -> bool {
        let Some(queue) = self.queue.upgrade() else { return false };
        if !queue.filter.is_match(&update.variable) {
            return true;
        }
        let mut state = queue.state();
        state.updates.push_back(update.clone());
        state.bytes += update.variable.value.size();
        while state.updates.len() > 1
            && (state.updates.len() > queue.max_updates || state.bytes > queue.max_bytes)
        {
            if let Some(oldest) = state.updates.pop_front() {
                state.bytes -= oldest.variable.value.size();
                state.lost += 1;
            }
        }
        wake(state);
        true
    }

    /// Reports updates that this host never received. Returns false if the watch was dropped.
    pub fn notify_lost(&self, updates: u64) -> bool {
        let Some(queue) = self.queue.upgrade() else { return false };
        let mut state = queue.state();
        // Queued updates are older than the lost ones, so they are dropped too.
        state.lost += updates + state.updates.len() as u64;
        state.updates.clear();
        state.bytes = 0;
        wake(state);
        true
    }

    /// Ends the watch with an error, after the queued events.
    pub fn end(&self, error: SessionError) {
        let Some(queue) = self.queue.upgrade() else { return };
        let mut state = queue.state();
        if matches!(state.phase, Phase::Open) {
            state.phase = Phase::Ended(Some(error));
            wake(state);
        }
    }

    /// Whether the watch was dropped.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.queue.strong_count() == 0
    }
}

/// Releases the lock and wakes the watcher.
fn wake(mut state: MutexGuard<'_, State>) {
    let waker = state.waker.take();
    drop(state);
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// The watchers of one session.
#[derive(Debug, Clone, Default)]
pub struct Watchers {
    watchers: Vec<Watcher>,
}

impl Watchers {
    /// Adds a watcher.
    ///
    /// # Errors
    /// [`SessionError::TooManyWatches`].
    pub fn add(&mut self, watcher: Watcher, limit: usize) -> Result<(), SessionError> {
        self.watchers.retain(|watcher| !watcher.is_closed());
        if self.watchers.len() >= limit {
            return Err(SessionError::TooManyWatches { limit });
        }
        self.watchers.push(watcher);
        Ok(())
    }

    /// Returns a snapshot of the active watchers, or `None` without any. Use it to send a change later: watchers that start in
    /// between begin with a state that includes the change.
    pub fn snapshot(&mut self) -> Option<Self> {
        self.watchers.retain(|watcher| !watcher.is_closed());
        (!self.watchers.is_empty()).then(|| self.clone())
    }

    /// Sends a change to all watchers.
    pub fn notify(&mut self, update: &VariableUpdate) {
        self.watchers.retain(|watcher| watcher.notify(update));
    }

    /// Ends all watches with an error.
    pub fn end(&self, error: &SessionError) {
        for watcher in &self.watchers {
            watcher.end(error.clone());
        }
    }
}
