//! `cargo xtask package`: builds the packages of the published crates, and checks their contents.

use std::{collections::BTreeSet, path::PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    manifests::PUBLISHED,
    shell::{cargo, output, program, root, run as sh, step},
};

/// The files that every package contains.
const REQUIRED: [&str; 5] = ["Cargo.toml", "Cargo.toml.orig", "README.md", "LICENSE-MIT", "LICENSE-APACHE"];

/// The other directories and files that may be at the top of a package.
const ALLOWED: [&str; 9] = [
    ".cargo_vcs_info.json",
    "Cargo.lock",
    "benches",
    "examples",
    "proptest-regressions",
    "proto",
    "src",
    "tests",
    "build.rs",
];

/// The maximum size of a package, in bytes. crates.io rejects packages larger than 10 MiB.
const MAX_BYTES: u64 = 2 * 1024 * 1024;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Also compile each package from its own files.
    #[arg(long)]
    full: bool,
}

impl Args {
    /// Without a compilation of the packages, which takes seconds instead of minutes.
    pub(crate) const fn without_build() -> Self {
        Self { full: false }
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let version = version()?;
    step("package the published crates", || {
        let mut package = cargo();
        package.args(["package", "--quiet", "--locked", "--allow-dirty"]);
        if !args.full {
            package.arg("--no-verify");
        }
        for (name, ..) in PUBLISHED {
            package.args(["--package", name]);
        }
        sh(&mut package)
    })?;
    let mut found = Vec::new();
    for (name, ..) in PUBLISHED {
        let file = root().join(format!("target/package/{name}-{version}.crate"));
        let files = contents(&file, &format!("{name}-{version}"))?;
        found.extend(problems(&files).into_iter().map(|problem| format!("{name}: {problem}")));
        let bytes = std::fs::metadata(&file).context("cannot read a package")?.len();
        if bytes > MAX_BYTES {
            found.push(format!("{name}: has {bytes} bytes, more than {MAX_BYTES}"));
        }
    }
    if !found.is_empty() {
        bail!("{}", found.join("\n"));
    }
    Ok(())
}

/// The version of the workspace.
fn version() -> Result<String> {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).context("cannot read Cargo.toml")?;
    let line = manifest.lines().find_map(|line| line.strip_prefix("version = \""));
    Ok(line.context("Cargo.toml has no version")?.trim_end_matches('"').to_owned())
}

/// The paths of the files in a package, without the directory that contains all of them.
fn contents(file: &PathBuf, directory: &str) -> Result<BTreeSet<String>> {
    let listed = output(program("tar").arg("--list").arg("--gzip").arg("--file").arg(file))?;
    let prefix = format!("{directory}/");
    let files: BTreeSet<String> =
        listed.lines().filter_map(|line| line.strip_prefix(&prefix)).map(str::to_owned).collect();
    ensure!(files.len() == listed.lines().count(), "{} has files outside of {directory}", file.display());
    Ok(files)
}

fn problems(files: &BTreeSet<String>) -> Vec<String> {
    let missing = REQUIRED.iter().filter(|file| !files.contains(**file)).map(|file| format!("lacks {file}"));
    let is_known = |file: &&String| {
        let top = file.split('/').next().unwrap_or_default();
        REQUIRED.contains(&top) || ALLOWED.contains(&top)
    };
    let unknown = files.iter().filter(|file| !is_known(file)).map(|file| format!("must not contain {file}"));
    missing.chain(unknown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_has_its_licenses_and_only_sources() {
        let files = |extra: &[&str]| {
            REQUIRED.iter().chain(extra).map(|file| (*file).to_owned()).collect::<BTreeSet<String>>()
        };
        assert_eq!(problems(&files(&["src/lib.rs", "tests/a/b.rs", "Cargo.lock"])), Vec::<String>::new());
        assert_eq!(problems(&files(&["target/debug/a"])), ["must not contain target/debug/a"]);
        assert_eq!(problems(&files(&["redb/src/lib.rs"])), ["must not contain redb/src/lib.rs"]);
        let mut incomplete = files(&["src/lib.rs"]);
        incomplete.remove("LICENSE-MIT");
        assert_eq!(problems(&incomplete), ["lacks LICENSE-MIT"]);
    }
}
