//! Builds wheels for many Linux distributions: zig links against the C library of the oldest one.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use super::{DAEMON_VARIABLE, build};
use crate::{
    lock,
    setup::{self, Environment},
    shell::{self, output, program, root},
};

/// The build tools, in the versions that are known to work together.
const TOOLS: [&str; 4] =
    ["auditwheel==6.8.2", "cargo-zigbuild==0.24.1", "maturin==1.16.0", "ziglang==0.17.1"];

/// A Linux target with one C library, for which wheels are built.
#[derive(Debug, Clone, Copy)]
pub(super) struct LibcTarget {
    /// The tag of wheels, without the architecture.
    tag: &'static str,
    /// The suffix of the Rust target name.
    target: &'static str,
    /// The version of the C library, as a suffix of the target for zig.
    library: &'static str,
}

pub(super) const MANYLINUX: LibcTarget =
    LibcTarget { tag: "manylinux_2_28", target: "unknown-linux-gnu", library: ".2.28" };
pub(super) const MUSLLINUX: LibcTarget =
    LibcTarget { tag: "musllinux_1_2", target: "unknown-linux-musl", library: "" };

/// Returns the environment with the build tools in `target/tools/wheel`.
pub(super) fn environment() -> Result<Environment> {
    setup::tool_environment(&root().join("target/tools/wheel"), &TOOLS)
}

impl LibcTarget {
    /// Builds the daemon and the wheel. Returns the path of the wheel, after auditwheel has confirmed its tag.
    pub(super) fn build(
        self,
        environment: &Environment,
        python: Option<&Path>,
        directory: &Path,
    ) -> Result<PathBuf> {
        let target = format!("{}-{}", std::env::consts::ARCH, self.target);
        let mut daemon = program(environment.tool("cargo-zigbuild"));
        daemon.args([
            "rustc",
            "--quiet",
            "--release",
            "--locked",
            "--package",
            "snakepit-cli",
            "--bin",
            "snakepit",
        ]);
        daemon.args(["--target", &format!("{target}{}", self.library), "--", "-C", "strip=symbols"]);
        shell::run(daemon.env("PATH", environment.path()?))?;

        let daemon = lock::target_directory().join(target.as_str()).join("release/snakepit").into_os_string();
        let arguments = format!("--zig --target {target} --compatibility {}", self.tag);
        let variables =
            [(DAEMON_VARIABLE, daemon.as_os_str()), ("MATURIN_PEP517_ARGS", OsStr::new(&arguments))];
        let wheel = build(environment, &root(), python, directory, &variables)?;
        let result = self.check_tag(environment, &wheel);
        if result.is_err() {
            // Removes the wheel, so that a developer cannot publish it by mistake.
            fs::remove_file(&wheel).with_context(|| format!("cannot remove {}", wheel.display()))?;
        }
        result.map(|()| wheel)
    }

    /// Checks that neither the native module nor the daemon in the wheel needs more than the tag of the wheel promises.
    fn check_tag(self, environment: &Environment, wheel: &Path) -> Result<()> {
        let name = wheel.file_stem().unwrap_or_default().to_string_lossy();
        ensure!(
            name.ends_with(&format!("{}_{}", self.tag, std::env::consts::ARCH)),
            "the tag of {name} is not {}",
            self.tag
        );
        let report = output(program(environment.tool("auditwheel")).args(["show", "--json"]).arg(wheel))?;
        let report: serde_json::Value =
            serde_json::from_str(&report).context("auditwheel printed no JSON")?;
        let found = report["overall_tag"].as_str().unwrap_or_default();
        ensure!(
            is_within(found, self.tag),
            "{name} needs more than {} provides: its symbols are those of `{found}`; auditwheel found\n{report:#}",
            self.tag
        );
        println!("    auditwheel: consistent with {found}");
        Ok(())
    }
}

/// Whether systems with the tag `allowed` also provide everything of the tag `found`, which ends with an architecture.
fn is_within(found: &str, allowed: &str) -> bool {
    let parse = |tag: &str| {
        let mut parts = tag.splitn(4, '_').map(str::to_owned);
        let family = parts.next()?;
        Some((family, parts.next()?.parse::<u32>().ok()?, parts.next()?.parse::<u32>().ok()?))
    };
    match (parse(found), parse(allowed)) {
        (Some((family, major, minor)), Some((allowed_family, allowed_major, allowed_minor))) => {
            family == allowed_family && (major, minor) <= (allowed_major, allowed_minor)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wheel_may_need_an_older_library_than_its_tag() {
        for found in ["manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux_2_5_aarch64"] {
            assert!(is_within(found, MANYLINUX.tag), "{found}");
        }
        for found in
            ["manylinux_2_34_x86_64", "manylinux_3_1_x86_64", "musllinux_1_2_x86_64", "linux_x86_64", ""]
        {
            assert!(!is_within(found, MANYLINUX.tag), "{found}");
        }
        assert!(is_within("musllinux_1_2_x86_64", MUSLLINUX.tag));
    }
}
