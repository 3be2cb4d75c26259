//! What the writer knows beside the file, and what a group of operations will have changed once it is committed: until
//! then nobody else sees it.

use std::collections::{BTreeSet, HashMap, HashSet};

use snakepit_session::{
    SessionError, SessionEventKind, SessionId, SessionStats, VariableUpdate, kit::Watchers,
};
use tokio::time::Instant;

use super::{
    Shared,
    lease::{Holder, Lease},
};

/// What there is in all, and what happened so far.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Totals {
    pub(super) sessions: usize,
    pub(super) variables: usize,
    /// Of sessions.
    pub(super) programs: usize,
    pub(super) globals: usize,
    pub(super) bytes: usize,
    pub(super) created: u64,
    pub(super) deleted: u64,
    pub(super) expired: u64,
    pub(super) sweeps: u64,
}

impl Totals {
    const fn stats(&self) -> SessionStats {
        SessionStats {
            created: self.created,
            deleted: self.deleted,
            expired: self.expired,
            sweeps: self.sweeps,
            live: self.sessions as u64,
            variables: self.variables as u64,
            programs: (self.programs + self.globals) as u64,
            bytes: self.bytes as u64,
        }
    }
}

/// What only the writer knows.
#[derive(Debug, Default)]
pub(super) struct State {
    totals: Totals,
    /// Every holder of a lease once, under the time it was last known to expire. Use does not move it: one that turns out
    /// to live longer when its time comes is queued again.
    pub(super) queue: BTreeSet<(Instant, Holder)>,
    pub(super) watchers: HashMap<SessionId, Watchers>,
    pub(super) staged: Staged,
}

/// What changes with the commit of the group that runs.
#[derive(Debug, Default)]
pub(super) struct Staged {
    pub(super) totals: Totals,
    /// New leases, and those that ended (`None`).
    pub(super) leases: HashMap<Holder, Option<Lease>>,
    /// In the order in which they are to be told.
    pub(super) notifications: Vec<Notification>,
    /// How many rows were written.
    pub(super) writes: usize,
}

/// Something to tell once it is certain.
#[derive(Debug)]
pub(super) enum Notification {
    Created(SessionId),
    Ended {
        id: SessionId,
        kind: SessionEventKind,
        watchers: Option<Watchers>,
    },
    /// Variables changed, with those who watched then.
    Changed {
        watchers: Watchers,
        updates: Vec<VariableUpdate>,
    },
}

impl State {
    /// Takes over what a file holds.
    pub(super) fn resume(&mut self, shared: &Shared, totals: Totals, leases: Vec<(Holder, Lease)>) {
        self.totals = totals;
        for (holder, lease) in leases {
            self.queue.insert((lease.queued, holder.clone()));
            shared.leases.insert(holder, lease);
        }
        shared.publish(self.totals.stats());
    }

    /// Takes over what a file holds that was opened anew: the last group, which failed, may be in it or not. Who lived before
    /// keeps its lease.
    pub(super) fn take_over(&mut self, shared: &Shared, found: Totals, leases: Vec<(Holder, Lease)>) {
        let Totals { sessions, variables, programs, globals, bytes, .. } = found;
        self.totals = Totals { sessions, variables, programs, globals, bytes, ..self.totals };
        let mut gone: HashSet<_> = shared.leases.holders().collect();
        for (holder, lease) in leases {
            if gone.remove(&holder) {
                continue;
            }
            self.queue.insert((lease.queued, holder.clone()));
            shared.leases.insert(holder.clone(), lease);
            if let Holder::Session(id) = &holder {
                self.totals.created += 1;
                shared.events.notify(id, SessionEventKind::Created);
            }
        }
        for holder in gone {
            if let Some(lease) = shared.leases.remove(&holder) {
                self.queue.remove(&(lease.queued, holder.clone()));
            }
            if let Holder::Session(id) = &holder {
                self.totals.deleted += 1;
                shared.events.notify(id, SessionEventKind::Deleted);
            }
        }
        shared.publish(self.totals.stats());
    }

    /// What sessions and global programs hold, in bytes, as it was committed last.
    pub(super) const fn held(&self) -> usize {
        self.totals.bytes
    }

    /// Begins a group.
    pub(super) fn stage(&mut self) {
        self.staged = Staged { totals: self.totals, ..Staged::default() };
    }

    /// The group is committed: makes what it changed true for everybody, and tells it.
    pub(super) fn settle(&mut self, shared: &Shared) {
        let Staged { totals, leases, notifications, writes: _ } = std::mem::take(&mut self.staged);
        for (holder, lease) in leases {
            let queued = lease.as_ref().map(|lease| lease.queued);
            let was = match lease {
                Some(lease) => shared.leases.insert(holder.clone(), lease),
                None => shared.leases.remove(&holder),
            };
            if let Some(was) = was {
                self.queue.remove(&(was.queued, holder.clone()));
            }
            self.queue.extend(queued.map(|queued| (queued, holder)));
        }
        self.totals = totals;
        shared.publish(totals.stats());
        for notifications in notifications {
            match notifications {
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

    /// The group is not committed: nothing happened.
    pub(super) fn forget(&mut self) {
        for notifications in std::mem::take(&mut self.staged).notifications {
            if let Notification::Ended { id, watchers: Some(watchers), .. } = notifications {
                self.watchers.insert(id, watchers);
            }
        }
    }

    /// Ends all watches: what was committed last is not known.
    pub(super) fn end_watches(&mut self, why: &SessionError) {
        self.watchers.drain().for_each(|(_, watchers)| watchers.end(why));
    }
}
