//! Derives the number of connections from the limit of file descriptors, which workers, files and the program also need.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors reserved for the process itself.
const RESERVED: usize = 64;
/// Descriptors reserved for each worker and for the replacement that may start before the old worker ends: pipes, sockets in both
/// directions, and files that a launch opens.
const RESERVED_PER_WORKER: usize = 12;
/// The minimum for the process: the descriptors of a host without clients, and a few for clients.
const MIN_DESCRIPTORS: usize = 28;
/// The minimum for each worker.
const MIN_PER_WORKER: usize = 8;
/// The largest default number of TCP connections.
const MAX_DEFAULT_CONNECTIONS: usize = 10_000;
/// The highest limit that [`raise_descriptor_limit`] sets. Some programs close every possible descriptor when they start, which takes
/// long with a higher limit.
const MAX_RAISED_LIMIT: u64 = 1 << 20;

/// The default number of TCP connections for a host with this many workers, derived from the process's limit of descriptors. The
/// Unix socket accepts half as many in addition.
#[must_use]
pub fn default_connections(workers: usize) -> usize {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    connections_for(usize::try_from(limit).unwrap_or(usize::MAX), workers)
}

/// Checks that the limit of descriptors allows a host with this many workers to start, replace a worker, and serve a few clients.
///
/// # Errors
/// A message with the limit and the required number.
pub(crate) fn check_descriptor_limit(workers: usize) -> Result<(), String> {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
    check_limit(usize::try_from(limit).unwrap_or(usize::MAX), workers)
}

fn check_limit(descriptors: usize, workers: usize) -> Result<(), String> {
    let needed = MIN_DESCRIPTORS + MIN_PER_WORKER * workers;
    if descriptors >= needed {
        return Ok(());
    }
    Err(format!(
        "the limit of open files is {descriptors}, and a pool of {workers} needs {needed}; raise it with `ulimit -n`, or run \
         fewer workers"
    ))
}

fn connections_for(descriptors: usize, workers: usize) -> usize {
    let available = descriptors.saturating_sub(RESERVED + RESERVED_PER_WORKER * workers);
    // With the Unix socket, one and a half times this number may be open, and a few more while evicted connections close.
    (available / 2).clamp(4, MAX_DEFAULT_CONNECTIONS)
}

/// Raises the process's soft limit of open descriptors to the hard limit, but to at most 1,048,576. This is for programs that
/// only run a host, such as the daemon. Child processes inherit the limit.
///
/// # Errors
/// The system call failed. The limit is then unchanged.
pub fn raise_descriptor_limit() -> std::io::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let target = hard.min(MAX_RAISED_LIMIT);
    if soft < target {
        setrlimit(Resource::RLIMIT_NOFILE, target, hard)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_number_of_connections_leaves_descriptors_for_workers() {
        for (descriptors, workers) in [(256, 4), (1024, 4), (1024, 64), (65_536, 1024), (1 << 20, 4)] {
            let most = connections_for(descriptors, workers) * 3 / 2;
            assert!(
                most + RESERVED / 2 + RESERVED_PER_WORKER * workers <= descriptors,
                "{descriptors} {workers}: {most}"
            );
        }
        assert_eq!(connections_for(usize::MAX, 1), MAX_DEFAULT_CONNECTIONS);
        assert_eq!(connections_for(64, 1024), 4);
        assert_eq!(check_limit(256, 4), Ok(()));
        assert_eq!(check_limit(36, 1), Ok(()));
        let problem = check_limit(20, 1).unwrap_err();
        assert!(problem.starts_with("the limit of open files is 20, and a pool of 1 needs 36;"), "{problem}");
    }
}
