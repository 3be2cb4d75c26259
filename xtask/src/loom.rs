//! `cargo xtask check loom`: model checks of hand-written synchronization, in every possible interleaving of threads.

use anyhow::{Result, ensure};

use crate::shell::{self, cargo, output, root};

/// The modules of all models. Each crate with models has a module `sync`, which replaces primitives of the standard
/// library with loom's.
const MODELS: [&str; 5] = [
    "registry::models::",
    "mux::serving::credit::models::",
    "driver::models::",
    "listen::budget::models::",
    "listen::use_count::models::",
];

pub(crate) fn run() -> Result<()> {
    // A compiler wrapper sets `cfg(loom)` for the crates of the workspace only. In RUSTFLAGS, it would also reach
    // tokio, which omits processes and signals under that flag. This command tests all default members together, so
    // cargo builds their dependencies with the same features as for the other tests and reuses those builds.
    let models = |args: &[&str]| {
        let mut test = cargo();
        test.args(["test", "--quiet", "--lib", "loom_", "--"]).args(args);
        test.env("RUSTC_WORKSPACE_WRAPPER", root().join("xtask/loom-rustc"));
        test
    };
    let list = output(&mut models(&["--list", "--format", "terse"]))?;
    for module in MODELS {
        let is_built = list.lines().any(|line| line.starts_with(module));
        ensure!(is_built, "this check is broken: cargo does not list the models in `{module}`");
    }
    shell::run(&mut models(&[]))
}
