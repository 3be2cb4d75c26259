//! [`RowCounts`]: the sessions whose rows were counted since the last commit. A lookup of a missing row counts the rows of its
//! session, to detect lost ones. Without a commit in between, further lookups need not count again.

use std::{
    collections::HashSet,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// The tables of sessions whose number of rows matched the header.
#[derive(Debug, Default)]
pub(super) struct RowCounts {
    /// The number of commits, which a view reads before it takes its snapshot.
    commits: AtomicU64,
    counted: Mutex<Counted>,
    #[cfg(test)]
    pub(super) scans: std::sync::atomic::AtomicUsize,
}

#[derive(Debug, Default)]
struct Counted {
    /// The number of commits for which the set is valid.
    commits: u64,
    /// The name of a table, and a session. There is at most one entry per live session and table.
    rows: HashSet<(&'static str, String)>,
}

impl RowCounts {
    pub(super) fn commits(&self) -> u64 {
        self.commits.load(Ordering::Acquire)
    }

    /// The writer calls this before and after a commit. Rows that a reader counts during the commit are then counted again.
    pub(super) fn invalidate(&self) {
        self.commits.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether the rows were counted in a snapshot after as many commits.
    pub(super) fn are_counted(&self, commits: u64, table: &'static str, session: &str) -> bool {
        let counted = self.lock();
        counted.commits == commits && counted.rows.contains(&(table, session.to_owned()))
    }

    /// Records that the rows in this snapshot are complete.
    pub(super) fn record(&self, commits: u64, table: &'static str, session: &str) {
        let mut counted = self.lock();
        if counted.commits < commits {
            *counted = Counted { commits, rows: HashSet::new() };
        }
        if counted.commits == commits {
            counted.rows.insert((table, session.to_owned()));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
