//! The state that the writer keeps outside of the file, and the staged changes of a group. The changes become visible to other
//! threads with the commit.

use std::collections::{BTreeSet, HashMap, HashSet};

use snakepit_session::{
    SessionError, SessionEventKind, SessionId, SessionStats, VariableUpdate, kit::Watchers,
};
use tokio::time::Instant;

use super::{
    SharedState,
    expiry::{Expiry, ExpiryKey},
};

/// The backend's counters.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Totals {
    pub(super) sessions: usize,
    pub(super) variables: usize,
    pub(super) session_programs: usize,
    pub(super) global_programs: usize,
    pub(super) bytes: usize,
    pub(super) created: u64,
    pub(super) deleted: u64,
    pub(super) expired: u64,
    pub(super) sweeps: u64,
}

impl Totals {
    fn stats(&self) -> SessionStats {
        let mut stats = SessionStats::default();
        stats.created = self.created;
        stats.deleted = self.deleted;
        stats.expired = self.expired;
        stats.sweeps = self.sweeps;
        stats.live = self.sessions as u64;
        stats.variables = self.variables as u64;
        stats.programs = (self.session_programs + self.global_programs) as u64;
        stats.bytes = self.bytes as u64;
        stats
    }
}

/// The state of the writer.
#[derive(Debug, Default)]
pub(super) struct State {
    totals: Totals,
    /// All owners by their last known expiry time. Renewals do not update the queue; a sweep moves the owners that were
    /// renewed.
    pub(super) queue: BTreeSet<(Instant, ExpiryKey)>,
    pub(super) watchers: HashMap<SessionId, Watchers>,
    pub(super) staged: StagedChanges,
}

/// Changes that take effect when the current group commits.
#[derive(Debug, Default)]
pub(super) struct StagedChanges {
    pub(super) totals: Totals,
    /// New expiries by owner, and `None` for owners that ended.
    pub(super) expiries: HashMap<ExpiryKey, Option<Expiry>>,
    /// The notifications, in the order of the changes.
    pub(super) notifications: Vec<Notification>,
    /// The number of rows written.
    pub(super) writes: usize,
}

/// A notification to send after the commit.
#[derive(Debug)]
pub(super) enum Notification {
    Created(SessionId),
    Ended {
        id: SessionId,
        kind: SessionEventKind,
        watchers: Option<Watchers>,
    },
    /// Variables changed. Contains the watchers at the time of the change.
    Changed {
        watchers: Watchers,
        updates: Vec<VariableUpdate>,
    },
}

impl State {
    /// Adopts the contents of a file.
    pub(super) fn resume(
        &mut self,
        shared: &SharedState,
        totals: Totals,
        expiries: Vec<(ExpiryKey, Expiry)>,
    ) {
        self.totals = totals;
        for (owner, expiry) in expiries {
            self.queue.insert((expiry.queue_key, owner.clone()));
            shared.expiries.insert(owner, expiry);
        }
        shared.publish(self.totals.stats());
    }

    /// Continues with the contents of a reopened file, which may contain the failed group. Keeps existing expiries.
    pub(super) fn reload(
        &mut self,
        shared: &SharedState,
        in_file: Totals,
        expiries: Vec<(ExpiryKey, Expiry)>,
    ) {
        let Totals { sessions, variables, session_programs, global_programs, bytes, .. } = in_file;
        self.totals = Totals { sessions, variables, session_programs, global_programs, bytes, ..self.totals };
        let mut missing: HashSet<_> = shared.expiries.owners().collect();
        for (owner, expiry) in expiries {
            if missing.remove(&owner) {
                continue;
            }
            self.queue.insert((expiry.queue_key, owner.clone()));
            shared.expiries.insert(owner.clone(), expiry);
            if let ExpiryKey::Session(id) = &owner {
                self.totals.created += 1;
                shared.events.notify(id, SessionEventKind::Created);
            }
        }
        for owner in missing {
            if let Some(expiry) = shared.expiries.remove(&owner) {
                self.queue.remove(&(expiry.queue_key, owner.clone()));
            }
            if let ExpiryKey::Session(id) = &owner {
                self.totals.deleted += 1;
                shared.events.notify(id, SessionEventKind::Deleted);
            }
        }
        shared.publish(self.totals.stats());
    }

    /// The committed size of sessions and global programs in bytes.
    pub(super) const fn stored_bytes(&self) -> usize {
        self.totals.bytes
    }

    /// Starts a group without changes.
    pub(super) fn begin_group(&mut self) {
        self.staged = StagedChanges { totals: self.totals, ..StagedChanges::default() };
    }

    /// Publishes the changes of a committed group and sends its notifications.
    pub(super) fn publish(&mut self, shared: &SharedState) {
        let StagedChanges { totals, expiries, notifications, writes: _ } = std::mem::take(&mut self.staged);
        for (owner, expiry) in expiries {
            let queue_key = expiry.as_ref().map(|expiry| expiry.queue_key);
            let previous = match expiry {
                Some(expiry) => shared.expiries.insert(owner.clone(), expiry),
                None => shared.expiries.remove(&owner),
            };
            if let Some(previous) = previous {
                self.queue.remove(&(previous.queue_key, owner.clone()));
            }
            self.queue.extend(queue_key.map(|queue_key| (queue_key, owner)));
        }
        self.totals = totals;
        shared.publish(totals.stats());
        for notification in notifications {
            match notification {
                Notification::Created(id) => shared.events.notify(&id, SessionEventKind::Created),
                Notification::Ended { id, kind, watchers } => {
                    if let Some(watchers) = watchers {
                        watchers.end(&SessionError::NotFound { id: id.clone() });
                    }
                    shared.events.notify(&id, kind);
                }
                Notification::Changed { mut watchers, updates } => {
                    updates.iter().for_each(|update| watchers.notify(update));
                }
            }
        }
    }

    /// Discards the changes of a group that was not committed.
    pub(super) fn discard(&mut self) {
        for notification in std::mem::take(&mut self.staged).notifications {
            if let Notification::Ended { id, watchers: Some(watchers), .. } = notification {
                self.watchers.insert(id, watchers);
            }
        }
    }

    /// Ends all watches, because the outcome of the last commit is unknown.
    pub(super) fn end_watches(&mut self, error: &SessionError) {
        self.watchers.drain().for_each(|(_, watchers)| watchers.end(error));
    }
}
