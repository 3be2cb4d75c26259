//! Opens the files of earlier versions in `tests/formats`.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::path::Path;

use snakepit_session::SessionLimits;
use snakepit_session_redb::RedbBackend;
use snakepit_session_testkit::sample;

/// All folders, oldest first.
const FORMATS: [&str; 1] = ["1"];

#[tokio::test]
async fn files_of_earlier_versions_are_opened() {
    let formats = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/formats");
    for format in FORMATS {
        for (name, last_worker) in [("closed.redb", Some("default-0-1")), ("killed.redb", None)] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("sessions");
            std::fs::copy(formats.join(format).join(name), &path).unwrap();
            let backend = RedbBackend::open(path, SessionLimits::default()).await.unwrap();
            sample::check(&backend, last_worker).await;
        }
    }
}
