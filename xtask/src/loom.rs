//! `cargo xtask check loom`: model checks of hand-written synchronization, in every order in which threads can run.

use anyhow::{Result, ensure};

use crate::shell::{self, cargo, output, root};

/// The crates with models. Each has a module `sync`, which replaces primitives of the standard library by loom's.
const CRATES: [&str; 3] = ["snakepit-registry", "snakepit-wire", "snakepit-pool"];

pub(crate) fn run() -> Result<()> {
    // A compiler wrapper sets `cfg(loom)` for the crates of the workspace only. In RUSTFLAGS, it would also reach tokio, which
    // leaves out processes and signals under that flag, and all dependencies would have to be built again.
    let wrapper = root().join("xtask/loom-rustc");
    let models = |package: &str, args: &[&str]| {
        let mut test = cargo();
        test.args(["test", "--quiet", "--lib", "-p", package, "loom_", "--"]).args(args);
        test.env("RUSTC_WORKSPACE_WRAPPER", &wrapper);
        test
    };
    for package in CRATES {
        let list = output(&mut models(package, &["--list", "--format", "terse"]))?;
        ensure!(list.contains(": test"), "this check is broken: {package} has no model");
        shell::run(&mut models(package, &[]))?;
    }
    Ok(())
}
