//! A simulated disk in memory. It outlives its database, counts written bytes, and can lose power. After a power failure, synced
//! writes are present, and any part of the later writes may be.

use std::{
    fmt, io,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard},
};

use proptest::{prelude::RngExt, test_runner::TestRng};
use redb::StorageBackend;
use snakepit_session::SessionLimits;

use crate::{RedbBackend, writer::Writer};

/// A handle to a disk. Clones share the disk.
#[derive(Clone, Default)]
pub(super) struct Disk(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// The current contents.
    bytes: Vec<u8>,
    /// The contents at the last sync.
    synced: Vec<u8>,
    /// The changes since the last sync.
    unsynced: Vec<Change>,
    /// The number of changes and syncs until the power fails; `None` if it does not fail.
    changes_until_failure: Option<usize>,
    /// The total number of written bytes.
    written: usize,
    /// Contains the file through which the backend opens the disk. The content of the file does not matter, but it must not exist
    /// before the backend creates it.
    directory: Option<Arc<tempfile::TempDir>>,
}

#[derive(Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Resize(usize),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write(at, data) => bytes[*at..at + data.len()].copy_from_slice(data),
            Self::Resize(len) => bytes.resize(*len, 0),
        }
    }

    /// Applies a part of a write, cut to the length of the file.
    fn apply_part(&self, part: Range<usize>, bytes: &mut [u8]) {
        if let Self::Write(at, data) = self {
            let to = part.end.min(bytes.len().saturating_sub(*at));
            if part.start < to {
                bytes[at + part.start..at + to].copy_from_slice(&data[part.start..to]);
            }
        }
    }
}

impl State {
    fn check(&self) -> io::Result<()> {
        if self.changes_until_failure == Some(0) { Err(io::Error::other("the power failed")) } else { Ok(()) }
    }

    /// Counts a change or sync, and fails it without power.
    fn use_power(&mut self) -> io::Result<()> {
        self.changes_until_failure = self.changes_until_failure.map(|remaining| remaining.saturating_sub(1));
        self.check()
    }

    fn change(&mut self, change: Change) -> io::Result<()> {
        self.use_power()?;
        change.apply(&mut self.bytes);
        self.unsynced.push(change);
        Ok(())
    }
}

impl Disk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Cuts the power at the `number`th change or sync from now on, which fails.
    pub(super) fn cut_power_at(&self, number: usize) {
        self.state().changes_until_failure = Some(number);
    }

    pub(super) fn is_off(&self) -> bool {
        self.state().check().is_err()
    }

    /// The number of bytes written since the power was restored.
    pub(super) fn written(&self) -> usize {
        self.state().written
    }

    /// Returns the disk after a power failure. Each unsynced write is independently present, missing or torn. The file has one
    /// of its lengths since the last sync.
    pub(super) fn restore_power(&self, random: &mut TestRng) -> Self {
        let state = self.state();
        let mut bytes = state.synced.clone();
        let resizes = state.unsynced.iter().filter(|change| matches!(change, Change::Resize(_))).count();
        let mut resizes = random.random_range(0..=resizes);
        // Random rates make crashes that persist nearly everything or nearly nothing as likely as others.
        let (persist_rate, tear_rate) = (random.random_range(0.0..=1.0), random.random_range(0.0..=1.0));
        for change in &state.unsynced {
            match change {
                Change::Resize(_) if resizes > 0 => {
                    resizes -= 1;
                    change.apply(&mut bytes);
                }
                Change::Resize(_) => {}
                Change::Write(_, data) if random.random_bool(persist_rate) => {
                    change.apply_part(0..data.len(), &mut bytes);
                }
                Change::Write(_, data) if random.random_bool(tear_rate) => {
                    let (one, other) =
                        (random.random_range(0..=data.len()), random.random_range(0..=data.len()));
                    change.apply_part(one.min(other)..one.max(other), &mut bytes);
                }
                Change::Write(..) => {}
            }
        }
        let (synced, directory) = (bytes.clone(), state.directory.clone());
        Self(Arc::new(Mutex::new(State { bytes, synced, directory, ..State::default() })))
    }

    /// Opens a backend on the disk.
    pub(super) async fn open(
        &self,
        limits: SessionLimits,
    ) -> Result<RedbBackend, snakepit_session::SessionError> {
        let directory =
            Arc::clone(self.state().directory.get_or_insert_with(|| Arc::new(tempfile::tempdir().unwrap())));
        let (disk, path) = (self.clone(), directory.path().join("sessions"));
        let file = path.clone();
        let storage = move |_file| {
            if !path.exists() {
                // The file that a power failure left unfinished has another name.
                let mut state = disk.state();
                state.bytes.clear();
                state.synced.clear();
                state.unsynced.clear();
            }
            disk.clone()
        };
        let (writer, shared) = Writer::spawn(file, limits, storage).await?;
        Ok(RedbBackend { writer, shared })
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Disk").finish_non_exhaustive()
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        let state = self.state();
        state.check()?;
        Ok(state.bytes.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        state.check()?;
        let at = offset as usize;
        let bytes = state.bytes.get(at..at + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.state().change(Change::Resize(len as usize))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.state();
        state.use_power()?;
        let State { synced, unsynced, .. } = &mut *state;
        unsynced.drain(..).for_each(|change| change.apply(synced));
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        state.written += data.len();
        state.change(Change::Write(offset as usize, data.to_vec()))
    }
}
