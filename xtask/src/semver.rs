//! `cargo xtask semver`: compares the public API of the published libraries with that of an earlier commit.

use anyhow::{Context, Result};

use crate::{
    manifests::PUBLISHED,
    shell::{output, program, root, run as sh, step},
    tools::SEMVER_CHECKS,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The commit, branch or tag to compare with; by default the last tag.
    #[arg(long, value_name = "REV")]
    baseline: Option<String>,
    /// Succeed if there is neither a baseline nor a tag.
    #[arg(long)]
    if_tagged: bool,
    /// Compare only these crates.
    #[arg(value_name = "CRATE")]
    crates: Vec<String>,
}

/// Installs cargo-semver-checks in `target/tools`, and runs it with the commit as the baseline.
pub(crate) fn run(args: &Args) -> Result<()> {
    let baseline = match &args.baseline {
        Some(baseline) => baseline.clone(),
        None => {
            let tag = output(program("git").args(["describe", "--tags", "--abbrev=0"]));
            if args.if_tagged && tag.is_err() && output(program("git").arg("tag"))?.trim().is_empty() {
                println!("the repository has no tag yet; nothing to compare");
                return Ok(());
            }
            tag.context("there is no tag; name a commit with --baseline")?.trim().to_owned()
        }
    };
    let tool = SEMVER_CHECKS.install()?;
    let libraries = PUBLISHED.iter().filter(|(_, _, is_library)| *is_library).map(|(name, ..)| *name);
    let mut check = program(tool);
    check.args(["semver-checks", "--baseline-rev", &baseline]);
    // The tool builds the rustdoc of two commits, so it gets a separate target directory.
    check.env("CARGO_TARGET_DIR", root().join("target/semver"));
    for name in
        libraries.filter(|name| args.crates.is_empty() || args.crates.iter().any(|other| other == name))
    {
        check.args(["--package", name]);
    }
    step(&format!("compare the public API with {baseline}"), || sh(&mut check))
}
