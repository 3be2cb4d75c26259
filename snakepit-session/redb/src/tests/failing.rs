//! Tests on disks that fail or are full, and recover.

use super::*;

/// A file on a disk that fails or is full on demand. On a full disk, only allocated blocks can be written.
#[derive(Debug)]
struct FailingFile {
    file: FileBackend,
    is_failing: Arc<AtomicBool>,
    is_full: Arc<AtomicBool>,
    /// The allocated blocks.
    written: Arc<Mutex<HashSet<u64>>>,
}

impl FailingFile {
    fn check(&self) -> io::Result<()> {
        if self.is_failing.load(Relaxed) { Err(io::Error::other("the disk failed here")) } else { Ok(()) }
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        const BLOCK: u64 = 4096;
        let mut written = self.written.lock().unwrap();
        for block in offset / BLOCK..=(offset + len - 1) / BLOCK {
            if !written.contains(&block) && self.is_full.load(Relaxed) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            written.insert(block);
        }
        Ok(())
    }
}

impl StorageBackend for FailingFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.check()?;
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check()?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.check()?;
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check()?;
        self.allocate(offset, data.len() as u64)?;
        self.file.write(offset, data)
    }
}

/// Opens a backend with switches for a failed disk and a full disk.
async fn open_failing(directory: &TempDir) -> (RedbBackend, Arc<AtomicBool>, Arc<AtomicBool>) {
    let (path, limits) = (directory.path().join("sessions"), SessionLimits::default());
    let (is_failing, is_full) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (failing, full, written) = (Arc::clone(&is_failing), Arc::clone(&is_full), Arc::default());
    let storage = move |file| {
        let (is_failing, is_full, written) = (Arc::clone(&failing), Arc::clone(&full), Arc::clone(&written));
        FailingFile { file, is_failing, is_full, written }
    };
    let (writer, shared) = Writer::spawn(path, limits, storage).await.unwrap();
    (RedbBackend { writer, shared }, is_failing, is_full)
}

/// Retries until the backend has reopened the file.
async fn set_when_possible(backend: &RedbBackend, value: u32) -> u32 {
    let written = async {
        loop {
            match set(backend, "s", "x", value).await {
                Ok(version) => break version,
                Err(SessionError::Backend { .. }) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), written).await.expect("writes succeed again")
}

#[tokio::test]
async fn a_failed_disk_is_reported_to_all_callers_until_it_recovers() {
    let directory = directory();
    let (backend, is_failing, _) = open_failing(&directory).await;
    backend.create(&id("s"), NewSession::default()).await.unwrap();
    register(&backend, "s", "x").await.unwrap();
    set(&backend, "s", "x", 1).await.unwrap();
    backend.set_last_worker(&id("s"), "w".into()).await.unwrap();
    let mut watch = backend.watch_variables(&id("s"), &[], false).await.unwrap();

    is_failing.store(true, Relaxed);
    let (one, other) = tokio::join!(set(&backend, "s", "x", 2), register(&backend, "s", "y"));
    for error in [one.unwrap_err(), other.map(drop).unwrap_err()] {
        let error = error_chain(&error).to_string();
        assert!(error.contains("the disk failed here"), "{error}");
    }
    let ended = watch.next().await.unwrap().unwrap_err();
    assert!(matches!(ended, SessionError::Backend { .. }), "{ended:?}");
    assert_eq!(watch.next().await, None);
    let unread = error_chain(&backend.get(&id("s")).await.unwrap_err()).to_string();
    assert!(unread.contains("the disk failed here"), "{unread}");

    is_failing.store(false, Relaxed);
    let version = set_when_possible(&backend, 3).await;
    assert!(version == 2 || version == 3, "acknowledged writes are present: {version}");
    assert_eq!(backend.get(&id("s")).await.unwrap().last_worker.as_deref(), Some("w"));
    let stats = backend.stats().await.unwrap();
    assert_eq!(stats.variables as usize, backend.get(&id("s")).await.unwrap().variable_count);
    let mut watch = backend.watch_variables(&id("s"), &["x".to_owned()], false).await.unwrap();
    set(&backend, "s", "x", 4).await.unwrap();
    assert!(watch.next().await.unwrap().is_ok());
    let before = complete_state(&backend).await;
    drop(backend);
    assert_eq!(complete_state(&open(&directory).await).await, before);
}

#[tokio::test]
async fn a_full_disk_accepts_writes_again_when_there_is_space() {
    let directory = directory();
    let (backend, _, is_full) = open_failing(&directory).await;
    backend.create(&id("s"), NewSession::default()).await.unwrap();
    register(&backend, "s", "x").await.unwrap();
    let owner = ProgramOwner::Session(id("s"));
    backend
        .put_program(&owner, &program_name("kept"), Program::new(vec![1; LARGE_READ_BYTES], "t"))
        .await
        .unwrap();
    let before = complete_state(&backend).await;
    is_full.store(true, Relaxed);
    for n in 0..3 {
        let new = Program::new(vec![2; 4 * LARGE_READ_BYTES], "t");
        let rejected = backend.put_program(&owner, &program_name(&n.to_string()), new).await.unwrap_err();
        assert!(matches!(rejected, SessionError::Backend { .. }), "{rejected}");
        assert_eq!(complete_state(&backend).await, before, "reads continue, and the write changed nothing");
    }
    is_full.store(false, Relaxed);
    set_when_possible(&backend, 3).await;
    backend
        .put_program(&owner, &program_name("new"), Program::new(vec![3; 4 * LARGE_READ_BYTES], "t"))
        .await
        .unwrap();
    let before = complete_state(&backend).await;
    drop(backend);
    assert_eq!(complete_state(&open(&directory).await).await, before);
}
