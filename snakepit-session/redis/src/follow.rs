//! What every host does all the time: it listens to what is published, reads on what changed in the sessions that are
//! watched here, and says that they still are.
//!
//! What is published only wakes it up. The changes themselves are in a numbered log, so none is missed when the
//! connection breaks: every watched session is read on as soon as it is back.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
    time::Duration,
};

use futures_core::Stream;
use redis::{
    Msg,
    aio::{PubSubSink, PubSubStream},
};
use snakepit_session::{SessionError, SessionEventKind, SessionEventSender, SessionId, Watcher};
use tokio::{sync::Notify, time::Instant};

use super::{jitter, link::Link, plan::decode_update, scripts};

mod watched;

pub(super) use watched::Cursor;
use watched::{Change, Delivery, Link as Predecessor, Watched};

/// How many sessions are read on at once, and about how many bytes.
const SESSIONS: usize = 64;
const BYTES: usize = 1 << 20;
/// How soon the end of a session is looked for again that was not to be found at its time.
const SOON: Duration = Duration::from_millis(10);
/// How often a watched session is looked at of which nothing is published, at least: Redis says nothing when it loses one.
const CHECK: Duration = Duration::from_secs(5);
/// How many events are remembered as told, which is more than the log keeps.
const REMEMBERED_EVENTS: usize = 2048;
/// The longest wait before another connection is tried.
const MAX_WAIT: Duration = Duration::from_secs(1);

/// A watched session as the script tells of it.
type Answer = (i64, u64, u64, bool, Vec<(u64, Vec<u8>, i64, u64)>);
/// An event as it is in the log.
type Entry = (String, Vec<String>);

pub(super) struct Follower {
    link: Link,
    lease: Duration,
    pub(super) events: SessionEventSender,
    watched: Mutex<Watched>,
    /// Something is to be read that nobody publishes.
    wake: Notify,
    delivered: Mutex<ReportedEvents>,
}

/// Which events of sessions were told.
#[derive(Debug, Default)]
struct ReportedEvents {
    /// The last one: its place in the log, and its number.
    last: (LogPosition, u64),
    /// The places of the last ones, which tell those apart that a failover kept.
    places: VecDeque<LogPosition>,
    /// What was before this host is nobody told.
    since: LogPosition,
}

impl ReportedEvents {
    fn push(&mut self, at: LogPosition, number: u64) {
        self.last = (at, number);
        self.places.push_back(at);
        if self.places.len() > REMEMBERED_EVENTS {
            self.places.pop_front();
        }
    }
}

/// Where something stands in a log of Redis.
type LogPosition = (u64, u64);

/// A connection that is told what is published.
pub(super) struct Subscription {
    sink: PubSubSink,
    stream: PubSubStream,
}

impl Follower {
    pub(super) fn new(link: Link, lease: Duration) -> Self {
        Self {
            link,
            lease,
            events: SessionEventSender::new(),
            watched: Mutex::default(),
            wake: Notify::new(),
            delivered: Mutex::default(),
        }
    }

    fn watched(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn delivered(&self) -> MutexGuard<'_, ReportedEvents> {
        self.delivered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets what was told last be later than it was, as if the clock of Redis had been ahead.
    #[cfg(test)]
    pub(super) fn pretend_told_later(&self, by: Duration) {
        let mut delivered = self.delivered();
        delivered.last.0.0 += u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
    }

    /// Begins to tell a watcher what happens in a session after this change.
    pub(super) fn add(
        &self,
        id: &SessionId,
        incarnation: &str,
        cursor: Cursor,
        watcher: Watcher,
        limit: usize,
    ) -> Result<(), SessionError> {
        self.watched().add(id, incarnation, cursor, watcher, limit)?;
        // What happened since the watcher's beginning was read may have been published before it was known here.
        self.wake.notify_one();
        Ok(())
    }

    /// Listens from now on.
    pub(super) async fn subscribe(&self) -> Result<Subscription, SessionError> {
        let (mut sink, stream) = self.link.listen().await?.split();
        for channel in ["events", "updates"] {
            let channel = format!("{}:{channel}", self.link.root());
            let subscribed = tokio::time::timeout(self.link.timeout(), sink.subscribe(channel)).await;
            match subscribed {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(self.link.problem(&error.to_string())),
                Err(_) => return Err(self.link.problem("does not answer in time")),
            }
        }
        Ok(Subscription { sink, stream })
    }

    /// Makes what happened so far the past, which nobody is told.
    pub(super) async fn begin(&self) -> Result<(), SessionError> {
        let mut last = redis::cmd("XREVRANGE");
        last.arg(self.log()).arg("+").arg("-").arg("COUNT").arg(1);
        let last: Vec<Entry> = self.link.query(&last).await?;
        if let Some(entry) = last.first() {
            let (at, number) = position_of(entry);
            let mut delivered = self.delivered();
            delivered.push(at, number);
            delivered.since = at;
        }
        Ok(())
    }

    fn log(&self) -> String {
        format!("{}:log", self.link.root())
    }

    /// Follows what happens until it is dropped, beginning with a connection that was made before.
    pub(super) async fn run(self: Arc<Self>, subscription: Subscription) {
        let mut next = Some(subscription);
        let mut wait = SOON;
        let mut is_away = false;
        loop {
            let subscribed = match next.take() {
                Some(subscription) => Ok(subscription),
                None => self.subscribe().await,
            };
            let ended = match subscribed {
                Ok(subscription) => {
                    if std::mem::take(&mut is_away) {
                        tracing::info!(redis = self.link.address(), "follows again what happens to sessions");
                    }
                    self.follow(subscription, &mut wait).await
                }
                Err(error) => error,
            };
            // Said once, however long it takes.
            if !std::mem::replace(&mut is_away, true) {
                tracing::warn!(%ended, "cannot follow what happens to sessions; trying until it can");
            }
            tokio::time::sleep(wait / 2 + jitter(wait / 2)).await;
            wait = MAX_WAIT.min(wait * 2);
        }
    }

    /// Follows what happens until the connection ends, and returns why.
    async fn follow(&self, subscription: Subscription, wait: &mut Duration) -> SessionError {
        let Subscription { mut sink, mut stream } = subscription;
        if let Err(error) = self.catch_up().await {
            return error;
        }
        self.watched().all_changed();
        let mut ping = Instant::now() + self.pause();
        loop {
            if let Err(error) = self.read_on().await {
                return error;
            }
            *wait = SOON;
            let check = self.watched().next_check().unwrap_or(ping).min(ping);
            tokio::select! {
                message = std::future::poll_fn(|cx| Pin::new(&mut stream).poll_next(cx)) => {
                    let Some(message) = message else {
                        return self.link.problem("the connection ended");
                    };
                    self.on_message(&message);
                    // What came meanwhile is read in one go.
                    while let Some(Some(message)) = ready(&mut stream).await {
                        self.on_message(&message);
                    }
                }
                () = self.wake.notified() => {}
                () = tokio::time::sleep_until(check) => {}
            }
            if ping <= Instant::now() {
                // A connection that nothing comes over may have ended without a word, and Redis may have lost the log.
                ping = Instant::now() + self.pause();
                if let Err(error) = self.catch_up().await {
                    return error;
                }
                match tokio::time::timeout(self.link.timeout(), sink.ping::<redis::Value>()).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => return self.link.problem(&error.to_string()),
                    Err(_) => return self.link.problem("does not answer in time"),
                }
            }
        }
    }

    /// How long nothing is asked of Redis, at most.
    fn pause(&self) -> Duration {
        CHECK.min(self.lease / 3)
    }

    fn on_message(&self, message: &Msg) {
        let payload = String::from_utf8_lossy(message.get_payload_bytes());
        if message.get_channel_name().ends_with(":updates") {
            self.watched().changed(&payload);
            return;
        }
        let mut words = payload.splitn(5, ' ');
        let mut word = || words.next().unwrap_or_default();
        let (at, number, kind, incarnation, id) =
            (position(word()), word().parse().unwrap_or(0), word(), word(), word());
        self.notify(at, number, kind, incarnation, id);
    }

    /// Tells of the life of sessions what happened while nobody listened.
    async fn catch_up(&self) -> Result<(), SessionError> {
        let last = self.delivered().last;
        let ((time, n), _) = last;
        let read = |from: String| async move {
            let mut read = redis::cmd("XRANGE");
            read.arg(self.log()).arg(from).arg("+");
            self.link.query::<Vec<Entry>>(&read).await
        };
        let mut missed = read(format!("{time}-{n}")).await?;
        let is_new = last == Default::default();
        if !is_new && missed.first().map(position_of) != Some(last) {
            missed = read("-".to_owned()).await?;
            let oldest = missed.first().map(position_of);
            let is_cut = oldest.is_some_and(|(at, number)| at > last.0 && number > last.1);
            if !is_cut {
                self.begin_anew(&mut missed);
            }
        }
        for entry in &missed {
            let (at, number) = position_of(entry);
            if let [_, _, _, kind, _, incarnation, _, id] = &entry.1[..] {
                self.notify(at, number, kind, incarnation, id);
            }
        }
        Ok(())
    }

    /// The log does not have what was told last, so Redis lost some of it. Leaves those events that were never told.
    fn begin_anew(&self, log: &mut Vec<Entry>) {
        tracing::warn!(redis = self.link.address(), "redis lost events of sessions");
        self.events.notify_lost(1);
        let tail = log.last().map(position_of);
        let mut delivered = self.delivered();
        log.retain(|entry| {
            let (at, _) = position_of(entry);
            at > delivered.since && !delivered.places.contains(&at)
        });
        delivered.last = match log.first() {
            // It is told whatever the clock of this server says.
            Some(first) => (LogPosition::default(), position_of(first).1.saturating_sub(1)),
            None => tail.unwrap_or_default(),
        };
    }

    fn notify(&self, at: LogPosition, number: u64, kind: &str, incarnation: &str, id: &str) {
        let before = {
            let mut delivered = self.delivered();
            if at <= delivered.last.0 {
                return;
            }
            let before = delivered.last.1;
            delivered.push(at, number);
            before
        };
        if number != before + 1 {
            // Numbers that begin anew are those of a Redis that lost everything.
            let missed = number.saturating_sub(before + 1).max(1);
            tracing::warn!(missed, "sessions came or went of which redis cannot tell any more");
            self.events.notify_lost(missed);
        }
        let kind = match kind {
            "created" => SessionEventKind::Created,
            "expired" => SessionEventKind::Expired,
            _ => SessionEventKind::Deleted,
        };
        if kind != SessionEventKind::Created {
            self.watched().changed(incarnation);
        }
        if let Ok(id) = SessionId::try_new(id) {
            self.events.notify(&id, kind);
        }
    }

    /// Reads what changed in watched sessions, until there is nothing more.
    async fn read_on(&self) -> Result<(), SessionError> {
        loop {
            let lease = u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX);
            let due = self.watched().due(SESSIONS, Instant::now() + self.pause());
            if due.is_empty() {
                return Ok(());
            }
            let mut call = self.link.call(&scripts::FOLLOW).arg(lease).arg(BYTES);
            for (id, incarnation, after) in &due {
                let after = after.map(|after| after.to_string()).unwrap_or_default();
                call = call.arg(id.as_str()).arg(&**incarnation).arg(after);
            }
            let answers: Vec<Answer> = call.run().await?;
            for ((_, incarnation, after), answer) in due.iter().zip(answers) {
                self.deliver(incarnation, *after, answer);
            }
        }
    }

    fn deliver(&self, incarnation: &Arc<str>, after: Option<u64>, (left, seq, mark, more, entries): Answer) {
        let mut changes: Vec<Change> = Vec::with_capacity(entries.len());
        let mut read = Cursor { number: after.unwrap_or(0), mark: 0 };
        for (number, entry, before, mark) in entries {
            if number > read.number {
                read = Cursor { number, mark };
            }
            let before = match u64::try_from(before) {
                Ok(0) => Predecessor::Unsaid,
                Ok(before) => Predecessor::Is(before),
                Err(_) => Predecessor::Unknown,
            };
            match decode_update(&entry) {
                Ok(update) => changes.push(Change { at: Cursor { number, mark }, before, update }),
                Err(error) => tracing::error!(%error, "a change of a variable is lost"),
            }
        }
        changes.sort_unstable_by_key(|change| change.at.number);
        let lives = u64::try_from(left).ok();
        let check = lives.map(|left| {
            let ends = Duration::from_millis(left.saturating_add(1)).max(SOON);
            Instant::now() + ends.min(self.pause())
        });
        let now = Cursor { number: seq, mark };
        self.watched().notify(incarnation, &Delivery { after, read, changes, now, more, check });
    }
}

/// What a stream has at once, if anything.
async fn ready(stream: &mut PubSubStream) -> Option<Option<Msg>> {
    std::future::poll_fn(|cx| {
        Poll::Ready(match Pin::new(&mut *stream).poll_next(cx) {
            Poll::Ready(message) => Some(message),
            Poll::Pending => None,
        })
    })
    .await
}

/// A place in a log, as Redis writes it; nothing comes before what it did not write.
fn position(text: &str) -> LogPosition {
    let (time, n) = text.split_once('-').unwrap_or((text, ""));
    (time.parse().unwrap_or(0), n.parse().unwrap_or(0))
}

/// Where an event stands in the log, and its number.
fn position_of((at, fields): &Entry) -> (LogPosition, u64) {
    (position(at), fields.get(1).and_then(|number| number.parse().ok()).unwrap_or(0))
}
