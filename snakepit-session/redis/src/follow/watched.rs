//! [`WatchedSessions`]: the watched sessions of this host, their watchers, and the cursor of each watcher. It selects the
//! sessions to read next. This module neither waits nor does IO. The glossary is in the parent module.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use snakepit_session::{SessionError, SessionId, VariableUpdate, Watcher};
use tokio::time::Instant;

/// The watched sessions, by incarnation.
#[derive(Debug, Default)]
pub(super) struct WatchedSessions {
    sessions: HashMap<Arc<str>, FollowedSession>,
    /// Sessions that have changed, or may have changed.
    changed: Vec<Arc<str>>,
    /// The times at which to check that a session still exists and to renew its watch lease.
    checks: BTreeSet<(Instant, Arc<str>)>,
}

/// A position in the log of a session: the number of a change and its mark. Mark 0 means that the mark is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WatchCursor {
    pub(crate) number: u64,
    pub(crate) mark: u64,
}

impl WatchCursor {
    /// Whether the marks allow that both are the same change.
    const fn may_equal(self, mark: u64) -> bool {
        self.mark == 0 || mark == 0 || self.mark == mark
    }
}

#[derive(Debug)]
struct FollowedSession {
    id: SessionId,
    watchers: Vec<WatcherState>,
    is_changed: bool,
    check: Option<Instant>,
}

/// A watcher and its progress.
#[derive(Debug)]
struct WatcherState {
    /// The last delivered change. `None` after lost changes were reported, until the current state is delivered.
    delivered: Option<WatchCursor>,
    /// Whether the current read includes this watcher. Watchers that were added later may be ahead of it, or behind.
    in_read: bool,
    watcher: Watcher,
}

/// A change from the log.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) cursor: WatchCursor,
    pub(super) predecessor: Predecessor,
    pub(super) update: VariableUpdate,
}

/// The mark of the change before this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Predecessor {
    /// The mark.
    Mark(u64),
    /// An earlier version wrote the change without the mark.
    Unrecorded,
    /// The change was not read from the log, so changes before it may be missing.
    Unknown,
}

/// The result of reading the log of a session.
#[derive(Debug)]
pub(super) struct LogRead {
    /// The number after which the read began. `None` for a read of the current variables.
    pub(super) after: Option<u64>,
    /// The cursor of the last change in this read.
    pub(super) last_read: WatchCursor,
    /// The changes in order. A missing number is a lost change.
    pub(super) changes: Vec<Change>,
    /// The cursor of the latest change to the session.
    pub(super) latest: WatchCursor,
    /// Whether the log contains more changes.
    pub(super) has_more: bool,
    /// When to check the session again. `None` if the session has ended.
    pub(super) next_check: Option<Instant>,
}

impl WatchedSessions {
    pub(super) fn add(
        &mut self,
        id: &SessionId,
        incarnation: &str,
        cursor: WatchCursor,
        watcher: Watcher,
        limit: usize,
    ) -> Result<(), SessionError> {
        let incarnation: Arc<str> = incarnation.into();
        let followed = self.sessions.entry(Arc::clone(&incarnation)).or_insert_with(|| FollowedSession {
            id: id.clone(),
            watchers: Vec::new(),
            is_changed: false,
            check: None,
        });
        followed.watchers.retain(|state| !state.watcher.is_closed());
        if followed.watchers.len() >= limit {
            return Err(SessionError::TooManyWatches { limit });
        }
        followed.watchers.push(WatcherState { delivered: Some(cursor), in_read: false, watcher });
        self.mark_changed(&incarnation);
        Ok(())
    }

    /// Marks a session that changed or ended, so that it is read.
    pub(super) fn mark_changed(&mut self, incarnation: &str) {
        if let Some((incarnation, _)) = self.sessions.get_key_value(incarnation) {
            let incarnation = Arc::clone(incarnation);
            let Some(followed) = self.sessions.get_mut(&incarnation) else { return };
            if !std::mem::replace(&mut followed.is_changed, true) {
                self.changed.push(incarnation);
            }
        }
    }

    pub(super) fn mark_all_changed(&mut self) {
        self.changed = self.sessions.keys().cloned().collect();
        for followed in self.sessions.values_mut() {
            followed.is_changed = true;
        }
    }

    pub(super) fn next_check(&self) -> Option<Instant> {
        self.checks.first().map(|(at, _)| *at)
    }

    /// Returns the sessions to read now, each with the number after which to read, or `None` for the current variables. Schedules
    /// their next check.
    pub(super) fn due(&mut self, limit: usize, check: Instant) -> Vec<(SessionId, Arc<str>, Option<u64>)> {
        let now = Instant::now();
        while let Some((_, incarnation)) = self.checks.first().filter(|(at, _)| *at <= now).cloned() {
            self.schedule(&incarnation, None);
            self.mark_changed(&incarnation);
        }
        let mut due = Vec::new();
        while due.len() < limit
            && let Some(incarnation) = self.changed.pop()
        {
            self.schedule(&incarnation, Some(check));
            let Some(followed) = self.sessions.get_mut(&incarnation) else { continue };
            followed.is_changed = false;
            followed.watchers.retain(|state| !state.watcher.is_closed());
            followed.watchers.iter_mut().for_each(|state| state.in_read = true);
            // `None` sorts before all numbers.
            match followed
                .watchers
                .iter()
                .map(|state| state.delivered.map(|delivered| delivered.number))
                .min()
            {
                Some(delivered) => due.push((followed.id.clone(), incarnation, delivered)),
                None => self.remove(&incarnation),
            }
        }
        due
    }

    /// Delivers a read to the watchers of a session.
    pub(super) fn deliver(&mut self, incarnation: &Arc<str>, read: &LogRead) {
        let Some(followed) = self.sessions.get_mut(incarnation) else { return };
        let mut needs_read = read.has_more;
        for WatcherState { delivered, in_read, watcher } in &mut followed.watchers {
            // A watcher that was added during the read may be ahead of it, or behind.
            needs_read |= !*in_read || !read.deliver_to(delivered, watcher);
        }
        if needs_read {
            self.mark_changed(incarnation);
        } else if read.next_check.is_some() {
            self.schedule(incarnation, read.next_check);
        } else {
            let ended = SessionError::NotFound { id: followed.id.clone() };
            for WatcherState { watcher, .. } in &followed.watchers {
                watcher.end(ended.clone());
            }
            self.remove(incarnation);
        }
    }

    /// Sets the time of the next check.
    fn schedule(&mut self, incarnation: &Arc<str>, at: Option<Instant>) {
        let Some(followed) = self.sessions.get_mut(incarnation) else { return };
        if let Some(previous) = std::mem::replace(&mut followed.check, at) {
            self.checks.remove(&(previous, Arc::clone(incarnation)));
        }
        if let Some(at) = at {
            self.checks.insert((at, Arc::clone(incarnation)));
        }
    }

    fn remove(&mut self, incarnation: &Arc<str>) {
        self.schedule(incarnation, None);
        self.sessions.remove(incarnation);
    }
}

impl LogRead {
    /// Delivers the read to one watcher. Returns false if the watcher needs another read.
    fn deliver_to(&self, delivered: &mut Option<WatchCursor>, watcher: &Watcher) -> bool {
        let Some(cursor) = delivered else {
            if self.after.is_none() && !self.has_more {
                for change in &self.changes {
                    watcher.notify(&change.update);
                }
                *delivered = Some(self.latest);
            }
            return delivered.is_some();
        };
        // The read began after this watcher's cursor.
        if self.after.is_none_or(|after| cursor.number < after) {
            return false;
        }
        if self.has_diverged(*cursor) {
            watcher.notify_lost(1);
            *delivered = None;
            return false;
        }
        for Change { cursor: at, predecessor, update } in &self.changes {
            if at.number > cursor.number {
                let missing = at.number - cursor.number - 1;
                notify_lost(watcher, missing.max(u64::from(*predecessor == Predecessor::Unknown)));
                watcher.notify(update);
                *cursor = *at;
            }
        }
        // Undecodable changes count as lost. The cursor skips them, so that they are not read again.
        let read_up_to = if self.has_more { self.last_read } else { self.latest };
        if read_up_to.number > cursor.number {
            notify_lost(watcher, read_up_to.number - cursor.number);
            *cursor = read_up_to;
        } else if read_up_to.number == cursor.number && read_up_to.mark != 0 {
            cursor.mark = read_up_to.mark;
        }
        true
    }

    /// Whether Redis lost changes that this watcher has received. Other changes may reuse their numbers.
    fn has_diverged(&self, cursor: WatchCursor) -> bool {
        if self.next_check.is_none() {
            return false;
        }
        let next = self.changes.iter().find(|change| change.cursor.number > cursor.number);
        let same = self.changes.iter().find(|change| change.cursor.number == cursor.number);
        let is_next = next.is_some_and(|next| next.cursor.number == cursor.number + 1);
        self.latest.number < cursor.number
            || (self.latest.number == cursor.number && !cursor.may_equal(self.latest.mark))
            || same.is_some_and(|same| !cursor.may_equal(same.cursor.mark))
            || (is_next
                && matches!(next, Some(Change { predecessor: Predecessor::Mark(mark), .. }) if !cursor.may_equal(*mark)))
    }
}

fn notify_lost(watcher: &Watcher, updates: u64) {
    if updates > 0 {
        watcher.notify_lost(updates);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use snakepit_session::{
        NewSession, NewVariable, Note, Payload, SessionLimits, UpdateKind, ValueType, VariableName,
        VariableType, VariableWatch, WatchEvent,
        kit::{SessionHeader, SessionRecord, SizeGuard},
    };

    /// A watched session with simulated reads.
    struct Session {
        watched: WatchedSessions,
        record: SessionRecord,
        update: VariableUpdate,
    }

    impl Session {
        fn new() -> Self {
            let limits = SessionLimits::default();
            let mut record = SessionRecord::new(SessionHeader::new(NewSession::default(), &limits));
            let ty = VariableType::new(ValueType::Integer).unwrap();
            let new = NewVariable { ty, value: Payload::try_from_serde(&0).unwrap(), note: Note::default() };
            let mut size_guard = SizeGuard { session: &id(), limits: &limits, resize: &mut |_, _| Ok(()) };
            let x =
                record.register(&mut size_guard, &VariableName::try_new("x").unwrap(), new, None).unwrap();
            let update = x.update(UpdateKind::Set);
            Self { watched: WatchedSessions::default(), record, update }
        }

        fn watch(&mut self, seq: u64) -> VariableWatch {
            let limits = SessionLimits::default();
            let (watcher, watch) = Watcher::for_record(&limits, &id(), &self.record, &[], false).unwrap();
            let cursor = WatchCursor { number: seq, mark: 0 };
            self.watched.add(&id(), "born", cursor, watcher, limits.max_watches).unwrap();
            watch
        }

        fn due(&mut self) -> Vec<u64> {
            self.due_or_now().into_iter().map(|after| after.expect("the log is read")).collect()
        }

        fn due_or_now(&mut self) -> Vec<Option<u64>> {
            let due = self.watched.due(10, Instant::now() + HOUR);
            due.into_iter().map(|(_, _, after)| after).collect()
        }

        fn notify(&mut self, after: u64, numbers: impl IntoIterator<Item = u64>, seq: u64, is_live: bool) {
            let changes = numbers.into_iter().map(|number| (number, 0, Predecessor::Unrecorded));
            let check = is_live.then(|| Instant::now() + HOUR);
            self.deliver_marked(Some(after), changes, WatchCursor { number: seq, mark: 0 }, check);
        }

        /// Delivers changes, each with number, mark and predecessor.
        fn deliver_marked(
            &mut self,
            after: Option<u64>,
            changes: impl IntoIterator<Item = (u64, u64, Predecessor)>,
            now: WatchCursor,
            check: Option<Instant>,
        ) {
            let change = |(number, mark, before)| {
                let mut update = self.update.clone();
                update.variable.version = u32::try_from(number).unwrap();
                Change { cursor: WatchCursor { number, mark }, predecessor: before, update }
            };
            let changes = changes.into_iter().map(change).collect();
            let read =
                LogRead { after, last_read: now, changes, latest: now, has_more: false, next_check: check };
            self.watched.deliver(&"born".into(), &read);
        }
    }

    const HOUR: std::time::Duration = std::time::Duration::from_secs(3600);

    fn id() -> SessionId {
        SessionId::try_new("s").unwrap()
    }

    /// Returns the events of a watch since the last call: the number of each change, the negated count of lost changes, and 0 for
    /// the end.
    async fn take_delivered(watch: &mut VariableWatch) -> Vec<i64> {
        let mut delivered = Vec::new();
        while let Ok(event) = tokio::time::timeout(std::time::Duration::from_millis(1), watch.next()).await {
            delivered.push(match event {
                Some(Ok(WatchEvent::Update(update))) => update.variable.version.into(),
                Some(Ok(WatchEvent::Lost(lost))) => -i64::try_from(lost).unwrap(),
                Some(Err(_)) => 0,
                None => break,
            });
        }
        delivered
    }

    #[tokio::test(start_paused = true)]
    async fn a_watcher_added_during_a_read_receives_the_next_read() {
        let mut session = Session::new();
        let mut first = session.watch(5);
        assert_eq!(session.due(), [5]);
        session.notify(5, 6..=8, 8, true);
        assert!(session.due().is_empty(), "nothing changed since");
        session.watched.mark_changed("born");
        assert_eq!(session.due(), [8]);
        // The cursors of these watchers are before and after the current read.
        let (mut second, mut third) = (session.watch(6), session.watch(11));
        session.notify(8, 9..=10, 10, true);
        assert_eq!(take_delivered(&mut first).await, [6, 7, 8, 9, 10]);
        assert_eq!(take_delivered(&mut second).await, [0; 0]);
        assert_eq!(session.due(), [6]);
        session.notify(6, 7..=11, 11, false);
        assert_eq!(take_delivered(&mut second).await, [7, 8, 9, 10, 11, 0], "then the watch ends");
        assert_eq!(take_delivered(&mut first).await, [11, 0], "nothing is delivered twice");
        assert_eq!(take_delivered(&mut third).await, [0], "nothing is lost");
        assert!(session.watched.sessions.is_empty() && session.watched.checks.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn lost_changes_are_reported_in_order() {
        let mut session = Session::new();
        let mut watch = session.watch(0);
        assert_eq!(session.due(), [0]);
        session.notify(0, [3, 4, 7], 7, true);
        assert_eq!(
            take_delivered(&mut watch).await,
            [-6, 7],
            "queued changes before lost ones are dropped too"
        );
        session.notify(7, [8], 10, true);
        assert_eq!(take_delivered(&mut watch).await, [-3], "the latest changes are missing");
        session.notify(10, [11], 11, true);
        assert_eq!(take_delivered(&mut watch).await, [11]);
    }

    #[tokio::test(start_paused = true)]
    async fn undecodable_changes_are_lost_and_not_read_again() {
        let mut session = Session::new();
        let mut watch = session.watch(0);
        assert_eq!(session.due(), [0]);
        let check = Some(Instant::now() + HOUR);
        let (last_read, latest) = (WatchCursor { number: 16, mark: 0 }, WatchCursor { number: 20, mark: 0 });
        let read = LogRead {
            after: Some(0),
            last_read,
            changes: Vec::new(),
            latest,
            has_more: true,
            next_check: check,
        };
        session.watched.deliver(&"born".into(), &read);
        assert_eq!(session.due(), [16]);
        session.notify(16, 17..=20, 20, true);
        assert_eq!(take_delivered(&mut watch).await, [-16, 17, 18, 19, 20]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_diverged_log_is_detected_and_the_current_state_delivered() {
        let check = Some(Instant::now() + HOUR);
        let cursor = |number, mark| WatchCursor { number, mark };
        // A read after change 5, which has mark 50: the latest cursor and the changes with their predecessors.
        for (now, changes, is_lost) in [
            (cursor(5, 50), vec![], false),
            (cursor(5, 51), vec![], true),
            (cursor(3, 30), vec![], true),
            (cursor(6, 60), vec![(6, 60, Predecessor::Mark(50))], false),
            (cursor(6, 60), vec![(6, 60, Predecessor::Mark(51))], true),
            (cursor(6, 60), vec![(6, 60, Predecessor::Unrecorded)], false),
        ] {
            let mut session = Session::new();
            let mut watch = session.watch(4);
            assert_eq!(session.due(), [4]);
            session.deliver_marked(Some(4), [(5, 50, Predecessor::Unrecorded)], cursor(5, 50), check);
            assert_eq!(take_delivered(&mut watch).await, [5]);
            let changed = changes.len();
            session.deliver_marked(Some(5), changes.clone(), now, check);
            if !is_lost {
                assert_eq!(take_delivered(&mut watch).await.len(), changed, "{changes:?}");
                continue;
            }
            assert_eq!(take_delivered(&mut watch).await, [-1], "{changes:?}");
            assert_eq!(session.due_or_now(), [None]);
            session.deliver_marked(None, [(2, 0, Predecessor::Unknown)], cursor(3, 30), check);
            assert_eq!(take_delivered(&mut watch).await, [2]);
            session.deliver_marked(Some(3), [(4, 40, Predecessor::Mark(30))], cursor(4, 40), check);
            assert_eq!(take_delivered(&mut watch).await, [4]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn sessions_without_watchers_are_removed() {
        let mut session = Session::new();
        let (first, second) = (session.watch(0), session.watch(0));
        assert_eq!(session.due(), [0]);
        drop(first);
        assert!(session.due().is_empty());
        tokio::time::advance(HOUR).await;
        assert_eq!(session.due(), [0], "the session is checked regularly");
        drop(second);
        session.watched.mark_all_changed();
        assert!(session.due().is_empty());
        assert!(session.watched.sessions.is_empty() && session.watched.checks.is_empty());
    }
}
