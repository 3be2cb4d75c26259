//! Programs that checks need and that few machines have: cargo extensions, and other toolchains.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::shell::{self, cargo, output, program, root, step, try_output};

/// A cargo extension in one version, so that all machines run the same rules.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extension {
    pub(crate) name: &'static str,
    pub(crate) version: &'static str,
}

pub(crate) const DENY: Extension = Extension { name: "cargo-deny", version: "0.20.2" };
pub(crate) const SEMVER_CHECKS: Extension = Extension { name: "cargo-semver-checks", version: "0.51.0" };
pub(crate) const FUZZ: Extension = Extension { name: "cargo-fuzz", version: "0.13.2" };

impl Extension {
    /// Returns the path of the program. Builds it in `target/tools` if this version is not installed.
    pub(crate) fn install(self) -> Result<PathBuf> {
        let tools = root().join("target/tools");
        let built = tools.join("bin").join(self.name);
        let mut candidates = [built.clone(), PathBuf::from(self.name)].into_iter();
        if let Some(found) = candidates.find(|candidate| self.is_version_of(candidate)) {
            return Ok(found);
        }
        let Self { name, version } = self;
        step(&format!("build {name} {version} in target/tools (a minute or two, once)"), || {
            let mut install = cargo();
            // Without optimization, the tool builds in a third of the time and still runs in seconds.
            install.args(["install", "--quiet", "--locked", "--debug", "--force"]);
            install.args([&format!("{name}@{version}"), "--root"]).arg(&tools);
            install.arg("--target-dir").arg(tools.join("build")).env("CARGO_PROFILE_DEV_DEBUG", "0");
            shell::run(&mut install)?;
            std::fs::remove_dir_all(tools.join("build")).context("cannot remove the build of the tool")
        })?;
        Ok(built)
    }

    fn is_version_of(self, candidate: &Path) -> bool {
        let version = try_output(program(candidate).arg("--version"));
        version.is_ok_and(|output| {
            let text = String::from_utf8_lossy(&output.stdout);
            output.status.success() && text.split_whitespace().nth(1) == Some(self.version)
        })
    }
}

/// A cargo of another toolchain.
#[derive(Debug, Clone)]
pub(crate) struct Toolchain(String);

impl Toolchain {
    /// Finds a toolchain that runs `cargo ARGS`.
    ///
    /// # Errors
    /// If it cannot, with `installation` as the fix.
    pub(crate) fn find(name: &str, args: &[&str], installation: &str) -> Result<Self> {
        let toolchain = Self(name.to_owned());
        let result = output(toolchain.cargo().args(args));
        ensure!(
            result.is_ok(),
            "this check needs `cargo {}` of the toolchain {name}; install it with `{installation}`",
            args.join(" ")
        );
        Ok(toolchain)
    }

    pub(crate) fn cargo(&self) -> Command {
        self.program(Path::new("cargo"))
    }

    /// A command of a program for which `cargo` and `rustc` are those of this toolchain.
    pub(crate) fn program(&self, name: &Path) -> Command {
        let mut rustup = program("rustup");
        rustup.args(["run", &self.0]).arg(name);
        rustup
    }
}
