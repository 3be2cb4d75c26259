//! How many connections a process can afford: workers, files and the program itself need descriptors too.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors that connections leave to the process itself, and to each worker, with the replacement that may start while
/// the old one ends: pipes, sockets in both directions, files of its start.
const OWN: usize = 64;
const PER_WORKER: usize = 12;
/// The least that works: descriptors that a host without clients has open, a few for clients, and those of each worker.
const LEAST_OWN: usize = 28;
const LEAST_PER_WORKER: usize = 8;
/// As many connections are enough for any host.
const MOST: usize = 10_000;
/// No descriptor limit is raised above this: programs that workers start may walk through all descriptors there can be.
const HIGHEST: u64 = 1 << 20;

/// How many TCP connections a host with so many workers serves by default, by the process's limit of descriptors. Half as
/// many again are for its Unix socket.
#[must_use]
pub fn default_connections(workers: usize) -> usize {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    connections(usize::try_from(limit).unwrap_or(usize::MAX), workers)
}

/// Checks that a host with so many workers has enough descriptors to start, replace a worker, and serve a few clients.
///
/// # Errors
/// What the limit is, and what it must be.
pub(crate) fn check_descriptor_limit(workers: usize) -> Result<(), String> {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
    enough(usize::try_from(limit).unwrap_or(usize::MAX), workers)
}

fn enough(descriptors: usize, workers: usize) -> Result<(), String> {
    let least = LEAST_OWN + LEAST_PER_WORKER * workers;
    if descriptors >= least {
        return Ok(());
    }
    Err(format!(
        "the limit of open files is {descriptors}, and a pool of {workers} needs {least}; raise it with `ulimit -n`, or run \
         fewer workers"
    ))
}

fn connections(descriptors: usize, workers: usize) -> usize {
    let left = descriptors.saturating_sub(OWN + PER_WORKER * workers);
    // Three halves of this number may be open, and some more while others close.
    (left / 2).clamp(4, MOST)
}

/// Raises the process's soft limit of open descriptors to the hard one: for programs that are a host and nothing else,
/// such as the daemon. Processes that it starts inherit the limit.
///
/// # Errors
/// Those of the system. The limit is then as it was.
pub fn raise_descriptor_limit() -> std::io::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = hard.min(HIGHEST);
    if soft < wanted {
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_keep_their_descriptors() {
        for (descriptors, workers) in [(256, 4), (1024, 4), (1024, 64), (65_536, 1024), (1 << 20, 4)] {
            let most = connections(descriptors, workers) * 3 / 2;
            assert!(most + OWN / 2 + PER_WORKER * workers <= descriptors, "{descriptors} {workers}: {most}");
        }
        assert_eq!(connections(usize::MAX, 1), MOST);
        assert_eq!(connections(64, 1024), 4);
        assert_eq!(enough(256, 4), Ok(()));
        assert_eq!(enough(36, 1), Ok(()));
        let problem = enough(20, 1).unwrap_err();
        assert!(problem.starts_with("the limit of open files is 20, and a pool of 1 needs 36;"), "{problem}");
    }
}
