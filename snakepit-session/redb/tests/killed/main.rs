//! Hosts that are killed while they write: what they acknowledged is in the file, nothing is there by half, and the next
//! one goes on where they were.
//!
//! The host is this program once more. It tells each write that was acknowledged on its standard output, and is killed
//! after some of them, always while others are under way.
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

/// How many hosts die.
const HOSTS: usize = 24;
/// The most acknowledgements that one lives for.
const MOST: usize = 400;
/// Tells the host which file to use.
const FILE: &str = "SNAKEPIT_TEST_SESSIONS";

/// How often what was written to, as far as that was acknowledged.
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

/// Not a test but the host, for those who name a file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_that_is_killed() {
    if let Some(path) = std::env::var_os(FILE) {
        host::write_for_ever(open(path.as_ref()).await).await;
    }
}

#[allow(clippy::disallowed_methods, reason = "it is no worker")]
fn start(path: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["host_that_is_killed", "--exact", "--nocapture"])
        .env(FILE, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Lets a host live for so many acknowledgements.
fn kill_after(path: &Path, most: usize, acknowledged: &mut Acknowledged) {
    let mut host = start(path);
    let mut seen = 0;
    acknowledged.retain(|what, _| !what.starts_with(host::COUNTS_ANEW));
    for line in BufReader::new(host.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        // The test harness has something to say as well, at times before it on the same line.
        let Some((_, did)) = line.split_once(host::DID) else { continue };
        let (what, count) = did.rsplit_once(' ').unwrap();
        // Tasks that write the same may tell it in another order.
        let known = acknowledged.entry(what.to_owned()).or_default();
        *known = count.parse::<u32>().unwrap().max(*known);
        seen += 1;
        if seen == most {
            host.kill().unwrap();
        }
    }
    host.wait().unwrap();
    assert!(seen >= most, "the host ended by itself after {seen} of {most} writes");
}

#[tokio::test]
async fn what_was_acknowledged_outlives_the_host() {
    let directory = tempfile::tempdir().unwrap();
    let (path, copy) = (directory.path().join("sessions"), directory.path().join("copy"));
    let mut acknowledged = Acknowledged::new();
    for host in 0..HOSTS {
        let most = 1 + RandomState::new().hash_one(host) as usize % MOST;
        kill_after(&path, most, &mut acknowledged);
        // Half of the hosts find the file as the one before them left it.
        let found = if host % 2 == 0 { &path } else { &copy };
        if found == &copy {
            std::fs::copy(&path, &copy).unwrap();
        }
        let backend = open(found).await;
        check::check(&backend, &mut acknowledged).await;
    }
    for what in ["alone-0", "together", "program", "global", "changing"] {
        assert!(acknowledged[what] > 0, "all kinds of writes took part");
    }
}
