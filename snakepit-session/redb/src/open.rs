//! Opens and closes session files.

use std::{
    fs::{File, OpenOptions},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use bytes::Bytes;
use redb::{
    Builder, Database, DatabaseError, ReadableTable, StorageBackend, StorageError, TableHandle,
    WriteTransaction, backends::FileBackend,
};
use snakepit_session::{
    ProgramInfo, SessionError, SessionId, SessionLimits,
    kit::{ProgramRecord, decode, encode},
};
use tokio::time::Instant;

use super::{
    checked_storage::CheckedStorage,
    expiry::{Expiries, Expiry, ExpiryKey, ExpiryRow},
    file::FileIdentity,
    rows::{
        DATA, EXPIRIES, GLOBAL_OWNER, HeaderSummary, PROGRAMS, SCHEMA, SESSIONS, VARIABLES, VERSIONS,
        backend_error, damaged_error, get, scan,
    },
    state::Totals,
};

/// The schema version of rows and tables. Other versions are rejected.
const SCHEMA_VERSION: u64 = 2;
/// The size of redb's cache in bytes.
const CACHE_BYTES: usize = 256 * 1024 * 1024;

/// Whether the progress of a check shows that redb rejected an incomplete commit and uses the previous one. Redb reports 0.0 at
/// the start of each check, 0.6 and 0.9 after passes over intact data, and 0.3 only when it uses the previous commit.
fn is_fallback(progress: f64) -> bool {
    0.0 < progress && progress < 0.5
}

/// The name prefix of a file that is being created. A crash may leave such a file behind; it contains no sessions.
pub(super) const UNFINISHED_PREFIX: &str = ".snakepit-unfinished-";

/// An open file, its totals and expiries.
pub(super) struct Opened {
    pub(super) database: Database,
    pub(super) identity: FileIdentity,
    pub(super) guard: CheckedStorage,
    pub(super) totals: Totals,
    pub(super) expiries: Vec<(ExpiryKey, Expiry)>,
}

/// The origin of the file to open.
#[derive(Clone, Copy)]
enum Origin<'a> {
    /// It was created for this database.
    New,
    /// It existed before.
    Existing,
    /// It was open before. Its content must be the one that this storage wrote last.
    Reopened(&'a CheckedStorage),
}

/// Opens a file and reads its expiries. Creates the file if it is missing. `known` identifies a file that was open before. It
/// must be as it was last written.
pub(super) fn open<F: StorageBackend>(
    path: &Path,
    limits: &SessionLimits,
    storage: impl FnOnce(FileBackend) -> F,
    known: Option<(FileIdentity, &CheckedStorage)>,
) -> Result<Opened, SessionError> {
    // Redb may panic if another program changed its file.
    let opened = catch_unwind(AssertUnwindSafe(|| open_or_create(path, limits, storage, known)));
    let opened: Result<_, SessionError> =
        opened.unwrap_or_else(|_| Err(damaged_error("it is not a valid database")));
    opened.map_err(|error| with_path(path, error))
}

/// Adds the path of the file to an error.
pub(super) fn with_path(path: &Path, error: SessionError) -> SessionError {
    let with_name = |problem: String| {
        let file = format!("`{}`: ", path.display());
        if problem.starts_with(&file) { problem } else { file + &problem }
    };
    match error {
        SessionError::Backend { problem, source } => {
            SessionError::Backend { problem: with_name(problem), source }
        }
        SessionError::NotWritten { problem, source } => {
            SessionError::NotWritten { problem: with_name(problem), source }
        }
        error => error,
    }
}

fn open_or_create<F: StorageBackend>(
    path: &Path,
    limits: &SessionLimits,
    storage: impl FnOnce(FileBackend) -> F,
    known: Option<(FileIdentity, &CheckedStorage)>,
) -> Result<Opened, SessionError> {
    let opened = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => {
            let metadata = file.metadata().map_err(open_error)?;
            if !metadata.is_file() {
                return Err(SessionError::backend("it is not a regular file"));
            }
            let origin = match known {
                Some((identity, _)) if identity != FileIdentity::of(&metadata) => {
                    return Err(SessionError::backend("it was replaced while it was in use"));
                }
                Some((_, before)) => Origin::Reopened(before),
                None => Origin::Existing,
            };
            open_database(path, file, limits, storage, origin)?
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(open_error(error)),
        Err(_) if known.is_some() => {
            return Err(SessionError::backend("it was deleted while it was in use"));
        }
        Err(_) => create(path, limits, storage)?,
    };
    // A new file survives a crash only if its directory is synced. Its creator may have crashed before that.
    let synced = File::open(directory_of(path)).and_then(|directory| directory.sync_all());
    synced.map_err(|error| SessionError::backend("cannot sync its directory").with_source(error))?;
    Ok(opened)
}

/// Creates a file under a temporary name, and gives it its own name after the first commit. A crash therefore never leaves an
/// incomplete file under the final name, and an empty file there must have lost its content.
fn create<F: StorageBackend>(
    path: &Path,
    limits: &SessionLimits,
    storage: impl FnOnce(FileBackend) -> F,
) -> Result<Opened, SessionError> {
    // Sessions may contain secrets. Only the owner may read a file that `tempfile` creates.
    let file = tempfile::Builder::new().prefix(UNFINISHED_PREFIX).tempfile_in(directory_of(path));
    let file = file.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => SessionError::backend("its directory does not exist; create it first"),
        _ => SessionError::backend("cannot create it").with_source(error),
    })?;
    let (file, unfinished) = file.into_parts();
    let opened = open_database(path, file, limits, storage, Origin::New)?;
    unfinished.persist_noclobber(path).map_err(|error| match error.error.kind() {
        io::ErrorKind::AlreadyExists => SessionError::backend(
            "another process created it at the same time, or it is a link to a missing file; only one host at a time \
             can use it",
        ),
        _ => SessionError::backend("cannot create it").with_source(error.error),
    })?;
    Ok(opened)
}

fn open_database<F: StorageBackend>(
    path: &Path,
    file: File,
    limits: &SessionLimits,
    storage: impl FnOnce(FileBackend) -> F,
    origin: Origin<'_>,
) -> Result<Opened, SessionError> {
    let identity = FileIdentity::of(&file.metadata().map_err(open_error)?);
    let file = FileBackend::new(file).map_err(open_error)?;
    let guard = CheckedStorage::new(storage(file)).map_err(open_error)?;
    match origin {
        Origin::New => {}
        Origin::Existing => {
            // Redb would create a new database in an empty file.
            if guard.len().map_err(open_error)? == 0 {
                return Err(SessionError::backend(
                    "it is empty, so its sessions are lost; restore it from a copy, or delete it to start without sessions",
                ));
            }
        }
        Origin::Reopened(before) => guard.check_unchanged_since(before).map_err(SessionError::backend)?,
    }
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    builder.set_check_integrity_on_open(true);
    let checked = path.to_owned();
    builder.set_repair_callback(move |repair| {
        let path = checked.display();
        tracing::debug!(%path, progress = repair.progress(), "checking sessions");
        if is_fallback(repair.progress()) {
            tracing::warn!(%path, "the last commit is incomplete or damaged; using the previous commit");
        }
    });
    let database = builder.create_with_backend(guard.clone()).map_err(|error| match error {
        DatabaseError::Storage(StorageError::Corrupted(problem)) => damaged_error(&problem),
        DatabaseError::DatabaseAlreadyOpen => SessionError::backend(
            "it is already open, and only one host at a time can use it; give each host a separate file",
        ),
        DatabaseError::Storage(StorageError::Io(error)) if error.kind() == io::ErrorKind::InvalidData => {
            SessionError::backend("it is not a session file").with_source(error)
        }
        error => open_error(error),
    })?;
    let (totals, expiries) = resume(&database, limits)?;
    Ok(Opened { database, identity, guard, totals, expiries })
}

fn open_error(error: impl std::error::Error + Send + Sync + 'static) -> SessionError {
    SessionError::backend("cannot open it").with_source(error)
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Reads totals and expiries, and creates the tables of a new file.
fn resume(
    database: &Database,
    limits: &SessionLimits,
) -> Result<(Totals, Vec<(ExpiryKey, Expiry)>), SessionError> {
    let transaction = database.begin_write().map_err(backend_error)?;
    let is_new = check_schema(&transaction)?;
    let was_closed =
        transaction.list_tables().map_err(backend_error)?.any(|table| table.name() == EXPIRIES.name());
    let found = load_expiries(&transaction, limits, was_closed)?;
    if was_closed {
        // The stored expiries are obsolete from now on.
        transaction.delete_table(EXPIRIES).map_err(backend_error)?;
    }
    if is_new || was_closed {
        transaction.commit().map_err(backend_error)?;
    } else {
        transaction.abort().map_err(backend_error)?;
    }
    Ok(found)
}

/// Creates the tables of a new file. Returns true for a new file.
fn check_schema(transaction: &WriteTransaction) -> Result<bool, SessionError> {
    let is_new = transaction.list_tables().map_err(backend_error)?.next().is_none();
    let mut schema = transaction.open_table(SCHEMA).map_err(backend_error)?;
    if is_new {
        schema.insert((), SCHEMA_VERSION).map_err(backend_error)?;
        for table in [SESSIONS, VARIABLES, PROGRAMS, DATA] {
            transaction.open_table(table).map_err(backend_error)?;
        }
        transaction.open_table(VERSIONS).map_err(backend_error)?;
    }
    let version = schema.get(()).map_err(backend_error)?.map(|version| version.value());
    let problem = match version {
        Some(SCHEMA_VERSION) => return Ok(is_new),
        Some(other) => format!(
            "its schema is version {other}, but this host supports only version {SCHEMA_VERSION}; use the host version that wrote it"
        ),
        None => "it is a redb database, but not a session file".to_owned(),
    };
    Err(SessionError::backend(problem))
}

/// Counts the rows of the file, and loads the expiries of all sessions and global programs. After a clean shutdown, expiries have
/// the stored remaining time. After a crash, they have the full TTL, because renewals that were only in memory are lost.
fn load_expiries(
    transaction: &WriteTransaction,
    limits: &SessionLimits,
    was_closed: bool,
) -> Result<(Totals, Vec<(ExpiryKey, Expiry)>), SessionError> {
    let now = Instant::now();
    let (mut totals, mut expiries) = (Totals::default(), Vec::new());
    let stored = was_closed.then(|| transaction.open_table(EXPIRIES)).transpose().map_err(backend_error)?;
    let expiry = |owner: ExpiryKey, ttl| {
        let row: Option<ExpiryRow> = match &stored {
            Some(stored) => get(stored, owner.key())?,
            None => None,
        };
        let expiry = row.map_or_else(|| Expiry::new(ttl, now), |row| Expiry::from_row(ttl, row, now));
        Ok::<_, SessionError>((owner, expiry))
    };
    let sessions = transaction.open_table(SESSIONS).map_err(backend_error)?;
    for entry in sessions.iter().map_err(backend_error)? {
        let (key, row) = entry.map_err(backend_error)?;
        let HeaderSummary { ttl, bytes, programs, variables } = decode(row.value())?;
        totals.sessions += 1;
        totals.bytes += bytes;
        totals.session_programs += programs;
        totals.variables += variables;
        expiries.push(expiry(ExpiryKey::Session(SessionId::try_new(key.value().0)?), ttl)?);
    }
    let programs = transaction.open_table(PROGRAMS).map_err(backend_error)?;
    for info in scan::<ProgramInfo>(&programs, GLOBAL_OWNER, |_| true)? {
        totals.global_programs += 1;
        expiries.push(expiry(ExpiryKey::Global(info.name.clone()), limits.ttl(info.ttl))?);
        totals.bytes += ProgramRecord { info, data: Bytes::new() }.size();
    }
    Ok((totals, expiries))
}

/// Stores the expiries for the next start.
pub(super) fn store_expiries(database: &Database, expiries: &Expiries) -> Result<(), SessionError> {
    let transaction = database.begin_write().map_err(backend_error)?;
    let mut table = transaction.open_table(EXPIRIES).map_err(backend_error)?;
    for (owner, row) in expiries.rows(Instant::now()) {
        table.insert(owner.key(), encode(&row)?.as_slice()).map_err(backend_error)?;
    }
    drop(table);
    transaction.commit().map_err(backend_error)
}
