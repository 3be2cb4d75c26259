//! [`Follower`]: the background task that delivers changes of watched sessions to the watchers of this host, and renews the watch
//! leases.
//!
//! Published messages only wake the task. The changes themselves are in a numbered log of each watched session. After a reconnect,
//! the task reads the logs of all watched sessions, so a broken connection does not lose changes.
//!
//! # Glossary
//!
//! | name | meaning |
//! | --- | --- |
//! | incarnation | the random id of one session (`born` in Redis); a new session with the same session id has another one |
//! | seq, number | the number of a change to a variable in its session, starting at 1 |
//! | mark | the revision of the commit that made a change. It distinguishes two changes with the same number, if Redis lost the first one in a failover |
//! | `WatchCursor` | number and mark of a change: a position in the log |
//! | `WatcherState::delivered` | the cursor of the last change that this watcher received |
//! | `LogRead::after` | the number after which this read began: the smallest `delivered` of its watchers |
//! | `LogRead::last_read` | the cursor of the last change in this read |
//! | `LogRead::latest` | the cursor of the latest change to the session, read or not |
//! | `Predecessor` | the mark of the previous change, which reveals gaps and lost changes |
//! | `ReportedEvents` | the lifecycle events that this host has sent to subscribers; these have their own log and numbers |

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
use snakepit_session::{SessionError, SessionEventKind, SessionEventSender, SessionId, Watcher, error_chain};
use tokio::{sync::Notify, time::Instant};

use super::{connection::Connection, decode_sized, jitter, plan::decode_update, scripts};

mod watched;

pub(super) use watched::WatchCursor;
use watched::{Change, LogRead, Predecessor, WatchedSessions};

/// The maximum number of sessions in one read.
const SESSIONS_PER_READ: usize = 64;
/// The approximate maximum size of one read in bytes.
const BYTES_PER_READ: usize = 1 << 20;
/// The minimum delay before reconnecting, and before checking again for a session that should have expired.
const MIN_BACKOFF: Duration = Duration::from_millis(10);
/// The maximum interval between checks of a watched session. Checks are necessary, because published messages may be lost.
const MAX_CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// The number of reported events to remember, which is more than the log contains.
const REMEMBERED_EVENTS: usize = 2048;
/// The maximum delay before reconnecting.
const MAX_BACKOFF: Duration = Duration::from_secs(1);

/// The reply of the script for a session: remaining lifetime, latest number, its mark, whether more changes follow, and the
/// changes, each with number, variable, mark of the predecessor, and mark.
type Reply = (i64, u64, u64, bool, Vec<(u64, Vec<u8>, i64, u64)>);
/// An entry of the event log.
type Entry = (String, Vec<String>);

pub(super) struct Follower {
    connection: Connection,
    watch_lease: Duration,
    pub(super) events: SessionEventSender,
    watched: Mutex<WatchedSessions>,
    /// Wakes the task from this host.
    wake: Notify,
    reported: Mutex<ReportedEvents>,
}

/// The lifecycle events that subscribers have received.
#[derive(Debug, Default)]
struct ReportedEvents {
    /// The last event: its position in the log, and its number.
    last: (LogPosition, u64),
    /// The positions of recent events, to recognize those that survived a failover.
    recent: VecDeque<LogPosition>,
    /// The position when this host started. Subscribers do not receive earlier events.
    start: LogPosition,
}

impl ReportedEvents {
    fn push(&mut self, at: LogPosition, number: u64) {
        self.last = (at, number);
        self.recent.push_back(at);
        if self.recent.len() > REMEMBERED_EVENTS {
            self.recent.pop_front();
        }
    }
}

/// The id of a stream entry.
type LogPosition = (u64, u64);

/// A connection that receives published messages.
pub(super) struct Subscription {
    sink: PubSubSink,
    stream: PubSubStream,
}

impl Follower {
    pub(super) fn new(connection: Connection, watch_lease: Duration) -> Self {
        Self {
            connection,
            watch_lease,
            events: SessionEventSender::new(),
            watched: Mutex::default(),
            wake: Notify::new(),
            reported: Mutex::default(),
        }
    }

    fn watched(&self) -> MutexGuard<'_, WatchedSessions> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reported(&self) -> MutexGuard<'_, ReportedEvents> {
        self.reported.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves the last reported event into the future, as if the Redis clock had been ahead.
    #[cfg(test)]
    pub(super) fn pretend_reported_later(&self, by: Duration) {
        let mut reported = self.reported();
        reported.last.0.0 += u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
    }

    /// Starts to deliver the changes after this cursor to a watcher.
    pub(super) fn add(
        &self,
        id: &SessionId,
        incarnation: &str,
        cursor: WatchCursor,
        watcher: Watcher,
        limit: usize,
    ) -> Result<(), SessionError> {
        self.watched().add(id, incarnation, cursor, watcher, limit)?;
        // Changes since the cursor was read may have been published before the watcher was added.
        self.wake.notify_one();
        Ok(())
    }

    /// Subscribes to the channels.
    pub(super) async fn subscribe(&self) -> Result<Subscription, SessionError> {
        let (mut sink, stream) = self.connection.listen().await?.split();
        for channel in ["events", "updates"] {
            let channel = format!("{}:{channel}", self.connection.root());
            let subscribed = tokio::time::timeout(self.connection.timeout(), sink.subscribe(channel)).await;
            match subscribed {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(self.connection.redis_error(error)),
                Err(_) => return Err(self.no_reply()),
            }
        }
        Ok(Subscription { sink, stream })
    }

    /// Skips the events before the start of this host.
    pub(super) async fn skip_past_events(&self) -> Result<(), SessionError> {
        let mut last = redis::cmd("XREVRANGE");
        last.arg(self.log()).arg("+").arg("-").arg("COUNT").arg(1);
        let last: Vec<Entry> = self.connection.query(&last).await?;
        if let Some(entry) = last.first() {
            let (at, number) = position_of(entry);
            let mut reported = self.reported();
            reported.push(at, number);
            reported.start = at;
        }
        Ok(())
    }

    fn log(&self) -> String {
        format!("{}:log", self.connection.root())
    }

    /// Runs until it is dropped. Uses `subscription` until it ends, and then reconnects.
    pub(super) async fn run(self: Arc<Self>, subscription: Subscription) {
        let mut next = Some(subscription);
        let mut backoff = MIN_BACKOFF;
        let mut is_disconnected = false;
        loop {
            let subscribed = match next.take() {
                Some(subscription) => Ok(subscription),
                None => self.subscribe().await,
            };
            let error = match subscribed {
                Ok(subscription) => {
                    if std::mem::take(&mut is_disconnected) {
                        tracing::info!(
                            redis = self.connection.address(),
                            "receiving changes of sessions again"
                        );
                    }
                    self.follow(subscription, &mut backoff).await
                }
                Err(error) => error,
            };
            // Log once per outage.
            if !std::mem::replace(&mut is_disconnected, true) {
                tracing::warn!(error = %error_chain(&error), "cannot receive changes of sessions; retrying");
            }
            tokio::time::sleep(backoff / 2 + jitter(backoff / 2)).await;
            backoff = MAX_BACKOFF.min(backoff * 2);
        }
    }

    /// Reads changes until the connection ends, and returns the reason.
    async fn follow(&self, subscription: Subscription, backoff: &mut Duration) -> SessionError {
        let Subscription { mut sink, mut stream } = subscription;
        if let Err(error) = self.read_missed_events().await {
            return error;
        }
        self.watched().mark_all_changed();
        let mut ping = Instant::now() + self.check_interval();
        loop {
            if let Err(error) = self.read_changes().await {
                return error;
            }
            *backoff = MIN_BACKOFF;
            let check = self.watched().next_check().unwrap_or(ping).min(ping);
            tokio::select! {
                message = std::future::poll_fn(|cx| Pin::new(&mut stream).poll_next(cx)) => {
                    let Some(message) = message else {
                        return self.connection.problem("the connection ended");
                    };
                    self.on_message(&message);
                    // Handle all messages that have arrived before the next read.
                    while let Some(Some(message)) = ready(&mut stream).await {
                        self.on_message(&message);
                    }
                }
                () = self.wake.notified() => {}
                () = tokio::time::sleep_until(check) => {}
            }
            if ping <= Instant::now() {
                // An idle connection may be broken, and Redis may have lost the log.
                ping = Instant::now() + self.check_interval();
                if let Err(error) = self.read_missed_events().await {
                    return error;
                }
                match tokio::time::timeout(self.connection.timeout(), sink.ping::<redis::Value>()).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => return self.connection.redis_error(error),
                    Err(_) => return self.no_reply(),
                }
            }
        }
    }

    fn no_reply(&self) -> SessionError {
        self.connection.problem(&format!("did not reply within {:?}", self.connection.timeout()))
    }

    /// The maximum time without a request to Redis.
    fn check_interval(&self) -> Duration {
        MAX_CHECK_INTERVAL.min(self.watch_lease / 3)
    }

    fn on_message(&self, message: &Msg) {
        let payload = String::from_utf8_lossy(message.get_payload_bytes());
        if message.get_channel_name().ends_with(":updates") {
            self.watched().mark_changed(&payload);
            return;
        }
        let mut words = payload.splitn(5, ' ');
        let mut word = || words.next().unwrap_or_default();
        let (at, number, kind, incarnation, id) =
            (position(word()), word().parse().unwrap_or(0), word(), word(), word());
        self.report(at, number, kind, incarnation, id);
    }

    /// Reads the event log, and reports the events that did not arrive as messages.
    async fn read_missed_events(&self) -> Result<(), SessionError> {
        let last = self.reported().last;
        let ((time, n), _) = last;
        let read = |from: String| async move {
            let mut read = redis::cmd("XRANGE");
            read.arg(self.log()).arg(from).arg("+");
            self.connection.query::<Vec<Entry>>(&read).await
        };
        let mut missed = read(format!("{time}-{n}")).await?;
        let is_new = last == Default::default();
        if !is_new && missed.first().map(position_of) != Some(last) {
            missed = read("-".to_owned()).await?;
            let oldest = missed.first().map(position_of);
            let is_trimmed = oldest.is_some_and(|(at, number)| at > last.0 && number > last.1);
            if !is_trimmed {
                self.report_lost_events(&mut missed);
            }
        }
        for entry in &missed {
            let (at, number) = position_of(entry);
            if let [_, _, _, kind, _, incarnation, _, id] = &entry.1[..] {
                self.report(at, number, kind, incarnation, id);
            }
        }
        Ok(())
    }

    /// Reports lost events. The log does not contain the last reported event, so Redis has lost writes. Retains only the
    /// unreported events in `log`.
    fn report_lost_events(&self, log: &mut Vec<Entry>) {
        tracing::warn!(redis = self.connection.address(), "redis lost events of sessions");
        self.events.notify_lost(1);
        let tail = log.last().map(position_of);
        let mut reported = self.reported();
        log.retain(|entry| {
            let (at, _) = position_of(entry);
            at > reported.start && !reported.recent.contains(&at)
        });
        reported.last = match log.first() {
            // Report the first event even if the clock of this server is behind.
            Some(first) => (LogPosition::default(), position_of(first).1.saturating_sub(1)),
            None => tail.unwrap_or_default(),
        };
    }

    fn report(&self, at: LogPosition, number: u64, kind: &str, incarnation: &str, id: &str) {
        let before = {
            let mut reported = self.reported();
            if at <= reported.last.0 {
                return;
            }
            let before = reported.last.1;
            reported.push(at, number);
            before
        };
        if number != before + 1 {
            // Numbers restart if Redis lost everything.
            let missed = number.saturating_sub(before + 1).max(1);
            tracing::warn!(missed, "redis lost lifecycle events of sessions");
            self.events.notify_lost(missed);
        }
        let kind = match kind {
            "created" => SessionEventKind::Created,
            "expired" => SessionEventKind::Expired,
            _ => SessionEventKind::Deleted,
        };
        if kind != SessionEventKind::Created {
            self.watched().mark_changed(incarnation);
        }
        if let Ok(id) = SessionId::try_new(id) {
            self.events.notify(&id, kind);
        }
    }

    /// Reads and delivers changes of watched sessions until none is due.
    async fn read_changes(&self) -> Result<(), SessionError> {
        loop {
            let watch_lease = u64::try_from(self.watch_lease.as_millis()).unwrap_or(u64::MAX);
            let due = self.watched().due(SESSIONS_PER_READ, Instant::now() + self.check_interval());
            if due.is_empty() {
                return Ok(());
            }
            let mut call = self.connection.call(&scripts::FOLLOW).arg(watch_lease).arg(BYTES_PER_READ);
            for (id, incarnation, after) in &due {
                let after = after.map(|after| after.to_string()).unwrap_or_default();
                call = call.arg(id.as_str()).arg(&**incarnation).arg(after);
            }
            let replies: Vec<Reply> = call.run().await?;
            let size =
                replies.iter().flat_map(|(.., entries)| entries).map(|(_, entry, ..)| entry.len()).sum();
            let decode = move || {
                let decoded = due.into_iter().zip(replies);
                Ok(decoded
                    .map(|((_, incarnation, after), reply)| Decoded::of(incarnation, after, reply))
                    .collect::<Vec<_>>())
            };
            for decoded in decode_sized(size, decode).await? {
                self.deliver(decoded);
            }
        }
    }

    fn deliver(&self, decoded: Decoded) {
        let Decoded { incarnation, after, remaining_ms, latest, has_more, last_read, changes } = decoded;
        let next_check = u64::try_from(remaining_ms).ok().map(|remaining_ms| {
            let after_expiry = Duration::from_millis(remaining_ms.saturating_add(1)).max(MIN_BACKOFF);
            Instant::now() + after_expiry.min(self.check_interval())
        });
        self.watched()
            .deliver(&incarnation, &LogRead { after, last_read, changes, latest, has_more, next_check });
    }
}

/// The decoded reply of the script for one watched session.
struct Decoded {
    incarnation: Arc<str>,
    after: Option<u64>,
    /// The remaining lifetime in milliseconds; negative if the session has ended.
    remaining_ms: i64,
    latest: WatchCursor,
    has_more: bool,
    last_read: WatchCursor,
    changes: Vec<Change>,
}

impl Decoded {
    fn of(
        incarnation: Arc<str>,
        after: Option<u64>,
        (remaining_ms, seq, mark, more, entries): Reply,
    ) -> Self {
        let mut changes: Vec<Change> = Vec::with_capacity(entries.len());
        let mut last_read = WatchCursor { number: after.unwrap_or(0), mark: 0 };
        for (number, entry, before, mark) in entries {
            if number > last_read.number {
                last_read = WatchCursor { number, mark };
            }
            let predecessor = match u64::try_from(before) {
                Ok(0) => Predecessor::Unrecorded,
                Ok(before) => Predecessor::Mark(before),
                Err(_) => Predecessor::Unknown,
            };
            match decode_update(&entry) {
                Ok(update) => {
                    changes.push(Change { cursor: WatchCursor { number, mark }, predecessor, update });
                }
                Err(error) => {
                    tracing::error!(error = %error_chain(&error), "dropped an unreadable change of a variable");
                }
            }
        }
        changes.sort_unstable_by_key(|change| change.cursor.number);
        let latest = WatchCursor { number: seq, mark };
        Self { incarnation, after, remaining_ms, latest, has_more: more, last_read, changes }
    }
}

/// Returns the next message if it is available without waiting.
async fn ready(stream: &mut PubSubStream) -> Option<Option<Msg>> {
    std::future::poll_fn(|cx| {
        Poll::Ready(match Pin::new(&mut *stream).poll_next(cx) {
            Poll::Ready(message) => Some(message),
            Poll::Pending => None,
        })
    })
    .await
}

/// Parses a stream id. Invalid ids sort before all others.
fn position(text: &str) -> LogPosition {
    let (time, n) = text.split_once('-').unwrap_or((text, ""));
    (time.parse().unwrap_or(0), n.parse().unwrap_or(0))
}

/// Returns the position of an event in the log, and its number.
fn position_of((at, fields): &Entry) -> (LogPosition, u64) {
    (position(at), fields.get(1).and_then(|number| number.parse().ok()).unwrap_or(0))
}
