//! `cargo xtask check msrv`: compiles every crate with the oldest supported compiler.

use anyhow::{Context, Result};

use crate::{
    setup,
    shell::{self, root},
    tools::Toolchain,
};

pub(crate) fn run() -> Result<()> {
    let version = rust_version()?;
    let installation = format!("rustup toolchain install {version} --profile minimal");
    let toolchain = Toolchain::find(&version, &["--version"], &installation)?;
    let python = setup::environment()?.python;
    let mut check = toolchain.cargo();
    check.args([
        "check",
        "--quiet",
        "--locked",
        "--workspace",
        "--all-targets",
        "--target-dir",
        "target/msrv",
    ]);
    shell::run(check.env("PYO3_PYTHON", python))
}

/// The `rust-version` of the workspace.
pub(crate) fn rust_version() -> Result<String> {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).context("cannot read Cargo.toml")?;
    let line = manifest.lines().find_map(|line| line.strip_prefix("rust-version = \""));
    Ok(line.context("Cargo.toml has no rust-version")?.trim_end_matches('"').to_owned())
}
