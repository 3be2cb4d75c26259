//! Opens and closes session files.

use std::{
    fs::{File, OpenOptions},
    io,
    ops::Bound,
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
    checked_storage::{CheckedStorage, HEADER_BYTES},
    expiry::{Expiries, Expiry, ExpiryRow, Owner},
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

/// The magic number of a complete redb file.
const MAGIC: [u8; 9] = *b"redb\x1A\x0A\xA9\x0D\x0A";
/// The maximum size of an incomplete file in bytes.
const MAX_UNFINISHED_BYTES: u64 = 1024 * 1024;

/// An open file, its totals and expiries.
pub(super) struct Opened {
    pub(super) database: Database,
    pub(super) identity: FileIdentity,
    pub(super) guard: CheckedStorage,
    pub(super) totals: Totals,
    pub(super) expiries: Vec<(Owner, Expiry)>,
}

/// Opens a file and reads its expiries. Creates the file if it is missing. `known` identifies a file that was open before. It must
/// be as it was last written.
pub(super) fn open<F: StorageBackend>(
    path: &Path,
    limits: &SessionLimits,
    storage: impl FnOnce(FileBackend) -> F,
    known: Option<(FileIdentity, &CheckedStorage)>,
) -> Result<Opened, SessionError> {
    // Redb may panic if another program changed its file.
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let opened = open_database(path, storage, known);
        let (database, identity, guard) = opened?;
        let (totals, expiries) = resume(&database, limits)?;
        Ok(Opened { database, identity, guard, totals, expiries })
    }));
    let opened: Result<_, SessionError> =
        opened.unwrap_or_else(|_| Err(damaged_error("it is not a valid database")));
    opened.map_err(|error| in_file(path, error))
}

/// Adds the name of the file to an error.
pub(super) fn in_file(path: &Path, error: SessionError) -> SessionError {
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

fn open_database<F: StorageBackend>(
    path: &Path,
    storage: impl FnOnce(FileBackend) -> F,
    known: Option<(FileIdentity, &CheckedStorage)>,
) -> Result<(Database, FileIdentity, CheckedStorage), SessionError> {
    let unopened = || SessionError::backend("cannot open it");
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(known.is_none()).truncate(false);
    // Sessions may contain secrets, so only the owner may read the file.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound if known.is_some() => {
            SessionError::backend("it was deleted while it was in use")
        }
        io::ErrorKind::NotFound => SessionError::backend("its directory does not exist; create it first"),
        _ => unopened().with_source(error),
    })?;
    let metadata = file.metadata().map_err(|error| unopened().with_source(error))?;
    let identity = FileIdentity::of(&metadata);
    if known.is_some_and(|(known, _)| known != identity) {
        return Err(SessionError::backend("it was replaced while it was in use"));
    }
    // Sync the directory, so that a new file survives a crash.
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let synced = File::open(parent).and_then(|directory| directory.sync_all());
    synced.map_err(|error| SessionError::backend("cannot sync its directory").with_source(error))?;

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
    let guard = FileBackend::new(file).and_then(|file| {
        let storage = storage(file);
        if known.is_none() {
            empty_unfinished(&storage).map_err(StorageError::Io)?;
        }
        CheckedStorage::new(storage).map_err(|error| StorageError::Io(error).into())
    });
    let guard = guard.map_err(|error| unopened().with_source(error))?;
    if let Some((_, before)) = known {
        guard.check_unchanged_since(before).map_err(SessionError::backend)?;
    }
    let opened = builder.create_with_backend(guard.clone());
    let opened = opened.map_err(|error| match error {
        DatabaseError::Storage(StorageError::Corrupted(problem)) => damaged_error(&problem),
        DatabaseError::DatabaseAlreadyOpen => SessionError::backend(
            "it is already open, and only one host at a time can use it; give each host a separate file",
        ),
        DatabaseError::Storage(StorageError::Io(error)) if error.kind() == io::ErrorKind::InvalidData => {
            SessionError::backend("it is not a session file").with_source(error)
        }
        error => unopened().with_source(error),
    });
    Ok((opened?, identity, guard))
}

/// Truncates a file whose creation was interrupted by a crash. Redb would reject it forever.
fn empty_unfinished(storage: &impl StorageBackend) -> io::Result<()> {
    const END: Bound<u64> = Bound::Unbounded;
    // Another process may be creating the file now; redb then reports that it is open.
    if matches!(storage.try_lock_range(END, END), Ok(false)) {
        return Ok(());
    }
    if is_unfinished(storage)? {
        storage.set_len(0)?;
    }
    // Unlocking can only fail if locking is not supported.
    let _ = storage.unlock_range(END, END);
    Ok(())
}

/// Whether redb was interrupted while creating the file. It writes the header first and the magic number last.
fn is_unfinished(storage: &impl StorageBackend) -> io::Result<bool> {
    let len = storage.len()?;
    if len < HEADER_BYTES as u64 || len > MAX_UNFINISHED_BYTES {
        return Ok(false);
    }
    let mut magic = [0; MAGIC.len()];
    storage.read(0, &mut magic)?;
    if magic == MAGIC || magic.iter().zip(MAGIC).any(|(actual, byte)| ![0, byte].contains(actual)) {
        return Ok(false);
    }
    let mut rest = vec![0; usize::try_from(len).map_or(0, |len| len - HEADER_BYTES)];
    storage.read(HEADER_BYTES as u64, &mut rest)?;
    Ok(rest.iter().all(|byte| *byte == 0))
}

/// Reads totals and expiries, and creates the tables of a new file.
fn resume(
    database: &Database,
    limits: &SessionLimits,
) -> Result<(Totals, Vec<(Owner, Expiry)>), SessionError> {
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
) -> Result<(Totals, Vec<(Owner, Expiry)>), SessionError> {
    let now = Instant::now();
    let (mut totals, mut expiries) = (Totals::default(), Vec::new());
    let stored = was_closed.then(|| transaction.open_table(EXPIRIES)).transpose().map_err(backend_error)?;
    let expiry = |owner: Owner, ttl| {
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
        expiries.push(expiry(Owner::Session(SessionId::try_new(key.value().0)?), ttl)?);
    }
    let programs = transaction.open_table(PROGRAMS).map_err(backend_error)?;
    for info in scan::<ProgramInfo>(&programs, GLOBAL_OWNER, |_| true)? {
        totals.global_programs += 1;
        expiries.push(expiry(Owner::Global(info.name.clone()), limits.ttl(info.ttl))?);
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
