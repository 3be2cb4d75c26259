//! From a path to sessions, and back: opening a file, reading what it holds, and closing it.

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
use snakepit_session::{ProgramInfo, SessionError, SessionId, SessionLimits, kit::ProgramRecord};
use tokio::time::Instant;

use super::{
    file::Identity,
    lease::{Holder, Lease, LeaseRow, Leases},
    rows::{
        DATA, GLOBAL_OWNER, HeaderSummary, LEASES, PROGRAMS, SCHEMA, SESSIONS, VARIABLES, VERSIONS, damaged,
        failed, get, scan,
    },
    state::Totals,
};
use crate::codec::{decode, encode};

/// The version of rows and tables. All others are refused.
const VERSION: u64 = 2;
/// What redb may keep of the file in memory, in bytes.
const CACHE: usize = 256 * 1024 * 1024;

/// Redb says how far its check is: so little only when it found the last commit incomplete and takes the one before.
const FALLS_BACK: f64 = 0.5;

/// What a finished file of redb begins with.
const MAGIC: [u8; 9] = *b"redb\x1A\x0A\xA9\x0D\x0A";
/// What redb's header takes at the beginning of a file, and a file that redb did not finish, in bytes, at most.
const HEADER: usize = 512;
const MAX_UNFINISHED: u64 = 1024 * 1024;

/// An open file, and who lives in it.
pub(super) struct Opened {
    pub(super) database: Database,
    pub(super) identity: Identity,
    pub(super) totals: Totals,
    pub(super) leases: Vec<(Holder, Lease)>,
}

/// Opens a file, or makes it unless it must be this one, and reads who lives in it.
pub(super) fn open<F: StorageBackend>(
    path: &Path,
    limits: &SessionLimits,
    storage: impl FnOnce(FileBackend) -> F,
    known: Option<Identity>,
) -> Result<Opened, SessionError> {
    // Redb may panic where somebody else changed its file.
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let opened = database(path, storage, known);
        let (database, identity) = opened.map_err(|problem| SessionError::Backend { problem })?;
        let (totals, leases) = resume(&database, limits)?;
        Ok(Opened { database, identity, totals, leases })
    }));
    let opened: Result<_, SessionError> = opened.unwrap_or_else(|_| Err(damaged("it is no sound database")));
    opened.map_err(|error| in_file(path, error))
}

/// Names the file in an error of the backend.
pub(super) fn in_file(path: &Path, error: SessionError) -> SessionError {
    match error {
        SessionError::Backend { problem } => {
            let file = format!("`{}`: ", path.display());
            let problem = if problem.starts_with(&file) { problem } else { file + &problem };
            SessionError::Backend { problem }
        }
        error => error,
    }
}

fn database<F: StorageBackend>(
    path: &Path,
    storage: impl FnOnce(FileBackend) -> F,
    known: Option<Identity>,
) -> Result<(Database, Identity), String> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(known.is_none()).truncate(false);
    // What is in sessions is nobody else's.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound if known.is_some() => "it was deleted while it was in use".to_owned(),
        io::ErrorKind::NotFound => "its directory does not exist; create it first".to_owned(),
        _ => format!("cannot open it: {error}"),
    })?;
    let metadata = file.metadata().map_err(|error| format!("cannot open it: {error}"))?;
    let identity = Identity::of(&metadata);
    if known.is_some_and(|known| known != identity) {
        return Err("it was replaced while it was in use".to_owned());
    }
    // A new file is only there for sure once its directory says so.
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let synced = File::open(parent).and_then(|directory| directory.sync_all());
    synced.map_err(|error| format!("cannot sync its directory: {error}"))?;

    let mut builder = Builder::new();
    builder.set_cache_size(CACHE);
    builder.set_check_integrity_on_open(true);
    let checked = path.to_owned();
    builder.set_repair_callback(move |repair| {
        let path = checked.display();
        tracing::debug!(%path, progress = repair.progress(), "checking sessions");
        if repair.progress() < FALLS_BACK {
            tracing::warn!(%path, "the last write was cut off or is damaged; the sessions are those before it");
        }
    });
    let opened = FileBackend::new(file).and_then(|file| {
        let storage = storage(file);
        empty_unfinished(&storage).map_err(StorageError::Io)?;
        builder.create_with_backend(storage)
    });
    let opened = opened.map_err(|error| match error {
        DatabaseError::Storage(StorageError::Corrupted(problem)) => {
            format!("it is damaged; restore it from a copy: {problem}")
        }
        DatabaseError::DatabaseAlreadyOpen => {
            "it is open already, and only one host at a time may have it; give each a file of its own"
                .to_owned()
        }
        DatabaseError::Storage(StorageError::Io(error)) if error.kind() == io::ErrorKind::InvalidData => {
            format!("it is no file of sessions: {error}")
        }
        error => format!("cannot open it: {error}"),
    });
    Ok((opened?, identity))
}

/// Empties a file that redb began to make when the host or the power failed. Redb itself takes it for something else, and no
/// host would start again.
fn empty_unfinished(storage: &impl StorageBackend) -> io::Result<()> {
    const END: Bound<u64> = Bound::Unbounded;
    // Whoever has it open may be about to finish it, and redb will say that it is open.
    if matches!(storage.try_lock_range(END, END), Ok(false)) {
        return Ok(());
    }
    if is_unfinished(storage)? {
        storage.set_len(0)?;
    }
    // What cannot be locked needs no unlocking.
    let _ = storage.unlock_range(END, END);
    Ok(())
}

/// Whether a file is one that redb did not finish: it writes its magic number last, and until then nothing but its header.
fn is_unfinished(storage: &impl StorageBackend) -> io::Result<bool> {
    let len = storage.len()?;
    if len < HEADER as u64 || len > MAX_UNFINISHED {
        return Ok(false);
    }
    let mut magic = [0; MAGIC.len()];
    storage.read(0, &mut magic)?;
    if magic == MAGIC || magic.iter().zip(MAGIC).any(|(found, byte)| ![0, byte].contains(found)) {
        return Ok(false);
    }
    let mut rest = vec![0; usize::try_from(len).map_or(0, |len| len - HEADER)];
    storage.read(HEADER as u64, &mut rest)?;
    Ok(rest.iter().all(|byte| *byte == 0))
}

/// Reads who lives, and makes what is missing in a new file.
fn resume(
    database: &Database,
    limits: &SessionLimits,
) -> Result<(Totals, Vec<(Holder, Lease)>), SessionError> {
    let transaction = database.begin_write().map_err(failed)?;
    let is_new = check_schema(&transaction)?;
    let was_closed = transaction.list_tables().map_err(failed)?.any(|table| table.name() == LEASES.name());
    let found = holders(&transaction, limits, was_closed)?;
    if was_closed {
        // From now on, what they say is out of date.
        transaction.delete_table(LEASES).map_err(failed)?;
    }
    if is_new || was_closed {
        transaction.commit().map_err(failed)?;
    } else {
        transaction.abort().map_err(failed)?;
    }
    Ok(found)
}

/// Makes the tables of a new file; true when it did.
fn check_schema(transaction: &WriteTransaction) -> Result<bool, SessionError> {
    let is_new = transaction.list_tables().map_err(failed)?.next().is_none();
    let mut schema = transaction.open_table(SCHEMA).map_err(failed)?;
    if is_new {
        schema.insert((), VERSION).map_err(failed)?;
        for table in [SESSIONS, VARIABLES, PROGRAMS, DATA] {
            transaction.open_table(table).map_err(failed)?;
        }
        transaction.open_table(VERSIONS).map_err(failed)?;
    }
    let version = schema.get(()).map_err(failed)?.map(|version| version.value());
    let problem = match version {
        Some(VERSION) => return Ok(is_new),
        Some(other) => format!(
            "its schema is version {other}, and this host knows version {VERSION} only; use the version of the host that wrote it"
        ),
        None => "it is a database, but not of sessions".to_owned(),
    };
    Err(SessionError::Backend { problem })
}

/// Everybody in the file, with a lease. After an orderly end it is what is left of the one that was written. Otherwise
/// it is a full one: who is in the file may have been used until the host was killed, and nobody's time ends early because
/// a renewal was only in memory.
fn holders(
    transaction: &WriteTransaction,
    limits: &SessionLimits,
    was_closed: bool,
) -> Result<(Totals, Vec<(Holder, Lease)>), SessionError> {
    let now = Instant::now();
    let (mut totals, mut leases) = (Totals::default(), Vec::new());
    let written = was_closed.then(|| transaction.open_table(LEASES)).transpose().map_err(failed)?;
    let lease = |holder: Holder, ttl| {
        let row: Option<LeaseRow> = match &written {
            Some(written) => get(written, holder.key())?,
            None => None,
        };
        let lease = row.map_or_else(|| Lease::new(ttl, now), |row| Lease::resumed(ttl, row, now));
        Ok::<_, SessionError>((holder, lease))
    };
    let sessions = transaction.open_table(SESSIONS).map_err(failed)?;
    for entry in sessions.iter().map_err(failed)? {
        let (key, row) = entry.map_err(failed)?;
        let HeaderSummary { ttl, bytes, programs, variables } = decode(row.value())?;
        totals.sessions += 1;
        totals.bytes += bytes;
        totals.programs += programs;
        totals.variables += variables;
        leases.push(lease(Holder::Session(SessionId::try_new(key.value().0)?), ttl)?);
    }
    let programs = transaction.open_table(PROGRAMS).map_err(failed)?;
    for info in scan::<ProgramInfo>(&programs, GLOBAL_OWNER, |_| true)? {
        totals.globals += 1;
        leases.push(lease(Holder::Global(info.name.clone()), limits.ttl(info.ttl))?);
        totals.bytes += ProgramRecord { info, data: Bytes::new() }.size();
    }
    Ok((totals, leases))
}

/// Writes for how long everybody lives, so that the next start knows.
pub(super) fn close(database: &Database, leases: &Leases) -> Result<(), SessionError> {
    let transaction = database.begin_write().map_err(failed)?;
    let mut table = transaction.open_table(LEASES).map_err(failed)?;
    for (holder, row) in leases.rows(Instant::now()) {
        table.insert(holder.key(), encode(&row)?.as_slice()).map_err(failed)?;
    }
    drop(table);
    transaction.commit().map_err(failed)
}
