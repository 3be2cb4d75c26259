//! Stores sessions in SQLite, with a session backend that is only a [`KeyValueStore`]. Run it with
//! `cargo run -p snakepit-session --example sqlite_backend`.

use rusqlite::{Connection, OptionalExtension, params};
use snakepit_session::{
    NewSession, NewVariable, Note, Payload, PayloadError, SessionBackend, SessionId, SessionLimits,
    SetVariable, ValueType, VariableName, VariableType,
    kit::{KeyValueBackend, KeyValueStore, StoreError, StoreWrites},
};

#[tokio::main(flavor = "current_thread")]
#[expect(clippy::print_stdout, reason = "an example shows its result")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let store = SqliteStore::open(Connection::open_in_memory()?)?;
    let backend = KeyValueBackend::open(store, SessionLimits::default())?;

    let session = SessionId::try_new("user-1")?;
    backend.create(&session, NewSession::default()).await?;
    let new =
        NewVariable { ty: VariableType::new(ValueType::Integer)?, value: integer(1)?, note: Note::default() };
    backend.register_variable(&session, &VariableName::try_new("count")?, new).await?;
    backend.set_variable(&session, SetVariable::new("count", integer(2)?)).await?;
    for version in backend.variable_history(&session, "count", 0).await? {
        println!("version {}: {:?}", version.version, version.value);
    }
    // Stores when the session expires.
    backend.close()?;
    Ok(())
}

fn integer(value: i64) -> Result<Payload, PayloadError> {
    Payload::try_from_serde(&value)
}

/// One table of keys and values in a SQLite database.
#[derive(Debug)]
struct SqliteStore {
    connection: Connection,
}

impl SqliteStore {
    fn open(connection: Connection) -> Result<Self, rusqlite::Error> {
        // With the write-ahead log, a commit costs one write. A crash of the machine may lose the last commits.
        connection.execute_batch(
            "PRAGMA journal_mode = WAL;
             PRAGMA synchronous = NORMAL;
             CREATE TABLE IF NOT EXISTS session_rows (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;",
        )?;
        Ok(Self { connection })
    }
}

impl KeyValueStore for SqliteStore {
    fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let mut query = self.connection.prepare("SELECT value FROM session_rows WHERE key = ?1")?;
        Ok(query.query_row([key], |row| row.get(0)).optional()?)
    }

    fn scan(&mut self, prefix: &[u8], visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), StoreError> {
        // SQLite compares blobs byte by byte.
        let mut query =
            self.connection.prepare("SELECT key, value FROM session_rows WHERE key >= ?1 ORDER BY key")?;
        let mut rows = query.query([prefix])?;
        while let Some(row) = rows.next()? {
            let key = row.get_ref(0)?.as_blob()?;
            if !key.starts_with(prefix) {
                break;
            }
            visit(key, row.get_ref(1)?.as_blob()?);
        }
        Ok(())
    }

    fn commit(&mut self, writes: StoreWrites) -> Result<(), StoreError> {
        // A transaction that is dropped before its commit is rolled back.
        let transaction = self.connection.transaction()?;
        for (key, value) in writes {
            match value {
                Some(value) => transaction
                    .prepare("INSERT OR REPLACE INTO session_rows (key, value) VALUES (?1, ?2)")?
                    .execute(params![key, value])?,
                None => {
                    transaction.prepare("DELETE FROM session_rows WHERE key = ?1")?.execute(params![key])?
                }
            };
        }
        Ok(transaction.commit()?)
    }
}

#[cfg(test)]
mod tests {
    use snakepit_session_testkit::{
        session_backend_contract, session_backend_linearizes, session_backend_matches_model,
    };

    use super::*;

    fn in_memory(limits: SessionLimits) -> KeyValueBackend<SqliteStore> {
        let store = SqliteStore::open(Connection::open_in_memory().unwrap()).unwrap();
        KeyValueBackend::open(store, limits).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn the_backend_keeps_the_contract() {
        let make = || async { in_memory(SessionLimits::default()) };
        session_backend_contract(make, tokio::time::advance).await;
    }

    #[test]
    fn random_operations_match_the_model() {
        session_backend_matches_model(|limits| async { in_memory(limits) }, 60);
    }

    #[test]
    fn concurrent_operations_are_linearizable() {
        session_backend_linearizes(|limits| async { in_memory(limits) }, 60);
    }

    #[tokio::test]
    async fn a_file_keeps_sessions() {
        let dir = tempfile::tempdir().unwrap();
        let open = || {
            let connection = Connection::open(dir.path().join("sessions.sqlite")).unwrap();
            let store = SqliteStore::open(connection).unwrap();
            KeyValueBackend::open(store, SessionLimits::default()).unwrap()
        };
        let session = SessionId::try_new("s").unwrap();
        open().create(&session, NewSession::default()).await.unwrap();
        assert_eq!(open().get(&session).await.unwrap().id, session);
    }
}
