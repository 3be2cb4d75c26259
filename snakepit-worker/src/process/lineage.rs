//! Decides whether a process belongs to a worker's launch, and finds the process at the other end of a TCP connection.

use std::net::SocketAddr;

#[cfg(target_os = "linux")]
use super::os_process::Stat;

/// The maximum number of ancestors to follow.
#[cfg(target_os = "linux")]
const MAX_ANCESTORS: usize = 64;

/// Whether a process belongs to the launch whose worker process is `leader`. A process belongs to it in any of these cases:
///
/// - It is in the leader's process group.
/// - The leader is one of its ancestors.
/// - The leader is an ancestor of the leader of its process group or session. This covers workers that a shell or `setsid`
///   starts in another group or session.
///
/// A daemonized process does not belong to any launch.
pub(super) fn belongs_to_launch(pid: u32, leader: Leader) -> bool {
    Lineage::of(pid, leader.start_time).includes(leader)
}

/// The process that a launch started.
#[derive(Debug, Clone, Copy)]
pub(super) struct Leader {
    pub(super) pid: u32,
    /// In clock ticks since boot. 0 if it is unknown.
    pub(super) start_time: u64,
}

impl Leader {
    pub(super) fn new(pid: u32) -> Self {
        Self { pid, start_time: super::os_process::start_time(pid).unwrap_or(0) }
    }
}

/// The possible leaders of the launch that a process [belongs to](belongs_to_launch). Computed once, and then compared with the
/// leaders of all launches.
pub(super) struct Lineage(Vec<u32>);

impl Lineage {
    /// Finds the leaders that started at `oldest_start` or later, in clock ticks since boot. Reading `/proc` is slow, and an
    /// older process descends from none of them.
    pub(super) fn of(pid: u32, oldest_start: u64) -> Self {
        use nix::unistd::{Pid, getpgid, getsid};

        // To `getpgid`, pid 0 means the calling process, which is the host.
        let Some(process) = i32::try_from(pid).ok().filter(|pid| *pid > 0).map(Pid::from_raw) else {
            return Self(Vec::new());
        };
        let pid_of = |process: Result<Pid, _>| process.ok().map(|process| process.as_raw().cast_unsigned());
        let mut lineage = vec![pid];
        let group_and_session_leaders = [pid_of(getpgid(Some(process))), pid_of(getsid(Some(process)))];
        add_ancestors(&mut lineage, pid, oldest_start);
        for leader in group_and_session_leaders.into_iter().flatten() {
            if !lineage.contains(&leader) {
                lineage.push(leader);
                add_ancestors(&mut lineage, leader, oldest_start);
            }
        }
        Self(lineage)
    }

    pub(super) fn includes(&self, leader: Leader) -> bool {
        leader.pid != 0 && self.0.contains(&leader.pid)
    }
}

/// Adds the ancestors of a process, up to the first one that the list contains already or that is older than `oldest_start`.
#[cfg(target_os = "linux")]
fn add_ancestors(lineage: &mut Vec<u32>, pid: u32, oldest_start: u64) {
    let mut pid = pid;
    for _ in 0..MAX_ANCESTORS {
        let Some(stat) = Stat::of(pid).filter(|stat| stat.start_time >= oldest_start) else { return };
        if stat.parent <= 1 || lineage.contains(&stat.parent) {
            return;
        }
        lineage.push(stat.parent);
        pid = stat.parent;
    }
}

#[cfg(not(target_os = "linux"))]
fn add_ancestors(_: &mut Vec<u32>, _: u32, _: u64) {}

/// Whether a process of `leader`'s launch holds the peer end of a TCP connection, accepted at `local` from `peer`.
///
/// Only Linux exposes the owner of a connection. Other systems accept every process of the machine, as the documentation of
/// `Builder::worker_command` warns.
#[cfg(target_os = "linux")]
pub(super) fn owns_connection(leader: Leader, peer: SocketAddr, local: SocketAddr) -> bool {
    let sockets = sockets(peer, Some(local));
    // Checks the leader first, because it usually is the worker.
    has_socket(leader.pid, &sockets)
        || (!sockets.is_empty()
            && processes()
                .any(|pid| pid != leader.pid && has_socket(pid, &sockets) && belongs_to_launch(pid, leader)))
}

/// Returns the `/proc` names of this user's sockets that may be the peer end of a TCP connection from `peer`. There is at most
/// one if `local` is known, the address at which the connection was accepted.
#[cfg(target_os = "linux")]
pub(super) fn sockets(peer: SocketAddr, local: Option<SocketAddr>) -> Vec<String> {
    linux::socket_inodes(peer, local).into_iter().map(|inode| format!("socket:[{inode}]")).collect()
}

#[cfg(not(target_os = "linux"))]
pub(super) const fn sockets(_: SocketAddr, _: Option<SocketAddr>) -> Vec<String> {
    Vec::new()
}

/// Whether a process has one of these sockets open.
#[cfg(target_os = "linux")]
pub(super) fn has_socket(pid: u32, sockets: &[String]) -> bool {
    sockets.iter().any(|socket| linux::has_descriptor(pid, socket))
}

#[cfg(not(target_os = "linux"))]
pub(super) const fn has_socket(_: u32, _: &[String]) -> bool {
    false
}

/// Returns the pids of all processes. Empty on systems other than Linux.
#[cfg(target_os = "linux")]
pub(super) fn processes() -> impl Iterator<Item = u32> {
    linux::processes()
}

#[cfg(not(target_os = "linux"))]
pub(super) fn processes() -> impl Iterator<Item = u32> {
    std::iter::empty()
}

#[cfg(not(target_os = "linux"))]
pub(super) fn owns_connection(_: Leader, _: SocketAddr, _: SocketAddr) -> bool {
    true
}

#[cfg(target_os = "linux")]
mod linux {
    use std::{
        fs,
        net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    };

    /// The inodes of this user's sockets with these addresses, or with any remote address.
    pub(super) fn socket_inodes(local: SocketAddr, remote: Option<SocketAddr>) -> Vec<u64> {
        let user = nix::unistd::geteuid().as_raw();
        // An IPv6 socket may carry IPv4 traffic, as those of gRPC's C core do.
        let tables = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];
        let text = tables.into_iter().filter_map(|table| fs::read_to_string(table).ok()).collect::<String>();
        let (local, remote) = (canonical(local), remote.map(canonical));
        let rows = text.lines().filter_map(SocketRow::parse).filter(|row| {
            row.local == local && remote.is_none_or(|remote| row.remote == remote) && row.user == user
        });
        rows.map(|row| row.inode).collect()
    }

    fn canonical(address: SocketAddr) -> (IpAddr, u16) {
        (address.ip().to_canonical(), address.port())
    }

    /// A row of `/proc/net/tcp`.
    #[derive(Debug, PartialEq)]
    pub(super) struct SocketRow {
        pub(super) local: (IpAddr, u16),
        pub(super) remote: (IpAddr, u16),
        pub(super) user: u32,
        pub(super) inode: u64,
    }

    impl SocketRow {
        pub(super) fn parse(line: &str) -> Option<Self> {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let field = |index: usize| fields.get(index).copied();
            Some(Self {
                local: address(field(1)?)?,
                remote: address(field(2)?)?,
                user: field(7)?.parse().ok()?,
                inode: field(9)?.parse().ok()?,
            })
        }
    }

    /// Parses an address as the kernel prints it: each 32-bit word as a hexadecimal number in native byte order.
    fn address(text: &str) -> Option<(IpAddr, u16)> {
        let (ip, port) = text.split_once(':')?;
        let word = |index: usize| {
            let digits = ip.get(index * 8..index * 8 + 8)?;
            u32::from_str_radix(digits, 16).ok().map(u32::to_ne_bytes)
        };
        let ip = match ip.len() {
            8 => IpAddr::from(Ipv4Addr::from(word(0)?)),
            32 => {
                let mut bytes = [0; 16];
                for (index, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                    chunk.copy_from_slice(&word(index)?);
                }
                IpAddr::from(Ipv6Addr::from(bytes)).to_canonical()
            }
            _ => return None,
        };
        Some((ip, u16::from_str_radix(port, 16).ok()?))
    }

    /// The pids of all processes.
    pub(super) fn processes() -> impl Iterator<Item = u32> {
        let entries = fs::read_dir("/proc").into_iter().flatten();
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
    }

    /// Whether a process has a file descriptor that links to `link`. False for processes of other users, which are unreadable.
    pub(super) fn has_descriptor(pid: u32, link: &str) -> bool {
        let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
        entries.flatten().any(|entry| fs::read_link(entry.path()).is_ok_and(|to| to.as_os_str() == link))
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
#[allow(clippy::disallowed_methods, reason = "stand-ins for workers")]
mod tests {
    use std::{
        io::{BufRead, BufReader, Read},
        net::TcpListener,
        os::unix::process::CommandExt,
        process::{Child, Command, Stdio},
    };

    use super::*;

    /// A Python program that connects and waits for end-of-file on its input.
    const CONNECT_PROGRAM: &str =
        "import socket, sys; s = socket.create_connection(('127.0.0.1', int(sys.argv[1]))); sys.stdin.read()";

    struct KilledOnDrop(Child);

    impl Drop for KilledOnDrop {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// A process that is not a child of this process.
    struct OrphanKilledOnDrop(u32);

    impl Drop for OrphanKilledOnDrop {
        fn drop(&mut self) {
            use nix::{sys::signal, unistd::Pid};

            let _ = signal::kill(Pid::from_raw(self.0.cast_signed()), signal::Signal::SIGKILL);
        }
    }

    /// Starts a command as a process group leader, and returns whether `leader`, or the command itself, owns the connection
    /// that it opens.
    fn owns_new_connection(command: &[&str], leader: Option<u32>) -> bool {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let local = listener.local_addr().unwrap();
        let mut program = Command::new(command[0]);
        program.args(&command[1..]).args(["python3", "-c", CONNECT_PROGRAM, &local.port().to_string()]);
        let child = KilledOnDrop(program.process_group(0).stdin(Stdio::piped()).spawn().unwrap());
        let (_connection, peer) = listener.accept().unwrap();
        owns_connection(Leader::new(leader.unwrap_or_else(|| child.0.id())), peer, local)
    }

    #[test]
    fn a_worker_owns_its_connection_through_wrappers() {
        for wrapper in [
            &["env"][..],
            &["sh", "-c", "\"$@\" <&0; :", "sh"],
            &["sh", "-c", "setsid \"$@\" <&0; :", "sh"],
            &["setsid", "--wait"],
            &["sh", "-c", "sh -c 'setsid setsid --wait \"$@\" <&0; :' sh \"$@\" <&0; :", "sh"],
        ] {
            assert!(owns_new_connection(wrapper, None), "{wrapper:?}");
        }
    }

    #[test]
    fn other_processes_of_the_user_do_not_own_a_workers_connection() {
        let worker = Command::new("cat").process_group(0).stdin(Stdio::piped()).spawn().unwrap();
        let worker = KilledOnDrop(worker);
        assert!(!owns_new_connection(&["env"], Some(worker.0.id())));
        // The host does not belong to the launch either, although the worker descends from it.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let local = listener.local_addr().unwrap();
        let _ours = std::net::TcpStream::connect(local).unwrap();
        let (_connection, peer) = listener.accept().unwrap();
        assert!(!owns_connection(Leader::new(worker.0.id()), peer, local));
        assert!(owns_connection(Leader::new(std::process::id()), peer, local));
    }

    #[test]
    fn a_closed_connection_has_no_owner() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let local = listener.local_addr().unwrap();
        drop(std::net::TcpStream::connect(local).unwrap());
        let (mut connection, peer) = listener.accept().unwrap();
        assert_eq!(connection.read(&mut [0]).unwrap(), 0);
        assert!(!owns_connection(Leader::new(std::process::id()), peer, local));
    }

    #[test]
    fn a_daemonized_process_does_not_belong_to_its_launch() {
        let mut command = Command::new("sh");
        // The shell's child exits, so its own child becomes an orphan in a new session. The shell prints "ended" then.
        command
            .args(["-c", "(setsid sh -c 'echo $$; exec cat >/dev/null' <&0 &); echo ended; cat >/dev/null"]);
        let shell = command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut shell = KilledOnDrop(shell);
        let lines = BufReader::new(shell.0.stdout.take().unwrap()).lines().take(2);
        let lines: Vec<String> = lines.collect::<Result<_, _>>().unwrap();
        let orphan = lines.iter().find_map(|line| line.parse().ok()).unwrap();
        let _orphan = OrphanKilledOnDrop(orphan);
        assert!(lines.iter().any(|line| line == "ended"), "{lines:?}");
        let leader = Leader::new(shell.0.id());
        assert!(!belongs_to_launch(orphan, leader));
        assert!(belongs_to_launch(leader.pid, leader) && !belongs_to_launch(std::process::id(), leader));
        // To the kernel, pid 0 means the calling process.
        let own_group = Leader::new(nix::unistd::getpgrp().as_raw().cast_unsigned());
        assert!(belongs_to_launch(std::process::id(), own_group));
        assert!(!belongs_to_launch(0, own_group) && !belongs_to_launch(0, Leader::new(0)));
    }

    #[test]
    fn the_search_stops_at_processes_that_are_older_than_the_launches() {
        let child = KilledOnDrop(Command::new("cat").stdin(Stdio::piped()).spawn().unwrap());
        let pid = child.0.id();
        let Stat { parent, start_time, .. } = Stat::of(pid).unwrap();
        assert_eq!(parent, std::process::id());
        let all = Lineage::of(pid, 0);
        assert!(all.0.contains(&pid) && all.0.contains(&parent));
        // The child shares the group and the session of this process, so their leaders are candidates, but not their ancestors.
        let young = Lineage::of(pid, start_time + 1);
        assert!(young.0.len() <= 3 && young.0.contains(&pid), "{:?}", young.0);
        assert!(Lineage::of(pid, start_time).0.contains(&parent));
    }

    #[test]
    fn rows_of_the_kernel_are_parsed() {
        let row = "   1: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000  1000        0 12345 1 x";
        let row = linux::SocketRow::parse(row).unwrap();
        let localhost = std::net::IpAddr::from([127, 0, 0, 1]);
        assert_eq!((row.local, row.remote), ((localhost, 8080), (localhost, 50000)));
        assert_eq!((row.user, row.inode), (1000, 12345));
        let mapped =
            "0: 0000000000000000FFFF00000100007F:1F90 00000000000000000000000001000000:0001 01 0 0 0 0 0 7";
        let row = linux::SocketRow::parse(mapped).unwrap();
        assert_eq!(row.local, (localhost, 8080));
        assert_eq!(row.remote, (std::net::Ipv6Addr::LOCALHOST.into(), 1));
        for invalid in [
            "",
            "sl local_address rem_address st tx_queue rx_queue tr tm->when retrnsmt uid timeout inode",
            "1: x:y",
        ] {
            assert_eq!(linux::SocketRow::parse(invalid), None, "{invalid}");
        }
    }
}
