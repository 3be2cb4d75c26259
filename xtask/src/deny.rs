//! `cargo xtask check deny` and `check advisories`: the rules of `deny.toml`, which cargo-deny enforces.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};

use crate::{
    shell::{self, program, root, try_output},
    tools::DENY,
};

/// Positive controls: a string of `deny.toml`, the rule that must fail without the string, and the expected error.
const CONTROLS: [(&str, &str, &str); 2] = [
    (r#"wrappers = ["snakepit-session-redb"], "#, "bans", "crate 'redb = "),
    (r#"    "Zlib","#, "licenses", "failed to satisfy license requirements"),
];

/// Checks the rules that need no network: bans, licenses and sources.
pub(crate) fn run() -> Result<()> {
    let deny = DENY.install()?;
    let config = root().join("deny.toml");
    shell::run(&mut check(&deny, &config, &["bans", "licenses", "sources"]))?;

    let text = fs::read_to_string(&config).context("cannot read deny.toml")?;
    let folder = root().join("target/tools");
    // Installing does not create a folder if cargo-deny is already on PATH.
    fs::create_dir_all(&folder).context("cannot create target/tools")?;
    let altered = folder.join("deny-control.toml");
    for (removed, rule, expected) in CONTROLS {
        ensure!(text.contains(removed), "this check is broken: deny.toml does not contain `{removed}`");
        fs::write(&altered, text.replacen(removed, "", 1)).context("cannot write the altered deny.toml")?;
        let outcome = try_output(&mut check(&deny, &altered, &[rule]))?;
        let report = String::from_utf8_lossy(&outcome.stderr);
        ensure!(
            !outcome.status.success() && report.contains(expected),
            "this check is broken: without `{removed}` it does not report \"{expected}\":\n{report}"
        );
    }
    Ok(())
}

/// Checks dependencies against a database of known vulnerabilities, which cargo-deny fetches from GitHub.
pub(crate) fn advisories() -> Result<()> {
    let deny = DENY.install()?;
    shell::run(&mut check(&deny, &root().join("deny.toml"), &["advisories"])).context(
        "a dependency has an advisory, or the database at github.com/RustSec is out of reach; see above",
    )
}

fn check(deny: &Path, config: &Path, rules: &[&str]) -> Command {
    let mut command = program(deny);
    command.arg("--config").arg(config).args(["check", "--deny", "warnings"]).args(rules);
    command
}
