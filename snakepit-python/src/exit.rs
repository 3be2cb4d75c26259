//! [`exit_now`]: exits the process without cleanup.

/// Exits without running destructors, exit handlers or Python's finalization, which would wait for a running tool.
#[allow(unsafe_code)]
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` does not take a pointer or touch memory of this process.
    unsafe { nix::libc::_exit(code) }
}
