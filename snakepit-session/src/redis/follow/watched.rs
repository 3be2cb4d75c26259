//! The sessions that are watched on this host: who watches them, how far each has been told, and what is to be read next.
//! It neither waits nor does any IO.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use tokio::time::Instant;

use crate::{SessionError, SessionId, VariableUpdate, watch::Watcher};

/// By what tells a session from others that had its id before.
#[derive(Debug, Default)]
pub(super) struct Watched {
    sessions: HashMap<Arc<str>, Followed>,
    /// Those that changed, or may have.
    changed: Vec<Arc<str>>,
    /// When to look whether they still live, and to say that they are watched.
    checks: BTreeSet<(Instant, Arc<str>)>,
}

#[derive(Debug)]
struct Followed {
    id: SessionId,
    /// Each with the number of the last change that it was told or knows of.
    watchers: Vec<(u64, Watcher)>,
    is_changed: bool,
    check: Option<Instant>,
}

/// What was read of a session.
#[derive(Debug)]
pub(super) struct News {
    /// The number of the change after which it was read.
    pub(super) after: u64,
    /// The number of the last change that was read.
    pub(super) read: u64,
    /// In their order; a number that is missing is a change that is lost.
    pub(super) changes: Vec<(u64, VariableUpdate)>,
    /// The number of the last change that there was.
    pub(super) seq: u64,
    /// There is more to be read.
    pub(super) more: bool,
    /// When to look again; never, if the session is gone.
    pub(super) check: Option<Instant>,
}

impl Watched {
    pub(super) fn add(
        &mut self,
        id: &SessionId,
        born: &str,
        seq: u64,
        watcher: Watcher,
        limit: usize,
    ) -> Result<(), SessionError> {
        let born: Arc<str> = born.into();
        let followed = self.sessions.entry(Arc::clone(&born)).or_insert_with(|| Followed {
            id: id.clone(),
            watchers: Vec::new(),
            is_changed: false,
            check: None,
        });
        followed.watchers.retain(|(_, watcher)| !watcher.is_gone());
        if followed.watchers.len() >= limit {
            return Err(SessionError::TooManyWatches { limit });
        }
        followed.watchers.push((seq, watcher));
        self.changed(&born);
        Ok(())
    }

    /// A session changed or ended.
    pub(super) fn changed(&mut self, born: &str) {
        if let Some((born, _)) = self.sessions.get_key_value(born) {
            let born = Arc::clone(born);
            let Some(followed) = self.sessions.get_mut(&born) else { return };
            if !std::mem::replace(&mut followed.is_changed, true) {
                self.changed.push(born);
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

    /// What is to be read now, with the number of the change after which to read. It is due again at `check`.
    pub(super) fn due(&mut self, most: usize, check: Instant) -> Vec<(SessionId, Arc<str>, u64)> {
        let now = Instant::now();
        while let Some((_, born)) = self.checks.first().filter(|(at, _)| *at <= now).cloned() {
            self.schedule(&born, None);
            self.changed(&born);
        }
        let mut due = Vec::new();
        while due.len() < most
            && let Some(born) = self.changed.pop()
        {
            self.schedule(&born, Some(check));
            let Some(followed) = self.sessions.get_mut(&born) else { continue };
            followed.is_changed = false;
            followed.watchers.retain(|(_, watcher)| !watcher.is_gone());
            match followed.watchers.iter().map(|(told, _)| *told).min() {
                Some(told) => due.push((followed.id.clone(), born, told)),
                None => self.remove(&born),
            }
        }
        due
    }

    /// Tells those who watch a session what was read of it.
    pub(super) fn tell(&mut self, born: &Arc<str>, news: &News) {
        let Some(followed) = self.sessions.get_mut(born) else { return };
        let mut more = news.more;
        for (told, watcher) in &mut followed.watchers {
            if *told < news.after {
                // It came while this was read, and knows less.
                more = true;
                continue;
            }
            for (number, update) in &news.changes {
                if number > told {
                    lose(watcher, *number - *told - 1);
                    watcher.tell(update);
                    *told = *number;
                }
            }
            // What was read but not understood is lost too, and not read again.
            let known = if news.more { news.read } else { news.seq };
            if known > *told {
                lose(watcher, known - *told);
                *told = known;
            }
        }
        if more {
            self.changed(born);
        } else if news.check.is_some() {
            self.schedule(born, news.check);
        } else {
            let gone = SessionError::NotFound { id: followed.id.clone() };
            for (_, watcher) in &followed.watchers {
                watcher.end(gone.clone());
            }
            self.remove(born);
        }
    }

    /// Looks at a session again at this time and at no other.
    fn schedule(&mut self, born: &Arc<str>, at: Option<Instant>) {
        let Some(followed) = self.sessions.get_mut(born) else { return };
        if let Some(was) = std::mem::replace(&mut followed.check, at) {
            self.checks.remove(&(was, Arc::clone(born)));
        }
        if let Some(at) = at {
            self.checks.insert((at, Arc::clone(born)));
        }
    }

    fn remove(&mut self, born: &Arc<str>) {
        self.schedule(born, None);
        self.sessions.remove(born);
    }
}

fn lose(watcher: &Watcher, updates: u64) {
    if updates > 0 {
        watcher.tell_lost(updates);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        NewSession, NewVariable, Note, Payload, SessionLimits, UpdateKind, ValueType, VariableName,
        VariableType, VariableWatch, WatchEvent,
        record::{Head, Record, Room},
    };

    /// A watched session of which changes are told at will.
    struct Session {
        watched: Watched,
        record: Record,
        update: VariableUpdate,
    }

    impl Session {
        fn new() -> Self {
            let limits = SessionLimits::default();
            let mut record = Record::new(Head::new(NewSession::default(), &limits));
            let ty = VariableType::new(ValueType::Integer).unwrap();
            let new = NewVariable { ty, value: Payload::try_from_serde(&0).unwrap(), note: Note::default() };
            let mut room = Room { session: &id(), limits: &limits, resize: &mut |_, _| Ok(()) };
            let x = record.register(&mut room, &VariableName::try_new("x").unwrap(), new).unwrap();
            let update = x.update(UpdateKind::Set);
            Self { watched: Watched::default(), record, update }
        }

        fn watch(&mut self, seq: u64) -> VariableWatch {
            let limits = SessionLimits::default();
            let (watcher, watch) = Watcher::of_record(&limits, &id(), &self.record, &[], false).unwrap();
            self.watched.add(&id(), "born", seq, watcher, limits.max_watches).unwrap();
            watch
        }

        fn due(&mut self) -> Vec<u64> {
            let due = self.watched.due(10, Instant::now() + LONG);
            due.into_iter().map(|(_, _, after)| after).collect()
        }

        fn tell(&mut self, after: u64, numbers: impl IntoIterator<Item = u64>, seq: u64, lives: bool) {
            let update = |number| {
                let mut update = self.update.clone();
                update.variable.version = u32::try_from(number).unwrap();
                (number, update)
            };
            let changes = numbers.into_iter().map(update).collect();
            let check = lives.then(|| Instant::now() + LONG);
            self.watched.tell(&"born".into(), &News { after, read: seq, changes, seq, more: false, check });
        }
    }

    const LONG: std::time::Duration = std::time::Duration::from_secs(3600);

    fn id() -> SessionId {
        SessionId::try_new("s").unwrap()
    }

    /// What a watcher was told since, as numbers of changes; negative for so many lost.
    async fn told(watch: &mut VariableWatch) -> Vec<i64> {
        let mut told = Vec::new();
        while let Ok(event) = tokio::time::timeout(std::time::Duration::from_millis(1), watch.next()).await {
            told.push(match event {
                Some(Ok(WatchEvent::Update(update))) => update.variable.version.into(),
                Some(Ok(WatchEvent::Lost(lost))) => -i64::try_from(lost).unwrap(),
                Some(Err(_)) => 0,
                None => break,
            });
        }
        told
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_while_something_is_read_is_told_it_later() {
        let mut session = Session::new();
        let mut first = session.watch(5);
        assert_eq!(session.due(), [5]);
        session.tell(5, 6..=8, 8, true);
        assert!(session.due().is_empty(), "nothing changed since");
        session.watched.changed("born");
        assert_eq!(session.due(), [8]);
        // What the second one begins with is older than what is being read.
        let mut second = session.watch(6);
        session.tell(8, 9..=10, 10, false);
        assert_eq!(told(&mut first).await, [6, 7, 8, 9, 10]);
        assert_eq!(told(&mut second).await, [0; 0]);
        assert_eq!(session.due(), [6]);
        session.tell(6, 7..=10, 10, false);
        assert_eq!(told(&mut second).await, [7, 8, 9, 10, 0], "and then the end");
        assert_eq!(told(&mut first).await, [0], "nothing is told twice");
        assert!(session.watched.sessions.is_empty() && session.watched.checks.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_missing_is_told_where_it_is() {
        let mut session = Session::new();
        let mut watch = session.watch(0);
        session.tell(0, [3, 4, 7], 7, true);
        assert_eq!(told(&mut watch).await, [-6, 7], "what waits goes with what is lost");
        session.tell(7, [8], 10, true);
        assert_eq!(told(&mut watch).await, [-3], "the end is missing");
        session.tell(10, [11], 11, true);
        assert_eq!(told(&mut watch).await, [11]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_read_but_not_understood_is_lost_and_not_read_again() {
        let mut session = Session::new();
        let mut watch = session.watch(0);
        let check = Some(Instant::now() + LONG);
        let news = News { after: 0, read: 16, changes: Vec::new(), seq: 20, more: true, check };
        session.watched.tell(&"born".into(), &news);
        assert_eq!(session.due(), [16]);
        session.tell(16, 17..=20, 20, true);
        assert_eq!(told(&mut watch).await, [-16, 17, 18, 19, 20]);
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
