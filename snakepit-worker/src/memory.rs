//! Measures the memory of processes.

/// The private memory of a process, in bytes: its anonymous pages in memory and in swap. `None` if there is no such process, and
/// where /proc does not exist.
pub(crate) fn private_memory(pid: u32) -> Option<u64> {
    private_memory_in(&std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

/// Reads the private memory from the text of proc(5)'s `status`.
fn private_memory_in(status: &str) -> Option<u64> {
    let field = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        let kibibytes: u64 = value.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
        Some(kibibytes * 1024)
    };
    // A zombie has no memory, and kernels without swap do not list it.
    Some(field("RssAnon")? + field("VmSwap").unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anonymous_pages_count_in_memory_and_in_swap() {
        let status = "Name:\tRssAnon: 1 kB\nVmRSS:\t  9000 kB\nRssAnon:\t    1024 kB\nRssFile:\t  8 kB\nVmSwap:\t 16 kB\n";
        assert_eq!(private_memory_in(status), Some((1024 + 16) * 1024));
        assert_eq!(private_memory_in("RssAnon:\t 4 kB\n"), Some(4096));
        assert_eq!(private_memory_in("State:\tZ (zombie)\n"), None);
        assert_eq!(private_memory_in("RssAnon:\t many kB\n"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn an_allocation_raises_the_private_memory() {
        let before = private_memory(std::process::id()).unwrap();
        // The pages count once they are written.
        let block = vec![1_u8; 64 << 20];
        let after = private_memory(std::process::id()).unwrap();
        assert!(after - before >= 60 << 20, "{before} to {after}");
        drop(block);
    }
}
