//! Kills hosts during writes. Acknowledged writes must be in the file, partial ones must not, and the next host must continue.
//!
//! The host is another process of this program. It prints each acknowledged write to standard output, and is killed after some of
//! them, while others are in progress.
#![allow(clippy::unwrap_used, reason = "everything here is a test")]

use std::{
    collections::BTreeMap,
    hash::{BuildHasher, RandomState},
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use snakepit_session::{ProgramName, SessionId, SessionLimits, VariableName};
use snakepit_session_redb::RedbBackend;

mod check;
mod host;

/// The number of hosts to kill.
const HOSTS: usize = 24;
/// The maximum number of acknowledgements before the kill.
const MAX_ACKNOWLEDGEMENTS: usize = 400;
/// The environment variable that names the file of the host.
const FILE_VARIABLE: &str = "SNAKEPIT_TEST_SESSIONS";

/// The number of acknowledged writes, by name.
type Acknowledged = BTreeMap<String, u32>;

fn id(text: &str) -> SessionId {
    SessionId::try_new(text).unwrap()
}

fn variable_name(text: &str) -> VariableName {
    VariableName::try_new(text).unwrap()
}

fn program_name(text: &str) -> ProgramName {
    ProgramName::try_new(text).unwrap()
}

async fn open(path: &Path) -> RedbBackend {
    RedbBackend::open(path, SessionLimits::default()).await.unwrap()
}

/// The entry point of the host process. It is a test only so that the test binary can start it, and does nothing unless
/// `FILE_VARIABLE` is set.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_that_is_killed() {
    if let Some(path) = std::env::var_os(FILE_VARIABLE) {
        host::write_forever(open(path.as_ref()).await).await;
    }
}

#[allow(clippy::disallowed_methods, reason = "not a worker")]
fn start(path: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["host_that_is_killed", "--exact", "--nocapture"])
        .env(FILE_VARIABLE, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Runs a host and kills it after this number of acknowledgements.
fn kill_after(path: &Path, limit: usize, acknowledged: &mut Acknowledged) {
    let mut host = start(path);
    let mut count = 0;
    acknowledged.retain(|name, _| !name.starts_with(host::SHORT_LIVED_PREFIX));
    for line in BufReader::new(host.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        // libtest also prints, sometimes on the same line before the acknowledgement.
        let Some((_, acknowledgement)) = line.split_once(host::ACKNOWLEDGED) else { continue };
        let (name, value) = acknowledgement.rsplit_once(' ').unwrap();
        // Tasks that share a name may print their counts out of order.
        let known = acknowledged.entry(name.to_owned()).or_default();
        *known = value.parse::<u32>().unwrap().max(*known);
        count += 1;
        if count == limit {
            host.kill().unwrap();
        }
    }
    host.wait().unwrap();
    assert!(count >= limit, "the host exited after {count} of {limit} writes");
}

#[tokio::test]
async fn acknowledged_writes_survive_the_host() {
    let directory = tempfile::tempdir().unwrap();
    let (path, copy) = (directory.path().join("sessions"), directory.path().join("copy"));
    let mut acknowledged = Acknowledged::new();
    for host in 0..HOSTS {
        let limit = 1 + RandomState::new().hash_one(host) as usize % MAX_ACKNOWLEDGEMENTS;
        kill_after(&path, limit, &mut acknowledged);
        // After every second host, check a copy. The next host then opens the file exactly as the killed host left it.
        let checked = if host % 2 == 0 { &path } else { &copy };
        if checked == &copy {
            std::fs::copy(&path, &copy).unwrap();
        }
        let backend = open(checked).await;
        check::check(&backend, &mut acknowledged).await;
    }
    for name in ["alone-0", "together", "program", "global", "changing"] {
        assert!(acknowledged[name] > 0, "{name} was not written");
    }
}
