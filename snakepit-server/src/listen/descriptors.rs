//! How many connections a process can afford: workers, files and the program itself need descriptors too.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors that connections leave to the process itself, and to each worker, with the replacement that may start while
/// the old one ends: pipes, sockets in both directions, files of its start.
const OWN: usize = 64;
const PER_WORKER: usize = 12;
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
    }
}
