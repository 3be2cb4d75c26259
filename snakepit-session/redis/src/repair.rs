//! Repairs the indexes after Redis evicted keys: removes incomplete sessions, and adds complete ones to the indexes again. The
//! repair visits all sessions, so it runs only if the indexes disagree.

use redis::FromRedisValue;
use snakepit_session::SessionError;

use super::{RedisBackend, scripts};

/// The approximate number of keys in one step.
const KEYS_PER_STEP: usize = 500;

impl RedisBackend {
    /// Repairs the indexes and returns the number of lost sessions.
    pub(super) async fn repair_indexes(&self) -> Result<usize, SessionError> {
        let (root, mut lost) = (self.connection.root(), 0);
        let sessions = format!("{root}:s:");
        let mut scan = Scan::new("SCAN", None);
        scan.pattern = Some(format!("{sessions}*"));
        while let Some(keys) = scan.next::<String>(self).await? {
            lost += self.repair_sessions(keys.iter().filter_map(|key| key.strip_prefix(&sessions))).await?;
        }
        for index in ["ids", "due"] {
            let mut scan = Scan::new("ZSCAN", Some(format!("{root}:{index}")));
            while let Some(found) = scan.next::<(String, f64)>(self).await? {
                lost += self.repair_sessions(found.iter().map(|(id, _)| &**id)).await?;
            }
        }
        let mut scan = Scan::new("HSCAN", Some(format!("{root}:held")));
        while let Some(found) = scan.next::<(String, String)>(self).await? {
            lost += self.repair_sessions(found.iter().map(|(id, _)| &**id)).await?;
        }
        let _: u32 = self.connection.call(&scripts::RECOUNT).run().await?;
        tracing::warn!(lost, "redis evicted parts of sessions: set `maxmemory-policy noeviction`");
        Ok(lost)
    }

    async fn repair_sessions<'a>(&self, ids: impl Iterator<Item = &'a str>) -> Result<usize, SessionError> {
        let ids: Vec<_> = ids.collect();
        if ids.is_empty() { Ok(0) } else { self.connection.call(&scripts::REPAIR).arg(ids).run().await }
    }
}

/// An iteration over the keys of the server, or over one key.
struct Scan {
    command: &'static str,
    key: Option<String>,
    pattern: Option<String>,
    /// `None` after the last step.
    cursor: Option<u64>,
}

impl Scan {
    const fn new(command: &'static str, key: Option<String>) -> Self {
        Self { command, key, pattern: None, cursor: Some(0) }
    }

    async fn next<T: FromRedisValue>(
        &mut self,
        backend: &RedisBackend,
    ) -> Result<Option<Vec<T>>, SessionError> {
        let Some(cursor) = self.cursor else { return Ok(None) };
        let mut scan = redis::cmd(self.command);
        scan.arg(&self.key).arg(cursor).arg("COUNT").arg(KEYS_PER_STEP);
        if let Some(pattern) = &self.pattern {
            scan.arg("MATCH").arg(pattern);
        }
        let (next, found): (u64, Vec<T>) = backend.connection.query(&scan).await?;
        self.cursor = (next != 0).then_some(next);
        Ok(Some(found))
    }
}
