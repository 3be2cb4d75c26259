//! What every host does all the time: it listens to what is published, reads on what changed in the sessions that are
//! watched here, and says that they still are.
//!
//! What is published only wakes it up. The changes themselves are in a numbered log, so none is missed when the
//! connection breaks: every watched session is read on as soon as it is back.

use std::{
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
use tokio::{sync::Notify, time::Instant};

use super::{jitter, link::Link, parts::decode_update, scripts};
use crate::{
    SessionError, SessionEventKind, SessionId, VariableUpdate, events::SessionEventSender, watch::Watcher,
};

mod watched;

use watched::{News, Watched};

/// How many sessions are read on at once, and about how many bytes.
const SESSIONS: usize = 64;
const BYTES: usize = 1 << 20;
/// How soon the end of a session is looked for again that was not to be found at its time.
const SOON: Duration = Duration::from_millis(10);
/// The longest wait before another connection is tried.
const MAX_WAIT: Duration = Duration::from_secs(1);

/// A watched session as the script tells of it.
type Answer = (i64, u64, bool, Vec<(u64, Vec<u8>)>);

pub(super) struct Follower {
    link: Link,
    lease: Duration,
    pub(super) events: SessionEventSender,
    watched: Mutex<Watched>,
    /// Something is to be read that nobody publishes.
    wake: Notify,
    /// The last event of a session that was told: its place in the log, and its number.
    told: Mutex<(Place, u64)>,
}

/// Where something stands in a log of Redis.
type Place = (u64, u64);

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
            told: Mutex::default(),
        }
    }

    fn watched(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn told(&self) -> MutexGuard<'_, (Place, u64)> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to tell a watcher what happens in a session after the change of this number.
    pub(super) fn add(
        &self,
        id: &SessionId,
        born: &str,
        seq: u64,
        watcher: Watcher,
        limit: usize,
    ) -> Result<(), SessionError> {
        self.watched().add(id, born, seq, watcher, limit)?;
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
        let last: Vec<(String, Vec<String>)> = self.link.query(&last).await?;
        if let Some((at, fields)) = last.first() {
            *self.told() = (place(at), fields.get(1).and_then(|number| number.parse().ok()).unwrap_or(0));
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
        let mut ping = Instant::now() + self.lease / 3;
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
                    self.hear(&message);
                    // What came meanwhile is read in one go.
                    while let Some(Some(message)) = ready(&mut stream).await {
                        self.hear(&message);
                    }
                }
                () = self.wake.notified() => {}
                () = tokio::time::sleep_until(check) => {}
            }
            if ping <= Instant::now() {
                // A connection that nothing comes over may have ended without a word.
                ping = Instant::now() + self.lease / 3;
                match tokio::time::timeout(self.link.timeout(), sink.ping::<redis::Value>()).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => return self.link.problem(&error.to_string()),
                    Err(_) => return self.link.problem("does not answer in time"),
                }
            }
        }
    }

    fn hear(&self, message: &Msg) {
        let payload = String::from_utf8_lossy(message.get_payload_bytes());
        if message.get_channel_name().ends_with(":updates") {
            self.watched().changed(&payload);
            return;
        }
        let mut words = payload.splitn(5, ' ');
        let mut word = || words.next().unwrap_or_default();
        let (at, number, kind, born, id) =
            (place(word()), word().parse().unwrap_or(0), word(), word(), word());
        self.tell(at, number, kind, born, id);
    }

    /// Tells of the life of sessions what happened while nobody listened.
    async fn catch_up(&self) -> Result<(), SessionError> {
        let ((time, n), _) = *self.told();
        let mut missed = redis::cmd("XRANGE");
        missed.arg(self.log()).arg(format!("({time}-{n}")).arg("+");
        let missed: Vec<(String, Vec<String>)> = self.link.query(&missed).await?;
        for (at, fields) in missed {
            if let [_, number, _, kind, _, born, _, id] = &fields[..] {
                self.tell(place(&at), number.parse().unwrap_or(0), kind, born, id);
            }
        }
        Ok(())
    }

    fn tell(&self, at: Place, number: u64, kind: &str, born: &str, id: &str) {
        let before = {
            let mut told = self.told();
            if at <= told.0 {
                return;
            }
            std::mem::replace(&mut *told, (at, number)).1
        };
        if number > before + 1 {
            let missed = number - before - 1;
            tracing::warn!(missed, "sessions came or went while redis was out of reach, too many to tell");
            self.events.tell_lost(missed);
        }
        let kind = match kind {
            "created" => SessionEventKind::Created,
            "expired" => SessionEventKind::Expired,
            _ => SessionEventKind::Deleted,
        };
        if kind != SessionEventKind::Created {
            self.watched().changed(born);
        }
        if let Ok(id) = SessionId::try_new(id) {
            self.events.tell(&id, kind);
        }
    }

    /// Reads what changed in watched sessions, until there is nothing more.
    async fn read_on(&self) -> Result<(), SessionError> {
        loop {
            let lease = u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX);
            let due = self.watched().due(SESSIONS, Instant::now() + self.lease / 3);
            if due.is_empty() {
                return Ok(());
            }
            let mut call = self.link.call(&scripts::FOLLOW).arg(lease).arg(BYTES);
            for (id, born, seen) in &due {
                call = call.arg(id.as_str()).arg(&**born).arg(*seen);
            }
            let answers: Vec<Answer> = call.run().await?;
            for ((_, born, after), answer) in due.iter().zip(answers) {
                self.deliver(born, *after, answer);
            }
        }
    }

    fn deliver(&self, born: &Arc<str>, after: u64, (left, seq, more, entries): Answer) {
        let mut changes: Vec<(u64, VariableUpdate)> = Vec::with_capacity(entries.len());
        let mut read = after;
        for (number, entry) in entries {
            read = read.max(number);
            match decode_update(&entry) {
                Ok(update) => changes.push((number, update)),
                Err(error) => tracing::error!(%error, "a change of a variable is lost"),
            }
        }
        changes.sort_unstable_by_key(|(number, _)| *number);
        let lives = u64::try_from(left).ok();
        let check = lives.map(|left| {
            let ends = Duration::from_millis(left.saturating_add(1)).max(SOON);
            Instant::now() + ends.min(self.lease / 3)
        });
        self.watched().tell(born, &News { after, read, changes, seq, more, check });
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
fn place(text: &str) -> Place {
    let (time, n) = text.split_once('-').unwrap_or((text, ""));
    (time.parse().unwrap_or(0), n.parse().unwrap_or(0))
}
