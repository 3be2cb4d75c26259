//! The sessions that are watched on this host: who watches them, how far each has been told, and what is to be read next.
//! It neither waits nor does any IO.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use snakepit_session::{SessionError, SessionId, VariableUpdate, Watcher};
use tokio::time::Instant;

/// By what tells a session from others that had its id before.
#[derive(Debug, Default)]
pub(super) struct Watched {
    sessions: HashMap<Arc<str>, Followed>,
    /// Those that changed, or may have.
    changed: Vec<Arc<str>>,
    /// When to look whether they still live, and to say that they are watched.
    checks: BTreeSet<(Instant, Arc<str>)>,
}

/// How far a watcher was told: the number of the last change that it knows of, and what tells that change from another of its
/// number in a past that Redis lost. 0: nothing does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cursor {
    pub(crate) number: u64,
    pub(crate) mark: u64,
}

impl Cursor {
    /// Whether this may be the same change, as far as the marks say.
    const fn may_be(self, mark: u64) -> bool {
        self.mark == 0 || mark == 0 || self.mark == mark
    }
}

#[derive(Debug)]
struct Followed {
    id: SessionId,
    watchers: Vec<Watching>,
    is_changed: bool,
    check: Option<Instant>,
}

/// One who watches a session.
#[derive(Debug)]
struct Watching {
    /// What it was told last; `None` when it was told that its past is lost, and not yet what is now.
    delivered: Option<Cursor>,
    /// It was there before the session was read.
    is_asked_for: bool,
    watcher: Watcher,
}

/// A change that was read.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) at: Cursor,
    pub(super) before: Link,
    pub(super) update: VariableUpdate,
}

/// What is known of the change before another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    /// It has this mark.
    Is(u64),
    /// An earlier version wrote the change, and did not say.
    Unsaid,
    /// It was not read from the log.
    Unknown,
}

/// What was read of a session.
#[derive(Debug)]
pub(super) struct Delivery {
    /// The number of the change after which it was read; `None`: the variables are what they are now.
    pub(super) after: Option<u64>,
    /// The last change that was read.
    pub(super) read: Cursor,
    /// In their order; a number that is missing is a change that is lost.
    pub(super) changes: Vec<Change>,
    /// The last change that there was.
    pub(super) now: Cursor,
    /// There is more to be read.
    pub(super) more: bool,
    /// When to look again; never, if the session is gone.
    pub(super) check: Option<Instant>,
}

impl Watched {
    pub(super) fn add(
        &mut self,
        id: &SessionId,
        incarnation: &str,
        cursor: Cursor,
        watcher: Watcher,
        limit: usize,
    ) -> Result<(), SessionError> {
        let incarnation: Arc<str> = incarnation.into();
        let followed = self.sessions.entry(Arc::clone(&incarnation)).or_insert_with(|| Followed {
            id: id.clone(),
            watchers: Vec::new(),
            is_changed: false,
            check: None,
        });
        followed.watchers.retain(|watching| !watching.watcher.is_closed());
        if followed.watchers.len() >= limit {
            return Err(SessionError::TooManyWatches { limit });
        }
        followed.watchers.push(Watching { delivered: Some(cursor), is_asked_for: false, watcher });
        self.changed(&incarnation);
        Ok(())
    }

    /// A session changed or ended.
    pub(super) fn changed(&mut self, incarnation: &str) {
        if let Some((incarnation, _)) = self.sessions.get_key_value(incarnation) {
            let incarnation = Arc::clone(incarnation);
            let Some(followed) = self.sessions.get_mut(&incarnation) else { return };
            if !std::mem::replace(&mut followed.is_changed, true) {
                self.changed.push(incarnation);
            }
        }
    }

    pub(super) fn all_changed(&mut self) {
        self.changed = self.sessions.keys().cloned().collect();
        for followed in self.sessions.values_mut() {
            followed.is_changed = true;
        }
    }

    pub(super) fn next_check(&self) -> Option<Instant> {
        self.checks.first().map(|(at, _)| *at)
    }

    /// What is to be read now, with the number of the change after which to read, or none for what is now. It is due again
    /// at `check`.
    pub(super) fn due(&mut self, most: usize, check: Instant) -> Vec<(SessionId, Arc<str>, Option<u64>)> {
        let now = Instant::now();
        while let Some((_, incarnation)) = self.checks.first().filter(|(at, _)| *at <= now).cloned() {
            self.schedule(&incarnation, None);
            self.changed(&incarnation);
        }
        let mut due = Vec::new();
        while due.len() < most
            && let Some(incarnation) = self.changed.pop()
        {
            self.schedule(&incarnation, Some(check));
            let Some(followed) = self.sessions.get_mut(&incarnation) else { continue };
            followed.is_changed = false;
            followed.watchers.retain(|watching| !watching.watcher.is_closed());
            followed.watchers.iter_mut().for_each(|watching| watching.is_asked_for = true);
            // None comes before all numbers.
            match followed
                .watchers
                .iter()
                .map(|watching| watching.delivered.map(|delivered| delivered.number))
                .min()
            {
                Some(delivered) => due.push((followed.id.clone(), incarnation, delivered)),
                None => self.remove(&incarnation),
            }
        }
        due
    }

    /// Tells those who watch a session what was read of it.
    pub(super) fn notify(&mut self, incarnation: &Arc<str>, news: &Delivery) {
        let Some(followed) = self.sessions.get_mut(incarnation) else { return };
        let mut more = news.more;
        for Watching { delivered, is_asked_for, watcher } in &mut followed.watchers {
            // One that came while this was read may know more, or less.
            more |= !*is_asked_for || !news.notify(delivered, watcher);
        }
        if more {
            self.changed(incarnation);
        } else if news.check.is_some() {
            self.schedule(incarnation, news.check);
        } else {
            let gone = SessionError::NotFound { id: followed.id.clone() };
            for Watching { watcher, .. } in &followed.watchers {
                watcher.end(gone.clone());
            }
            self.remove(incarnation);
        }
    }

    /// Looks at a session again at this time and at no other.
    fn schedule(&mut self, incarnation: &Arc<str>, at: Option<Instant>) {
        let Some(followed) = self.sessions.get_mut(incarnation) else { return };
        if let Some(was) = std::mem::replace(&mut followed.check, at) {
            self.checks.remove(&(was, Arc::clone(incarnation)));
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

impl Delivery {
    /// Tells one watcher. False: it has to be told something else, which is to be read first.
    fn notify(&self, delivered: &mut Option<Cursor>, watcher: &Watcher) -> bool {
        let Some(cursor) = delivered else {
            if self.after.is_none() {
                for change in &self.changes {
                    watcher.notify(&change.update);
                }
                *delivered = Some(self.now);
            }
            return delivered.is_some();
        };
        // What was read is for another.
        if self.after.is_none_or(|after| cursor.number < after) {
            return false;
        }
        if self.is_of_another_past(*cursor) {
            watcher.notify_lost(1);
            *delivered = None;
            return false;
        }
        for Change { at, before, update } in &self.changes {
            if at.number > cursor.number {
                let missing = at.number - cursor.number - 1;
                lose(watcher, missing.max(u64::from(*before == Link::Unknown)));
                watcher.notify(update);
                *cursor = *at;
            }
        }
        // What was read but not understood is lost too, and not read again.
        let known = if self.more { self.read } else { self.now };
        if known.number > cursor.number {
            lose(watcher, known.number - cursor.number);
            *cursor = known;
        } else if known.number == cursor.number && known.mark != 0 {
            cursor.mark = known.mark;
        }
        true
    }

    /// Whether Redis lost changes that this one was told, and maybe made others of their numbers since.
    fn is_of_another_past(&self, cursor: Cursor) -> bool {
        if self.check.is_none() {
            return false;
        }
        let next = self.changes.iter().find(|change| change.at.number > cursor.number);
        let same = self.changes.iter().find(|change| change.at.number == cursor.number);
        let is_next = next.is_some_and(|next| next.at.number == cursor.number + 1);
        self.now.number < cursor.number
            || (self.now.number == cursor.number && !cursor.may_be(self.now.mark))
            || same.is_some_and(|same| !cursor.may_be(same.at.mark))
            || (is_next
                && matches!(next, Some(Change { before: Link::Is(mark), .. }) if !cursor.may_be(*mark)))
    }
}

fn lose(watcher: &Watcher, updates: u64) {
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
        kit::{Budget, SessionHeader, SessionRecord},
    };

    /// A watched session of which changes are told at will.
    struct Session {
        watched: Watched,
        record: SessionRecord,
        update: VariableUpdate,
    }

    impl Session {
        fn new() -> Self {
            let limits = SessionLimits::default();
            let mut record = SessionRecord::new(SessionHeader::new(NewSession::default(), &limits));
            let ty = VariableType::new(ValueType::Integer).unwrap();
            let new = NewVariable { ty, value: Payload::try_from_serde(&0).unwrap(), note: Note::default() };
            let mut budget = Budget { session: &id(), limits: &limits, resize: &mut |_, _| Ok(()) };
            let x = record.register(&mut budget, &VariableName::try_new("x").unwrap(), new, None).unwrap();
            let update = x.update(UpdateKind::Set);
            Self { watched: Watched::default(), record, update }
        }

        fn watch(&mut self, seq: u64) -> VariableWatch {
            let limits = SessionLimits::default();
            let (watcher, watch) = Watcher::for_record(&limits, &id(), &self.record, &[], false).unwrap();
            let cursor = Cursor { number: seq, mark: 0 };
            self.watched.add(&id(), "born", cursor, watcher, limits.max_watches).unwrap();
            watch
        }

        fn due(&mut self) -> Vec<u64> {
            self.due_or_now().into_iter().map(|after| after.expect("it is read on")).collect()
        }

        fn due_or_now(&mut self) -> Vec<Option<u64>> {
            let due = self.watched.due(10, Instant::now() + LONG);
            due.into_iter().map(|(_, _, after)| after).collect()
        }

        fn notify(&mut self, after: u64, numbers: impl IntoIterator<Item = u64>, seq: u64, lives: bool) {
            let changes = numbers.into_iter().map(|number| (number, 0, Link::Unsaid));
            let check = lives.then(|| Instant::now() + LONG);
            self.tell_marked(Some(after), changes, Cursor { number: seq, mark: 0 }, check);
        }

        /// Changes with their marks, and what is known of those before them.
        fn tell_marked(
            &mut self,
            after: Option<u64>,
            changes: impl IntoIterator<Item = (u64, u64, Link)>,
            now: Cursor,
            check: Option<Instant>,
        ) {
            let change = |(number, mark, before)| {
                let mut update = self.update.clone();
                update.variable.version = u32::try_from(number).unwrap();
                Change { at: Cursor { number, mark }, before, update }
            };
            let changes = changes.into_iter().map(change).collect();
            let news = Delivery { after, read: now, changes, now, more: false, check };
            self.watched.notify(&"born".into(), &news);
        }
    }

    const LONG: std::time::Duration = std::time::Duration::from_secs(3600);

    fn id() -> SessionId {
        SessionId::try_new("s").unwrap()
    }

    /// What a watcher was told since, as numbers of changes; negative for so many lost.
    async fn delivered(watch: &mut VariableWatch) -> Vec<i64> {
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
    async fn who_comes_while_something_is_read_is_told_it_later() {
        let mut session = Session::new();
        let mut first = session.watch(5);
        assert_eq!(session.due(), [5]);
        session.notify(5, 6..=8, 8, true);
        assert!(session.due().is_empty(), "nothing changed since");
        session.watched.changed("born");
        assert_eq!(session.due(), [8]);
        // What these begin with is older than what is being read, or newer.
        let (mut second, mut third) = (session.watch(6), session.watch(11));
        session.notify(8, 9..=10, 10, true);
        assert_eq!(delivered(&mut first).await, [6, 7, 8, 9, 10]);
        assert_eq!(delivered(&mut second).await, [0; 0]);
        assert_eq!(session.due(), [6]);
        session.notify(6, 7..=11, 11, false);
        assert_eq!(delivered(&mut second).await, [7, 8, 9, 10, 11, 0], "and then the end");
        assert_eq!(delivered(&mut first).await, [11, 0], "nothing is told twice");
        assert_eq!(delivered(&mut third).await, [0], "nothing is lost");
        assert!(session.watched.sessions.is_empty() && session.watched.checks.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_missing_is_told_where_it_is() {
        let mut session = Session::new();
        let mut watch = session.watch(0);
        assert_eq!(session.due(), [0]);
        session.notify(0, [3, 4, 7], 7, true);
        assert_eq!(delivered(&mut watch).await, [-6, 7], "what waits goes with what is lost");
        session.notify(7, [8], 10, true);
        assert_eq!(delivered(&mut watch).await, [-3], "the end is missing");
        session.notify(10, [11], 11, true);
        assert_eq!(delivered(&mut watch).await, [11]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_read_but_not_understood_is_lost_and_not_read_again() {
        let mut session = Session::new();
        let mut watch = session.watch(0);
        assert_eq!(session.due(), [0]);
        let check = Some(Instant::now() + LONG);
        let (read, now) = (Cursor { number: 16, mark: 0 }, Cursor { number: 20, mark: 0 });
        let news = Delivery { after: Some(0), read, changes: Vec::new(), now, more: true, check };
        session.watched.notify(&"born".into(), &news);
        assert_eq!(session.due(), [16]);
        session.notify(16, 17..=20, 20, true);
        assert_eq!(delivered(&mut watch).await, [-16, 17, 18, 19, 20]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_past_that_redis_lost_is_noticed_and_what_is_now_is_told() {
        let check = Some(Instant::now() + LONG);
        let cursor = |number, mark| Cursor { number, mark };
        // What was read after change 5, which has mark 50: the session now, and changes with what is said of the one before.
        for (now, changes, is_lost) in [
            (cursor(5, 50), vec![], false),
            (cursor(5, 51), vec![], true),
            (cursor(3, 30), vec![], true),
            (cursor(6, 60), vec![(6, 60, Link::Is(50))], false),
            (cursor(6, 60), vec![(6, 60, Link::Is(51))], true),
            (cursor(6, 60), vec![(6, 60, Link::Unsaid)], false),
        ] {
            let mut session = Session::new();
            let mut watch = session.watch(4);
            assert_eq!(session.due(), [4]);
            session.tell_marked(Some(4), [(5, 50, Link::Unsaid)], cursor(5, 50), check);
            assert_eq!(delivered(&mut watch).await, [5]);
            let changed = changes.len();
            session.tell_marked(Some(5), changes.clone(), now, check);
            if !is_lost {
                assert_eq!(delivered(&mut watch).await.len(), changed, "{changes:?}");
                continue;
            }
            assert_eq!(delivered(&mut watch).await, [-1], "{changes:?}");
            assert_eq!(session.due_or_now(), [None]);
            session.tell_marked(None, [(2, 0, Link::Unknown)], cursor(3, 30), check);
            assert_eq!(delivered(&mut watch).await, [2]);
            session.tell_marked(Some(3), [(4, 40, Link::Is(30))], cursor(4, 40), check);
            assert_eq!(delivered(&mut watch).await, [4]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_watches_any_more_is_forgotten() {
        let mut session = Session::new();
        let (first, second) = (session.watch(0), session.watch(0));
        assert_eq!(session.due(), [0]);
        drop(first);
        assert!(session.due().is_empty());
        tokio::time::advance(LONG).await;
        assert_eq!(session.due(), [0], "it is looked at now and then");
        drop(second);
        session.watched.all_changed();
        assert!(session.due().is_empty());
        assert!(session.watched.sessions.is_empty() && session.watched.checks.is_empty());
    }
}
