//! Watching variables: a queue for each watcher, which never holds up whoever writes.

use std::{
    collections::{HashSet, VecDeque},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, Waker},
};

use futures_core::Stream;
use serde::{Deserialize, Serialize};

use crate::{Note, SessionError, SessionId, SessionLimits, Variable, kit::SessionRecord};

/// What happened to a variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpdateKind {
    /// Nothing: it is what the variable was when the watch began.
    Initial,
    /// It was registered.
    Registered,
    /// It got a new value.
    Set,
    /// It got a value that it had before, as a new version.
    RolledBack,
    /// It was deleted; the update shows it as it was last.
    Deleted,
}

impl UpdateKind {
    const ALL: [Self; 5] = [Self::Initial, Self::Registered, Self::Set, Self::RolledBack, Self::Deleted];

    /// The kind of this name in the protocol.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// Its name in the protocol.
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

/// A change of a variable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VariableUpdate {
    /// What happened.
    pub kind: UpdateKind,
    /// The variable after it.
    pub variable: Variable,
    /// What was said about it.
    pub note: Note,
}

/// What a watcher is told.
#[derive(Debug, Clone, PartialEq)]
pub enum WatchEvent {
    /// A watched variable changed.
    Update(VariableUpdate),
    /// So many updates are missing here, because the watcher was slow: what comes next is newer.
    Lost(u64),
}

/// Which variables a watch is about.
#[derive(Debug)]
struct Filter {
    /// Empty for all.
    identifiers: HashSet<String>,
}

impl Filter {
    fn is_match(&self, variable: &Variable) -> bool {
        let named = |identifier: &str| self.identifiers.contains(identifier);
        self.identifiers.is_empty() || named(variable.name.as_str()) || named(variable.id.as_str())
    }
}

/// The changes of some variables of a session, as a stream.
///
/// Every change comes once, in the order in which they happened, so each variable's versions rise. Nobody who writes
/// waits for a watcher: one that falls too far behind loses the oldest changes and is told how many
/// ([`WatchEvent::Lost`]), at the place where they are missing. The last change is never lost.
///
/// The stream ends with [`SessionError::NotFound`] when the session ends. A watch does not renew the session.
///
/// # Cancel safety
/// Dropping a future that waits for the next event loses nothing. Dropping the watch ends it.
#[derive(Debug)]
pub struct VariableWatch {
    queue: Arc<Queue>,
}

impl VariableWatch {
    /// Waits for the next event. `None` after the end was told.
    ///
    /// # Errors
    /// [`SessionError::NotFound`] once, when the session ended.
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
        match &mut state.end {
            End::Open => {
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
            End::Why(error) => {
                let error = error.take();
                Poll::Ready(error.map(Err))
            }
        }
    }
}

/// Where a backend puts what one watcher is to be told.
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
    /// The values of all updates.
    bytes: usize,
    /// How many are missing before the first of them.
    lost: u64,
    end: End,
    waker: Option<Waker>,
}

#[derive(Debug, Default)]
enum End {
    #[default]
    Open,
    /// Taken once it was told.
    Why(Option<SessionError>),
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The backend's end of a watch: where it tells what changes, without ever waiting. Cheap to clone; keeps nothing alive.
#[derive(Debug, Clone)]
pub struct Watcher {
    queue: Weak<Queue>,
}

impl Watcher {
    /// Begins to watch these variables of a session, or all of them. They must be loaded.
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

    /// Begins a watch of these variables, by id or name, or without any of all that it is told of. The initial updates come
    /// first, if they are of watched variables; the caller sees to it that no change is missing after them.
    pub fn start(
        limits: &SessionLimits,
        identifiers: &[String],
        initial: impl IntoIterator<Item = VariableUpdate>,
    ) -> (Self, VariableWatch) {
        let filter = Filter { identifiers: identifiers.iter().cloned().collect() };
        let updates: VecDeque<_> =
            initial.into_iter().filter(|update| filter.is_match(&update.variable)).collect();
        // The initial values come whole, however many they are: they are there already.
        let bytes: usize = updates.iter().map(|update| update.variable.value.size()).sum();
        let queue = Arc::new(Queue {
            filter,
            max_updates: limits.max_watch_backlog.max(1).saturating_add(updates.len()),
            max_bytes: limits.max_watch_backlog_bytes.saturating_add(bytes),
            state: Mutex::new(State { updates, bytes, ..State::default() }),
        });
        (Self { queue: Arc::downgrade(&queue) }, VariableWatch { queue })
    }

    /// Tells of a change, if it is about a watched variable. False when nobody listens any more.
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

    /// Tells that updates are missing which this host never saw. False when nobody listens any more.
    pub fn notify_lost(&self, updates: u64) -> bool {
        let Some(queue) = self.queue.upgrade() else { return false };
        let mut state = queue.state();
        // They are older than whatever comes next, so everything that waits is missing with them.
        state.lost += updates + state.updates.len() as u64;
        state.updates.clear();
        state.bytes = 0;
        wake(state);
        true
    }

    /// Ends the watch, once it has seen what waits for it.
    pub fn end(&self, why: SessionError) {
        let Some(queue) = self.queue.upgrade() else { return };
        let mut state = queue.state();
        if matches!(state.end, End::Open) {
            state.end = End::Why(Some(why));
            wake(state);
        }
    }

    /// Whether nobody listens any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.queue.strong_count() == 0
    }
}

/// Wakes the watcher, unlocked.
fn wake(mut state: MutexGuard<'_, State>) {
    let waker = state.waker.take();
    drop(state);
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// All watchers of one session.
#[derive(Debug, Clone, Default)]
pub struct Watchers {
    watchers: Vec<Watcher>,
}

impl Watchers {
    /// Adds a watcher, unless there are too many that still listen.
    pub fn add(&mut self, watcher: Watcher, limit: usize) -> Result<(), SessionError> {
        self.watchers.retain(|watcher| !watcher.is_closed());
        if self.watchers.len() >= limit {
            return Err(SessionError::TooManyWatches { limit });
        }
        self.watchers.push(watcher);
        Ok(())
    }

    /// Those who listen now, to be told later of what happens now: whoever begins in between knows it already.
    pub fn now(&mut self) -> Option<Self> {
        self.watchers.retain(|watcher| !watcher.is_closed());
        (!self.watchers.is_empty()).then(|| self.clone())
    }

    /// Tells all of them of a change.
    pub fn notify(&mut self, update: &VariableUpdate) {
        self.watchers.retain(|watcher| watcher.notify(update));
    }

    /// Ends all watches: their session is gone.
    pub fn end(&self, why: &SessionError) {
        for watcher in &self.watchers {
            watcher.end(why.clone());
        }
    }
}
