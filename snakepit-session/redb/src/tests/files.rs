//! Files that are missing, empty, damaged or replaced.

use super::*;

#[tokio::test]
async fn files_that_cannot_be_opened_are_reported_with_path_and_reason() {
    let directory = directory();
    let path = directory.path().join("missing").join("sessions");
    assert!(open_error(&path).await.contains("its directory does not exist"));
    assert!(open_error(directory.path()).await.contains("cannot open it"));
    assert!(open_error(Path::new("/dev/null")).await.contains("it is not a regular file"));

    let path = directory.path().join("sessions");
    let backend = open(&directory).await;
    assert!(open_error(&path).await.contains("it is already open"));
    drop(backend);
    open(&directory).await;

    let path = directory.path().join("text");
    std::fs::write(&path, "something else\n".repeat(1000)).unwrap();
    assert!(open_error(&path).await.contains("not a session file"));
    assert!(std::fs::read(&path).unwrap().starts_with(b"something else"), "the file is unchanged");
}

#[tokio::test]
async fn a_file_that_lost_its_content_is_rejected_and_not_recreated() {
    let directory = directory();
    let path = directory.path().join("sessions");
    let backend = open(&directory).await;
    backend.create(&id("s"), NewSession::default()).await.unwrap();
    drop(backend);
    let intact = std::fs::read(&path).unwrap();
    for len in [0, 1, 8, 9, 100, 511, 512, 4096, intact.len() / 2, intact.len() - 1] {
        std::fs::write(&path, &intact[..len]).unwrap();
        let error = open_error(&path).await;
        assert_eq!(
            len == 0,
            error.contains("it is empty, so its sessions are lost; restore it"),
            "{len}: {error}"
        );
        assert!(std::fs::read(&path).unwrap() == intact[..len], "{len}: the file is unchanged");
    }
    // A file system may replace unsynced data with zeros after a power failure.
    for len in [1, 512, 4096, 100_000, intact.len()] {
        std::fs::write(&path, vec![0; len]).unwrap();
        open_error(&path).await;
    }
    std::fs::write(&path, &intact).unwrap();
    open(&directory).await.get(&id("s")).await.unwrap();
}

#[tokio::test]
async fn a_new_file_appears_complete_and_replaces_nothing() {
    let directory = directory();
    let path = directory.path().join("sessions");
    let names = || std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name());
    drop(open(&directory).await);
    assert_eq!(names().collect::<Vec<_>>(), ["sessions"], "nothing is left of the creation");
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }
    std::fs::remove_file(&path).unwrap();

    // A crash while the file is created leaves an unfinished file, which the next start ignores.
    std::fs::write(directory.path().join(format!("{}1", open::UNFINISHED_PREFIX)), "").unwrap();
    drop(open(&directory).await);
    std::fs::remove_file(&path).unwrap();

    // Another host creates the file while this one does.
    let other = path.clone();
    let created_twice = open::open(
        &path,
        &SessionLimits::default(),
        |file| {
            std::fs::write(&other, "of the other host").unwrap();
            file
        },
        None,
    );
    let error = error_chain(&created_twice.err().unwrap()).to_string();
    assert!(error.contains("another process created it at the same time"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"of the other host");
    assert_eq!(names().count(), 2, "the unfinished file is removed");
}

#[tokio::test]
async fn a_deleted_or_replaced_file_rejects_writes_until_it_is_restored() {
    let directory = directory();
    let (path, moved) = (directory.path().join("sessions"), directory.path().join("moved"));
    let backend = open(&directory).await;
    backend.create(&id("s"), NewSession::default()).await.unwrap();
    register(&backend, "s", "x").await.unwrap();
    let mut watch = backend.watch_variables(&id("s"), &[], false).await.unwrap();
    std::fs::rename(&path, &moved).unwrap();
    let error = set(&backend, "s", "x", 1).await.unwrap_err();
    assert!(matches!(error, SessionError::NotWritten { .. }), "{error:?}");
    let open_error = error.to_string();
    assert!(open_error.contains("deleted") && open_error.contains(path.to_str().unwrap()), "{open_error}");
    std::fs::copy(&moved, &path).unwrap();
    let open_error = set(&backend, "s", "x", 1).await.unwrap_err().to_string();
    assert!(open_error.contains("replaced"), "{open_error}");
    assert_eq!(backend.variable(&id("s"), "x").await.unwrap().version, 0, "reads continue");
    std::fs::rename(&moved, &path).unwrap();
    assert_eq!(set(&backend, "s", "x", 1).await.unwrap(), 1);
    assert!(watch.next().await.unwrap().is_ok(), "watches continue");
}

#[tokio::test]
async fn an_overwritten_or_truncated_file_rejects_all_operations() {
    type Damage = fn(&Path, &Path);
    let damages: [(&str, Damage); 4] = [
        ("overwritten", |path, copy| assert!(std::fs::copy(copy, path).unwrap() > 0)),
        ("emptied", |path, _| set_len(path, 0)),
        ("cut", |path, _| set_len(path, 4096)),
        ("extended", |path, _| set_len(path, std::fs::metadata(path).unwrap().len() + 1)),
    ];
    for (damaged, damage) in damages {
        let directory = directory();
        let (path, copy) = (directory.path().join("sessions"), directory.path().join("copy"));
        let backend = open(&directory).await;
        backend.create(&id("s"), NewSession::default()).await.unwrap();
        register(&backend, "s", "x").await.unwrap();
        set(&backend, "s", "x", 1).await.unwrap();
        drop(backend);
        std::fs::copy(&path, &copy).unwrap();

        let backend = open(&directory).await;
        let mut watch = backend.watch_variables(&id("s"), &[], false).await.unwrap();
        set(&backend, "s", "x", 2).await.unwrap();
        assert!(watch.next().await.unwrap().is_ok());
        damage(&path, &copy);
        let damaged_bytes = std::fs::read(&path).unwrap();
        for _ in 0..2 {
            let error = error_chain(&set(&backend, "s", "x", 3).await.unwrap_err()).to_string();
            assert!(error.contains("overwrote or truncated"), "{damaged}: {error}");
            let error = error_chain(&backend.variable(&id("s"), "x").await.unwrap_err()).to_string();
            assert!(error.contains("overwrote or truncated"), "{damaged}: {error}");
        }
        assert!(watch.next().await.unwrap().is_err(), "{damaged}: the watch ends");
        drop(backend);
        assert!(
            std::fs::read(&path).unwrap() == damaged_bytes,
            "{damaged}: the backend does not write to the file"
        );
        std::fs::copy(&copy, &path).unwrap();
        let backend = open(&directory).await;
        assert_eq!(backend.variable(&id("s"), "x").await.unwrap().version, 1, "{damaged}");
    }
}

fn set_len(path: &Path, len: u64) {
    std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(len).unwrap();
}
